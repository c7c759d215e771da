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
    CREATE TABLE qrels (
        seq INTEGER PRIMARY KEY, query_id TEXT, passage_id TEXT, relevance INT, split TEXT,
        place TEXT
    );
    CREATE TABLE kept (
        query_id TEXT, passage_id TEXT, split TEXT, relevance INT,
        PRIMARY KEY (query_id, passage_id, split)
    ) WITHOUT ROWID;
"""

_RESOLVED = """
    SELECT q.query_id, q.passage_id, q.relevance, q.split, q.place, queries.id, contents.id
    FROM qrels AS q
    LEFT JOIN queries ON queries.id = q.query_id
    LEFT JOIN ids ON ids.id = q.passage_id
    LEFT JOIN contents ON contents.digest = ids.digest
    ORDER BY q.seq
"""

_LABELLED = """
    SELECT split, COUNT(DISTINCT query_id) FROM kept WHERE relevance > 0 GROUP BY split
"""


class Claim(NamedTuple):
    """What became of a passage: the id that keeps its content (None: the id is taken)."""

    kept_id: str | None
    is_new: bool


class ResolvedQrel(NamedTuple):
    """A judgement with what is known at the end: `kept_id` None for an unknown passage."""

    qrel: Qrel
    where: str
    kept_id: str | None
    has_query: bool


class Ledger:
    """Ids, contents and judgements seen so far.

    Attributes:
        path: the SQLite file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._qrels: list[tuple[str, str, int, str, str]] = []
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

    def add_qrel(self, qrel: Qrel, where: str) -> None:
        """Record a judgement; its ids are resolved at the end."""
        self._qrels.append((*qrel, where))
        if len(self._qrels) >= _BUFFERED_QRELS:
            self._flush()

    def splits(self) -> set[str]:
        """Return the names of the splits of all recorded judgements."""
        self._flush()
        return {row[0] for row in self._db.execute("SELECT DISTINCT split FROM qrels")}

    def resolve_qrels(self) -> Iterator[ResolvedQrel]:
        """Yield every recorded judgement in its order, with what its ids point to."""
        self._flush()
        for *qrel, where, query_id, kept_id in self._db.execute(_RESOLVED):
            yield ResolvedQrel(Qrel(*qrel), where, kept_id, query_id is not None)

    def keep_qrel(self, qrel: Qrel) -> bool:
        """Keep a resolved judgement; False where it repeats one (the highest relevance holds)."""
        key = (qrel.query_id, qrel.passage_id, qrel.split)
        insert = "INSERT OR IGNORE INTO kept VALUES (?, ?, ?, ?)"
        if self._db.execute(insert, (*key, qrel.relevance)).rowcount:
            return True
        raised = (
            "UPDATE kept SET relevance = MAX(relevance, ?) "
            "WHERE query_id = ? AND passage_id = ? AND split = ?"
        )
        self._db.execute(raised, (qrel.relevance, *key))
        return False

    def kept_qrels(self) -> Iterator[Qrel]:
        """Yield the kept judgements, sorted by query, passage and split."""
        select = "SELECT query_id, passage_id, relevance, split FROM kept"
        yield from map(Qrel._make, self._db.execute(select + " ORDER BY 1, 2, 4"))

    def labelled_queries(self) -> dict[str, int]:
        """Return split -> number of queries with at least one relevant passage."""
        return dict(self._db.execute(_LABELLED))

    def unlabelled_query_count(self) -> int:
        """Return the number of queries without any kept judgement."""
        select = (
            "SELECT COUNT(*) FROM queries WHERE NOT EXISTS "
            "(SELECT 1 FROM kept WHERE kept.query_id = queries.id)"
        )
        return int(self._db.execute(select).fetchone()[0])

    def close(self) -> None:
        """Let go of the file and delete it."""
        self._db.close()
        self.path.unlink()

    def _flush(self) -> None:
        insert = "INSERT INTO qrels VALUES (NULL, ?, ?, ?, ?, ?)"
        self._db.executemany(insert, self._qrels)
        self._qrels.clear()
