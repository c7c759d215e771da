"""Whether the engine's machine has room for a collection, before it is begun.

A cluster does not say: compare its machines with `ingest load --dry-run`.
"""

from collections.abc import Callable

from two_tower.ingest.loading.estimate import Estimate, estimate_points, point_size, readable
from two_tower.ingest.loading.points import PassageEncoder
from two_tower.ingest.loading.setup import stored_options
from two_tower.models.data import Dataset
from two_tower.retriever.collection.options import CollectionOptions
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
    """Refuse a load that does not fit the disk or the memory of the engine's machine.

    Raises:
        EngineError: it does not; the message says how many passages would.
    """
    machine, count = engine.machine(), dataset.passage_count
    if machine is None or machine.disk < 0 or count * PLENTY < min(machine):
        return  # to a disk that is nearly full the engine itself refuses to write
    stored = engine.count(collection).count if engine.collection_exists(collection) else 0
    if stored >= count:
        return
    options = options or stored_options(engine, collection, dataset, encoder)
    point = point_size(dataset, encoder, options=options)
    is_embedded = engine.is_embedded

    def size(points: int) -> Estimate:
        return estimate_points(point, points, options=options, embedded=is_embedded)

    def fits(points: int) -> bool:
        return size(points).disk <= room and size(points).memory <= machine.memory

    room = machine.disk + (size(stored).disk if stored and is_embedded else 0.0)
    if fits(count):
        return
    whole, fitting = size(count), _most(count, fits)
    whose, other = (
        ("this machine", "use a server with --url")
        if is_embedded
        else ("the server's machine", "use a larger one")
    )
    if whole.disk > room:
        lack = f"{readable(whole.disk)} on disk, and {engine.where} has room for {readable(room)}"
        advice = "free some space"
    else:
        lack = f"{readable(whole.memory)} of memory, and {whose} has {readable(machine.memory)}"
        advice = "leave vectors on disk (--options with on_disk: {vectors: true})"
    fit = f"about {fitting:,} would fit (--limit {fitting})" if fitting else "none would fit"
    raise EngineError(
        f"{count:,} points of {collection} take about {lack}; {fit}: load fewer, {advice}, or "
        f"{other}"
    )


def _most(count: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number below `count` that fits; smaller ones do too."""
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
