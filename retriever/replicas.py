"""Reading from a cluster what all copies of a shard agree on."""

from qdrant_client import models as qm

from two_tower.retriever.engine_protocol import Engine
from two_tower.retriever.errors import EngineError

ALL = qm.ReadConsistencyType.ALL


def agreement(engine: Engine, collection: str) -> qm.ReadConsistencyType | None:
    """Return how to read what every replica has; a point that they differ in is then left out.

    Returns:
        `ALL`; None where a replica is down, so that the others are all there is to read.
    """
    try:
        engine.scroll(collection, limit=1, with_payload=False, consistency=ALL)
    except EngineError:
        return None
    return ALL
