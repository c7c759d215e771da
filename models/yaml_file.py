"""Configurations in files: YAML without what is dangerous or surprising in it."""

import re
from pathlib import Path
from typing import Any

import yaml

from two_tower.models.errors import ConfigError
from two_tower.models.files import read_limited

LARGEST_YAML = 2**20

LONGEST_REASON = 300


class _Loader(yaml.SafeLoader):
    """YAML in which 5e-3 is a number; YAML 1.1 asks for 5.0e-3.

    Aliases are refused: a few of them, one within the other, are gigabytes.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Return the next node."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"an alias in line {mark.line + 1}; write it out")
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"), [*"-+.0123456789"]
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping (an empty file is an empty mapping).

    Raises:
        ConfigError: the file is missing, is not YAML or is not a mapping.
    """
    try:
        text = read_limited(Path(path), LARGEST_YAML).decode("utf-8-sig")
        content = yaml.load(text, _Loader)
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file at {path}") from None
    except (OSError, ValueError, RecursionError, OverflowError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        raise ConfigError(f"{path} cannot be read as YAML ({reason})") from None
    if not isinstance(content, dict | None):
        raise ConfigError(f"{path} holds a {type(content).__name__}, expected keys and values")
    return content or {}
