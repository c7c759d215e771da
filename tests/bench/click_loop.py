"""What an engine learns from clicks: simulated users, a log, relearning, unseen queries.

    python tests/bench/click_loop.py DATA BUNDLE [--queries 1000] [--searches 4]

DATA is msmarco-95k as `ingest prepare` makes it, BUNDLE one of recipe `light`. Its fusion and
cross-scorer are taken away, as if nobody had ever judged a query; that is the engine before. Users
of three kinds ask train queries of a real `retriever serve --log`, each one some times in the mean,
and click. Then `ingest prepare LOG --corpus DATA`, `models train CLICKS --start BEFORE --only …`,
and `retriever evaluate` on split dev, whose queries nobody asked.

A user reads from the top and is a cascade (dependent click model: Guo, Liu and Wang, WSDM 2009),
with the numbers that online learning to rank uses (Hofmann, Schuth, Whiteson and de Rijke, WSDM
2013): the chance of a click on a passage that answers not, and that does, and to stop after it.

Keeps tests/bench/results/click-loop.json; what is made lies in runs/click-loop.
"""

import argparse
import csv
import http.client
import json
import random
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from services import running_service  # noqa: E402
from spine import run_command  # noqa: E402

from two_tower.models.bundle.bundle import ModelBundle  # noqa: E402
from two_tower.models.bundle.files import FUSION  # noqa: E402
from two_tower.models.bundle.fusion import WITHOUT_LABELS, Fusion  # noqa: E402
from two_tower.models.data import Dataset  # noqa: E402
from two_tower.models.files import write_json  # noqa: E402
from two_tower.models.provenance import commit  # noqa: E402

WORK = ROOT / "runs" / "click-loop"
RESULTS = Path(__file__).parent / "results" / "click-loop.json"
NAME = "loop"
MEASURE = "mrr@10"


class Users(NamedTuple):
    """How people click: chances for a passage that is no answer, and for one that is."""

    click: tuple[float, float]
    stop: tuple[float, float]

    def clicks(self, answers: Sequence[bool], rng: random.Random) -> list[int]:
        """Return the places that one user clicks, from 0."""
        places = []
        for place, is_answer in enumerate(answers):
            if rng.random() < self.click[is_answer]:
                places.append(place)
                if rng.random() < self.stop[is_answer]:
                    break
        return places


KINDS = {
    "perfect": Users(click=(0.0, 1.0), stop=(0.0, 0.0)),
    "navigational": Users(click=(0.05, 0.95), stop=(0.2, 0.9)),
    "informational": Users(click=(0.4, 0.9), stop=(0.1, 0.5)),
}


def main() -> None:
    arguments = parse()
    data, bundle = Dataset.open(arguments.data), ModelBundle.load(arguments.bundle)
    WORK.mkdir(parents=True, exist_ok=True)
    before, engine = WORK / "before", WORK / "engine"
    if not before.exists():
        untaught = {FUSION: Fusion(WITHOUT_LABELS).to_bytes()}
        bundle.with_extras(untaught).save(before)
    if not engine.exists():
        run_command("two_tower.ingest.cli", "load", data.path, "--bundle", before, "--collection",
                    NAME, "--path", engine)  # fmt: skip
    asked = searches(data, count=arguments.queries, mean=arguments.searches)
    rows = [{"engine": "before", **measured(data.path, before, engine, None)}]
    for kind in arguments.kinds:
        log, clicks, after = (WORK / f"{kind}-{what}" for what in ("log", "clicks", "bundle"))
        for old in (log, after):
            shutil.rmtree(old, ignore_errors=True)
        with running_service(WORK, before, "--path", engine, "--log", log, name=NAME) as service:
            counts = ask(service.url, KINDS[kind], asked)
        run_command("two_tower.ingest.cli", "prepare", log, "--corpus", data.path, "--out", clicks,
                    "--force")  # fmt: skip
        start = time.perf_counter()
        run_command("two_tower.models.cli", "train", clicks, "--out", after, "--config", "light",
                    "--start", before, "--only", arguments.learn, "--force")  # fmt: skip
        about = {"seconds": round(time.perf_counter() - start), **counts}
        row = {"engine": kind, **about, **judgements(clicks, data)}
        rows.append({**row, **measured(data.path, after, engine, WORK / "before-report")})
        print(json.dumps(rows[-1]), flush=True)
    report = {
        "commit": commit(),
        "queries": arguments.queries,
        "learn": arguments.learn,
        "rows": rows,
    }
    write_json(RESULTS, report)
    print(table(rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--searches", type=float, default=4)
    parser.add_argument("--learn", default="fusion,cross")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    return parser.parse_args()


def searches(data: Dataset, *, count: int, mean: float) -> list[tuple[str, set[str]]]:
    """Return the searches in a random order: a query, and the passages that answer it."""
    rng = random.Random(0)
    answers: dict[str, set[str]] = defaultdict(set)
    for qrel in data.qrels("train"):
        if qrel.relevance > 0:
            answers[qrel.query_id].add(qrel.passage_id)
    queries = [query for query in data.queries("train") if query.query_id in answers]
    drawn = rng.sample(queries, count)
    chosen = rng.choices(drawn, k=round(count * mean))
    return [(query.text, answers[query.query_id]) for query in chosen]


def ask(url: str, users: Users, asked: Sequence[tuple[str, set[str]]]) -> dict[str, int]:
    """Search and click over HTTP; return how often."""
    rng, clicks = random.Random(1), 0
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)

    def post(path: str, body: Mapping[str, Any]) -> Any:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = json.loads(response.read())
        assert response.status in (200, 202), content
        return content

    for number, (query, answers) in enumerate(asked):
        person = {"client_id": f"user-{number}"}
        answer = post("/search", {"query": query, **person})
        shown = [hit["passage_id"] for hit in answer["hits"]]
        for place in users.clicks([p in answers for p in shown], rng):
            hit = {"object": {"object_id": shown[place]}, "position": {"ordinal": place + 1}}
            event = {"action_name": "click", "query_id": answer["query_id"], **person}
            post("/events", {**event, "event_attributes": hit})
            clicks += 1
    connection.close()
    return {"searches": len(asked), "clicks": clicks}


def judgements(clicks: Path, data: Dataset) -> dict[str, float]:
    """Return how many queries the clicks judge, and how often as people did."""
    text_of = {query.query_id: query.text for query in data.queries("train")}
    true = {(text_of[q.query_id], q.passage_id) for q in data.qrels("train") if q.relevance > 0}
    made = Dataset.open(clicks)
    asked = {query.query_id: query.text for query in made.queries()}
    pairs = [(asked[qrel.query_id], qrel.passage_id) for qrel in made.qrels("train")]
    right = sum(pair in true for pair in pairs) / len(pairs)
    return {"judged": len({text for text, _ in pairs}), "right": round(right, 3)}


def measured(data: Path, bundle: Path, engine: Path, before: Path | None) -> dict[str, Any]:
    """Return MRR@10 on dev, and the mean difference to the engine before with its 95% interval."""
    report = WORK / f"{bundle.name}-report"
    shutil.rmtree(report, ignore_errors=True)
    crosses = ModelBundle.load(bundle).has_cross_scorer
    run_command("two_tower.retriever.cli", "evaluate", NAME, data, "--split", "dev", "--bundle",
                bundle, "--path", engine, "--systems", "cross" if crosses else "rerank",
                "--out", report)  # fmt: skip
    values = dict(per_query(report))
    row = {MEASURE: round(float(np.mean(list(values.values()))), 4)}
    if before is None:
        return row
    old = dict(per_query(before))
    differences = np.array([values[query] - old[query] for query in old])
    error = 1.96 * differences.std(ddof=1) / len(differences) ** 0.5
    return {**row, "gain": round(float(differences.mean()), 4), "error": round(float(error), 4)}


def per_query(report: Path) -> Iterator[tuple[str, float]]:
    """Yield query id and reciprocal rank of the last system, the engine as it searches."""
    systems = json.loads((report / "report.json").read_text(encoding="utf-8"))["systems"]
    last = systems[-1]["system"]
    with (report / "per_query.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if row["system"] == last:
                yield row["query_id"], float(row[MEASURE])


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows in Markdown."""
    lines = [
        "| users | clicks | judged queries | of them right | MRR@10 on dev | gain |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        gain = f"{row['gain']:+.4f} ± {row['error']:.4f}" if "gain" in row else ""
        cells = [row["engine"], row.get("clicks", ""), row.get("judged", ""), row.get("right", "")]
        lines.append(f"| {' | '.join(map(str, [*cells, row[MEASURE], gain]))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
