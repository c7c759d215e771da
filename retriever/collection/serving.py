"""A note in a collection's metadata that a service searches it: `ingest drop` asks for it.

served   {"at": <time in ISO 8601>, "host": …}
"""

import platform
from datetime import UTC, datetime
from typing import NamedTuple

from two_tower.retriever.engine.protocol import Engine, stored_metadata

SERVED = "served"

NOTE_EVERY_S = 30.0

LATELY_S = 120.0


class Service(NamedTuple):
    """The last sign of a service.

    Attributes:
        host: where it ran.
        age_s: seconds since.
    """

    host: str
    age_s: float


def note_served(engine: Engine, collection: str) -> None:
    """Write that a service of this host searches the collection now."""
    note = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "host": platform.node()}
    engine.update_collection(collection, metadata={SERVED: note})


def served_lately(engine: Engine, collection: str) -> Service | None:
    """Return the service that searched the collection in the last `LATELY_S`, None for none."""
    note = stored_metadata(engine, collection).get(SERVED)
    try:
        at = datetime.fromisoformat(note["at"])  # type: ignore[index]
        age_s = (datetime.now(UTC) - at).total_seconds()
        return Service(str(note["host"]), age_s) if age_s < LATELY_S else None  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        return None
