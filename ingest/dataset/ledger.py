"""What has been written so far, in a temporary SQLite file, so that memory stays bounded."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from two_tower.models.data import Qrel

_BUFFERED_QRELS = 10_000

_TABLES = """
    CREATE TABLE contents (digest BLOB PRIMARY KEY, id TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE ids (id TEXT PRIMARY KEY, digest BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE queries (id TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE recorded (
        seq INTEGER PRIMARY KEY, query_id TEXT, passage_id TEXT, relevance INT, split TEXT,
        place TEXT
    );
    CREATE TABLE qrels (
        query_id TEXT, passage_id TEXT, split TEXT, relevance INT,
        PRIMARY KEY (query_id, passage_id, split)
    ) WITHOUT ROWID;
"""

_RESOLVED = """
    SELECT r.query_id, r.passage_id, r.relevance, r.split, r.place, queries.id, contents.id
    FROM recorded AS r
    LEFT JOIN queries ON queries.id = r.query_id
    LEFT JOIN ids ON ids.id = r.passage_id
    LEFT JOIN contents ON contents.digest = ids.digest
    ORDER BY r.seq
"""

_LABELLED = """
    SELECT split, COUNT(DISTINCT query_id) FROM qrels WHERE relevance > 0 GROUP BY split
"""

_UNLABELLED = """
    SELECT COUNT(*) FROM queries
    WHERE NOT EXISTS (SELECT 1 FROM qrels WHERE qrels.query_id = queries.id)
"""

_RAISE = """
    UPDATE qrels SET relevance = MAX(relevance, ?)
    WHERE query_id = ? AND passage_id = ? AND split = ?
"""


class Claim(NamedTuple):
    """The id under which a text is stored (None: its id belongs to another text)."""

    stored_id: str | None
    is_new: bool


class Ledger:
    """Ids, contents and judgements seen so far."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._buffer: list[tuple[str, str, int, str, str]] = []
        # The file lives for one run only: no journal, no fsync, no transaction but one.
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA locking_mode=EXCLUSIVE;"
            "PRAGMA cache_size=-65536;" + _TABLES + "BEGIN;"
        )

    def claim_passage(self, passage_id: str, digest: bytes) -> Claim:
        """Record a passage and say whether its content is new."""
        run = self._db.execute
        if run("INSERT OR IGNORE INTO ids VALUES (?, ?)", (passage_id, digest)).rowcount:
            insert = "INSERT OR IGNORE INTO contents VALUES (?, ?)"
            if run(insert, (digest, passage_id)).rowcount:
                return Claim(passage_id, True)
        elif run("SELECT digest FROM ids WHERE id = ?", (passage_id,)).fetchone()[0] != digest:
            return Claim(None, False)
        row = run("SELECT id FROM contents WHERE digest = ?", (digest,)).fetchone()
        return Claim(row[0], False)

    def claim_query(self, query_id: str, text: str) -> Claim:
        """Record a query; one that repeats id and text is not new, another text is refused."""
        run = self._db.execute
        if run("INSERT OR IGNORE INTO queries VALUES (?, ?)", (query_id, text)).rowcount:
            return Claim(query_id, True)
        known = run("SELECT text FROM queries WHERE id = ?", (query_id,)).fetchone()[0]
        return Claim(query_id if known == text else None, False)

    def record_qrel(self, qrel: Qrel, where: str) -> None:
        """Record a judgement; its ids are resolved at the end."""
        self._buffer.append((*qrel, where))
        if len(self._buffer) >= _BUFFERED_QRELS:
            self._flush()

    def splits(self) -> set[str]:
        """Return the names of the splits of all recorded judgements."""
        self._flush()
        return {row[0] for row in self._db.execute("SELECT DISTINCT split FROM recorded")}

    def resolve_qrels(self) -> Iterator[tuple[Qrel, str, str | None, bool]]:
        """Yield each recorded judgement in its order, and what its ids point to.

        Yields:
            The judgement, where it stands, the id under which its passage is stored (None: no such
            passage), and whether its query is known.
        """
        self._flush()
        for *qrel, where, query_id, stored_id in self._db.execute(_RESOLVED):
            yield Qrel(*qrel), where, stored_id, query_id is not None

    def store_qrel(self, qrel: Qrel) -> bool:
        """Store a resolved judgement; False where it repeats one (the highest relevance holds)."""
        key = (qrel.query_id, qrel.passage_id, qrel.split)
        insert = "INSERT OR IGNORE INTO qrels VALUES (?, ?, ?, ?)"
        if self._db.execute(insert, (*key, qrel.relevance)).rowcount:
            return True
        self._db.execute(_RAISE, (qrel.relevance, *key))
        return False

    def stored_qrels(self) -> Iterator[Qrel]:
        """Yield the stored judgements, sorted by query, passage and split."""
        select = "SELECT query_id, passage_id, relevance, split FROM qrels ORDER BY 1, 2, 4"
        yield from map(Qrel._make, self._db.execute(select))

    def labelled_queries(self) -> dict[str, int]:
        """Return split -> number of queries with at least one relevant passage."""
        return dict(self._db.execute(_LABELLED))

    def unlabelled_query_count(self) -> int:
        """Return the number of queries without any stored judgement."""
        return int(self._db.execute(_UNLABELLED).fetchone()[0])

    def close(self) -> None:
        """Let go of the file and delete it."""
        self._db.close()
        self._path.unlink()

    def _flush(self) -> None:
        insert = "INSERT INTO recorded VALUES (NULL, ?, ?, ?, ?, ?)"
        self._db.executemany(insert, self._buffer)
        self._buffer.clear()
