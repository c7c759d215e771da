"""Configurations: frozen dataclasses from nested mappings; an unknown key names the nearest."""

import difflib
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from two_tower.models.errors import ConfigError

C = TypeVar("C")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping (an empty file is an empty mapping).

    Raises:
        ConfigError: the file is missing, is not YAML or is not a mapping.
    """
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file at {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} cannot be read as YAML ({reason})") from None
    if not isinstance(found, dict | None):
        raise ConfigError(f"{path} holds a {type(found).__name__}, expected keys and values")
    return found or {}


def from_mapping(owner: type[C], mapping: Mapping[str, Any], *, where: str = "") -> C:
    """Make a (nested) configuration dataclass of plain values.

    Args:
        owner: the dataclass.
        mapping: its keys and values; a missing key keeps the default.
        where: dotted path of the mapping, for messages.

    Raises:
        ConfigError: a key is unknown or a value is of the wrong type.
    """
    hints = get_type_hints(owner)
    known = [field.name for field in fields(owner)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if key not in known:
            raise ConfigError(_unknown_key(str(key), known, where))
        values[key] = _converted(hints[key], value, f"{where}{key}")
    return owner(**values)


def with_values(mapping: Mapping[str, Any], dotted: Mapping[str, Any]) -> dict[str, Any]:
    """Return `mapping` with dotted keys set (`tower.dim`), leaving out those that are None."""
    result = {k: dict(v) if isinstance(v, Mapping) else v for k, v in mapping.items()}
    for key, value in dotted.items():
        if value is None:
            continue
        *sections, last = key.split(".")
        target: dict[str, Any] = result
        for section in sections:
            inner = target.setdefault(section, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{section} is {inner!r}, expected keys and values")
            target = inner
        target[last] = value
    return result


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _unknown_key(key: str, known: list[str], where: str) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    advice = f"did you mean {where}{near[0]}?" if near else f"known: {', '.join(known)}"
    return f"unknown configuration key {where}{key}; {advice}"


def _converted(hint: Any, value: Any, name: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if is_dataclass(hint) and isinstance(value, Mapping):
        return from_mapping(hint, value, where=f"{name}.")  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        return None if value is None else _converted(args[0], value, name)
    if origin is Literal and value in args:
        return value
    if origin is Mapping and isinstance(value, Mapping):
        return {str(k): _converted(args[1], v, f"{name}.{k}") for k, v in value.items()}
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_converted(args[0], item, name) for item in value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    if hint is float and isinstance(value, str) and _is_number(value):
        return float(value)  # YAML 1.1 reads 5e-3 as a string
    expected = " or ".join(map(repr, args)) if origin is Literal else _type_name(hint)
    raise ConfigError(f"{name} is {value!r}, expected {expected}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _type_name(hint: Any) -> str:
    if is_dataclass(hint) or get_origin(hint) is Mapping:
        return "keys and values"
    return "a list of integers" if get_origin(hint) is tuple else str(hint.__name__)


def check_least(section: str, config: object, **least: float) -> None:
    """Refuse a value that is below the least one of its name.

    Raises:
        ConfigError: so it is; the message names the section.
    """
    for name, bound in least.items():
        if not getattr(config, name) >= bound:
            found = getattr(config, name)
            raise ConfigError(f"{section}.{name} is {found}, expected {bound} or more")


def check_positive(section: str, config: object, *names: str) -> None:
    """Refuse a value that is not above zero.

    Raises:
        ConfigError: so it is; the message names the section.
    """
    for name in names:
        if not getattr(config, name) > 0:
            raise ConfigError(f"{section}.{name} is {getattr(config, name)}, expected above 0")
