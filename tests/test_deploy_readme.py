"""deploy/README.md: its sizes are those of the estimate, its commands and tests exist."""

import ast
import re

import pytest
import typer
from conftest import ROOT

from two_tower.ingest.cli import app as ingest_app
from two_tower.ingest.loading.estimate import Estimate, PointSize, estimate_points
from two_tower.retriever.cli import app as retriever_app
from two_tower.retriever.collection.options import CollectionOptions

TEXT = (ROOT / "deploy" / "README.md").read_text()
CLAIMS = re.findall(r"^\| (.*) \| `(test_\w+\.py)::(test_\w+)` \|$", TEXT, flags=re.MULTILINE)


def sized(points: int, *, terms: float, indexes: int, payload: float) -> Estimate:
    point = PointSize((256, 64, 32), terms=terms, payload=payload, indexes=indexes)
    return estimate_points(point, points, options=CollectionOptions())


def test_the_sizes_are_those_of_the_estimate() -> None:
    text = " ".join(TEXT.split())
    million = sized(1_000_000, terms=40, indexes=2 + 3, payload=600)
    by_hand = 4 * 352 + 48 * 3 + 7.4 * 40 + 45 * (2 + 3) + 260
    assert million.memory == pytest.approx(1e6 * by_hand + 270e6, rel=0.02)
    memory, disk = million.memory / 1e9, million.disk / 1e9
    assert f"{memory:.1f} GB of memory and {disk:.1f} GB of disk" in text
    rows = re.findall(r"^\| ([\d,]+) \| \d+ MB, .*$", TEXT, flags=re.MULTILINE)
    assert len(rows) == 6
    for points in rows:
        found = sized(int(points.replace(",", "")), terms=32.26, indexes=3, payload=467)
        estimated = [round(size / 1e6) for size in (found.disk, found.memory, found.restarted)]
        row = next(line for line in TEXT.splitlines() if line.startswith(f"| {points} |"))
        told = [int(size) for size in re.findall(r"\d+ MB, (\d+) MB", row)]
        assert told == estimated[: len(told)]


@pytest.mark.parametrize(("program", "app"), [("ingest", ingest_app), ("retriever", retriever_app)])
def test_every_command_and_option_exists(program: str, app: typer.Typer) -> None:
    group = typer.main.get_group(app)
    found = set()
    for command, rest in re.findall(rf"\b{program} ([a-z]+)([^\n`#|]*)", TEXT):
        if command not in group.commands:
            continue
        options = {name for p in group.commands[command].params for name in p.opts}
        options |= {name for p in group.commands[command].params for name in p.secondary_opts}
        unknown = set(re.findall(r"--[a-z-]+", rest)) - options
        assert not unknown, f"{program} {command}"
        found.add(command)
    assert len(found) >= 2


def test_every_claim_of_the_threat_model_has_its_test() -> None:
    table = TEXT[TEXT.index("## Threat model") :]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(CLAIMS) == len(rows) - 1 > 20
    for _, file, name in CLAIMS:
        tree = ast.parse((ROOT / "tests" / file).read_text())
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in names, f"{file}::{name}"


def test_every_file_of_the_folder_is_named() -> None:
    for path in (ROOT / "deploy").iterdir():
        if path.name not in ("README.md", "Dockerfile.dockerignore"):
            assert f"`{path.name}`" in TEXT
