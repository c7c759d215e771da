"""The log of a service: JSON lines after User Behavior Insights 1.3 (https://github.com/o19s/ubi).

    FOLDER/queries-<date>-<process>-<number>.jsonl   one search a line
    FOLDER/events-<date>-<process>-<number>.jsonl    one click or rating a line
    FOLDER/salt                                      the key that ids are hashed with; for its owner

Lines are written by a thread, each whole; a search only puts its record into a queue. Where the
queue is full or the folder cannot be written, records are lost and searches go on.
"""

import hashlib
import hmac
import json
import logging
import os
import queue
import re
import secrets
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple
from uuid import UUID

Kind = Literal["queries", "events"]
Outcome = Literal["written", "lost"]

MOST_WAITING = 10_000
"""Records in the queue."""

MOST_FILE_BYTES = 32 * 2**20

MOST_TOGETHER = 500
"""Records that one write takes."""

CLOSING_S = 5.0

_NAME = re.compile(r"(?:queries|events)-(\d{4}-\d{2}-\d{2})-[0-9a-f]{8}-\d+\.jsonl")

log = logging.getLogger(__name__)


class _Record(NamedTuple):
    kind: Kind
    content: Mapping[str, Any]


class BehaviourLog:
    """Writes searches and events; no method waits for a disk or raises for one.

    Several processes may write into one folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        days: int,
        count: Callable[[Outcome, int], None] = lambda outcome, number: None,
    ) -> None:
        """Start the thread that writes.

        Args:
            folder: is made where it is missing.
            days: files of earlier days are deleted.
            count: is told how many records were written or lost.
        """
        self._folder = folder
        self._days = days
        self._count = count
        self._salt = b""
        self._files: dict[Kind, _File] = {}
        self._process = secrets.token_hex(4)
        self._number = 0
        self._swept = date.min
        self._is_failing = False
        self._lost = 0
        self._waiting: queue.Queue[_Record | None] = queue.Queue(MOST_WAITING)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._salt = _shared_salt(folder / "salt")
        except OSError as error:
            self._warn(error)
            self._salt = secrets.token_bytes(32)
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def new_query_id(self) -> str:
        """Return a UUID that `is_own` knows again, in every process that writes this folder."""
        number = secrets.token_bytes(8)
        return str(UUID(bytes=number + self._digest(b"query", number)[:8]))

    def is_own(self, query_id: str) -> bool:
        """Say whether `new_query_id` made it."""
        try:
            number = UUID(query_id).bytes
        except ValueError:
            return False
        return hmac.compare_digest(number[8:], self._digest(b"query", number[:8])[:8])

    def pseudonym(self, own_id: str | None) -> str | None:
        """Return what stands for the id of a person or browser; the way back needs the salt."""
        if own_id is None:
            return None
        return self._digest(b"person", own_id.encode("utf-8", "surrogatepass"))[:16].hex()

    def draw(self, *words: str) -> bytes:
        """Return 32 bytes that look random, the same for the same words."""
        return self._digest(b"draw", "\0".join(words).encode("utf-8", "surrogatepass"))

    def put(self, kind: Kind, content: Mapping[str, Any]) -> None:
        """Keep a record, with the time, or lose it where too many wait."""
        record = _Record(kind, {**content, "timestamp": datetime.now(UTC).isoformat()})
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self._lose(1, "too many records wait")

    def close(self) -> None:
        """Write what waits, within `CLOSING_S`."""
        try:
            self._waiting.put(None, timeout=CLOSING_S)
        except queue.Full:
            return
        self._thread.join(CLOSING_S)

    def _digest(self, purpose: bytes, content: bytes) -> bytes:
        return hmac.digest(self._salt, purpose + b"\0" + content, hashlib.sha256)

    def _write_all(self) -> None:
        is_open = True
        while is_open:
            records = [self._waiting.get()]
            while len(records) < MOST_TOGETHER and not self._waiting.empty():
                records.append(self._waiting.get_nowait())
            is_open = None not in records
            for kind in ("queries", "events"):
                lines = [_line(r.content) for r in records if r is not None and r.kind == kind]
                if lines:
                    self._write(kind, lines)
        for file in self._files.values():
            file.close()

    def _write(self, kind: Kind, lines: list[bytes]) -> None:
        try:
            self._sweep()
            self._file(kind).write(b"".join(lines))
        except Exception as error:  # whatever it is: without this thread nothing is written
            # A line may have been cut off; what comes next begins another file.
            if (file := self._files.pop(kind, None)) is not None:
                file.close()
            self._lose(len(lines), error)
            return
        self._count("written", len(lines))
        if self._is_failing:
            log.info(
                "the log in %s is written again; %d records are lost", self._folder, self._lost
            )
            self._is_failing, self._lost = False, 0

    def _file(self, kind: Kind) -> "_File":
        file, today = self._files.get(kind), datetime.now(UTC).date()
        if file is not None and not file.takes_more(today):
            file.close()
            file = None
        if file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._number += 1
            name = f"{kind}-{today}-{self._process}-{self._number:04d}.jsonl"
            file = self._files[kind] = _File(self._folder / name, today)
        return file

    def _sweep(self) -> None:
        """Delete files that are too old, once a day."""
        today = datetime.now(UTC).date()
        if today == self._swept:
            return
        first = str(today - timedelta(days=self._days))
        for path in self._folder.glob("*.jsonl"):
            if (name := _NAME.fullmatch(path.name)) and name[1] < first:
                path.unlink(missing_ok=True)
        self._swept = today

    def _lose(self, number: int, why: object) -> None:
        self._lost += number
        self._count("lost", number)
        self._warn(why)

    def _warn(self, why: object) -> None:
        if not self._is_failing:
            reason = getattr(why, "strerror", None) or why
            log.warning("the log in %s is not written (%s); searches go on", self._folder, reason)
        self._is_failing = True


class _File:
    """One file of the log, to append to."""

    def __init__(self, path: Path, day: date) -> None:
        self._path = path
        self._day = day
        self._stream = path.open("ab", buffering=0)

    def takes_more(self, today: date) -> bool:
        """Say whether it is of today, not full, and still there."""
        try:
            is_there = os.path.samestat(os.fstat(self._stream.fileno()), self._path.stat())
        except OSError:
            return False
        return is_there and today == self._day and self._stream.tell() < MOST_FILE_BYTES

    def write(self, content: bytes) -> None:
        """Append; a disk that is full takes a part.

        Raises:
            OSError: not all was written.
        """
        while content:
            content = content[self._stream.write(content) :]

    def close(self) -> None:
        self._stream.close()


def _line(content: Mapping[str, Any]) -> bytes:
    # In ASCII: a query may hold what UTF-8 cannot.
    filled = {name: value for name, value in content.items() if value is not None}
    return json.dumps(filled, default=str).encode() + b"\n"


def _shared_salt(path: Path) -> bytes:
    """Return the salt of a folder; the process that comes first makes it.

    Raises:
        OSError: it can be neither made nor read.
    """
    if not path.exists():
        new = path.with_name(f".salt-{secrets.token_hex(4)}")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
        try:
            os.link(new, path)
        except FileExistsError:
            pass
        finally:
            new.unlink()
    return path.read_bytes()
