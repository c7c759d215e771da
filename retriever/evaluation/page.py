"""A report as one page that needs nothing else: no script, no request; light and dark."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from two_tower.models.files import write_bytes
from two_tower.retriever.evaluation.contrast import MEASURE, Column, Contrast, Contrasts, Found
from two_tower.retriever.evaluation.evaluate import Evaluation, Report
from two_tower.retriever.evaluation.plots import (
    Interval,
    Point,
    interval_plot,
    line_legend,
    line_plot,
    scatter_plot,
)
from two_tower.retriever.evaluation.report import (
    caption,
    comparison_rows,
    legend,
    notes,
    result_rows,
    to_markdown,
)
from two_tower.retriever.evaluation.systems import GIVEN
from two_tower.retriever.evaluation.trec import write_run
from two_tower.retriever.search.snippets import printable

DEPTHS = {"recall@1": 1, "recall@3": 3, "recall@10": 10, "recall@100": 100}

LONGEST_TEXT = 600

WITH_INTERVAL = re.compile(r"(\S+) (±\S+|\[.*\])( \S+|)\s*")

STYLE = """
:root { color-scheme: light dark; --ink: #1a1c1f; --soft: #5c636b; --paper: #fff; --card: #f4f5f7;
  --rule: #d9dce0; --good: #00664a; --c0: #0072b2; --c1: #c04f00; --c2: #00805a; --c3: #b0548c;
  --c4: #a06f00; --c5: #b3261e; --c6: #5b4bb5; --c7: #555b63; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a3abb5; --paper: #15171a;
  --card: #1f2226; --rule: #363b42; --good: #5fd3a9; --c0: #5db4ec; --c1: #ff9a55; --c2: #45cf9f;
  --c3: #e69ac4; --c4: #e8b84a; --c5: #ff7b72; --c6: #a99bff; --c7: #b4bbc4; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.15rem; margin-top: 2rem; } h3 { font-size: 1rem; }
p, figcaption, .soft { color: var(--soft); font-size: .9rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--rule); font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--paper); white-space: normal; overflow-wrap: normal; min-width: 7rem; }
td small { display: block; color: var(--soft); font-size: .85em; }
.mark { display: inline-block; min-width: 1.1em; text-align: left; }
.wide:focus-visible { outline: 2px solid var(--c0); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 1.5rem; } figure { margin: 0; } figure > svg { width: 100%; max-width: 34rem; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--ink); } .grid { stroke: var(--rule); }
.axis, .zero { stroke: var(--soft); } .zero { stroke-width: 1.5; }
.leader { stroke: var(--soft); stroke-width: .7; } .whisker { stroke: var(--c0); stroke-width: 2; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; list-style: none; padding: 0;
  font-size: .85rem; } polyline { fill: none; stroke-width: 2; } line[class^="c"] {
  stroke-width: 2; }
.columns { display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.column { background: var(--card); border-radius: .5rem; padding: .6rem .9rem; min-width: 0; }
.column ul { list-style: none; padding: 0; margin: 0; font-size: .88rem; }
.column li { border-top: 1px solid var(--rule); padding: .4rem 0; }
.answer { color: var(--good); font-weight: 600; }
"""

COLOURS = "".join(
    f"circle.c{i} {{ fill: var(--c{i}); }} .c{i} {{ stroke: var(--c{i}); }}\n" for i in range(8)
)

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title><style>{style}</style></head>
<body><h1>{title}</h1>{body}</body></html>
"""


def to_html(report: Report, contrasts: Contrasts) -> str:
    """Return the whole page."""
    parts = [f"<p>{escaped(caption(report))}</p>", "<h2>Systems</h2>", table(result_rows(report))]
    if report.baseline:
        parts += [f"<p>{escaped(legend(report))}</p>", table(comparison_rows(report))]
    parts += [f"<p>{escaped(note)}</p>" for note in notes(report)]
    parts += ["<h2>Plots</h2>", f'<div class="plots">{"".join(figures(report))}</div>']
    parts += _all_contrasts(report, contrasts)
    title = f"{report.collection}, {report.split}: {len(report.systems)} systems"
    return PAGE.format(title=escaped(title), style=STYLE + COLOURS, body="\n".join(parts))


def escaped(text: str) -> str:
    """Return text on one line that a page shows as it is."""
    return html.escape(printable(text))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a table that scrolls by itself where it is too wide; the first is its head."""
    head, *body = rows
    cells = "".join(f"<th>{escaped(cell)}</th>" for cell in head)
    lines = "".join(
        f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in body
    )
    rows_of_table = f"<thead><tr>{cells}</tr></thead><tbody>{lines}</tbody>"
    return f'<div class="wide" tabindex="0"><table>{rows_of_table}</table></div>'


def _cell(text: str) -> str:
    """Return a number and its mark above its interval: seven measures then fit beside each other.

    Any other text stays as it is.
    """
    if not (found := WITH_INTERVAL.fullmatch(text)):
        return escaped(text)
    number, interval, mark = (escaped(part.strip()) for part in found.groups())
    return f'{number} <span class="mark">{mark}</span><small>{interval}</small>'


def figures(report: Report) -> list[str]:
    """Return the plots: quality, difference, depth, quality against time."""
    queries = f"{report.systems[0].queries:,} queries"
    means = [Interval(s.system, s.metrics[MEASURE], *s.intervals[MEASURE]) for s in report.systems]
    name = f"{MEASURE}, mean over {queries}, 0 to 1"
    found = [_figure(interval_plot(means, label=name), f"{MEASURE} with 95% intervals.")]
    if report.baseline:
        compared = [(s.system, s.comparisons[MEASURE]) for s in report.systems if s.comparisons]
        gaps = [Interval(system, c.difference, *c.interval) for system, c in compared]
        name = f"{MEASURE} minus that of {report.baseline}, {queries}"
        said = f"Difference from {report.baseline} with its 95% interval, query by query."
        found.append(_figure(interval_plot(gaps, label=name, is_difference=True), said))
    depths: Mapping[str, list[tuple[float, float]]] = {
        s.system: [(depth, s.metrics[name]) for name, depth in DEPTHS.items()]
        for s in report.systems
    }
    lines = line_plot(depths, x_label="depth k, passages", y_label=f"recall@k, mean of {queries}")
    found.append(_figure(lines + line_legend(list(depths)), "Recall against depth."))
    timed = [Point(s.system, s.p50_ms, s.metrics[MEASURE]) for s in report.systems if s.p50_ms]
    if timed:
        cost = scatter_plot(
            timed, x_label="p50 of one query, ms", y_label=f"{MEASURE}, mean of {queries}"
        )
        found.append(_figure(cost, "Quality against time per query; up and left is better."))
    return found


def _figure(plot: str, said: str) -> str:
    return f"<figure>{plot}<figcaption>{escaped(said)}</figcaption></figure>"


def _all_contrasts(report: Report, contrasts: Contrasts) -> list[str]:
    columns = next((each.columns for each in [*contrasts.best, *contrasts.worst]), [])
    names = " beside ".join(column.system for column in columns) or "no two systems differ"
    if report.baseline:
        titles, said = ("Gains most", "Loses most"), f"{names}, furthest apart by {MEASURE}."
    else:
        titles, said = ("Answered best", "Answered worst"), f"{names}, by {MEASURE}."
    parts = ["<h2>Queries side by side</h2>", f"<p>{escaped(said)}</p>"]
    for title, chosen in zip(titles, contrasts, strict=True):
        parts.append(f"<h2>{title}</h2>")
        parts += [_contrast(each, report.relevant_from) for each in chosen] or ["<p>None.</p>"]
    return parts


def _contrast(contrast: Contrast, relevant_from: int) -> str:
    columns = "".join(_column(column, relevant_from) for column in contrast.columns)
    return (
        f'<section><h3 dir="auto">{escaped(contrast.query.text)} '
        f'<span class="soft">{escaped(contrast.query.query_id)}</span></h3>'
        f'<div class="columns">{columns}</div></section>'
    )


def _column(column: Column, relevant_from: int) -> str:
    best, lower = (
        "".join(_found(found, relevant_from) for found in each)
        for each in (column.best, column.lower)
    )
    rest = f"<p>Answers it ranks lower</p><ul>{lower}</ul>" if lower else ""
    return (
        f'<div class="column"><h3>{escaped(column.system)} '
        f'<span class="soft">{MEASURE} {column.value:.3f}</span></h3>'
        f"<ul>{best or '<li>found nothing</li>'}</ul>{rest}</div>"
    )


def _found(found: Found, relevant_from: int) -> str:
    place = "not in the best 100" if found.rank is None else f"#{found.rank}"
    grade = "not judged" if found.grade is None else f"judged {found.grade}"
    kind = "answer" if (found.grade or 0) >= relevant_from else "soft"
    passage = found.passage
    text = passage.text[:LONGEST_TEXT] + ("…" if len(passage.text) > LONGEST_TEXT else "")
    title = f"<strong>{escaped(passage.title)}</strong> " if passage.title else ""
    return (
        f'<li dir="auto">{place} <span class="{kind}">{grade}</span> {title}{escaped(text)} '
        f'<span class="soft">{escaped(passage.passage_id)}</span></li>'
    )


def write_report(evaluation: Evaluation, contrasts: Contrasts, folder: Path) -> None:
    """Write all files of a report into `folder`, making it where needed."""
    report = evaluation.report
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    _remove_rankings(folder)
    for system, rankings in evaluation.rankings.items():
        write_run(_run_file(folder, system), rankings, tag=_tag(system))
    texts = {
        "per_query.tsv": to_tsv(evaluation),
        "report.html": to_html(report, contrasts),
        "report.md": to_markdown(report) + "\n",
        "report.json": json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n",
    }
    for name, text in texts.items():
        write_bytes(folder / name, text.encode())


def _remove_rankings(folder: Path) -> None:
    """Remove the rankings of an earlier report, but no run file that was given to it."""
    try:
        stored = Report.from_dict(json.loads((folder / "report.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return
    for row in stored.systems:
        if not row.source.startswith(GIVEN):
            _run_file(folder, row.system).unlink(missing_ok=True)


def _run_file(folder: Path, system: str) -> Path:
    return folder / "runs" / f"{_tag(system)}.trec"


def _tag(system: str) -> str:
    return re.sub(r"\W", "-", system)


def to_tsv(evaluation: Evaluation) -> str:
    """Return one line per query and system with every measure, tab-separated."""
    measures = list(evaluation.report.systems[0].metrics)
    lines = ["\t".join(["query_id", "system", *measures])]
    for row, query in enumerate(evaluation.queries):
        for system, values in evaluation.values.items():
            numbers = (f"{values[measure][row]:.6g}" for measure in measures)
            lines.append("\t".join([query.query_id, system, *numbers]))
    return "\n".join([*lines, ""])
