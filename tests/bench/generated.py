"""What engines that learnt from generated queries find, corpus by corpus.

    python tests/bench/generated.py CORPUS=DATA2:REPORT[:OTHER] …

DATA2 is what `ingest generate` wrote, REPORT what `retriever evaluate` said of the engine that
learnt from it, on judgements of people, and OTHER the same of an engine without any query.
Writes tests/bench/results/generated.json and prints it as the table of docs/generating.md; without
arguments it only prints.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablation_table import aligned

from two_tower.models.data import Dataset
from two_tower.models.files import write_json

RESULTS = Path(__file__).parent / "results" / "generated.json"
MEASURE = "ndcg@10"
DROPPED = "generated text: "
SYSTEMS = {"bm25": "BM25", "dense": "tower", "rerank": "engine"}


def to_result(data: Path, report: Path, other: Path | None) -> dict[str, Any]:
    """Return one corpus: how queries were made, and what was found with them and without."""
    manifest = Dataset.open(data).manifest
    source, counts = manifest["source"], manifest["counts"]
    return {
        "model": source["model"],
        "prompt": source["prompt"]["name"],
        "settings": source["settings"],
        "kept": counts["queries"],
        "dropped": {name.removeprefix(DROPPED): n for name, n in counts["left_out"].items()},
        "with": systems_of(report),
        "without": systems_of(other) if other else None,
    }


def systems_of(report: Path) -> dict[str, Any]:
    """Return the measures and intervals of the systems that are compared."""
    stored = json.loads((report / "report.json").read_text(encoding="utf-8"))
    systems = {each["system"]: each for each in stored["systems"]}
    return {
        "commit": stored["commit"],
        "bundle": stored["bundle"],
        "split": stored["split"],
        "queries": systems["bm25"]["queries"],
        "systems": {
            name: {"metrics": systems[name]["metrics"], "intervals": systems[name]["intervals"]}
            for name in SYSTEMS
        },
    }


def to_markdown(result: Mapping[str, Any]) -> str:
    """Return a row per corpus: nDCG@10 of BM25, of the towers, and of the engines."""
    heads = ["corpus", "passages asked for", "queries kept", "BM25"]
    heads += [f"{label}, no query" for name, label in SYSTEMS.items() if name != "bm25"]
    heads += [f"{label}, `genq`" for name, label in SYSTEMS.items() if name != "bm25"]
    table = [heads]
    for corpus, found in result.items():
        rows = [found["without"], found["with"]]
        cells = [
            f"{row['systems'][name]['metrics'][MEASURE]:.3f}" if row else ""
            for row in rows
            for name in SYSTEMS
            if name != "bm25"
        ]
        bm25 = found["with"]["systems"]["bm25"]["metrics"][MEASURE]
        asked = found["settings"]["at_most"]
        table.append([corpus, f"{asked:,}", f"{found['kept']:,}", f"{bm25:.3f}", *cells])
    return "\n".join(aligned(table))


def main() -> None:
    if len(sys.argv) > 1:
        found = {}
        for word in sys.argv[1:]:
            corpus, _, places = word.partition("=")
            data, report, *other = map(Path, places.split(":"))
            found[corpus] = to_result(data, report, other[0] if other else None)
        write_json(RESULTS, found)
    print(to_markdown(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
