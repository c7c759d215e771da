"""Recipes that ship with the package, and how a configuration is put together."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from two_tower.models.config import from_mapping, with_values
from two_tower.models.errors import ConfigError
from two_tower.models.yaml_file import read_yaml

if TYPE_CHECKING:
    from two_tower.models.training.config import TrainConfig

FOLDER = Path(__file__).parent.parent / "recipes"


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_config(config: str | None, flags: Mapping[str, Any]) -> "TrainConfig":
    """Return a configuration from a file or recipe name, and dotted flags that win over it.

    Args:
        config: path of a YAML file, or a name from `recipe_names`; None for the defaults.
        flags: dotted key -> value; None leaves the key as it is.

    Raises:
        ConfigError: there is no such file or recipe, a key is unknown or a value impossible.
    """
    from two_tower.models.training.config import TrainConfig

    values: dict[str, Any] = {}
    if config in recipe_names():
        values = read_yaml(FOLDER / f"{config}.yaml")
    elif config is not None and Path(config).suffix in (".yaml", ".yml"):
        values = read_yaml(config)
    elif config is not None:
        known = ", ".join(recipe_names())
        raise ConfigError(f"no recipe is named {config!r}; expected a YAML file or one of: {known}")
    return from_mapping(TrainConfig, with_values(values, flags))
