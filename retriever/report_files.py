"""The files of REPORT.

report.json     means, intervals, comparisons, costs
report.md       the same as tables
report.html     the same with plots, and the queries that systems answer most differently
per_query.tsv   every measure of every query and system
runs/*.trec     every ranking, as a TREC run
"""

import json
import re
from pathlib import Path

from two_tower.models.files import write_bytes
from two_tower.retriever.contrast import Contrasts
from two_tower.retriever.evaluate import Evaluation, Report
from two_tower.retriever.report import to_markdown
from two_tower.retriever.report_html import to_html
from two_tower.retriever.systems import GIVEN
from two_tower.retriever.trec import write_run


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
