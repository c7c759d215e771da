"""TREC run files: `query_id Q0 passage_id rank score tag`, which other tools read as well.

Written with tabs, so that an id may hold a space; read with tabs or spaces. The written scores
count down from the length of the list: no score of one stage gives the order of a whole search.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from two_tower.models.errors import DataError
from two_tower.models.files import read_text
from two_tower.retriever.evaluation.measures import Rankings

COLUMNS = "query_id Q0 passage_id rank score tag"

NOTHING_MERGED: Mapping[str, str] = MappingProxyType({})

BREAKS = ("\t", "\n", "\r")

LINE_END = re.compile(r"\r\n|\n|\r")


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


def read_run(path: Path, *, merged: Mapping[str, str] = NOTHING_MERGED) -> dict[str, list[str]]:
    """Return query_id -> passage ids, by falling score; ties by the rank that the line states.

    Args:
        path: the file.
        merged: id of a passage -> id of the equal one that stands for it, see
            `Dataset.merged_ids`.

    Raises:
        DataError: the file cannot be read, or a line is none of a run, named by `file:line`.
    """
    text = _text(path, "a TREC run")
    lines: dict[str, list[tuple[float, int, str]]] = defaultdict(list)
    for number, content in enumerate(LINE_END.split(text), 1):
        if content.strip():
            query_id, passage_id, rank, score = _parse(content, where=f"{path}:{number}")
            lines[query_id].append((-score, rank, passage_id))
    if not lines:
        raise DataError(f"{path} holds no line; expected: {COLUMNS}")
    rankings = {}
    for query_id, unordered in lines.items():
        ordered = sorted(unordered, key=lambda line: line[:2])
        ids = [passage_id for _, _, passage_id in ordered]
        if len(set(ids)) < len(ids):
            (repeated, _) = Counter(ids).most_common(1)[0]
            raise DataError(
                f"{path} lists passage {repeated!r} more than once for query {query_id!r}; "
                "expected each at most once"
            )
        rankings[query_id] = list(dict.fromkeys(merged.get(name, name) for name in ids))
    return rankings


def _text(path: Path, kind: str) -> str:
    try:
        return read_text(path)
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path} cannot be read as {kind} ({error})") from None


def _parse(content: str, *, where: str) -> tuple[str, str, int, float]:
    """Return query id, passage id, rank and score of a line."""
    words = content.split("\t") if "\t" in content else content.split()
    try:
        query_id, _, passage_id, rank, score, _ = words
        line = query_id, passage_id, int(rank), float(score)
    except ValueError:
        raise DataError(f"{where} holds {content[:80]!r}; expected: {COLUMNS}") from None
    if not math.isfinite(line[-1]):
        raise DataError(f"{where} has the score {score[:40]}; expected a number")
    return line
