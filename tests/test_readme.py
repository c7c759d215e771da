"""README.md: one screen; its commands run in their order, its numbers are of committed runs."""

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
from test_docs import PAGES, blocks_of

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "tests" / "bench" / "results"
PACKAGES = ("models", "retriever", "ingest")
LARGEST_BYTES = 8_000
LONGEST_LINE = 120
sys.path.insert(0, str(ROOT / "tests" / "bench"))

import recipes  # noqa: E402


def commands() -> list[list[str]]:
    """Return the words of each command of the console blocks, those behind `&&` by themselves."""
    return [
        shlex.split(command)
        for block in blocks_of(README, "console")
        for line in block.splitlines()
        if line.startswith("$ ")
        for command in line[2:].split(" && ")
    ]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run the README's commands in their order, in an empty folder, on part of the corpus.

    Returns:
        The first three words of a command -> what it printed; "folder" -> where.
    """
    folder = tmp_path_factory.mktemp("readme")
    (rows,) = blocks_of(README, "csv")
    (folder / "pets.csv").write_text(rows, encoding="utf-8")
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
        outputs[" ".join(words[:3])] = done.stdout
    return outputs


def test_it_is_one_screen() -> None:
    assert len(README.encode("utf-8")) <= LARGEST_BYTES
    assert [line for line in README.splitlines() if len(line) > LONGEST_LINE] == []


def test_six_lines_of_csv_lead_to_the_hit_that_is_shown(demo: dict[str, str]) -> None:
    first = blocks_of(README, "console")[0]
    assert len(blocks_of(README, "csv")[0].splitlines()) == 6
    assert len([line for line in first.splitlines() if line.startswith("$ ")]) == 3
    shown = first.split("-bundle\n")[-1].strip().splitlines()
    printed = demo["retriever search pets"].strip().splitlines()
    score = [index for index, line in enumerate(shown) if "█" in line]
    assert [line for n, line in enumerate(printed) if n not in score] == [
        line for n, line in enumerate(shown) if n not in score
    ]


def test_the_commands_run_in_their_order(demo: dict[str, str]) -> None:
    names = [" ".join(words[:2]) for words in commands()]
    three = ["ingest prepare", "models train", "ingest load"]
    last = ["ingest prepare", "ingest load", "retriever search"]
    assert names == [*three, "retriever search", *three, "retriever evaluate", *last]
    assert "passages      2,500" in demo["ingest prepare python-docs"]
    assert "recall@10=" in demo["models train demo/data"]
    loaded = demo["ingest load demo/whole"]
    assert re.search(r"^python-docs -> python-docs--[0-9a-f]{8}$", loaded, re.M)
    found = demo["retriever search python-docs"]
    assert re.search(r"^ +1\. \S+", found, re.M)
    assert re.search(r"^rank +score +dense +bm25 +rerank +title$", found, re.M)


def test_two_lines_of_each_command_are_shown() -> None:
    block = blocks_of(README, "console")[1]
    parts = [part.strip().splitlines() for part in re.split(r"^\$ ", block, flags=re.M)[1:]]
    assert [len(part) for part in parts] == [3] * 7


def test_hybrid_beats_its_legs_on_the_demo(demo: dict[str, str]) -> None:
    report = json.loads(Path(demo["folder"], "demo/report/report.json").read_text())
    systems = {row["system"]: row["metrics"] for row in report["systems"]}
    assert list(systems) == [
        *("tfidf", "bm25", "dense", "pca_64", "pca_32"),
        *("rrf", "dbsf", "weighted", "hybrid", "rerank"),
    ]
    for leg in ("bm25", "dense"):
        assert systems["rerank"]["recall@100"] > systems[leg]["recall@100"]
    assert "| rerank " in demo["retriever evaluate python-questions"]


def test_the_seven_lines_of_python_run(
    demo: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(demo["folder"])
    (program,) = blocks_of(README, "python")
    assert len(program.splitlines()) <= 7
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(program, names)
    assert printed.getvalue().startswith("1 ")
    assert [len(hits) for hits in names["many"]] == [10, 10]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(PAGES[page], "python")])
def test_the_python_of_a_page_runs(
    page: str, demo: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All blocks of a page, one after the other, in the folder of the demo, with README's CSV."""
    monkeypatch.chdir(demo["folder"])
    Path("pets.csv").write_text(blocks_of(README, "csv")[0])
    names: dict[str, object] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for program in blocks_of(PAGES[page], "python"):
            if "http://localhost" in program:  # needs a service: what it imports is there
                program = "\n".join(re.findall(r"^(?:from|import) .*", program, re.MULTILINE))
            exec(program, names)


def test_the_table_is_that_of_the_committed_run() -> None:
    stored = json.loads(recipes.RESULTS.read_text())
    table = recipes.to_brief(stored)
    named = {recipe for recipe, _ in recipes.BRIEF}
    assert named <= stored.keys()
    assert stored.keys() - named <= recipes.VARIANTS.keys()  # docs/evaluation.md has all
    assert table in README


def test_the_gain_of_the_demo_is_that_of_the_committed_run() -> None:
    stored = json.loads((RESULTS / "python-docs-dev.json").read_text())
    metrics = {row["system"]: row["metrics"] for row in stored["systems"]}
    engine, bm25 = metrics["rerank"], metrics["bm25"]
    text = " ".join(README.split())
    assert f"{stored['passages']:,} passages. For {stored['systems'][0]['queries']:,} dev" in text
    for words, measure in (("ten in", "recall@10"), ("hundred in", "recall@100")):
        shares = f"{engine[measure]:.1%} (BM25: {bm25[measure]:.1%})"
        assert f"first {words} {shares}" in text
    assert f"MRR@10 is {engine['mrr@10']:.3f} ({bm25['mrr@10']:.3f})" in text
    assert f"commit {stored['commit']}" in text


def test_the_tree_has_every_folder_of_the_packages() -> None:
    (tree,) = [b for b in blocks_of(README, "") if b.startswith("models/")]
    parts = re.split(r"^(\w+)/", tree, flags=re.M)[1:]
    told = dict(zip(parts[::2], parts[1::2], strict=True))
    assert set(told) == {*PACKAGES, "two_tower", "deploy", "docs", "tests"}
    for package in PACKAGES:
        folders = {path.name for path in (ROOT / package).iterdir() if path.is_dir()}
        for folder in folders - {"__pycache__"}:
            assert re.search(rf"\b{folder}\b", told[package]), f"{package}/{folder}"
