"""Hits as text for a terminal."""

import textwrap
from collections.abc import Sequence

from retriever.records import Hit, SearchResult

WIDTH = 96
SNIPPET_LINES = 2


def show_result(result: SearchResult, *, explain: bool) -> str:
    """Return rank, score, title, snippet and url of each hit; the stages too on request."""
    if not result.hits:
        return f"No hit for {result.query!r}."
    blocks = [_show_hit(hit) for hit in result.hits]
    if explain:
        blocks += [_stage_table(result.hits), _timings(result)]
    return "\n".join([f"{result.query}\n", *blocks])


def _show_hit(hit: Hit) -> str:
    heading = f"{hit.rank:>3}. {hit.title or hit.passage_id}  ({hit.score:.3f})"
    snippet = textwrap.wrap(
        " ".join(hit.text.split()),
        WIDTH,
        initial_indent="     ",
        subsequent_indent="     ",
        max_lines=SNIPPET_LINES,
        placeholder=" …",
    )
    return "\n".join([heading, *snippet, *([f"     {hit.url}"] if hit.url else []), ""])


def _stage_table(hits: Sequence[Hit]) -> str:
    """One row per hit, one column per stage: its score and, after #, its rank."""
    stages = list(dict.fromkeys(stage for hit in hits for stage in hit.stages))
    rows = [["rank", "score", *stages]]
    for hit in hits:
        seen = [hit.stages.get(stage) for stage in stages]
        cells = [f"{s.score:.3f} #{s.rank}" if s else "-" for s in seen]
        rows.append([str(hit.rank), f"{hit.score:.3f}", *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def _timings(result: SearchResult) -> str:
    steps = ", ".join(f"{step} {ms:.1f}" for step, ms in result.timings_ms.items())
    return f"\n{sum(result.timings_ms.values()):.1f} ms: {steps}"
