"""Does a scan of int8 copies with rescoring pay in the embedded engine, and from how many passages?

    python tests/bench/int8_scan.py FOLDER NAME DATA BUNDLE [ROUNDS] > result.json

FOLDER holds the collection NAME, loaded from DATA with BUNDLE. Its dense vectors go into
collections of several sizes, with and without copies (no graph in either), and dev queries ask for
100 candidates of each in turns. Times are per query: wall, and CPU of this process.
"""

import json
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from qdrant_client import models as qm

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.data import Dataset
from two_tower.retriever.collection.options import (
    CollectionOptions,
    HnswOptions,
    QuantizationOptions,
)
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine

SIZES = (10_000, 20_000, 40_000, 94_590)
QUERIES, CANDIDATES = 300, 100
PLAIN = CollectionOptions()
COPIES = CollectionOptions(
    hnsw=HnswOptions(m=0, above_kb=10), quantization=QuantizationOptions(kind="scalar")
)
WAYS = {"float": None, "int8": 1.0, "int8 x2": 2.0, "int8 x4": 4.0}
"""Way to search -> oversampling."""


def read_vectors(folder: Path, name: str) -> np.ndarray:
    """Return the dense vectors of a collection, as stored."""
    with connect(path=folder, create=False) as engine:  # type: ignore[attr-defined]
        rows: list[Any] = []
        offset = None
        while True:
            records, offset = engine.scroll(
                engine.resolve(name),
                limit=2000,
                offset=offset,
                with_payload=False,
                with_vectors=["dense"],
            )
            rows += [record.vector["dense"] for record in records]
            if offset is None:
                return np.array(rows, dtype=np.float32)


def fill(engine: Engine, name: str, vectors: np.ndarray, options: CollectionOptions) -> float:
    """Make a collection; return the seconds until it was at rest after the last point."""
    params = qm.VectorParams(size=vectors.shape[1], distance=qm.Distance.COSINE)
    engine.create_collection(name, vectors_config={"dense": params}, **options.creation)
    for first in range(0, len(vectors), 500):
        points = [
            qm.PointStruct(id=first + at, vector={"dense": vector.tolist()}, payload={})
            for at, vector in enumerate(vectors[first : first + 500])
        ]
        engine.upsert(name, points, wait=False)
    start = time.perf_counter()
    if options is COPIES:
        engine.optimize(name)
    engine.query_points(name, vectors[0].tolist(), using="dense", limit=1)  # opens it again
    return time.perf_counter() - start


def ask(engine: Engine, name: str, query: list[float], way: str) -> list[int]:
    copies = qm.QuantizationSearchParams(rescore=True, oversampling=WAYS[way])
    params = qm.SearchParams(quantization=copies if way != "float" else None)
    answer = engine.query_points(
        name,
        query,
        using="dense",
        limit=CANDIDATES,
        search_params=params,
        with_payload=False,
    )
    return [int(point.id) for point in answer.points]


def measure(engine: Engine, queries: list[list[float]], rounds: int) -> dict[str, Any]:
    """Ask all queries in every way, in turns; return times and recall against the float scan."""
    hits: dict[str, list[list[int]]] = {}
    wall: dict[str, list[float]] = {way: [] for way in WAYS}
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            name = "plain" if way == "float" else "copies"
            answers, times = [], []
            spent = time.process_time()
            for query in queries:
                start = time.perf_counter()
                answers.append(ask(engine, name, query, way))
                times.append((time.perf_counter() - start) * 1000)
            cpu[way].append((time.process_time() - spent) * 1000 / len(queries))
            wall[way].append(float(np.median(times)))
            hits[way] = answers
    row: dict[str, Any] = {}
    for way in WAYS:
        pairs = list(zip(hits["float"], hits[way], strict=True))
        row[way] = {
            "recall@10": float(np.mean([len({*a[:10]} & {*b[:10]}) / 10 for a, b in pairs])),
            "recall@100": float(np.mean([len({*a} & {*b}) / len(a) for a, b in pairs])),
            "p50_ms": float(np.median(wall[way])),
            "cpu_ms": float(np.median(cpu[way])),
            "cpu_ms_least": min(cpu[way]),
            "of_float": float(np.median(np.array(cpu[way]) / np.array(cpu["float"]))),
        }
    return row


def main() -> None:
    folder, name, data, bundle = sys.argv[1:5]
    rounds = int(sys.argv[5]) if len(sys.argv) > 5 else 5
    texts = [query.text for query in Dataset.open(Path(data)).queries("dev")][:QUERIES]
    queries = [vector.tolist() for vector in ModelBundle.load(Path(bundle)).encode_queries(texts)]
    vectors = read_vectors(Path(folder), name)
    vectors = vectors[np.random.default_rng(0).permutation(len(vectors))]
    rows = []
    for size in SIZES:
        with TemporaryDirectory() as place:
            engine = connect(path=Path(place), create=True)
            rest = {n: fill(engine, n, vectors[:size], o) for n, o in OPTIONS.items()}
            row = {"passages": min(size, len(vectors)), "load": os.getloadavg()[0], "rest_s": rest}
            rows.append(row | measure(engine, queries, rounds))
            print(json.dumps(rows[-1]), file=sys.stderr)
            engine.close()
    print(json.dumps({"dim": vectors.shape[1], "rounds": rounds, "rows": rows}, indent=1))


OPTIONS = {"plain": PLAIN, "copies": COPIES}

if __name__ == "__main__":
    main()
