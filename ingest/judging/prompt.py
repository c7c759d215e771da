"""The prompt that asks for a grade: a text with places for a query and for a passage."""

import re
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from two_tower.models.errors import ConfigError
from two_tower.models.files import read_prompt_text

SHIPPED = Path(__file__).parent / "prompts" / "grades.txt"

PLACES = ("{query}", "{passage}")
PLACE = re.compile("|".join(map(re.escape, PLACES)))


class GradePrompt(NamedTuple):
    """What a language model is given for each query and passage.

    Attributes:
        name: `grades`, or the file.
        text: with `{query}` and `{passage}` once each; other braces mean nothing.
    """

    name: str
    text: str

    def fill(self, query: str, passage: str) -> str:
        """Return the prompt; each text is on one line, and cannot begin a further example."""
        texts = dict(zip(PLACES, (" ".join(t.split()) for t in (query, passage)), strict=True))
        return PLACE.sub(lambda place: texts[place[0]], self.text)

    def about(self) -> dict[str, str]:
        """Return what the manifest says of it."""
        digest = sha256(self.text.encode()).hexdigest()[:16]
        return {"name": self.name, "digest": digest, "text": self.text}


def read_grade_prompt(path: Path | None) -> GradePrompt:
    """Return the prompt of a file, or the shipped one.

    Raises:
        ConfigError: the file cannot be read, or does not have each place once.
    """
    try:
        text = read_prompt_text(path or SHIPPED).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the prompt {path} cannot be read as UTF-8 text ({error})") from None
    for place in PLACES:
        if (count := text.count(place)) != 1:
            raise ConfigError(f"the prompt {path} has {place} {count} times, expected once")
    return GradePrompt(str(path) if path else SHIPPED.stem, text)
