"""A small fixed quality run, and the values it is held to.

    python tests/quality.py             measure seeds 0 to 4 and write tests/quality.json: about
                                        three minutes. Do so when quality changed on purpose, and
                                        say in docs/experiments.md why.
    python tests/quality.py --seed 0    measure one seed and print it as JSON

A slice of msmarco-95k is prepared, towers are trained on it, and its dev queries are asked of the
embedded engine. `noise` is three standard deviations over the seeds of training, at least FLOOR: by
so much may a change move a value without making anything worse. All of it runs on one thread, so
that the number of cores does not matter.

Two rows are gains, for in the other rows a part that has stopped working hides behind the rest:
`labels` is what the labelled phase adds to towers that nothing else has taught, and `learnt` is
what the learnt weights of the fusion add to fixed ones (`rerank` minus `weighted`).
"""

import gzip
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from two_tower.models.bundle.bundle import ModelBundle
    from two_tower.models.data import Dataset

ROOT = Path(__file__).parent.parent
CORPUS = ROOT.parent / "shared" / "data" / "msmarco-95k"
STORED = Path(__file__).parent / "quality.json"
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1"
)
SEEDS = range(5)
DEVIATIONS = 3
FLOOR = 0.002
QUERIES = {"dev": 600, "train": 3000}
PASSAGES = 10_000
CONFIG = {
    "tokenizer": {"vocab_size": 16_000},
    "tower": {"dim": 128},
    "pretrain": {"epochs": 3, "batch_size": 512},
    "labelled": {"epochs": 4, "batch_size": 512},
    "fusion": {"folds": 2},
    "pca_dims": [32],
}
UNTAUGHT = {"pretrain.epochs": 0, "word2vec.epochs": 0, "fusion.folds": 0, "labelled.epochs": 0}
LABELS_ALONE = UNTAUGHT | {"labelled.epochs": 12, "labelled.batch_size": 256}
SYSTEMS = ("bm25", "dense", "pca_32", "rrf", "weighted", "rerank")
MEASURES = ("recall@1", "recall@10", "recall@100", "mrr@10", "ndcg@10")
LABELS, LEARNT = "labels", "learnt"
GAINED = ("recall@10", "recall@100")  # by labels; at rank 1 they add nothing here

Values = dict[str, dict[str, float]]
"""system, or what brings a gain -> measure -> mean over queries."""


def prepare(path: Path) -> None:
    """Write DATA: some dev and train queries, what answers them, and other passages."""
    from two_tower.ingest.dataset.writer import DatasetWriter
    from two_tower.models.data import Passage, Qrel, Query

    random = np.random.default_rng(0)
    qrels = [
        Qrel(query_id, passage_id, int(grade), split)
        for split, count in QUERIES.items()
        for query_id, passage_id, grade in sample(read_qrels(split), count, random)
    ]
    texts = {row["_id"]: row["text"] for row in read_lines("queries")}
    rows = list(read_lines("corpus"))
    passage_ids = {qrel.passage_id for qrel in qrels}
    others = [row["_id"] for row in rows if row["_id"] not in passage_ids]
    missing = PASSAGES - len(passage_ids)
    passage_ids |= set(random.choice(others, missing, replace=False).tolist())
    with DatasetWriter(path, source="a slice of msmarco-95k") as writer:
        for row in rows:
            if row["_id"] in passage_ids:
                writer.add_passage(Passage(row["_id"], row["text"]))
        for query_id in dict.fromkeys(qrel.query_id for qrel in qrels):
            writer.add_query(Query(query_id, texts[query_id]))
        for qrel in qrels:
            writer.add_qrel(qrel)


def read_lines(name: str) -> Iterator[dict[str, Any]]:
    with gzip.open(CORPUS / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def read_qrels(split: str) -> list[list[str]]:
    lines = (CORPUS / "qrels" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [line.split("\t") for line in lines]


def sample(rows: list[list[str]], count: int, random: np.random.Generator) -> list[list[str]]:
    """Return the judgements of `count` queries."""
    queries = sorted({row[0] for row in rows})
    drawn = set(random.choice(queries, count, replace=False).tolist())
    return [row for row in rows if row[0] in drawn]


def measure(seed: int, folder: Path, changes: Mapping[str, Any] | None = None) -> Values:
    """Train with `seed` and return what each system reaches; `changes` are for trying it out."""
    import torch

    from two_tower.ingest.loading import loader
    from two_tower.ingest.versions import versions as collections
    from two_tower.models.data import Dataset
    from two_tower.retriever.engine.connect import connect
    from two_tower.retriever.evaluation.evaluate import measure_all
    from two_tower.retriever.evaluation.systems import choose_systems
    from two_tower.retriever.search.retriever import Retriever
    from two_tower.retriever.search.settings import SearchSettings

    torch.set_num_threads(1)
    prepare(folder / "DATA")
    data = Dataset.open(folder / "DATA")
    bundle = train(data, folder / "bundle", {"seed": seed, **(changes or {})})
    engine = connect(path=folder / "edge")
    report = loader.load(engine, data, bundle, name="quality")
    collections.promote(engine, "quality", report.collection)
    with Retriever(engine, "quality", bundle, settings=SearchSettings()) as retriever:
        systems = choose_systems(retriever, SYSTEMS, others={})
        evaluation = measure_all(retriever, data, systems=systems)
    found = {
        row.system: {name: row.metrics[name] for name in MEASURES}
        for row in evaluation.report.systems
    }
    learnt = {name: found["rerank"][name] - found["weighted"][name] for name in MEASURES}
    return found | {LABELS: gain_of_labels(data, folder, seed, changes), LEARNT: learnt}


def gain_of_labels(
    data: "Dataset", folder: Path, seed: int, changes: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Return what the labelled phase adds to random token vectors.

    After pretraining it adds less than seeds differ by, and a phase that makes things worse adds
    nothing: early stopping goes back to where it began.
    """
    begun = train(data, folder / "untaught", {"seed": seed} | UNTAUGHT)
    taught = train(
        data, folder / "labels", {"seed": seed} | LABELS_ALONE | dict(changes or {}), start=begun
    )
    before, after = (bundle.card["dev"]["dense"] for bundle in (begun, taught))
    return {name: after[name] - before[name] for name in GAINED}


def train(
    data: "Dataset", out: Path, changes: Mapping[str, Any], *, start: "ModelBundle | None" = None
) -> "ModelBundle":
    from two_tower.models.config import from_mapping, with_values
    from two_tower.models.training.config import TrainConfig
    from two_tower.models.training.run import Inputs, train_bundle
    from two_tower.retriever.collection.bm25_vectors import EngineAnalyzer

    config = from_mapping(TrainConfig, with_values(CONFIG, changes))
    inputs = Inputs(start=start)
    return train_bundle(data, out, config=config, analyzer=EngineAnalyzer(), inputs=inputs)


def falls(stored: Mapping[str, Any], found: Values) -> list[str]:
    """Return a line for each value that is more than its noise below the stored one."""
    return [
        f"{system} {name}: {found[system][name]:.4f}, recorded {row['value']:.4f} "
        f"with noise {row['noise']:.4f} (commit {stored['commit']})"
        for system, rows in stored["systems"].items()
        for name, row in rows.items()
        if found[system][name] < row["value"] - row["noise"]
    ]


def record(runs: list[Values], commit: str) -> dict[str, Any]:
    """Return the content of tests/quality.json: means over seeds, and how far seeds are apart."""
    systems: dict[str, Any] = {}
    for system in runs[0]:
        for name in runs[0][system]:
            values = np.array([run[system][name] for run in runs])
            noise = max(FLOOR, DEVIATIONS * float(values.std(ddof=1)))
            row = {"value": round(float(values.mean()), 4), "noise": round(noise, 4)}
            systems.setdefault(system, {})[name] = row
    about = {"commit": commit, "command": "python tests/quality.py", "seeds": len(runs)}
    return about | {"queries": QUERIES, "passages": PASSAGES, "systems": systems}


def main() -> None:
    if any(os.environ.get(name) != "1" for name in ONE_THREAD):  # libraries read it when they start
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ONE_THREAD)
    from two_tower.models.provenance import commit

    seeds = [int(sys.argv[2])] if sys.argv[1:2] == ["--seed"] else list(SEEDS)
    runs = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            runs.append(measure(seed, Path(folder)))
    if len(runs) == 1:
        print(json.dumps(runs[0]))
    else:
        STORED.write_text(json.dumps(record(runs, commit()), indent=2) + "\n", encoding="utf-8")
        print(f"Wrote {STORED}")


if __name__ == "__main__":
    main()
