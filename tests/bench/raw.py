"""Hybrid with rerank beside one raw request of the same legs, on both engines.

    python tests/bench/raw.py DATA BUNDLE [--limit N] [--options FILE] [--only embedded|server]

Loads DATA, waits until all is at rest, and asks each dev query both ways in turn, so that what
else the machine does meets both. Raw is what the engine's own client does: both legs, 100
candidates each, fused by reciprocal ranks, ten payloads. Adds to tests/bench/results/raw.json.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as edge
from million import settle
from qdrant_client import QdrantClient
from qdrant_client import models as qm
from spine import ROOT, fresh, run_command, time_ms, uncrossed

sys.path.insert(0, str(ROOT / "tests"))

from cluster import Node

from two_tower.models.data import Dataset
from two_tower.models.files import write_json
from two_tower.models.provenance import commit
from two_tower.retriever import Retriever
from two_tower.retriever.engine.edge import EdgeEngine
from two_tower.retriever.engine.edge_types import to_request
from two_tower.retriever.engine.wire import SparseVector
from two_tower.retriever.search.queries import QueryVectors, search_params
from two_tower.retriever.search.settings import read_file

RESULTS = ROOT / "tests" / "bench" / "results" / "raw.json"
LEGS = ("dense", "bm25")
WHERE = ("embedded", "server")
NAME = "raw"
LONGEST_S = 1800.0
CANDIDATES, K = 100, 10
WARM = 20
QUERIES = 500
Row = dict[str, Any]


def beside_raw(retriever: Retriever, queries: Sequence[str], raw: Callable[[str], object]) -> Row:
    """Return p50 and p95 in ms of `raw` and of our hybrid with rerank, and the ratio of p50s."""
    ours = fresh(retriever, uncrossed(retriever))
    times = np.array([[time_ms(raw, q), time_ms(ours.search, q)] for q in queries])[WARM:]
    percentiles = np.percentile(times, [50, 95], axis=0).round(2).tolist()
    (raw_p50, our_p50), (raw_p95, our_p95) = percentiles
    return {
        "raw_p50_ms": raw_p50,
        "raw_p95_ms": raw_p95,
        "in_turn_p50_ms": our_p50,
        "in_turn_p95_ms": our_p95,
        "times_raw": round(our_p50 / raw_p50, 2),
    }


def server_call(url: str, retriever: Retriever, queries: Sequence[str]) -> Callable[[str], object]:
    """Return the raw call of a server's client, with queries that are encoded before."""
    client = QdrantClient(url=url, check_compatibility=False)
    requests = requests_of(retriever, queries)

    def call(query: str) -> object:
        request = requests[query]
        legs = request.prefetch
        return client.query_points(retriever.collection, request.query, prefetch=legs, limit=K)

    return call


def embedded_call(retriever: Retriever, queries: Sequence[str]) -> Callable[[str], object]:
    """Return the raw call of Qdrant Edge, with requests that are built before."""
    engine = retriever._pipeline._engine
    assert isinstance(engine, EdgeEngine)
    shard: edge.EdgeShard = engine._shard(retriever.collection)
    requests = {q: to_request(r) for q, r in requests_of(retriever, queries).items()}
    return lambda query: shard.query(requests[query])


def requests_of(retriever: Retriever, queries: Sequence[str]) -> dict[str, qm.QueryRequest]:
    """Return one request a query: both legs, fused by their ranks."""
    params = {"dense": search_params(retriever.settings.ann).to_client(), "bm25": None}

    def request(vectors: QueryVectors) -> qm.QueryRequest:
        legs = [
            qm.Prefetch(
                query=vector.to_client() if isinstance(vector, SparseVector) else vector,
                using=name,
                limit=CANDIDATES,
                params=params[name],
            )
            for name, vector in vectors.by_name.items()
        ]
        fusion = qm.FusionQuery(fusion=qm.Fusion.RRF)
        return qm.QueryRequest(query=fusion, prefetch=legs, limit=K, with_payload=True)

    encoded = retriever._pipeline.encoder.encode(queries, LEGS)
    return {query: request(vectors) for query, vectors in zip(queries, encoded, strict=True)}


def measure(where: str, words: Sequence[str], chosen: argparse.Namespace, folder: Path) -> Row:
    """Load into one engine and ask both ways."""
    data, bundle = Dataset.open(chosen.data), chosen.bundle.resolve()
    queries = [query.text for query in data.queries("dev")][:QUERIES]
    settings = read_file(chosen.options).search if chosen.options else None
    node = Node(NAME, folder / "server", [])
    path = folder / "embedded" if where == "embedded" else None
    if where == "server":
        node.start({})
        node.wait_until_ready()
    url = node.url if where == "server" else None
    address = ["--url", url] if url else ["--path", str(path)]
    try:
        run_command("two_tower.ingest.cli", "load", *words, *address)
        with Retriever.open(
            NAME, bundle=bundle, url=url, path=path, settings=settings
        ) as retriever:
            if url:
                settle(node, retriever.collection, LONGEST_S)
            raw = server_call(url, retriever, queries) if url else embedded_call(retriever, queries)
            return beside_raw(retriever, queries, raw)
    finally:
        if url:
            node.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--options", type=Path)
    parser.add_argument("--only", choices=WHERE)
    chosen = parser.parse_args()
    words = [str(chosen.data), "--bundle", str(chosen.bundle.resolve()), "--collection", NAME]
    words += ["--limit", str(chosen.limit)] if chosen.limit else []
    words += ["--options", str(chosen.options)] if chosen.options else []
    about = {"passages": chosen.limit or Dataset.open(chosen.data).passage_count}
    about["options"] = chosen.options.name if chosen.options else "the default"
    known = json.loads(RESULTS.read_text())["rows"] if RESULTS.is_file() else []
    for where in [chosen.only] if chosen.only else WHERE:
        with tempfile.TemporaryDirectory(dir=ROOT / "runs") as folder:
            found = measure(where, words, chosen, Path(folder))
            row = {"engine": where, **about, "commit": commit(), **found}
        print(row, flush=True)
        keys = ("engine", "passages", "options")
        known = [each for each in known if any(each[key] != row[key] for key in keys)] + [row]
        write_json(RESULTS, {"cores": os.cpu_count(), "rows": known})


if __name__ == "__main__":
    main()
