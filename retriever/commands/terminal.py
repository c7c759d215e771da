"""Hits as text for a terminal."""

import math
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from two_tower.retriever.records import Hit, SearchResult
from two_tower.retriever.search.fusion import CROSS
from two_tower.retriever.search.snippets import Segment, printable, snippet

WIDEST, NARROWEST = 100, 40

BAR_CELLS = 10

EIGHTHS = " ▏▎▍▌▋▊▉█"

INDENT = " " * 5

SNIPPET_LINES = 2

TITLE_CHARS, FEWEST_TITLE_CHARS = 40, 8

SMALLEST_PERCENT = 0.1

BOLD, DIM, MATCH, RESET = "\x1b[1m", "\x1b[2m", "\x1b[1;33m", "\x1b[0m"


@dataclass(frozen=True)
class Look:
    """How results are shown.

    Attributes:
        colour: whether to use ANSI codes.
        width: columns of the screen.
        language: of the analyzer that decides what matches.
    """

    colour: bool = False
    width: int = WIDEST
    language: str = "english"

    @classmethod
    def of_terminal(cls, *, language: str) -> "Look":
        """Colours only on a terminal, and not where NO_COLOR is set (https://no-color.org)."""
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDEST
        return cls(
            colour=sys.stdout.isatty() and not plain,
            width=max(NARROWEST, min(WIDEST, columns)),
            language=language,
        )

    def paint(self, text: str, code: str) -> str:
        """Return text in a colour, or as it is."""
        return f"{code}{text}{RESET}" if self.colour and text else text


def show_result(result: SearchResult, look: Look, *, explain: bool) -> str:
    """Return score bar, title, snippet and url of each hit; the stages too on request."""
    heading = look.paint(printable(result.query), BOLD)
    if not result.hits:
        blocks = ["No hit.\n"]
    else:
        blocks = [_show_hit(hit, result, look) for hit in result.hits]
    if explain:
        blocks += [*([_stage_table(result, look)] if result.hits else []), _summary(result)]
    return "\n".join([heading, "", *blocks])


def score_bar(score: float, scores: Sequence[float]) -> str:
    """Return a bar of `BAR_CELLS` cells: full for the best score, empty for 0 or less."""
    best = max(scores)
    share = max(0.0, score) / best if best > 0 else 0.0
    eighths = round(min(1.0, share) * BAR_CELLS * 8)
    cells = EIGHTHS[8] * (eighths // 8) + (EIGHTHS[eighths % 8] if eighths % 8 else "")
    return cells.ljust(BAR_CELLS)


def result_bar(hit: Hit, result: SearchResult) -> str:
    """Return the bar of a hit; where the cross-scorer ran, it shows the chance of an answer."""
    if CROSS in result.stages_run:
        return score_bar(_chance(hit), [1.0])
    return score_bar(hit.score, [h.score for h in result.hits])


def shown_score(hit: Hit, result: SearchResult) -> str:
    """Return the score of a hit; where the cross-scorer ran, the chance in percent."""
    if CROSS not in result.stages_run:
        return f"{hit.score:.3f}"
    percent = 100 * _chance(hit)
    if percent < SMALLEST_PERCENT:
        return f"<{SMALLEST_PERCENT}% chance"
    return f"{percent:.{0 if percent >= 10 else 1}f}% chance"


def _chance(hit: Hit) -> float:
    return 0.5 + 0.5 * math.tanh(hit.score / 2)  # the logistic function; cannot overflow


def _show_hit(hit: Hit, result: SearchResult, look: Look) -> str:
    bar = look.paint(result_bar(hit, result), DIM)
    title = look.paint(printable(hit.title), BOLD) or look.paint(_untitled(hit), DIM)
    lines = [f"{hit.rank:>3}. {title}", f"{INDENT}{bar} {shown_score(hit, result)}"]
    room = look.width - len(INDENT)
    segments = snippet(
        printable(hit.text), result.query, width=SNIPPET_LINES * room - 10, language=look.language
    )
    lines += [INDENT + line for line in wrap(segments, look, width=room)]
    if hit.url:
        lines.append(INDENT + look.paint(printable(hit.url), DIM))
    return "\n".join([*lines, ""])


def _untitled(hit: Hit) -> str:
    return f"passage {printable(hit.passage_id)}"


def wrap(segments: Sequence[Segment], look: Look, *, width: int) -> list[str]:
    """Return lines of at most `width` characters, the matches in colour."""
    plain = "".join(segment.text for segment in segments)
    marks = [segment.is_match for segment in segments for _ in segment.text]
    lines, at = [], 0
    for line in textwrap.wrap(plain, width, break_on_hyphens=False):
        at = plain.index(line, at)
        pairs = zip(line, marks[at : at + len(line)], strict=True)
        parts = (
            ("".join(c for c, _ in run), is_match)
            for is_match, run in groupby(pairs, key=lambda pair: pair[1])
        )
        lines.append("".join(look.paint(t, MATCH) if is_match else t for t, is_match in parts))
        at += len(line)
    return lines


def _stage_table(result: SearchResult, look: Look) -> str:
    """One row per hit, one column per stage: its score and, after #, its rank."""
    hits = result.hits
    seen = {stage for hit in hits for stage in hit.stages}
    stages = [stage for stage in result.stages_run if stage in seen]
    rows = [["rank", "score", *stages]]
    for hit in hits:
        found = [hit.stages.get(stage) for stage in stages]
        cells = [f"{s.score:.3f} #{s.rank}" if s else "-" for s in found]
        rows.append([str(hit.rank), f"{hit.score:.3f}", *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    room = look.width - sum(widths) - 2 * len(widths)
    chars = max(FEWEST_TITLE_CHARS, min(TITLE_CHARS, room))
    titles = ["title", *(printable(hit.title or hit.passage_id)[:chars] for hit in hits)]
    return "\n".join(
        "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=True)), title])
        for row, title in zip(rows, titles, strict=True)
    )


def _summary(result: SearchResult) -> str:
    steps = ", ".join(f"{step} {ms:.1f}" for step, ms in result.timings_ms.items())
    has_chance = CROSS in result.stages_run
    lines = [
        "",
        *(["chance: that the passage answers, 1 / (1 + exp(-score))"] if has_chance else []),
        f"stages: {', '.join(result.stages_run) or 'none'}",
        *([f"skipped: {', '.join(result.skipped)}"] if result.skipped else []),
        f"{sum(result.timings_ms.values()):.1f} ms: {steps}",
        "",
    ]
    return "\n".join(lines)
