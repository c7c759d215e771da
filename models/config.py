"""Configurations: frozen pydantic dataclasses whose refusals are one line of this project.

    @configuration("cross")
    class CrossConfig:
        epochs: int = Field(default=0, ge=0)

`CrossConfig(epochs=-1)` and `from_mapping(TrainConfig, {"cross": {"epoch": 1}})` raise

    ConfigError: cross.epochs is -1, expected 0 or more
    ConfigError: unknown configuration key cross.epoch; did you mean cross.epochs?
"""

import dataclasses
import difflib
import json
import reprlib
import types
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic.fields import FieldInfo

from two_tower.models.errors import ConfigError

C = TypeVar("C")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def configuration(section: str = "") -> Callable[[type[C]], type[C]]:
    """Make a class a frozen dataclass that checks its values.

    Types are strict, bounds are `Field(ge=…)`, an unknown key is refused; every refusal is a
    `ConfigError` with the key, the value and what was expected. `section` stands before the keys
    in messages. `replace`, `asdict` and `__post_init__` are those of any dataclass.
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
                where = f"{section}." if section else ""
                raise ConfigError(refusal(error.errors()[0], model, where)) from None

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
    try:
        # As JSON: only there do strict types take a list for a tuple and a mapping for a class.
        return TypeAdapter(owner).validate_json(json.dumps(mapping, default=str))
    except ValidationError as error:
        raise ConfigError(refusal(error.errors()[0], owner, where)) from None
    except (TypeError, ValueError, RecursionError) as error:  # no JSON: odd keys, a circle, depth
        raise ConfigError(f"{where or 'it'} cannot be read ({str(error)[:200]})") from None


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


TYPES = {
    **{"int": "int", "float": "float", "bool": "bool", "string": "str"},
    **{"finite": "a finite number", "tuple": "a list of integers"},
}
"""First word of pydantic's name of an error -> what was expected."""

SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 120  # a message is one line
SHORT.maxlevel = 3

LONGEST_REFUSAL = 1000

LIMITS = {"ge": "ge", "gt": "gt", "le": "le", "lt": "lt", "min_length": "ge", "max_length": "le"}
"""A rule of pydantic -> the kind of its limit."""

BOUNDS = {
    **{"ge": "{ge} or more", "gt": "above {gt}", "le": "at most {le}", "lt": "below {lt}"},
    **{"ge le": "{ge} to {le}", "gt lt": "between {gt} and {lt}"},
    **{"ge lt": "{ge} or more and below {lt}", "gt le": "above {gt} and at most {le}"},
}
"""A field's bounds as pydantic names them, sorted -> what was expected."""


def refusal(first: Mapping[str, Any], owner: Any, where: str) -> str:
    """Return one of pydantic's complaints about an `owner` as a sentence of ours."""
    return _refusal(first, owner, where)[:LONGEST_REFUSAL]


def _refusal(first: Mapping[str, Any], owner: Any, where: str) -> str:
    path = [part for part in first["loc"] if isinstance(part, str)]
    if first["loc"] and isinstance(first["loc"][0], int):  # an argument without its name
        path = [dataclasses.fields(owner)[first["loc"][0]].name, *path]
    *sections, key = path or [""]
    for section in sections:
        owner = _without_none(get_type_hints(owner)[section])
    prefix = where + "".join(f"{section}." for section in sections)
    name = f"{prefix}{key}".removesuffix(".")
    if first["type"] == "missing":
        return f"{name} is missing"
    fields = getattr(owner, "__pydantic_fields__", {})  # a plain mapping has none
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        nearest = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
        advice = f"did you mean {prefix}{nearest[0]}?" if nearest else f"known: {', '.join(fields)}"
        noun = "key" if first["type"] == "extra_forbidden" else "configuration key"
        return f"unknown {noun} {name}; {advice}"
    return f"{name} is {SHORT.repr(first['input'])}, expected {_expected(first, fields.get(key))}"


def _expected(error: Any, field: Any) -> str:
    """Return what pydantic expects of a field, in our words."""
    kind: str = error["type"]
    context = error.get("ctx", {})
    optional = get_args(field.annotation) if field else ()  # of Annotated[int, Field(…)] | None
    inner = [rule for hint in optional for rule in getattr(hint, "__metadata__", ())]
    field = next((rule for rule in inner if isinstance(rule, FieldInfo)), field)
    if kind in ("string_pattern_mismatch", "string_too_long") and field and field.description:
        return str(field.description)
    is_length = kind.endswith(("_too_short", "too_long"))
    if is_length or kind.startswith(("greater_than", "less_than")):
        bounds = dict(context)  # has only the bound passed
        for rule in field.metadata if field else ():
            bounds |= {name: getattr(rule, name) for name in LIMITS if hasattr(rule, name)}
        limits = {limit: bounds[name] for name, limit in LIMITS.items() if name in bounds}
        unit = " characters" if kind.startswith("string") else " values"
        return BOUNDS[" ".join(sorted(limits))].format(**limits) + (unit if is_length else "")
    if kind == "literal_error":
        return str(context["expected"]).replace(", ", " or ")
    return TYPES.get(kind.partition("_")[0], "keys and values")


def _without_none(hint: Any) -> Any:
    """Return the configuration in `Config | None`."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(arg for arg in get_args(hint) if arg is not type(None))
    return hint
