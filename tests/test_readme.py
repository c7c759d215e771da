import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from two_tower.retriever.evaluation.evaluate import Report
from two_tower.retriever.evaluation.report import to_markdown

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
sys.path.insert(0, str(ROOT / "tests" / "bench"))

import peers_table  # noqa: E402
import recipes  # noqa: E402

RESULTS = ROOT / "tests" / "bench" / "results"


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [block for found, block in fenced if found == language]


def commands() -> list[list[str]]:
    return [
        shlex.split(line[2:])
        for block in blocks("console")
        for line in block.splitlines()
        if line.startswith("$ ")
    ]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run the README's commands in their order, in an empty folder, on part of the corpus."""
    folder = tmp_path_factory.mktemp("readme")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("QDRANT")}
    outputs = {"folder": str(folder)}
    for words in commands():
        if words[:3] == ["ingest", "prepare", "python-docs"]:
            words = [*words, "--limit", "2500"]
        done = subprocess.run(
            words, cwd=folder, env=environment | {"PATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"
        outputs[" ".join(words[:2])] = done.stdout
    return outputs


def test_the_commands_run_in_their_order(demo: dict[str, str]) -> None:
    five = ["ingest prepare", "models train", "ingest load", "retriever search"]
    assert [" ".join(words[:2]) for words in commands()] == [*five, "retriever evaluate"]
    assert "passages      2,500" in demo["ingest prepare"]
    assert "recall@10=" in demo["models train"]
    assert re.search(r"^python-docs -> python-docs--[0-9a-f]{8}$", demo["ingest load"], re.M)
    assert re.search(r"^ +1\. \S+", demo["retriever search"], re.M)
    assert re.search(r"^rank +score +dense +bm25 +rerank +title$", demo["retriever search"], re.M)


def test_hybrid_beats_its_legs_on_the_demo(demo: dict[str, str]) -> None:
    report = json.loads(Path(demo["folder"], "demo/report/report.json").read_text())
    systems = {row["system"]: row["metrics"] for row in report["systems"]}
    assert list(systems) == [
        *("tfidf", "bm25", "dense", "pca_64", "pca_32", "rrf", "weighted", "hybrid", "rerank")
    ]
    for leg in ("bm25", "dense"):
        assert systems["rerank"]["recall@10"] > systems[leg]["recall@10"]
    assert "| rerank " in demo["retriever evaluate"]


def test_the_python_twin_runs(demo: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo["folder"])
    (program,) = blocks("python")
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(program, names)
    assert printed.getvalue().startswith("1 ")
    assert [len(hits) for hits in names["many"]] == [10, 10]


def test_json_snippets_are_json() -> None:
    for block in blocks("json"):
        assert json.loads(re.sub(r"^POST .*\n", "", block))


def test_every_command_is_mentioned() -> None:
    from two_tower.ingest.cli import app as ingest
    from two_tower.models.cli import app as models
    from two_tower.retriever.cli import app as retriever

    for program, app in {"ingest": ingest, "models": models, "retriever": retriever}.items():
        for name, command in get_command(app).commands.items():
            assert re.search(rf"`?\b{name}\b", README), f"{program} {name} is not in the README"
            assert command.help, f"{program} {name} has no help"


def test_the_result_table_is_the_committed_run() -> None:
    stored = json.loads((RESULTS / "msmarco-95k-dev.json").read_text())
    table = to_markdown(Report.from_dict(stored)).split("\n\n")[1]
    assert table in README


def test_the_table_of_recipes_is_the_committed_run() -> None:
    stored = json.loads(recipes.RESULTS.read_text())
    assert recipes.to_markdown(stored) in README
    assert recipes.to_chances(stored) in README


def test_the_tables_beside_other_packages_are_the_committed_run() -> None:
    tables = peers_table.to_markdown(json.loads((RESULTS / "peers.json").read_text()))
    *shown, growth = tables.split("\n\n")
    for table in shown:
        assert table in README
    assert growth in (ROOT / "LOG.md").read_text(encoding="utf-8")


def test_files_in_the_tree_exist() -> None:
    (tree,) = [b for b in blocks("") if b.startswith("models/")]
    folder = ""
    for line in tree.splitlines():
        if match := re.match(r"(\w+/)", line):
            folder = match[1]
        for name in re.findall(r"\b\w+\.py\b", line):
            assert (ROOT / folder / name).is_file(), f"{folder}{name}"
