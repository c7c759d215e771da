"""Mutated inputs through every reader: each must be read, or refused in one line of ours.

    python tests/bench/fuzz_readers.py [READER…] [--count 2000] [--seed 0] [--out FILE]

A failure is a traceback, a message of several lines, more than 5 seconds of the processor, more
than 1 GB beside what the process had, or anything left behind by an input that was refused. Two
minutes with no answer end the run with the place where it hangs. Readers: tables, rows, columns
(Parquet and Arrow), beir, runs, settings, data, bundles, archives (restored into an embedded
engine), bodies (of HTTP requests to a real service). `--out` adds a line for each to a JSON file:
what ran last is in tests/bench/results/fuzz.json.
"""

import argparse
import faulthandler
import json
import os
import resource
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(Path(__file__).parent)]

from conftest import HashEncoder, make_bundle, make_passages  # noqa: E402
from crossing import crossed, recurrent  # noqa: E402
from fuzz_inputs import FORMS, ROWS, Files, folder_files, jsonl, spoiled  # noqa: E402
from services import load, running_service  # noqa: E402

from two_tower.ingest.dataset.writer import DatasetWriter  # noqa: E402
from two_tower.ingest.loading import loader  # noqa: E402
from two_tower.ingest.sources.choose import open_source  # noqa: E402
from two_tower.ingest.versions.snapshots import restore, snapshot  # noqa: E402
from two_tower.models.bundle.bundle import ModelBundle  # noqa: E402
from two_tower.models.data import Dataset  # noqa: E402
from two_tower.models.errors import TwoTowerError  # noqa: E402
from two_tower.models.provenance import commit  # noqa: E402
from two_tower.retriever.engine.connect import connect  # noqa: E402
from two_tower.retriever.evaluation.trec import read_run  # noqa: E402
from two_tower.retriever.search.settings import read_file  # noqa: E402

SLOW_S, HANGS_S = 5.0, 120.0

LARGEST_MB = 1000.0

LONGEST_MESSAGE = 2000

LARGEST_FILE, MOST_ADDRESSES = 2**30, 2**34
"""What a run may take of the machine, so that an input which asks for all of it is a failure."""

KEY = "correct-horse-battery"

Read = Callable[[Path], object]


class Reader(NamedTuple):
    """What is fuzzed.

    Attributes:
        forms: good inputs.
        read: reads a file, or a folder where the input has several.
        pid: of the process that reads.
    """

    forms: list[Files]
    read: Read
    pid: int


def prepare(path: Path) -> None:
    """Make DATA of it; it is complete, or nothing is left of it."""
    out = path.parent / "made" if path.is_file() else path / "made"
    try:
        source = open_source(str(path))
        with DatasetWriter(out, source=source.name, details=source.details) as writer:
            source.write_to(writer)
    except TwoTowerError:
        left = [file.name for file in out.parent.iterdir() if "made" in file.name]
        assert not left, f"left behind: {left}"
        raise
    read_data(out)
    shutil.rmtree(out)


def read_data(path: Path) -> None:
    data = Dataset.open(path)
    list(data.passages())
    data.queries()
    data.merged_ids()
    for split in data.splits:
        data.qrels(split)


def read_bundle(path: Path) -> None:
    bundle = ModelBundle.load(path)
    bundle.encode_passages(["a storm on the river", ""])
    vectors = bundle.encode_queries(["storm"])
    assert np.isfinite(vectors).all()
    bundle.reduce(vectors)
    if bundle.has_cross_scorer:
        numbers = np.ones(2, np.float32)
        texts = (["storm"], [["a storm", "bread"]])
        bundle.cross_scores(*texts, bm25=[numbers], cosine=[numbers])


def read_archive(path: Path) -> None:
    """Restore it; the collection can be read or is refused, and dropped, or there is none."""
    out = path.parent / "edge"
    try:
        with closing(connect(path=out)) as engine:
            try:
                made = restore(engine, path).collection
            except TwoTowerError as failure:
                if left := [file.name for file in (out / "collections").iterdir()]:
                    raise AssertionError(f"left behind: {left}, {failure}") from None
                raise
            try:
                engine.scroll(made, limit=50, with_vectors=True)
            finally:
                engine.delete_collection(made)
    finally:
        shutil.rmtree(out)


@contextmanager
def opened(name: str, folder: Path) -> Iterator[Reader]:
    """Give a reader, and make what it needs in a folder."""
    here = os.getpid()
    if name == "data":
        (folder / "rows.jsonl").write_bytes(jsonl(ROWS))
        with DatasetWriter(folder / "DATA", source="fuzz", dev_fraction=0.3) as writer:
            open_source(str(folder / "rows.jsonl")).write_to(writer)
        yield Reader([folder_files(folder / "DATA")], read_data, here)
    elif name == "bundles":
        bundle = ModelBundle.load(make_bundle(folder / "plain"))
        crossed(bundle).save(folder / "crossed")
        recurrent(bundle, "gru").save(folder / "recurrent")
        forms = [folder_files(folder / kind) for kind in ("plain", "crossed", "recurrent")]
        yield Reader(forms, read_bundle, here)
    elif name == "archives":
        with closing(connect(path=folder / "made-edge")) as engine:
            with DatasetWriter(folder / "DATA", source="fuzz") as writer:
                for passage in make_passages(20):
                    writer.add_passage(passage)
            data = Dataset.open(folder / "DATA")
            made = loader.load(engine, data, HashEncoder(), name="c").collection
            saved = snapshot(engine, made, folder / "out").file
        yield Reader([{"x.zip": saved.read_bytes()}], read_archive, here)
    elif name == "bodies":
        with ExitStack() as stack:
            yield stack.enter_context(service_reader(folder))
    else:
        read: dict[str, Read] = {"runs": read_run, "settings": read_file}
        yield Reader(FORMS[name], read.get(name, prepare), here)


@contextmanager
def service_reader(folder: Path) -> Iterator[Reader]:
    """Give a reader that posts bodies to a running service; a refused one changes nothing."""
    bundle = make_bundle(folder / "bundle")
    load(folder, bundle, make_passages(30), path=folder / "edge")
    (folder / "key").write_text(KEY)
    flags = ("--path", folder / "edge", "--key-file", folder / "key")
    with running_service(folder, bundle, *flags) as service:
        right = {"Authorization": f"Bearer {KEY}"}

        def points() -> Any:
            return service.get("/health", **right).json

        def read(path: Path) -> None:
            before = points() if path.name == "passages" else None
            answer = service.post(f"/{path.name}", path.read_bytes(), **right)
            shown = json.loads(answer.text, parse_constant=refuse_constant)
            assert answer.status < 500, f"{answer.status}: {answer.text}"
            if answer.status != 200:
                assert before is None or points() == before, "a part was written"
                raise TwoTowerError(shown["error"]["message"])

        yield Reader(FORMS["bodies"], read, service.process.pid)


def refuse_constant(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


READERS = ("tables", "rows", "columns", "beir", "runs", "settings", "data", "bundles", "archives",
           "bodies")  # fmt: skip


def memory_mb(pid: int, what: str) -> float:
    """Return `VmRSS` or `VmHWM` (the most since `forget_peak`) of a process in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0]) / 1e3


def used_s(pid: int) -> float:
    """Return the seconds of the processor that a process has used; the machine may be busy."""
    numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")


def forget_peak(pid: int) -> None:
    """Let the most memory of a process be what it has now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


class Outcome(NamedTuple):
    """What became of one input; `failure` is empty where it is as it should be."""

    refusal: str
    failure: str
    seconds: float
    growth_mb: float


def attempt(reader: Reader, files: Files, case: Path) -> Outcome:
    """Read an input that is written to the folder `case`."""
    for name, content in files.items():
        (case / name).parent.mkdir(exist_ok=True)
        (case / name).write_bytes(content)
    path = case / next(iter(files)) if len(files) == 1 else case
    refusal = failure = ""
    forget_peak(reader.pid)
    before, start = memory_mb(reader.pid, "VmRSS"), used_s(reader.pid)
    faulthandler.dump_traceback_later(HANGS_S, exit=True, file=sys.__stderr__)
    try:
        reader.read(path)
    except TwoTowerError as error:
        refusal = str(error)
        if "\n" in refusal or len(refusal) > LONGEST_MESSAGE:
            failure = f"{len(refusal)} characters: {refusal[:300]!r}"
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-6:]
        at = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(last))
        failure = f"{type(error).__name__}: {str(error)[:300]} {at}"
    finally:
        faulthandler.cancel_dump_traceback_later()
    seconds = used_s(reader.pid) - start
    growth = memory_mb(reader.pid, "VmHWM") - before
    names = {file.relative_to(case).as_posix() for file in case.rglob("*") if file.is_file()}
    if not failure and (left := sorted(names - files.keys())):
        failure = f"left behind: {left[:5]}"
    if seconds > SLOW_S or growth > LARGEST_MB:
        failure += f" {seconds:.1f} s, {growth:.0f} MB"
    return Outcome(refusal, failure, seconds, growth)


def fuzz(name: str, count: int, seed: int) -> dict[str, Any]:
    """Run `count` mutations through a reader, and its good inputs before; return what came out."""
    random, outcomes = Random(f"{name} {seed}"), []
    with tempfile.TemporaryDirectory() as folder, opened(name, Path(folder)) as reader:
        for files in reader.forms:
            with tempfile.TemporaryDirectory(dir=folder) as case:
                first = attempt(reader, files, Path(case))
                assert first.refusal == first.failure == "", first
        for number in range(count):
            files = spoiled(name, random.choice(reader.forms), random)
            with tempfile.TemporaryDirectory(dir=folder, prefix=f"{number}-") as case:
                outcomes.append(outcome := attempt(reader, files, Path(case)))
            if outcome.failure:
                print(f"{name} {number}: {outcome.failure}", flush=True)
    row = {
        "reader": name,
        "inputs": count,
        "seed": seed,
        "refused": sum(bool(outcome.refusal) for outcome in outcomes),
        "failures": sum(bool(outcome.failure) for outcome in outcomes),
        "worst_s": round(max(outcome.seconds for outcome in outcomes), 2),
        "worst_mb": round(max(outcome.growth_mb for outcome in outcomes)),
    }
    print(json.dumps(row), flush=True)
    return row


def keep(row: dict[str, Any], path: Path) -> None:
    """Put a line into a file of results, in place of the one of the same reader and seed."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    same = ("reader", "seed")
    rows = [other for other in rows if any(other[key] != row[key] for key in same)]
    rows = sorted([*rows, {**row, "commit": commit()}], key=lambda r: [r[key] for key in same])
    path.write_text(json.dumps({"command": "fuzz_readers.py", "rows": rows}, indent=2) + "\n")


def main(words: list[str]) -> int:
    """Return how many inputs ended otherwise than they should."""
    parser = argparse.ArgumentParser()
    parser.add_argument("readers", nargs="*", metavar="READER", default=READERS)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args(words)
    failures = 0
    for name in flags.readers:
        row = fuzz(name, flags.count, flags.seed)
        failures += row["failures"]
        if flags.out:
            keep(row, flags.out)
    return failures


if __name__ == "__main__":
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESSES, MOST_ADDRESSES))
    warnings.simplefilter("error")
    sys.exit(bool(main(sys.argv[1:])))
