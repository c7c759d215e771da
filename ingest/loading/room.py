"""Whether this machine has room for a collection of the embedded engine, before it is begun.

What a server has is known there alone: compare it with `ingest load --dry-run`.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from two_tower.ingest.loading.estimate import Estimate, estimate_points, point_size, readable
from two_tower.ingest.loading.points import PassageEncoder
from two_tower.ingest.loading.setup import stored_options
from two_tower.models.data import Dataset
from two_tower.retriever.collection.options import CollectionOptions
from two_tower.retriever.engine.edge_folder import LEAST_FREE
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.errors import EngineError

PLENTY = 2**16
"""Bytes a passage: where so much is free, nothing has to be estimated."""


def require_room(
    engine: Engine,
    dataset: Dataset,
    encoder: PassageEncoder,
    *,
    collection: str,
    options: CollectionOptions | None,
) -> None:
    """Refuse a load that does not fit the disk or the memory of this machine.

    Raises:
        EngineError: it does not; the message says how many passages would.
    """
    if not engine.is_embedded:
        return
    folder, count = Path(engine.where), dataset.passage_count
    free, memory = shutil.disk_usage(folder).free - LEAST_FREE, machine_memory()
    if count * PLENTY < min(free, memory):
        return
    stored = engine.count(collection).count if engine.collection_exists(collection) else 0
    if stored >= count:
        return
    options = options or stored_options(engine, collection, dataset, encoder)
    point = point_size(dataset, encoder, options=options)

    def size(points: int) -> Estimate:
        return estimate_points(point, points, options=options, embedded=True)

    def fits(points: int) -> bool:
        return size(points).disk <= room and size(points).memory <= memory

    room = free + (size(stored).disk if stored else 0.0)
    if fits(count):
        return
    whole, fitting = size(count), _most(count, fits)
    if whole.disk > room:
        lack = f"{readable(whole.disk)} on disk, and {folder} has room for {readable(room)}"
        advice = "free some space"
    else:
        lack = f"{readable(whole.memory)} of memory, and this machine has {readable(memory)}"
        advice = "leave vectors on disk (--options with on_disk: {vectors: true})"
    fit = f"about {fitting:,} would fit (--limit {fitting})" if fitting else "none would fit"
    raise EngineError(
        f"{count:,} points of {collection} take about {lack}; {fit}: load fewer, {advice}, or use "
        "a server with --url"
    )


def machine_memory() -> float:
    """Return the bytes of memory that this process may have at most."""
    sizes = [float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(limit).read_text()
        except OSError:
            continue
        if re.fullmatch(r"\d+\s*", text):
            sizes.append(float(text))
    return min(sizes)


def _most(count: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number below `count` that fits; smaller ones do too."""
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
