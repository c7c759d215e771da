"""Good inputs of every reader, and how `fuzz_readers.py` spoils them."""

import gzip
import hashlib
import io
import json
import zipfile
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from two_tower.models.bundle.files import CARD, EXTRA_FILES, digests, fingerprint

Files = dict[str, bytes]
"""Name -> content of the files of one input."""

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
    *(b'"', b"'", b",", b";", b"\t", b"\r", b"\n", b"\r\n", b"\0", b"\xff"),
    *(b"\xfe\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\\", b"\\ud800", b"NaN", b"Infinity", b"1e999"),
    *(b"-1", b"null", b"true", b"[]", b"{}", b"1e308", b"0.5", b"1_0", b"0x10", b"\x1b[31m"),
    *(b"[" * 2000, b"{" * 400, b"9" * 5000, b"18446744073709551616", b"sep=;\n", b'{"a":' * 300),
    *(b"\xf0\x9f\x98\x80", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\xe2\x80\xae", b"PAR1"),
    *(b"\x1f\x8b\x08", b"query", b"_id", b"a" * 100_000, b"\x7f\xff\xff\xff\xff\xff\xff\xff"),
]


def jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def separated(delimiter: str) -> bytes:
    lines = [[*ROWS[0]], *([str(v).replace('"', '""') for v in row.values()] for row in ROWS)]
    cells = ([f'"{c}"' if delimiter in c or '"' in c else c for c in line] for line in lines)
    return "".join(delimiter.join(line) + "\n" for line in cells).encode()


def parquet(rows: list[dict] | pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def arrow(rows: list[dict] | pa.Table) -> bytes:
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    return sink.getvalue().to_pybytes()


CORPUS = jsonl(
    [{"_id": f"d{n}", "title": "t", "text": f"text {n}", "metadata": {"y": n}} for n in range(8)]
)
QUERIES = jsonl([{"_id": f"q{n}", "text": f"question {n}"} for n in range(4)])
QRELS = b"query-id\tcorpus-id\tscore\n" + b"".join(b"q%d\td%d\t1\n" % (n, n) for n in range(4))
SETTINGS = b"""search:
  legs: {dense: 100, bm25: 50}
  rerank: true
  cross: false
  group_by: kind
  ann: {ef: 64, oversampling: 2.0}
"""

FORMS: dict[str, list[Files]] = {
    "tables": [
        {"x.csv": separated(",")},
        {"x.csv": separated(";")},
        {"x.tsv": separated("\t")},
        {"x.csv.gz": gzip.compress(separated(","))},
        {"x.csv": separated(",").decode().encode("utf-16")},
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
            "collection.tsv": b"1\ttext one\n2\ttext two\n",
            "queries.dev.tsv": b"11\twhat is one\n12\twhat is two\n",
            "qrels.dev.tsv": b"11\t0\t1\t1\n12\t0\t2\t1\n",
        },
        {
            "corpus/corpus.parquet": parquet([json.loads(line) for line in CORPUS.splitlines()]),
            "queries.jsonl": QUERIES,
            "test.jsonl": jsonl([{"query-id": "q1", "corpus-id": "d1", "score": 1}]),
        },
    ],
    "runs": [{"run.trec": b"".join(b"q%d Q0 d%d 1 %d.5 x\n" % (n, n, n) for n in range(9))}],
    "settings": [
        {"settings.yaml": SETTINGS},
        {"settings.yaml": b"collection: {hnsw: {m: 8}, quantization: {kind: scalar}}\n" + SETTINGS},
    ],
    "bodies": [
        {"search": json.dumps({"query": "storm", "k": 5, "filter": {"kind": "note"}}).encode()},
        {
            "search": json.dumps(
                {
                    "query": "bread oven",
                    "filter": {"year": {"gte": 2005, "lt": 2015}, "kind": ["note", "manual"]},
                    "settings": {"legs": {"dense": 20, "bm25": 9}, "fusion": "rrf", "rerank": True},
                    "budget_ms": 50.0,
                }
            ).encode()
        },
        {"similar": json.dumps({"passage_id": "p3", "k": 4}).encode()},
        {
            "passages": json.dumps(
                {
                    "passages": [
                        {"passage_id": "new", "text": "a storm", "title": "t", "url": "http://a",
                         "fields": {"kind": "note", "year": 2001, "rank": 0.5}},
                        {"passage_id": "p1", "text": "another text"},
                    ]
                }
            ).encode()
        },
    ],
}  # fmt: skip


def mutated(content: bytes, random: Random) -> bytes:
    """One to four changes of bytes, tokens, lines or the length; in JSON often one of a value."""
    if content[:1] in (b"{", b"[") and random.random() < 0.5:
        return mutated_json(content, random) or content
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


VALUES = [
    *(None, True, False, 0, -1, 1, 0.5, 2**31, 2**63, 2**64, 10**400, 1e308, -0.0),
    *("", "x", "0", "1e999", "p3", "note", "\0", "\ud800", "\x1b[31m", "\u202e", "a" * 30_000, "é"),
    *([], [[]], [None], {}, {"a": {}}, {"": 1}, {"gte": 0}, [1] * 2000, [["x"]], {"text": "storm"}),
]


def with_other_value(value: object, random: Random) -> object:
    """A value of JSON with one of its parts replaced, removed or added to."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.15:
        return random.choice(VALUES)
    keys = [*value] if isinstance(value, dict) else [*range(len(value))]
    place = random.choice(keys)
    made = value.copy()
    match random.randrange(8):
        case 0:
            del made[place]
        case 1 if isinstance(made, dict):
            made[random.choice([*keys, "x", "\x1b[2J", "a" * 3000])] = random.choice(VALUES)
        case 1:
            made.append(random.choice([*VALUES, value[place]]))
        case _:
            made[place] = with_other_value(value[place], random)
    return made


def mutated_json(content: bytes, random: Random) -> bytes | None:
    """The same for a file in JSON, or for one line; None where it is none."""
    lines = content.split(b"\n")
    place = random.randrange(len(lines))
    for whole in (True, False):
        try:
            value = json.loads(content if whole else lines[place])
        except ValueError:
            continue
        other = json.dumps(with_other_value(value, random), ensure_ascii=random.random() < 0.5)
        changed = other.encode(errors="surrogatepass")
        return changed if whole else b"\n".join([*lines[:place], changed, *lines[place + 1 :]])
    return None


def spoiled(reader: str, files: Files, random: Random) -> Files:
    """One file of an input mutated; where hashes guard it, they are usually set right again."""
    if reader == "columns" and random.random() < 0.5:
        table = drawn_table(random)
        try:
            return (
                {"x.parquet": parquet(table)}
                if random.random() < 0.5
                else {"x.arrow": arrow(table)}
            )
        except pa.ArrowException:  # Parquet has not every type and value
            return {"x.arrow": arrow(table)}
    name = random.choice([*files])
    if reader == "archives" and random.random() < 0.1:  # the engine takes a second for each
        return {name: with_spoiled_entry(files[name], random)}
    files = {**files, name: mutated(files[name], random)}
    if reader == "bundles" and name != CARD:
        card = json.loads(files[CARD])
        extras = {n: files[n] for n in files if n in EXTRA_FILES}
        deciding = {n: files[n] for n in files if n not in EXTRA_FILES and n != CARD}
        card |= {"fingerprint": fingerprint(deciding), "extras": digests(extras)}
        files[CARD] = json.dumps(card).encode()
    return files


def with_spoiled_entry(archive: bytes, random: Random) -> bytes:
    """A snapshot with one file mutated, whose manifest says that it has to be so."""
    with zipfile.ZipFile(io.BytesIO(archive)) as source:
        entries = {name: source.read(name) for name in source.namelist()}
    name = random.choice([n for n in entries if entries[n].strip(b"\0")])
    entries[name] = mutated(entries[name].rstrip(b"\0"), random).ljust(len(entries[name]), b"\0")
    if name != "manifest.json":
        manifest = json.loads(entries["manifest.json"])
        for file in manifest["files"]:
            content = entries[file["name"]]
            file |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        entries["manifest.json"] = json.dumps(manifest).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        for entry, content in entries.items():
            target.writestr(entry, content)
    return out.getvalue()


NAMES = [
    *("query", "text", "id", "title", "url", "passage", "label", "score", "query_id", "answer"),
    *("passages", "positive", "negative", "split", "is_selected", "", "a b", "\x1b[2J", "\u202e"),
]

SCALARS = [
    *(None, True, False, 0, -1, 7, 2**31, 2**63 - 1, -(2**63), 0.5, float("nan"), float("inf")),
    *("", " ", "text", "nan", "0", "été", "\ud7ff", "\x1b[31m", "\u202e", "a" * 50_000, b"\xff\0"),
    *(date(2020, 2, 3), datetime(9999, 12, 31, 23, 59, 59)),
    *(timedelta(days=999_999), Decimal("1.5")),
]

TYPES = [
    *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.bool_(), pa.null()),
    *(pa.int8(), pa.uint64(), pa.int64(), pa.float16(), pa.float32(), pa.float64()),
    *(pa.date32(), pa.date64(), pa.time64("ns"), pa.timestamp("ns"), pa.timestamp("s", "UTC")),
    *(pa.duration("s"), pa.decimal128(38, 5), pa.list_(pa.string()), pa.list_(pa.int64(), 2)),
    *(pa.struct({"passage_text": pa.list_(pa.string()), "is_selected": pa.list_(pa.int8())}),),
    *(pa.map_(pa.string(), pa.int64()), pa.dictionary(pa.int8(), pa.string())),
    pa.struct({"text": pa.string(), "id": pa.float64()}),
]


def drawn_table(random: Random) -> pa.Table:
    """Two to six columns of any types and values, with names that mean something."""
    count = random.choice([0, 1, 3, 20])
    columns, names = [], random.sample(NAMES, random.randint(2, 6))
    for _ in names:
        kind = random.choice(TYPES)
        columns.append(pa.array([drawn_value(kind, random) for _ in range(count)], kind))
    return pa.Table.from_arrays(columns, names=names)


def drawn_value(kind: pa.DataType, random: Random) -> object:
    """A value that a column of this type takes, often none."""
    for _ in range(6):
        value = random.choice(SCALARS)
        if pa.types.is_struct(kind):
            value = {field.name: drawn_value(field.type, random) for field in kind}
        elif pa.types.is_map(kind):
            value = [("a", 1), ("b", None)]
        elif pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
            value = [drawn_value(kind.value_type, random) for _ in range(2)]
        try:
            pa.array([value], kind)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            continue
        return value
    return None


def folder_files(folder: Path) -> Files:
    """The files of a folder."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
