"""`ingest load`, `verify`, `promote`, `list` and `drop` as a user runs them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import free_ports, make_bundle, make_passages, running_server, write_data
from topics import topic_words
from typer.testing import CliRunner, Result

from two_tower.ingest.cli import app
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.files import FUSION
from two_tower.models.bundle.fusion import WITHOUT_LABELS, Fusion, HybridWeights
from two_tower.models.data import Passage
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.search.retriever import Retriever


@pytest.fixture(params=["edge", "server"])
def where(request: pytest.FixtureRequest, tmp_path: Path, name: str) -> list[str]:
    """The options that choose each engine; what `name` leaves on a server is deleted."""
    if request.param == "edge":
        return ["--path", str(tmp_path / "edge")]
    request.getfixturevalue("rest_engine")
    return ["--url", request.getfixturevalue("server").url]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def good(*arguments: str | Path) -> str:
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def bad(*arguments: str | Path, code: int = 1) -> str:
    done = run(*arguments)
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    if code == 1:
        assert re.fullmatch(r"Error: [^\n]+\n", done.stderr), done.stderr
    return done.stderr


def test_the_life_of_a_collection(
    where: list[str], name: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    data = write_data(tmp_path / "DATA", make_passages(150)).path
    other = make_bundle(tmp_path / "other", seed=5)
    load = ["load", data, "--collection", name, *where]

    lines = good(*load, "--bundle", tiny_bundle).splitlines()
    first = lines[0].split(":")[0]
    assert re.fullmatch(rf"{name}--[0-9a-f]{{8}}", first)
    assert "150 added, 0 replaced, 0 payload only, 0 unchanged, 0 pruned, 0 kept" in lines[0]
    assert lines[1] == f"{first}: verified 150 points; 64 compared in full"
    assert lines[2] == f"{name} -> {first}"
    assert "0 added, 0 replaced, 0 payload only, 150 unchanged" in good(
        *load, "--bundle", tiny_bundle
    )

    second = good(*load, "--bundle", other, "--no-promote").split(":")[0]
    assert second != first
    table = good("list", *where)
    assert table.splitlines()[0].split() == ["NAME", "COLLECTION", "POINTS", "BUNDLE", "AGE"]
    rows = [line.split() for line in table.splitlines() if name in line]
    assert sorted(row[:4] for row in rows if row[0] == "*") == [["*", name, first, "150"]]
    assert sorted(row[:3] for row in rows if row[0] != "*") == [[name, second, "150"]]

    assert good("verify", name, *where).startswith(f"{first}: counted 150 points, as many")
    full = ["--data", data, "--bundle", tiny_bundle]
    assert "64 compared in full" in good("verify", first, *full, *where)
    assert "was loaded with bundle" in bad("verify", second, *full, *where)

    assert good("promote", name, "--to", second, *where) == f"{name} -> {second}\n"
    assert good("promote", name, "--to", first, *where) == f"{name} -> {first}\n"
    assert "--yes" in bad("drop", first, *where)
    assert "--yes" in bad("drop", name, *where)
    assert good("drop", second, *where) == f"Dropped {second}\n"
    assert good("drop", name, "--yes", *where) == f"Dropped {first}\n"
    again = run("drop", name, "--yes", *where)  # done, as it was meant
    assert (again.exit_code, "Nothing to drop" in again.output) == (0, True)
    listed = json.loads(good("list", "--json", *where))
    assert not [version for version in listed if version["name"] == name]


def test_an_update_keeps_or_prunes(
    where: list[str], name: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    old = write_data(tmp_path / "OLD", make_passages(60)).path
    new = write_data(tmp_path / "NEW", make_passages(50)).path
    load = ["--bundle", tiny_bundle, "--collection", name, *where]
    good("load", old, *load)
    lines = good("load", new, *load).splitlines()
    assert "0 added, 0 replaced, 0 payload only, 50 unchanged, 0 pruned, 10 kept" in lines[0]
    assert "verified 60 points, 10 of them not in DATA (ingest load --prune deletes" in lines[1]
    assert "10 of them" in good("verify", name, *where)
    lines = good("load", new, *load, "--prune").splitlines()
    assert "10 pruned, 0 kept" in lines[0]
    assert "verified 50 points;" in lines[1]


def test_what_cannot_work_is_told_in_one_line(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_data(tmp_path / "DATA", make_passages(5)).path
    load = ["load", data, "--bundle", tiny_bundle]
    down = f"http://127.0.0.1:{free_ports(1)[0]}"
    assert down in bad(*load, "--collection", "c", "--url", down)
    assert "not a URL" in bad(*load, "--collection", "c", "--url", "nonsense")
    assert "cannot name" in bad(*load, "--collection", "a/b", "--path", tmp_path / "e")
    assert "both URL" in bad("list", "--url", down, "--path", "x")
    assert "DATA folder" in bad("load", "none", "--bundle", tiny_bundle, "--collection", "c")
    assert "bundle" in bad("load", data, "--bundle", "none", "--collection", "c")
    assert "ingest load" in bad("verify", "nope", "--path", tmp_path / "e")
    assert "ingest load" in bad("promote", "nope", "--path", tmp_path / "e")
    assert "needs --data" in bad("verify", "c", "--bundle", tiny_bundle, code=2)
    assert "--collection" in bad("load", data, code=2)
    assert not (tmp_path / ".qdrant").exists()
    monkeypatch.setenv("QDRANT_URL", down)
    assert down in bad("list")


def test_an_engine_without_a_collection_says_what_to_run(tmp_path: Path) -> None:
    folder = tmp_path / "e"
    connect(path=folder).close()
    with running_server(tmp_path / "server") as empty:
        for where in (["--path", folder], ["--url", empty.url]):
            done = run("list", *where)
            assert (done.exit_code, done.stdout) == (0, "")
            assert done.stderr == (
                f"No collection of ingest load at {where[1]}; to make one run: "
                "ingest load DATA --bundle BUNDLE --collection NAME\n"
            )
            assert good("list", "--json", *where) == "[]\n"


def test_what_options_change_is_said(
    where: list[str], name: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    data = write_data(tmp_path / "DATA", make_passages(30)).path
    load = ["load", data, "--bundle", tiny_bundle, "--collection", name, *where]
    collection = good(*load).split(":")[0]
    options = tmp_path / "options.yaml"
    options.write_text(
        "collection: {hnsw: {m: 8}, quantization: {kind: scalar}, on_disk: {vectors: true},"
        " indexes: {kind: text}}"
    )
    changes = (
        "hnsw.m 8 (was 16)",
        "quantization.kind scalar (was none)",
        "on_disk.vectors true (was false)",
        "indexes.kind text (was unset)",
    )
    planned = good(*load, "--options", options, "--dry-run").splitlines()
    assert planned[1:5] == [f"{collection} would have {change}" for change in changes]
    done = run(*load, "--options", options)
    said, next_command = done.stderr.splitlines()
    assert said == f"{collection} now has {', '.join(changes)}"
    assert next_command.startswith("Next: retriever search ")
    assert run(*load, "--options", options, "--quiet").stderr == ""
    options.write_text("collection: {distance: dot}")
    for command in ([*load, "--options", options], [*load, "--options", options, "--dry-run"]):
        assert "has distance cosine, the options say dot" in bad(*command)


def test_a_locked_folder_is_told_in_one_line(tmp_path: Path) -> None:
    engine = connect(path=tmp_path)
    program = "from two_tower.ingest.cli import app; app()"
    words = [sys.executable, "-c", program, "list", "--path", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True)
    engine.close()
    assert done.returncode == 1
    assert f"in use by process {os.getpid()}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_broken_parquet_is_told_in_one_line(tmp_path: Path, tiny_bundle: Path) -> None:
    data = write_data(tmp_path / "DATA", make_passages(5)).path
    (data / "passages.parquet").write_bytes(b"PAR1 not really")
    arguments = ["--bundle", tiny_bundle, "--collection", "c", "--path", tmp_path / "e"]
    assert "passages.parquet cannot be read" in bad("load", data, *arguments)
    assert "c--" not in good("list", "--path", tmp_path / "e")


@pytest.mark.parametrize(
    ("trained_on", "fusion", "is_noted"),
    [
        ("these", HybridWeights(30.0), False),
        ("others", HybridWeights(30.0), True),
        ("others", WITHOUT_LABELS, False),  # a fixed rule that holds anywhere
        ("others", None, False),
        (None, HybridWeights(30.0), False),  # a bundle that does not say
    ],
)
def test_a_weight_of_other_passages_is_noted(
    tmp_path: Path,
    tiny_bundle: Path,
    trained_on: str | None,
    fusion: HybridWeights | None,
    is_noted: bool,
) -> None:
    data = write_data(tmp_path / "DATA", make_passages(20))
    hashes = {"these": data.content_hash, "others": "0" * 64}
    bundle = ModelBundle.load(tiny_bundle)
    if fusion:
        bundle = bundle.with_extras({FUSION: Fusion(fusion).to_bytes()})
    if trained_on:
        bundle.card["data"] = {"content_hash": hashes[trained_on]}
    bundle.save(tmp_path / "bundle")
    done = run(
        *("load", data.path, "--bundle", tmp_path / "bundle", "--collection", "pages"),
        *("--path", tmp_path / "edge"),
    )
    assert done.exit_code == 0, done.output
    assert ("retriever calibrate pages" in done.stderr) is is_noted


def test_a_weight_that_stays_is_said_once(tmp_path: Path, tiny_bundle: Path) -> None:
    """BM25 is always right here, but a weight of 1 is the least that a grid has."""
    passages = [Passage(f"p{i}", " ".join(topic_words(i) * 3)) for i in range(60)]
    data = write_data(tmp_path / "DATA", passages)
    bundle = ModelBundle.load(tiny_bundle)
    bundle = bundle.with_extras({FUSION: Fusion(HybridWeights(1.0)).to_bytes()})
    bundle.card["data"] = {"content_hash": "0" * 64}
    bundle.save(tmp_path / "bundle")
    load = ["load", data.path, "--bundle", tmp_path / "bundle", "--collection", "pages"]
    first, second = (run(*load, "--path", tmp_path / "edge") for _ in range(2))
    assert "a cosine stays worth 1.0 points of BM25, as was learnt on other" in first.stdout
    assert "points of BM25" not in second.stdout


def test_a_weight_of_other_passages_is_learnt_anew(
    tmp_path: Path, tiny_bundle: Path, where: list[str], name: str
) -> None:
    """BM25 is always right here, so the weight becomes the mean of 1 and 30: sqrt(30)."""
    passages = [Passage(f"p{i}", " ".join(topic_words(i) * 3)) for i in range(60)]
    data = write_data(tmp_path / "DATA", passages)
    bundle = ModelBundle.load(tiny_bundle)
    bundle = bundle.with_extras({FUSION: Fusion(HybridWeights(30.0)).to_bytes()})
    bundle.card["data"] = {"content_hash": "0" * 64}
    bundle.save(tmp_path / "bundle")
    load = ["load", data.path, "--bundle", tmp_path / "bundle", "--collection", name, *where]
    first, second = run(*load), run(*load)
    assert "a cosine is worth 5.5 points of BM25 here; 30.0 was learnt on other" in first.stdout
    assert first.stdout.index("points of BM25") < first.stdout.index(f"{name} -> {name}--")
    assert "points of BM25" not in second.stdout
    engine = {where[0].removeprefix("--"): where[1]}
    with Retriever.open(name, bundle=tmp_path / "bundle", **engine) as opened:
        assert opened.fusion is not None
        assert opened.fusion.hybrid.tower == pytest.approx(30**0.5)
        assert opened.metadata.fusion["source"] == "cut"
