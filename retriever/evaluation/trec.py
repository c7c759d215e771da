"""TREC run files: `query_id Q0 passage_id rank score tag`, which other tools read as well.

Written with tabs, so that an id may hold a space; read with tabs or spaces. The score of a written
line counts down from the length of the list: it says the order, in which the stages of a search may
disagree with any one score.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from two_tower.models.errors import DataError
from two_tower.retriever.evaluation.measures import Rankings

COLUMNS = "query_id Q0 passage_id rank score tag"

BREAKS = ("\t", "\n", "\r")


class _Line(NamedTuple):
    query_id: str
    passage_id: str
    rank: int
    score: float


def write_run(path: Path, rankings: Rankings, *, tag: str) -> None:
    """Write rankings as a run file.

    Raises:
        DataError: an id holds a tab or a line break.
    """
    lines = []
    for query_id, ranking in rankings.items():
        for rank, passage_id in enumerate(ranking, 1):
            if any(mark in name for mark in BREAKS for name in (query_id, passage_id)):
                raise DataError(
                    f"{path} cannot hold the ids {query_id!r} and {passage_id!r}; "
                    "expected no tab and no line break in them"
                )
            score = len(ranking) + 1 - rank
            lines.append(f"{query_id}\tQ0\t{passage_id}\t{rank}\t{score}\t{tag}\n")
    path.write_text("".join(lines), encoding="utf-8")


def read_run(path: Path) -> dict[str, list[str]]:
    """Return query_id -> passage ids, by falling score; ties by the rank that the line states.

    Raises:
        DataError: the file cannot be read, or a line is none of a run, named by `file:line`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a TREC run ({error})") from None
    found: dict[str, list[_Line]] = defaultdict(list)
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            parsed = _parse(line.rstrip("\r"), where=f"{path}:{number}")
            found[parsed.query_id].append(parsed)
    if not found:
        raise DataError(f"{path} holds no line; expected: {COLUMNS}")
    return {query_id: _in_order(lines, path) for query_id, lines in found.items()}


def _parse(line: str, *, where: str) -> _Line:
    words = line.split("\t") if "\t" in line else line.split()
    try:
        query_id, _, passage_id, rank, score, _ = words
        parsed = _Line(query_id, passage_id, int(rank), float(score))
    except ValueError:
        raise DataError(f"{where} holds {line[:80]!r}; expected: {COLUMNS}") from None
    if not math.isfinite(parsed.score):
        raise DataError(f"{where} has the score {score}; expected a number")
    return parsed


def _in_order(lines: Sequence[_Line], path: Path) -> list[str]:
    ordered = sorted(lines, key=lambda line: (-line.score, line.rank))
    ids = [line.passage_id for line in ordered]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise DataError(
            f"{path} lists passage {twice!r} more than once for query {lines[0].query_id!r}; "
            "expected each at most once"
        )
    return ids
