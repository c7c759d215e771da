"""deploy/README.md: its sizes are those of the estimate, its commands and tests exist."""

import ast
import re

import pytest
import typer
from conftest import ROOT

from ingest import estimate
from ingest.cli import app as ingest_app
from retriever.cli import app as retriever_app

TEXT = (ROOT / "deploy" / "README.md").read_text()
CLAIMS = re.findall(r"^\| (.*) \| `(test_\w+\.py)::(test_\w+)` \|$", TEXT, flags=re.MULTILINE)


def test_the_example_of_sizing_is_what_the_formula_gives() -> None:
    widths, terms, fields, payload = (256, 64, 32), 40, 3, 600
    shared = (
        estimate.LINK_BYTES * 16 * len(widths)
        + (estimate.POSTING_BYTES + estimate.STORED_TERM_BYTES) * terms
        + estimate.INDEX_BYTES * (2 + fields)
        + estimate.ID_BYTES
        + estimate.FLOAT_BYTES * sum(widths)
    )
    memory = (shared + estimate.HEAP_BYTES) / 1000
    disk = (shared + payload) / 1000
    assert f"{memory:.1f} GB of memory and {disk:.1f} GB of disk" in " ".join(TEXT.split())


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
