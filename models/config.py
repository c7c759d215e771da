"""Configurations: frozen pydantic dataclasses whose refusals are one line of this project."""

import dataclasses
import difflib
import json
import re
import types
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from two_tower.models.errors import ConfigError

C = TypeVar("C")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def configuration(section: str = "") -> Callable[[type[C]], type[C]]:
    """Make a class a frozen dataclass that checks its values.

    Types are strict, bounds are `Field(ge=…)`, an unknown key is refused; every refusal is a
    `ConfigError` with the key, the value and what was expected. `replace`, `asdict` and
    `__post_init__` are those of any dataclass.

    Args:
        section: the keys' prefix in messages where the class is not part of another.
    """

    def decorate(owner: type[C]) -> type[C]:
        strict = ConfigDict(strict=True, extra="forbid")
        model: Any = pydantic_dataclass(owner, frozen=True, config=strict)
        validate = model.__init__

        @wraps(validate)
        def init(self: C, *args: Any, **values: Any) -> None:
            try:
                validate(self, *args, **values)
            except ValidationError as error:
                raise ConfigError(
                    _refusal(error, model, f"{section}." if section else "")
                ) from None

        model.__init__ = init
        return model  # type: ignore[no-any-return]

    return decorate


def from_mapping(owner: type[C], mapping: Mapping[str, Any], *, where: str = "") -> C:
    """Make a (nested) configuration of plain values.

    Args:
        owner: its class.
        mapping: its keys and values; a missing key keeps the default.
        where: dotted path of the mapping, for messages.

    Raises:
        ConfigError: a key is unknown, a value is of the wrong type or out of bounds.
    """
    try:  # as JSON, for strict types take a mapping and a list there
        return TypeAdapter(owner).validate_json(json.dumps(mapping, default=str))
    except ValidationError as error:
        raise ConfigError(_refusal(error, owner, where)) from None


class _Loader(yaml.SafeLoader):
    """YAML in which 5e-3 is a number; YAML 1.1 asks for 5.0e-3."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"), [*"-+.0123456789"]
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping (an empty file is an empty mapping).

    Raises:
        ConfigError: the file is missing, is not YAML or is not a mapping.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file at {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} cannot be read as YAML ({reason})") from None
    if not isinstance(content, dict | None):
        raise ConfigError(f"{path} holds a {type(content).__name__}, expected keys and values")
    return content or {}


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


def _refusal(error: ValidationError, owner: type, where: str) -> str:
    """Return the first of pydantic's complaints as a sentence of ours."""
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"] if not isinstance(part, int)]
    if first["loc"] and isinstance(first["loc"][0], int):  # an argument without its name
        path = [dataclasses.fields(owner)[first["loc"][0]].name, *path]
    name = (where + ".".join(path)).removesuffix(".")
    if first["type"] == "missing":
        return f"{name} is missing"
    if first["type"] == "unexpected_keyword_argument":
        section: Any = owner
        for part in path[:-1]:
            section = _section(get_type_hints(section)[part])
        known = [field.name for field in dataclasses.fields(section)]
        advice = key_advice(path[-1], known, where=name.removesuffix(path[-1]))
        return f"unknown configuration key {name}; {advice}"
    return f"{name} is {first['input']!r}, expected {_expected(first, owner, path)}"


def key_advice(key: str, known: Collection[str], *, where: str) -> str:
    """Return the key that an unknown one is nearest to, or all that are known."""
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {where}{nearest[0]}?" if nearest else f"known: {', '.join(known)}"


TYPES = {
    **{"int": "int", "float": "float", "bool": "bool", "string": "str"},
    "finite": "a finite number",
}


def _expected(error: Any, owner: type, path: list[str]) -> str:
    """Return what pydantic expects instead, in our words."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        return _bounds(owner, path, context)
    if kind in ("string_pattern_mismatch", "string_too_long"):
        return str(_field(owner, path).description)
    if kind == "literal_error":
        return str(context["expected"]).replace(", ", " or ")
    if kind == "tuple_type":
        return "a list of integers"
    return TYPES.get(kind.partition("_")[0], "keys and values")


def _bounds(owner: Any, path: list[str], context: Mapping[str, Any]) -> str:
    """Return the bounds of a field: 1 or more, above 0, 0 to 1, between 0 and 1."""
    field = _field(owner, path)
    limits = {k: v for k, v in context.items() if k in ("ge", "gt", "le", "lt")}
    for rule in field.metadata if field else ():
        limits |= {k: getattr(rule, k) for k in ("ge", "gt", "le", "lt") if hasattr(rule, k)}
    if "ge" in limits and "le" in limits:
        return f"{limits['ge']} to {limits['le']}"
    if "gt" in limits and "lt" in limits:
        return f"between {limits['gt']} and {limits['lt']}"
    words = {"ge": "{} or more", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
    return " and ".join(words[rule].format(limit) for rule, limit in limits.items())


def _field(owner: Any, path: list[str]) -> Any:
    """Return the field at a path; None for a key of a plain mapping."""
    for part in path[:-1]:
        owner = _section(get_type_hints(owner)[part])
    return getattr(owner, "__pydantic_fields__", {}).get(path[-1])


def _section(hint: Any) -> Any:
    """Return the configuration in `Config | None`."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(arg for arg in get_args(hint) if arg is not type(None))
    return hint
