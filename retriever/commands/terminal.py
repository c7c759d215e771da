"""The hits of a query as text: coloured and as wide as the terminal, plain in a pipe."""

import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

import typer
from rich.text import Text

from two_tower.models.console import GAP, Rows, print_styled, print_table, terminal
from two_tower.models.control_characters import visible
from two_tower.retriever.records import Hit, SearchResult
from two_tower.retriever.search.chances import CHANCE, hit_chance
from two_tower.retriever.search.fusion import CROSS
from two_tower.retriever.search.snippets import Segment, printable, snippet

WIDEST, NARROWEST = 100, 40

BAR_CELLS = 10

EIGHTHS = " ▏▎▍▌▋▊▉█"

INDENT = " " * 5

SNIPPET_LINES = 2

TITLE_CHARS, FEWEST_TITLE_CHARS = 40, 8

SMALLEST_PERCENT = 0.1

MATCH = "bold yellow"

UNLIKELY = 0.2
"""A query with a smaller chance of an answer gets a word of doubt."""


class Look(NamedTuple):
    """How results are shown.

    Attributes:
        width: columns of the screen.
        language: of the analyzer that decides what matches.
        clean: takes from a payload's text what could steer the screen, and its line breaks.
    """

    width: int = WIDEST
    language: str = "english"
    clean: Callable[[str], str] = printable


def print_result(result: SearchResult, *, language: str, explain: bool) -> None:
    """Print score bar, title, snippet and URL of each hit; the stages too on request."""
    look = Look(language=language)
    if screen := terminal():
        width = max(NARROWEST, min(WIDEST, screen.width))
        look = Look(width, language, lambda text: visible(" ".join(text.split())))
    print_styled(show_hits(result, look))
    if explain:
        if result.hits:
            rows = stage_rows(result, look)
            print_table(rows, stage_lines, align="r" * (len(rows[0]) - 1) + "l")
        typer.echo(_summary(result))


def show_hits(result: SearchResult, look: Look) -> Text:
    """Return the query, and a block of lines for each hit."""
    blocks = [_show_hit(hit, result, look) for hit in result.hits] or [Text("No hit.\n")]
    if result.answerable is not None and result.answerable < UNLIKELY:
        doubt = f"Probably nothing here answers that: the chance is {result.answerable:.0%}."
        blocks.insert(0, Text(f"{doubt}\n"))
    if result.read_as:
        pairs = [f"{look.clean(word)} as {near}" for word, near in result.read_as.items()]
        blocks.insert(0, Text(f"No passage has these words; read: {', '.join(pairs)}\n", "dim"))
    return Text("\n").join([Text(look.clean(result.query), "bold"), Text(), *blocks])


def score_bar(score: float, scores: Sequence[float]) -> str:
    """Return a bar of `BAR_CELLS` cells: full for the best score, empty for 0 or less."""
    best = max(scores)
    share = max(0.0, score) / best if best > 0 else 0.0
    eighths = round(min(1.0, share) * BAR_CELLS * 8)
    cells = EIGHTHS[8] * (eighths // 8) + (EIGHTHS[eighths % 8] if eighths % 8 else "")
    return cells.ljust(BAR_CELLS)


def result_bar(hit: Hit, result: SearchResult) -> str:
    """Return the bar of a hit: its chance to answer where that is known, else its score."""
    chance = hit_chance(hit, result.stages_run)
    if chance is not None:
        return score_bar(chance, [1.0])
    return score_bar(hit.score, [h.score for h in result.hits])


def shown_score(hit: Hit, result: SearchResult) -> str:
    """Return the chance of a hit in percent where it is known, else its score."""
    chance = hit_chance(hit, result.stages_run)
    if chance is None:
        return f"{hit.score:.3f}"
    percent = 100 * chance
    if percent < SMALLEST_PERCENT:
        return f"<{SMALLEST_PERCENT}% chance"
    return f"{percent:.{0 if percent >= 10 else 1}f}% chance"


def _show_hit(hit: Hit, result: SearchResult, look: Look) -> Text:
    title = Text(look.clean(hit.title), "bold")
    room = look.width - len(INDENT)
    segments = snippet(
        look.clean(hit.text),
        result.searched,
        width=SNIPPET_LINES * room - 10,
        language=look.language,
    )
    lines = [
        Text.assemble(
            f"{hit.rank:>3}. ", title or (f"passage {look.clean(hit.passage_id)}", "dim")
        ),
        Text.assemble(INDENT, (result_bar(hit, result), "dim"), f" {shown_score(hit, result)}"),
        *(Text.assemble(INDENT, line) for line in wrap(segments, width=room)),
    ]
    if hit.url:
        lines.append(Text.assemble(INDENT, (look.clean(hit.url), "dim")))
    return Text("\n").join([*lines, Text()])


def wrap(segments: Sequence[Segment], *, width: int) -> list[Text]:
    """Return lines of at most `width` characters, the matches in colour."""
    text = Text.assemble(*((s.text, MATCH if s.is_match else "") for s in segments))
    lines, start = [], 0
    for line in textwrap.wrap(text.plain, width, break_on_hyphens=False):
        start = text.plain.index(line, start)
        lines.append(text[start : start + len(line)])
        start += len(line)
    return lines


def stage_rows(result: SearchResult, look: Look) -> list[list[str]]:
    """Return a row per hit, a column per stage (its score and, after #, its rank), and the title.

    Titles are cut so that the rows fit the screen.
    """
    scored = {stage for hit in result.hits for stage in hit.stages}
    stages = [stage for stage in result.stages_run if stage in scored]
    rows = [["rank", "score", *stages]]
    for hit in result.hits:
        cells = [hit.stages.get(stage) for stage in stages]
        shown = [f"{cell.score:.3f} #{cell.rank}" if cell else "-" for cell in cells]
        rows.append([str(hit.rank), f"{hit.score:.3f}", *shown])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = look.width - sum(widths) - GAP * len(widths)
    chars = max(FEWEST_TITLE_CHARS, min(TITLE_CHARS, room))
    titles = ["title", *(look.clean(hit.title or hit.passage_id)[:chars] for hit in result.hits)]
    return [[*row, title] for row, title in zip(rows, titles, strict=True)]


def stage_lines(rows: Rows) -> str:
    """Return the rows as lines, all but the titles to the right."""
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    return "\n".join(
        "  ".join([*map(str.rjust, numbers, widths), title]) for *numbers, title in rows
    )


def _summary(result: SearchResult) -> str:
    steps = ", ".join(f"{step} {ms:.1f}" for step, ms in result.timings_ms.items())
    chance = "1 / (1 + exp(-score))" if CROSS in result.stages_run else "as calibrated"
    has_chance = not {CROSS, CHANCE}.isdisjoint(result.stages_run)
    lines = [
        "",
        *([f"chance: that the passage answers, {chance}"] if has_chance else []),
        *([f"answerable: {result.answerable:.3f}"] if result.answerable is not None else []),
        f"stages: {', '.join(result.stages_run) or 'none'}",
        *([f"skipped: {', '.join(result.skipped)}"] if result.skipped else []),
        f"{sum(result.timings_ms.values()):.1f} ms: {steps}",
        "",
    ]
    return "\n".join(lines)
