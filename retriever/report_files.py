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

from models.files import write_bytes
from retriever.contrast import Contrasts
from retriever.evaluate import Evaluation
from retriever.report import to_markdown
from retriever.report_html import to_html
from retriever.trec import write_run


def write_report(evaluation: Evaluation, contrasts: Contrasts, folder: Path) -> None:
    """Write all files of a report into `folder`, making it where needed."""
    report = evaluation.report
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    for earlier in (folder / "runs").glob("*.trec"):
        earlier.unlink()  # of systems that this report may not have
    for system, rankings in evaluation.rankings.items():
        tag = re.sub(r"\W", "-", system)
        write_run(folder / "runs" / f"{tag}.trec", rankings, tag=tag)
    texts = {
        "per_query.tsv": to_tsv(evaluation),
        "report.html": to_html(report, contrasts),
        "report.md": to_markdown(report) + "\n",
        "report.json": json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n",
    }
    for name, text in texts.items():
        write_bytes(folder / name, text.encode())


def to_tsv(evaluation: Evaluation) -> str:
    """Return one line per query and system with every measure, tab-separated."""
    measures = list(evaluation.report.systems[0].metrics)
    lines = ["\t".join(["query_id", "system", *measures])]
    for row, query in enumerate(evaluation.queries):
        for system, values in evaluation.values.items():
            numbers = (f"{values[measure][row]:.6g}" for measure in measures)
            lines.append("\t".join([query.query_id, system, *numbers]))
    return "\n".join([*lines, ""])
