"""Train and measure the rows of the ablation table, each once per seed.

    python tests/bench/ablation.py [--rows 'fast/no idf'] [--seeds 0,1,2] [--check|--table|--brief]

tests/bench/ablation.yaml declares the rows. DATA and bundles are kept in runs/ablation. What is
measured is kept in tests/bench/results/ablation.json, so that a row whose declaration has not
changed since is not done again. A row ranks whole corpora by exact search, with its tower alone,
with BM25, and with the weights and the cross-scorer that it learnt, if it did: dev and dl19 of
msmarco-95k, and four corpora that no row has seen. Times are of this machine and of what else it
did. Prints Markdown, mean ± standard deviation over seeds.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from ablation_table import to_brief, to_brief_engines, to_markdown
from exact import Collection, bm25_metrics, measure, read_collection
from safetensors import safe_open

from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.config import with_values
from two_tower.models.data import Dataset
from two_tower.models.errors import ConfigError, TwoTowerError
from two_tower.models.files import write_json
from two_tower.models.provenance import commit
from two_tower.models.training.recipe import FOLDER, read_config
from two_tower.models.yaml_file import read_yaml
from two_tower.retriever.evaluation.measures import answerable

ROOT = Path(__file__).parent.parent.parent
SHARED = ROOT.parent / "shared" / "data"
ROWS = Path(__file__).with_suffix(".yaml")
WORK = ROOT / "runs" / "ablation"
RESULTS = Path(__file__).parent / "results" / "ablation.json"
TRAINED_ON = "msmarco-95k"
ZERO_SHOT = ("nfcorpus", "npl_vaswani", "scifact", "wikiqa")


class Row(NamedTuple):
    """One row of the table.

    Attributes:
        name: what the table calls it.
        recipe: the shipped recipe it changes; empty for the defaults.
        set: dotted configuration keys and their values.
        start: the row whose bundle of the same seed it begins from; empty for none.
        before: commands to run first, with {data}, {start}, {out} and {seed} in them, and
            {teacher}: the environment variable TEACHER.
        flags: more words for `models train`, the same.
        data: the folder in runs/ablation/data to learn from; empty for that of all rows.
        labels: learn from so many of its training queries, drawn with the seed; 0 for all.
    """

    name: str
    recipe: str = ""
    set: Mapping[str, Any] = {}
    start: str = ""
    before: tuple[str, ...] = ()
    flags: str = ""
    data: str = ""
    labels: int = 0

    def settings(self) -> dict[str, Any]:
        """Return what decides the row, as plain JSON values."""
        recipe = read_yaml(FOLDER / f"{self.recipe}.yaml") if self.recipe else {}
        declared = {**self._asdict(), "recipe": recipe}
        for name in ("data", "labels"):  # rows were measured before there were any
            if not declared[name]:
                del declared[name]
        return dict(json.loads(json.dumps(declared)))

    def config(self) -> dict[str, Any]:
        """Return the configuration file's content; a tower alone needs no fusion."""
        return with_values(self.settings()["recipe"], {"fusion.folds": 0, **self.set})


def read_rows(path: Path) -> dict[str, Row]:
    """Read the declared rows by name, in their order.

    Raises:
        ConfigError: a row has an unknown field or starts from an unknown row.
    """
    rows = {}
    for name, declared in read_yaml(path).items():
        try:
            row = Row(name, **(declared or {}))
        except TypeError as error:
            raise ConfigError(f"{path.name}: row {name!r}: {error}") from None
        rows[name] = row._replace(before=tuple(row.before))
    for row in rows.values():
        if row.start and row.start not in rows:
            raise ConfigError(f"{path.name}: {row.name!r} starts from {row.start!r}, not a row")
    return rows


def check(rows: Mapping[str, Row]) -> int:
    """Print the rows whose configuration this code does not take; return their number."""
    bad = 0
    for row in rows.values():
        path = WORK / "check.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(row.config()))
        try:
            read_config(str(path), {})
        except TwoTowerError as error:
            bad += 1
            print(f"{row.name}: {error}")
    print(f"{len(rows) - bad} of {len(rows)} rows can be trained")
    return bad


def prepared(source: Path) -> Path:
    """Return the DATA folder of a benchmark set, prepared where it is not."""
    path = WORK / "data" / source.name
    if not (path / "manifest.json").is_file():
        run_command("two_tower.ingest.cli", "prepare", str(source), "--out", str(path))
    return path


def with_labels(data: Path, count: int, *, seed: int) -> Path:
    """Return a DATA folder with all passages of another and `count` of its training queries."""
    path = data.with_name(f"{data.name}-{count}-{seed}")
    if not (path / "manifest.json").is_file():
        dataset = Dataset.open(data)
        queries, qrels = answerable(dataset.queries("train"), dataset.qrels("train"))
        drawn = np.random.default_rng(seed).choice(len(queries), size=count, replace=False)
        known = {queries[row].query_id for row in drawn}
        with DatasetWriter(path, source=data.name, merge=False) as writer:
            for passage in dataset.passages():
                writer.add_passage(passage)
            for query in queries:
                if query.query_id in known:
                    writer.add_query(query)
            for qrel in qrels:
                if qrel.query_id in known:
                    writer.add_qrel(qrel)
    return path


def run_command(module: str, *words: str) -> float:
    """Run one of the project's commands; return its seconds.

    Raises:
        ConfigError: it failed; the message is the command's last line.
    """
    started = time.perf_counter()
    command = [sys.executable, "-c", f"from {module} import app; app()", *words]
    done = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise ConfigError(f"{shlex.join(words)}: {done.stderr.strip().splitlines()[-1]}")
    return round(time.perf_counter() - started, 1)


class Bench:
    """Trains and measures rows, and keeps what it finds."""

    def __init__(self, rows: Mapping[str, Row], results: Path) -> None:
        self.rows = rows
        self._results = results
        self._data = WORK / "data" / TRAINED_ON
        self._collections: dict[str, Collection] = {}

    def read(self) -> dict[str, Any]:
        """Return what is known so far."""
        if not self._results.is_file():
            return {"source": TRAINED_ON, "cores": os.cpu_count(), "rows": {}}
        return dict(json.loads(self._results.read_text(encoding="utf-8")))

    def done(self, row: Row, seed: int) -> bool:
        """Return whether the row as it is declared now has been measured with this seed."""
        found = self.read()["rows"].get(row.name, {}).get(str(seed), {})
        return bool(found.get("settings") == self.settings(row))

    def settings(self, row: Row) -> dict[str, Any]:
        """Return what decides the row, the row that it starts from included."""
        found = row.settings()
        return {**found, "start": self.settings(self.rows[row.start]) if row.start else ""}

    def run(self, row: Row, seed: int) -> None:
        """Train, measure and record a row; the row that it starts from is trained before it."""
        if self.done(row, seed):
            return
        print(f"{row.name}, seed {seed}", file=sys.stderr, flush=True)
        prepared(SHARED / TRAINED_ON)
        trained = self.train(row, seed)
        bundle = ModelBundle.load(self.out(row, seed))
        sets = {}
        for name, collection in self.collections().items():
            for split, metrics in measure(bundle, collection).items():
                sets[split if name == TRAINED_ON else name] = metrics
        self._record(row, seed, {**trained, "sets": sets})

    def out(self, row: Row, seed: int) -> Path:
        """Return where the row's bundle lies."""
        return WORK / re.sub(r"\W+", "-", row.name) / f"seed-{seed}"

    def train(self, row: Row, seed: int) -> dict[str, Any]:
        """Train the row's bundle if it is not there; return what it cost."""
        out = self.out(row, seed)
        note = out.with_name(f"{out.name}.trained.json")
        if (out / "card.json").is_file() and note.is_file():
            found = dict(json.loads(note.read_text(encoding="utf-8")))
            if found["settings"] == self.settings(row):
                return found
        started = self.train(self.rows[row.start], seed) if row.start else {}
        seconds = sum(run_command(*words) for words in self._before(row, seed))
        words = self._train_words(row, seed)
        seconds += run_command("two_tower.models.cli", *words, "--force")
        trained = {
            "settings": self.settings(row),
            "command": shlex.join(["models", *map(_relative, words)]),
            "commit": commit(),
            "seconds": round(seconds, 1),
            "start_seconds": started.get("seconds", 0) + started.get("start_seconds", 0),
            **size(out),
        }
        write_json(note, trained)
        return trained

    def _before(self, row: Row, seed: int) -> list[list[str]]:
        return [
            [f"{(words := shlex.split(self._filled(row, seed, command)))[0]}.cli", *words[1:]]
            for command in row.before
        ]

    def _train_words(self, row: Row, seed: int) -> list[str]:
        out = self.out(row, seed)
        out.parent.mkdir(parents=True, exist_ok=True)
        config = out.parent / "config.yaml"
        config.write_text(yaml.safe_dump(row.config()), encoding="utf-8")
        words = ["train", str(self._data_of(row, seed)), "--out", str(out), "--config", str(config)]
        if row.start:
            words += ["--start", str(self.out(self.rows[row.start], seed))]
        return [*words, *shlex.split(self._filled(row, seed, row.flags)), "--seed", str(seed)]

    def _data_of(self, row: Row, seed: int) -> Path:
        data = self._data.with_name(row.data) if row.data else self._data
        return with_labels(data, row.labels, seed=seed) if row.labels else data

    def _filled(self, row: Row, seed: int, text: str) -> str:
        start = self.out(self.rows[row.start], seed) if row.start else ""
        data = self._data_of(row, seed)
        places = {"data": data, "start": start, "out": self.out(row, seed), "seed": seed}
        return text.format(**places, teacher=os.environ.get("TEACHER", "TEACHER"))

    def collections(self) -> dict[str, Collection]:
        """Return what rows are measured on, read once."""
        if not self._collections:
            path = prepared(SHARED / TRAINED_ON)
            self._collections[TRAINED_ON] = read_collection(path, ["dev", "dl19"])
            for name in ZERO_SHOT:
                path = prepared(SHARED / "zero-shot" / name)
                self._collections[name] = read_collection(path, ["test"])
        return self._collections

    def _record(self, row: Row, seed: int, measured: dict[str, Any]) -> None:
        report = self.read()  # again: another process may have measured other rows meanwhile
        if "bm25" not in report:
            report["bm25"] = {
                split if name == TRAINED_ON else name: metrics
                for name, collection in self.collections().items()
                for split, metrics in bm25_metrics(collection).items()
            }
        report["rows"].setdefault(row.name, {})[str(seed)] = measured
        self._results.parent.mkdir(exist_ok=True)
        write_json(self._results, report)


def size(bundle: Path) -> dict[str, float]:
    """Return the number of parameters (0: not known) and the megabytes of a bundle."""
    total = sum(path.stat().st_size for path in bundle.iterdir())
    parameters, towers = 0, bundle / "towers.safetensors"
    if towers.is_file():
        with safe_open(str(towers), framework="numpy") as file:
            parameters = sum(file.get_tensor(key).size for key in list(file.keys()))
    return {"parameters": parameters, "bundle_mb": round(total / 1e6, 1)}


def _relative(word: str) -> str:
    return str(Path(word).relative_to(ROOT)) if word.startswith(str(ROOT)) else word


def main() -> None:
    """Run what the flags name."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", default="", help="names with / between; default: all")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--check", action="store_true", help="only say which rows can be trained")
    parser.add_argument("--table", action="store_true", help="only print what is known")
    parser.add_argument("--brief", action="store_true", help="the same, as in docs/evaluation.md")
    flags = parser.parse_args()
    try:
        rows = read_rows(ROWS)
        if flags.check:
            sys.exit(check(rows))
        bench = Bench(rows, RESULTS)
        names = [name.strip() for name in flags.rows.split("/")] if flags.rows else list(rows)
        if unknown := sorted(set(names) - set(rows)):
            sys.exit(f"no row is named {unknown[0]!r}; {ROWS.name} has: {', '.join(rows)}")
        for seed in [] if flags.table or flags.brief else map(int, flags.seeds.split(",")):
            for name in names:
                try_row(bench, rows[name], seed)
    except TwoTowerError as error:
        sys.exit(str(error))
    found = bench.read()
    if flags.brief:
        print(to_brief(found), to_brief_engines(found), sep="\n\n")
    else:
        print(to_markdown(found, list(rows)))


def try_row(bench: Bench, row: Row, seed: int) -> None:
    """Run a row; one that fails says so, and the others go on."""
    try:
        bench.run(row, seed)
    except TwoTowerError as error:
        print(f"{row.name}, seed {seed}, failed: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
