"""DATA and tables from strangers: files that are no files, and little that stands for much."""

import itertools
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_passages, write_data

from two_tower.ingest.sources.prepare import prepare
from two_tower.models.data import Dataset
from two_tower.models.errors import DataError
from two_tower.models.parquet import PASSAGES

FILES = ("manifest.json", "passages.parquet", "queries.parquet", "qrels.parquet", "merged.jsonl")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_data(tmp_path / "DATA", make_passages(3))
    (tmp_path / "DATA" / "merged.jsonl").touch()
    return tmp_path / "DATA"


def read(path: Path) -> None:
    opened = Dataset.open(path)
    list(opened.passages())
    opened.queries()
    opened.merged_ids()
    opened.qrels("train")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder"])
def test_what_is_no_plain_file_is_not_read(data: Path, name: str, kind: str) -> None:
    (data / name).unlink()
    if kind == "pipe":
        os.mkfifo(data / name)
    elif kind == "device":
        (data / name).symlink_to("/dev/zero")
    elif kind == "socket":
        os.mknod(data / name, 0o600 | stat.S_IFSOCK)
    else:
        (data / name).mkdir()
    with pytest.raises(DataError) as failure:
        read(data)
    assert "\n" not in str(failure.value)
    assert name in str(failure.value) or "no plain file" in str(failure.value)


@pytest.mark.parametrize("name", FILES)
def test_a_link_to_a_file_is_followed(data: Path, name: str) -> None:
    shutil.move(data / name, data.parent / name)
    (data / name).symlink_to(data.parent / name)
    with pytest.raises(DataError, match="has no labelled query in split 'train'"):
        read(data)


LARGE, MANY = "word " * 2**20, 2000  # 5 MB, two thousand times


def one_text(path: Path, *, as_data: bool = False) -> None:
    """A table of many rows with the same large text, which the file holds once."""
    indices = pa.array([0] * MANY, pa.int32())
    text = pa.DictionaryArray.from_arrays(indices, pa.array([LARGE]))
    ids = pa.array([str(number) for number in range(MANY)])
    none = pa.array([""] * MANY)
    columns = {"passage_id": ids, "title": none, "text": text, "url": none, "fields": none}
    table = pa.table(columns if as_data else {"id": ids, "text": text})
    if path.suffix == ".arrow":
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table)
        return
    options = {"use_dictionary": ["text"], "dictionary_pagesize_limit": 2**30}
    pq.write_table(table, path, compression="zstd", store_schema=False, **options)


READ_SOME = """
import itertools, sys
from pathlib import Path
from two_tower.ingest.sources.columnar import read_arrow, read_parquet
from two_tower.models.data import Dataset

path = Path(sys.argv[1])
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1000
before = peak()
if path.is_dir():
    rows = (passage._asdict() for passage in Dataset.open(path).passages())
else:
    rows = (read_arrow if path.suffix == ".arrow" else read_parquet)(path)
assert all(len(row["text"]) == 5 * 2**20 for row in itertools.islice(rows, 100))
print(peak() - before)
"""


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow", "DATA"])
def test_rows_that_share_a_large_text_do_not_take_its_size_each(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "DATA":
        write_data(path, make_passages(3))
        one_text(path / "passages.parquet", as_data=True)
        assert pq.read_schema(path / "passages.parquet").types == PASSAGES.types
        assert (path / "passages.parquet").stat().st_size < 30_000
    else:
        one_text(path)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", READ_SOME, str(path)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 600  # MB of 10,000


HEADS = {
    "x.jsonl.gz": b'{"query":"a","text":"',
    "x.json.gz": b'[{"query":"a","text":"',
    "x.csv.gz": b'query,text\na,"',
    "x.tsv.gz": b"query\ttext\na\t",
}


@pytest.mark.parametrize("name", HEADS)
def test_a_line_without_end_is_refused_in_bounded_memory(tmp_path: Path, name: str) -> None:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    parts = itertools.chain([HEADS[name]], itertools.repeat(b"a" * 2**20, 600))
    (tmp_path / name).write_bytes(b"".join(map(packer.compress, parts)) + packer.flush())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"has more than [\d,]+ characters"):
        prepare(tmp_path / name, tmp_path / "DATA")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 900_000  # kB
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_merged_ids_that_are_nested_too_deep_are_damage(data: Path) -> None:
    (data / "merged.jsonl").write_text("[" * 100_000)
    with pytest.raises(DataError, match="is damaged"):
        Dataset.open(data).merged_ids()
    (data / "merged.jsonl").write_text(json.dumps({"merged": "a", "into": "b"}))
    assert Dataset.open(data).merged_ids() == {"a": "b"}
