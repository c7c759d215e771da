"""Compare `ingest load` with the raw upload of the same points, made beforehand, in one run.

    python tests/bench/loading.py --data DATA --bundle BUNDLE [--passages 60000] [--rounds 3]

Raw is the engine's own client: qdrant-client's `upsert` of `PointStruct`s in batches of 256 without
waiting but for the last one, and Edge's `update`. Loading also makes the points: it reads,
tokenizes, encodes and compares, into the embedded engine with workers where there is a core
for them; without them is a row of its own. Rounds take turns, so that what else the machine does
meets all. Prints a table of rates and of CPU per passage, which noise touches least: that of this
process, and that of its workers. Exits with 1 where loading is slower than `--goal` of raw.
"""

import argparse
import gc
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple
from unittest.mock import patch

import qdrant_edge
from qdrant_client import QdrantClient
from qdrant_client import models as qm

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from conftest import running_server, to_structs  # noqa: E402

from two_tower.ingest.loading import loader  # noqa: E402
from two_tower.ingest.loading.points import PointMaker, chunks  # noqa: E402
from two_tower.ingest.loading.selection import Selection, select  # noqa: E402
from two_tower.ingest.loading.setup import open_collection  # noqa: E402
from two_tower.models.bundle.bundle import ModelBundle  # noqa: E402
from two_tower.models.data import Dataset  # noqa: E402
from two_tower.retriever.collection.options import CollectionOptions  # noqa: E402
from two_tower.retriever.collection.schema import collection_name  # noqa: E402
from two_tower.retriever.engine import edge_types  # noqa: E402
from two_tower.retriever.engine.connect import connect  # noqa: E402
from two_tower.retriever.engine.protocol import Engine  # noqa: E402
from two_tower.retriever.engine.wire import batches  # noqa: E402

Batches = list[list[qm.PointStruct]]
NAME = "loading"
PLAIN = CollectionOptions()  # no graph or copy is built at the end, which raw upload does not do


def prepared(engine: Engine, dataset: Dataset, bundle: ModelBundle) -> Batches:
    """Return the points of DATA in batches as `loader.load` sends them, as the client's models."""
    maker = PointMaker(bundle, open_collection(engine, dataset, bundle, name=NAME, options=PLAIN))
    points = (point for chunk in chunks(dataset.passages()) for point in maker.make(chunk))
    return [to_structs(batch) for batch in batches(points)]


def raw_server(url: str, collection: str, batches: Batches) -> None:
    client = QdrantClient(url=url, check_compatibility=False)
    for batch in batches[:-1]:
        client.upsert(collection, batch, wait=False)
    client.upsert(collection, batches[-1], wait=True)
    client.close()


def raw_edge(engine: Engine, collection: str, batches: Batches) -> None:
    shard = engine._shard(collection)  # type: ignore[attr-defined]
    for batch in batches:
        points = [edge_types.to_point(point) for point in batch]
        shard.update(qdrant_edge.UpdateOperation.upsert_points(points))
    shard.flush()


class Pace(NamedTuple):
    """How long one upload took.

    Attributes:
        rate: passages per second.
        cpu_us: microseconds of this process's CPU per passage.
        workers_us: of that of processes that it waited for.
    """

    rate: float
    cpu_us: float
    workers_us: float


def pace(call: Callable[[], object], passages: int) -> Pace:
    """Time one upload of so many passages."""
    start, cpu, others = time.perf_counter(), time.process_time(), of_children()
    call()
    taken, used = time.perf_counter() - start, time.process_time() - cpu
    return Pace(passages / taken, used / passages * 1e6, (of_children() - others) / passages * 1e6)


def of_children() -> float:
    """Return seconds of CPU of the processes that this one has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def one_round(
    engine: Engine,
    dataset: Dataset,
    bundle: ModelBundle,
    raw: Callable[[str, Batches], None],
) -> list[Pace]:
    """Return the paces of raw upload and of loading, each into an empty collection.

    Into the embedded engine, the last one is that of loading without workers.
    """
    passages = dataset.passage_count
    collection = collection_name(NAME, bundle.fingerprint)
    batches = prepared(engine, dataset, bundle)
    gc.collect()
    gc.freeze()  # or every collection would walk millions of floats that the upload keeps
    paces = [pace(lambda: raw(collection, batches), passages)]
    batches.clear()
    gc.unfreeze()
    workers = loader.worker_count
    for count in (workers, lambda *_: 0) if engine.is_embedded else (workers,):
        assert engine.count(collection).count == passages
        engine.delete_collection(collection)
        open_collection(engine, dataset, bundle, name=NAME, options=PLAIN)
        with patch.object(loader, "worker_count", count):
            paces.append(pace(lambda: loader.load(engine, dataset, bundle, name=NAME), passages))
    assert engine.count(collection).count == passages
    engine.delete_collection(collection)
    return paces


def measure(where: str, rounds: int, play: Callable[[], list[Pace]]) -> float:
    """Print the medians of some rounds; return the share of the raw rate that a load reaches."""
    paces = [play() for _ in range(rounds)]
    raw, *loads = (Pace(*map(median, zip(*one, strict=True))) for one in zip(*paces, strict=True))
    shares = []
    for number, load in enumerate(loads, 1):
        shares.append(median(each[number].rate / each[0].rate for each in paces))
        rates = f"{where:10} {raw.rate:12,.0f} {load.rate:12,.0f} {shares[-1]:8.0%}"
        print(f"{rates} {raw.cpu_us:12.0f} {load.cpu_us:12.0f} {load.workers_us:12.0f}", flush=True)
        where = "  alone"
    return shares[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--bundle", required=True, type=Path)
    parser.add_argument("--passages", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--goal", type=float, default=0.85)
    chosen = parser.parse_args()
    dataset = select(Dataset.open(chosen.data), Selection(limit=chosen.passages))
    bundle = ModelBundle.load(chosen.bundle)
    print(
        f"{dataset.passage_count:,} passages, {bundle.dim} + {bundle.pca_dims} dimensions; "
        f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"
    )
    columns = f"{'raw/s':>12} {'load/s':>12} {'ratio':>8} {'raw CPU us':>12} {'load CPU us':>12}"
    columns += f" {'workers us':>12}"
    print(f"{'engine':10} {columns}", flush=True)
    ratios = []
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder, "server")) as server:
        for where, engine, raw in (
            ("server", server.connect(), partial(raw_server, server.url)),
            ("embedded", edge := connect(path=Path(folder, "edge")), partial(raw_edge, edge)),
        ):
            play = partial(one_round, engine, dataset, bundle, raw)
            ratios.append(measure(where, chosen.rounds, play))
            engine.close()
    return 0 if min(ratios) >= chosen.goal else 1


if __name__ == "__main__":
    sys.exit(main())
