"""One loader at a time: a note in the collection's metadata that says who loads it.

    lease   {"owner": …, "host": …, "pid": …, "until": <time in ISO 8601>}

A server has no compare-and-set for metadata. So a loader writes its note, waits, and reads it
again: of two that begin at once the last writer goes on. It renews the note, and stops where the
note names another loader. An embedded folder belongs to one process, which knows its loaders
without a note.
"""

import os
import platform
import re
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self

from two_tower.models.files import is_alive
from two_tower.retriever.engine.protocol import Engine, stored_metadata
from two_tower.retriever.errors import EngineError, EngineLocked

LEASE = "lease"
LEASE_S = 30.0
RENEW_EVERY_S = 8.0
SETTLE_S = 0.2

PART = re.compile(r"part (?P<number>\d+)/(?P<of>\d+)")
"""The key of a note that a part has been loaded; a load of all of DATA makes it void."""

_owners_here: set[str] = set()
_embedded_here: set[tuple[str, str, str]] = set()  # folder, collection and key


class Lease:
    """The right to load one collection, renewed in a thread; a context manager."""

    def __init__(
        self, engine: Engine, collection: str, *, take_over: bool = False, key: str = LEASE
    ) -> None:
        """Touch nothing yet.

        Args:
            engine: where the collection is.
            collection: what is loaded.
            take_over: take the lease from another loader, which will stop.
            key: the note's name in the metadata; loaders of two parts have two.
        """
        self._engine = engine
        self._collection = collection
        self._take_over = take_over
        self._key = key
        self._is_needed = not engine.is_embedded
        self._place = os.path.realpath(engine.where), collection, key
        self._owner = uuid.uuid4().hex
        self._lost_to: dict[str, Any] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Self:
        """Take the lease.

        Raises:
            EngineLocked: another loader has it.
        """
        if not self._is_needed:
            if self._place in _embedded_here:
                raise EngineLocked(
                    f"collection {self._collection!r} is being loaded in this process already; "
                    "wait for it"
                )
            _embedded_here.add(self._place)
        else:
            holder = self._read()
            if not self._take_over and _is_in_force(holder):
                raise EngineLocked(self._who_loads(holder))
            _owners_here.add(self._owner)
            self._write()
            time.sleep(SETTLE_S)
            self.check(self._read())
            self._thread.start()
        return self

    def check(self, holder: dict[str, Any] | None = None) -> None:
        """Check that this loader still has the lease, by `holder` or the last renewal.

        Raises:
            EngineLocked: another one took it.
        """
        if holder and holder.get("owner") != self._owner:
            self._lost_to = holder
        if self._lost_to:
            raise EngineLocked(self._who_loads(self._lost_to))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        _owners_here.discard(self._owner)
        if not self._is_needed:
            _embedded_here.discard(self._place)
            return
        self._ended.set()
        self._thread.join()
        try:
            if self._read().get("owner") == self._owner:
                self._engine.update_collection(self._collection, metadata={self._key: None})
        except EngineError:
            pass  # it runs out by itself

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_EVERY_S):
            try:
                self.check(self._read())
                self._write()
            except EngineLocked:
                return
            except EngineError:
                continue  # a server that is away is the sender's concern

    def _read(self) -> dict[str, Any]:
        return stored_metadata(self._engine, self._collection).get(self._key) or {}

    def _write(self) -> None:
        until = datetime.now(UTC) + timedelta(seconds=LEASE_S)
        note = {"owner": self._owner, "host": platform.node(), "pid": os.getpid()}
        self._engine.update_collection(
            self._collection, metadata={self._key: note | {"until": until.isoformat()}}
        )

    def _who_loads(self, holder: dict[str, Any]) -> str:
        part = self._key.removeprefix(LEASE).replace(" ", ", part ")
        return (
            f"collection {self._collection!r}{part} is being loaded by process "
            f"{holder.get('pid')} on "
            f"{holder.get('host')}; wait for it, or, if it is gone, run this again after "
            f"{LEASE_S:.0f} s or with --take-over"
        )


def _is_in_force(holder: dict[str, Any]) -> bool:
    """Say whether a note has not run out, and is of no process of this host that has ended."""
    if not holder or datetime.fromisoformat(holder["until"]) < datetime.now(UTC):
        return False
    if holder["host"] != platform.node():
        return True
    if (pid := int(holder["pid"])) == os.getpid():  # a restarted container gives pids out again
        return holder["owner"] in _owners_here
    return is_alive(pid)
