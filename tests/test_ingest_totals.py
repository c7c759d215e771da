"""How many rows a bar says a file has, against files whose rows are counted."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from two_tower.ingest.sources.totals import row_total

ROWS = [{"query": f"what is {n}", "passage": f"the thing {n} " * (n % 7 + 1)} for n in range(9000)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize("count", [1, 90, 9000])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.tsv.gz", "questions.txt"])
def test_lines_are_counted_or_reckoned(name: str, count: int, tmp_path: Path) -> None:
    file, text = tmp_path / name, "".join(JSONL.splitlines(keepends=True)[:count]).encode()
    file.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    assert row_total(file) == pytest.approx(count, rel=0.1)


def test_parquet_says_it(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert row_total(tmp_path / "a.parquet") == len(ROWS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("array.json", b"[\n1,\n2\n]"),
        ("broken.parquet", b"PAR1"),
        ("broken.csv.gz", b"\x1f\x8b\x08rest"),
        ("cut.jsonl.gz", gzip.compress(JSONL.encode())[:1000]),
        ("empty.csv", b""),
        ("missing.csv", None),
    ],
)
def test_where_it_cannot_be_told_nothing_fails(
    name: str, content: bytes | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert row_total(tmp_path / name) is None
