"""Prompts: a text with examples and one place for the passage; two ship, more are files."""

from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from two_tower.models.errors import ConfigError
from two_tower.models.files import read_prompt_text

FOLDER = Path(__file__).parent / "prompts"

PLACE = "{passage}"


class Prompt(NamedTuple):
    """What a language model is given for each passage.

    Attributes:
        name: `web`, `claims`, or the name of a file.
        text: with `{passage}` once; other braces mean nothing.
    """

    name: str
    text: str

    def fill(self, passage: str) -> str:
        """Return the prompt for a passage, on one line: it cannot begin a further example."""
        return self.text.replace(PLACE, " ".join(passage.split()))

    @property
    def digest(self) -> str:
        """16 hex digits of the text."""
        return sha256(self.text.encode()).hexdigest()[:16]


def prompt_names() -> list[str]:
    """Return the names of the shipped prompts, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.txt"))


def read_prompt(name: str) -> Prompt:
    """Return a shipped prompt, or that of a text file.

    Raises:
        ConfigError: there is none, it is no text, or it does not say once where the passage goes.
    """
    path = FOLDER / f"{name}.txt" if name in prompt_names() else Path(name)
    try:
        text = read_prompt_text(path).strip()
    except FileNotFoundError:
        known = ", ".join(prompt_names())
        raise ConfigError(f"no prompt is named {name!r}; expected a text file or {known}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the prompt {name} cannot be read as UTF-8 text ({error})") from None
    if (count := text.count(PLACE)) != 1:
        raise ConfigError(f"the prompt {name} has {PLACE} {count} times, expected once")
    return Prompt(name, text)
