"""What a report must reach: `mrr@10>=.8`, for a build that is to fail where it does not."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from two_tower.models.errors import ConfigError
from two_tower.retriever.evaluation.evaluate import Report
from two_tower.retriever.evaluation.measures import MEASURES

FORM = re.compile(r"(?:(?P<system>[^:\s]+):)?(?P<measure>[a-z0-9@]+)\s*>=\s*(?P<least>\d*\.?\d+)")


class Requirement(NamedTuple):
    """The least that a measure may be.

    Attributes:
        system: whose; None for the last one of the report, the engine as a search uses it.
        measure: its name in reports.
        least: in [0, 1].
    """

    system: str | None
    measure: str
    least: float


def read_requirement(text: str, systems: Sequence[str]) -> Requirement:
    """Read `[SYSTEM:]MEASURE>=NUMBER`.

    Args:
        text: as it was typed.
        systems: what will be measured.

    Raises:
        ConfigError: it has another form, or nobody will measure that.
    """
    match = FORM.fullmatch(text.strip())
    if match is None or float(match["least"]) > 1:
        raise ConfigError(
            f"the requirement is {text!r}, expected a measure and the least it may be, up to 1, "
            "such as 'mrr@10>=0.8' or 'bm25:recall@10>=0.9'"
        )
    if match["measure"] not in MEASURES:
        raise ConfigError(
            f"the requirement {text!r} is about {match['measure']}, expected one of "
            f"{', '.join(MEASURES)}"
        )
    if match["system"] is not None and match["system"] not in systems:
        raise ConfigError(
            f"the requirement {text!r} is about {match['system']}, which is not measured; "
            f"expected one of {', '.join(systems)}"
        )
    return Requirement(match["system"], match["measure"], float(match["least"]))


def misses(report: Report, requirements: Sequence[Requirement]) -> list[str]:
    """Return a sentence for each requirement that the report does not meet."""
    rows = {row.system: row for row in report.systems}
    sentences = []
    for system, measure, least in requirements:
        row = rows[system or report.systems[-1].system]
        if (value := row.metrics[measure]) < least:
            sentences.append(f"{row.system} has {measure} {value:.4f}, required {least:g} or more")
    return sentences
