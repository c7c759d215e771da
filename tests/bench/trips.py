"""Trace the trips of queries, one fresh load and one training run through the source.

    python tests/bench/trips.py [--markdown]

Everything runs on made-up data in a temporary folder, on the embedded engine, with a bundle that
has a learnt fusion. One query takes the way that `models train` makes by default, another one goes
through a cross-scorer too. A function counts once however often it runs, and its
lambdas and comprehensions count as itself. A border is a call from a function in one folder of the
project to a function in another; what a library calls back counts for the function of ours that
called the library. With --markdown it prints the section that docs/architecture.md holds.
"""

import argparse
import inspect
import io
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import FrameType
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import make_passages, write_data  # noqa: E402
from crossing import crossed, fused  # noqa: E402
from topics import QUICK, train_bundle, write_topics  # noqa: E402

from two_tower import Retriever, SearchSettings  # noqa: E402
from two_tower.ingest.loading import loader  # noqa: E402
from two_tower.models.bundle.bundle import ModelBundle  # noqa: E402
from two_tower.models.config import from_mapping  # noqa: E402
from two_tower.models.data import Dataset  # noqa: E402
from two_tower.models.training.config import TrainConfig  # noqa: E402
from two_tower.retriever.engine.connect import connect  # noqa: E402

PASSAGES = 300
QUERY = "storm on the river bank"
FOLDERS = ("models", "retriever", "ingest")
SHOWN = 6


class Trip(NamedTuple):
    """What one trip went through.

    Attributes:
        name: of the trip.
        functions: file -> its functions, both in the order in which they were first entered.
        borders: (calling file, called file) -> calls, for files of different folders.
    """

    name: str
    functions: dict[str, list[str]]
    borders: dict[tuple[str, str], int]


@contextmanager
def traced(name: str) -> Iterator[Trip]:
    """Record the functions of the project that this thread and new ones enter in the block."""
    trip = Trip(name, {}, {})
    files: dict[str, str | None] = {}

    def file_of(frame: FrameType) -> str | None:
        path = frame.f_code.co_filename
        if path not in files:
            resolved = Path(path).resolve()
            is_ours = any(resolved.is_relative_to(ROOT / folder) for folder in FOLDERS)
            files[path] = resolved.relative_to(ROOT).as_posix() if is_ours else None
        return files[path]

    def enter(frame: FrameType, event: str, _: object) -> None:
        if event != "call" or (file := file_of(frame)) is None:
            return
        function = function_name(frame)
        if function is None:
            return
        functions = trip.functions.setdefault(file, [])
        if function not in functions:
            functions.append(function)
        caller = frame.f_back
        while caller is not None and file_of(caller) is None:
            caller = caller.f_back
        calling = caller and file_of(caller)
        if calling and Path(calling).parent != Path(file).parent:
            trip.borders[calling, file] = trip.borders.get((calling, file), 0) + 1

    threading.setprofile(enter)
    sys.setprofile(enter)
    try:
        yield trip
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def function_name(frame: FrameType) -> str | None:
    """Return a function's qualified name; None for the body of a module or a class.

    What is defined inside a function, a comprehension for one, is part of it.
    """
    code = frame.f_code
    is_function = code.co_flags & inspect.CO_OPTIMIZED
    return code.co_qualname.split(".<locals>")[0] if is_function else None


def take_trips(folder: Path) -> list[Trip]:
    """Return the trips of a query without and with a cross-scorer, of a load and of training.

    Each is taken once before it is traced, so that imports and what is made only once stay out.
    """
    topics = write_topics(folder / "TOPICS", topics=60)
    train(topics, folder / "first")
    with traced("One training run") as training:
        train(topics, folder / "second")
    data = write_data(folder / "DATA", make_passages(PASSAGES))
    bundle = ModelBundle.load(folder / "second")
    engine = connect(path=folder / "edge")
    loader.load(engine, data, bundle, name="first")
    with traced("One fresh load") as loading:
        report = loader.load(engine, data, bundle, name="second")
    queries = [
        trace_query(Retriever(engine, report.collection, each, settings=SearchSettings()))
        for each in (fused(bundle), crossed(bundle))
    ]
    engine.close()
    return [*queries, loading, training]


def trace_query(retriever: Retriever) -> Trip:
    """Return the trip of one query through every stage that the bundle brings."""
    has_cross_scorer = retriever.bundle.has_cross_scorer
    retriever.search("storm bank on the river")  # its words are known to the collection now
    with traced("One query with a cross-scorer" if has_cross_scorer else "One query") as trip:
        (best, *_) = retriever.search(QUERY)
    assert ("cross" in best.stages) == has_cross_scorer
    return trip


def train(data: Dataset, out: Path) -> None:
    """Train the tiniest bundle that has everything."""
    sections = {**QUICK, "fusion": {"folds": 2}, "cross": {"epochs": 1}}
    train_bundle(data, out, config=from_mapping(TrainConfig, sections))


def to_text(trip: Trip) -> str:
    """Return the counts of a trip and its files, each with the functions entered first."""
    lines = [f"{trip.name}: {counts(trip)}"]
    for file, functions in trip.functions.items():
        lines += [f"  {file} ({len(functions)})", *textwrap.wrap(names(functions), 96)]
    return "\n".join(lines) + "\n"


def to_markdown(trip: Trip) -> str:
    """Return the same as a section of docs/architecture.md."""
    rows = [
        f"| {number} | `{file}` | {len(functions)} | {names(functions[:SHOWN], code=True)} |"
        for number, (file, functions) in enumerate(trip.functions.items(), 1)
    ]
    head = ["|  | file | functions | entered first |", "|--:|---|--:|---|"]
    return "\n".join([f"### {trip.name}", "", f"{counts(trip)}.", "", *head, *rows, ""])


def counts(trip: Trip) -> str:
    """Return functions, files and borders in words."""
    functions = sum(map(len, trip.functions.values()))
    calls = sum(trip.borders.values())
    return (
        f"{functions} functions in {len(trip.functions)} files, {len(trip.borders)} borders "
        f"between folders, crossed by {calls:,} calls"
    )


def names(functions: Sequence[str], *, code: bool = False) -> str:
    """Return the names of functions in a row."""
    return ", ".join(f"`{name}`" if code else name for name in functions)


def main() -> None:
    """Take the trips and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", action="store_true", help="as docs/architecture.md has them")
    show = to_markdown if parser.parse_args().markdown else to_text
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
        trips = take_trips(Path(folder))
    print("\n".join(map(show, trips)))


if __name__ == "__main__":
    main()
