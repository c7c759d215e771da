"""Mutated files through every reader.

    python tests/bench/fuzz_readers.py [COUNT] [SEED] [READER…]

Each file must be read, or refused in one line of ours; what takes over 5 seconds is printed, too.
"""

import gzip
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[2]))

from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.sources.choose import open_source
from two_tower.models.data import Dataset
from two_tower.models.errors import TwoTowerError
from two_tower.retriever.evaluation.trec import read_run
from two_tower.retriever.search.settings import read_file

SLOW_S = 5.0

ROWS = [
    {
        "id": n,
        "query": f"question {n}, é",
        "text": f'an "answer" {n}; 猫',
        "label": n % 3,
        "tags": ["x"],
    }
    for n in range(12)
]

MARCO = [
    {
        "query": f"q {n}",
        "query_id": n,
        "passages": {
            "passage_text": ["a", f"b {n}"],
            "url": ["http://a", ""],
            "is_selected": [0, 1],
        },
    }
    for n in range(6)
]

TOKENS = [
    *(
        b'"',
        b"'",
        b",",
        b";",
        b"\t",
        b"\r",
        b"\n",
        b"\r\n",
        b"\0",
        b"\xff",
        b"\xfe\xff",
        b"\xff\xfe",
    ),
    *(b"\xef\xbb\xbf", b"\\", b"\\ud800", b"NaN", b"Infinity", b"1e999", b"-1", b"null", b"true"),
    *(b"[" * 2000, b"{" * 400, b"9" * 5000, b"18446744073709551616", b"sep=;\n", b'{"a":' * 300),
    *(
        b"\xf0\x9f\x98\x80",
        b"\xed\xa0\x80",
        b"\xe2\x80\xa8",
        b"PAR1",
        b"\x1f\x8b\x08",
        b"query",
        b"_id",
    ),
]


def jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def separated(delimiter: str) -> bytes:
    lines = [[*ROWS[0]], *(["" if v is None else str(v) for v in row.values()] for row in ROWS)]
    quoted = (
        [f'"{c}"'.replace('""', '"') if delimiter in c else c.replace('"', "'") for c in line]
        for line in lines
    )
    return "".join(delimiter.join(line) + "\n" for line in quoted).encode()


def parquet(rows: list[dict]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def arrow(rows: list[dict]) -> bytes:
    table, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    return sink.getvalue().to_pybytes()


CORPUS = jsonl(
    [{"_id": f"d{n}", "title": "t", "text": f"text {n}", "metadata": {"y": n}} for n in range(8)]
)
QUERIES = jsonl([{"_id": f"q{n}", "text": f"question {n}"} for n in range(4)])
QRELS = b"query-id\tcorpus-id\tscore\n" + b"".join(b"q%d\td%d\t1\n" % (n, n) for n in range(4))
SETTINGS = b"legs: {dense: 100, bm25: 50}\nrerank: true\ncross: false\nann: {ef: 64}\nk: 10\n"

READERS: dict[str, list[dict[str, bytes]]] = {
    "tables": [
        {"x.csv": separated(",")},
        {"x.csv": separated(";")},
        {"x.tsv": separated("\t")},
        {"x.csv.gz": gzip.compress(separated(","))},
    ],
    "rows": [
        {"x.jsonl": jsonl(ROWS)},
        {"x.json": json.dumps(ROWS).encode()},
        {"x.jsonl": jsonl(MARCO)},
        {"x.jsonl": jsonl(ROWS).decode().encode("utf-16")},
    ],
    "columns": [
        {"x.parquet": parquet(ROWS)},
        {"x.arrow": arrow(ROWS)},
        {"x.parquet": parquet(MARCO)},
    ],
    "beir": [
        {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES, "qrels/test.tsv": QRELS},
        {
            "collection.tsv": b"d1\ttext one\nd2\ttext two\n",
            "queries.dev.tsv": b"q1\tquestion\n",
            "qrels.dev.tsv": b"q1\t0\td1\t1\n",
        },
        {
            "corpus/corpus.parquet": parquet([json.loads(line) for line in CORPUS.splitlines()]),
            "queries.jsonl": QUERIES,
            "test.jsonl": jsonl([{"query-id": "q1", "corpus-id": "d1", "score": 1}]),
        },
    ],
    "data": [],
    "runs": [{"run.trec": b"".join(b"q%d Q0 d%d 1 %d.5 x\n" % (n, n, n) for n in range(9))}],
    "settings": [
        {"settings.yaml": SETTINGS},
        {"settings.yaml": b"collection: {distance: dot}\n" + SETTINGS},
    ],
}


def mutated(content: bytes, random: Random) -> bytes:
    """One to four changes of bytes, tokens, lines or the length."""
    data = bytearray(content)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(data) + 1)
        match random.randrange(7):
            case 0:
                data[at:at] = random.choice(TOKENS)
            case 1:
                data[at : at + random.randint(1, 30)] = b""
            case 2 if at < len(data):
                data[at] = random.randrange(256)
            case 3:
                del data[at:]
            case 4:
                end = at + random.randint(1, 200)
                data[at:at] = data[at:end] * random.randint(1, 20)
            case 5 if at < len(data):
                data[at] ^= 1 << random.randrange(8)
            case 6:
                lines = bytes(data).split(b"\n")
                random.shuffle(lines)
                data = bytearray(b"\n".join(lines))
    return bytes(data)


def cases(reader: str, random: Random, folder: Path) -> Iterator[Path]:
    """Folders or files with one mutated file each, for ever."""
    forms = READERS[reader] or [data_files(folder)]
    while True:
        files = dict(random.choice(forms))
        name = random.choice([*files])
        files[name] = mutated(files[name], random)
        with tempfile.TemporaryDirectory(dir=folder) as case:
            for other, content in files.items():
                (Path(case) / other).parent.mkdir(exist_ok=True)
                (Path(case) / other).write_bytes(content)
            alone = len(files) == 1
            yield Path(case) / name if alone else Path(case)


def data_files(folder: Path) -> dict[str, bytes]:
    """The files of a small DATA folder."""
    (folder / "rows.jsonl").write_bytes(jsonl(ROWS))
    prepare(folder / "rows.jsonl")
    return {file.name: file.read_bytes() for file in (folder / "made").iterdir()}


def prepare(path: Path) -> None:
    out = path.parent / "made" if path.is_file() else path.with_suffix(".made")
    source = open_source(str(path))
    with DatasetWriter(out, source=source.name, details=source.details, overwrite=True) as writer:
        source.write_to(writer)


def read_data(path: Path) -> None:
    data = Dataset.open(path)
    list(data.passages())
    data.queries()
    data.merged_ids()
    for split in data.splits:
        data.qrels(split)


READ: dict[str, Callable[[Path], object]] = {
    "data": read_data,
    "runs": read_run,
    "settings": read_file,
}


def main(count: int = 2000, seed: int = 0, *readers: str) -> int:
    """Run `count` mutations of each reader; return how many ended otherwise than they should."""
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for reader in readers or READERS:
            refused, random = 0, Random(f"{reader} {seed}")
            for number, case in zip(
                range(count), cases(reader, random, Path(folder)), strict=False
            ):
                start = time.perf_counter()
                try:
                    READ.get(reader, prepare)(case)
                except TwoTowerError as error:
                    refused += 1
                    if "\n" in str(error) or len(str(error)) > 2000:
                        failures += 1
                        print(f"{reader} {number}: {len(str(error))} characters: {error!s:.300}")
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt):
                        raise
                    failures += 1
                    last = traceback.extract_tb(error.__traceback__)[-6:]
                    at = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(last))
                    print(f"{reader} {number}: {type(error).__name__}: {str(error)[:150]} {at}")
                if (took := time.perf_counter() - start) > SLOW_S:
                    failures += 1
                    print(f"{reader} {number}: {took:.1f} s")
            print(f"{reader}: {count} mutated, {refused} refused", flush=True)
    return failures


if __name__ == "__main__":
    words = sys.argv[1:]
    numbers = [int(word) for word in words[:2]]
    sys.exit(bool(main(*numbers, *words[2:])))
