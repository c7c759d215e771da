"""A base installation: what it has, what it weighs, what a search imports, what it refuses."""

import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from conftest import ROOT, make_passages, write_data
from wheels import clean_environment, install

sys.path.insert(0, str(ROOT / "tests" / "bench"))
from licences import closure

from two_tower.models.errors import ConfigError
from two_tower.models.extras import EXTRAS, of_missing, require_extra

MEGABYTES = 400
HEAVY = {"torch", "gensim", "datasets", "wandb", "matplotlib", "scikit-learn", "scipy", "pandas"}


def test_the_base_is_light() -> None:
    assert not HEAVY & closure()
    paths = [file.locate() for name in closure() for file in distribution(name).files or ()]
    sizes = [path.stat().st_size for path in map(Path, map(str, paths)) if path.is_file()]
    assert 100e6 < sum(sizes) < MEGABYTES * 1e6


def test_every_module_of_an_extra_is_one_that_the_extra_brings() -> None:
    for extra, modules in EXTRAS.items():
        require_extra(extra, what="the suite")
        brought = {"train": 9, "onnx": 2, "transformer": 3, "serve": 3, "sweep": 1}
        assert len(modules) == brought.get(extra, 1)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ModuleNotFoundError("No module named 'sklearn.decomposition'")
    missing.name = "sklearn.decomposition"
    sentence = "needs sklearn, which is not installed; run: pip install 'two-tower-search[train]'"
    assert of_missing(missing) == f"this {sentence}"
    assert of_missing(ModuleNotFoundError("no", name="their_module")) is None
    assert of_missing(ImportError("no", name="torch")) is None
    monkeypatch.setitem(EXTRAS, "serve", ("no_such_module",))
    with pytest.raises(ConfigError, match=r"serving needs no_such_module.*search\[serve\]'$"):
        require_extra("serve", what="serving")


STEPS = """
import sys
from typer.testing import CliRunner
from two_tower.ingest.cli import app as ingest
from two_tower.models.cli import app as models
from two_tower.retriever.cli import app as retriever

def run(app, words, code=0):
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == code, (words, done.output, done.exception)
    return done.stderr if code else done.stdout

open("rows.csv", "w").write("query,passage\\n" + "".join(
    f"thing{n},the thing{n} is a number{n} of things\\n" for n in range(20)
))
run(ingest, "prepare rows.csv --out rows")
run(ingest, "load rows --collection words")
assert "thing7" in run(retriever, "search words thing7 -k 1")
run(ingest, f"load data --collection trained --bundle {sys.argv[1]}")
assert "p7" in run(retriever, f"search trained {sys.argv[2]} -k 1 --json --bundle {sys.argv[1]}")
absent = {"qdrant_client", "grpc", "httpx", "scipy", "pandas", "torch"} & sys.modules.keys()
assert not absent, absent
for app, words in (
    (retriever, "evaluate words rows --out report"),
    (retriever, "tune words rows --out report"),
    (retriever, "calibrate words"),
    (models, "train rows --out bundle"),
    (models, "mine rows --out mined"),
    (models, f"export {sys.argv[1]} --as onnx --out exported"),
    (ingest, "prepare microsoft/ms_marco --out hub"),
    (ingest, "generate rows --llm http://127.0.0.1:9 --model m --out generated"),
    (ingest, "judge rows --llm http://127.0.0.1:9 --model m --out judged --collection words"),
):
    (line,) = run(app, words, 1).strip().splitlines()
    assert line.endswith("pip install 'two-tower-search[train]'"), line
"""


SEARCH = """
import sys
from two_tower.retriever import Retriever
for name, bundle in (("words", None), ("trained", sys.argv[1])):
    with Retriever.open(name, bundle=bundle) as engine:
        assert engine.search(sys.argv[2], k=1) or name == "words"
        assert "passage_id" in engine.fields
assert "qdrant_client.http.models.models" not in sys.modules
assert engine.metadata.has_tower
"""


def test_it_loads_searches_and_names_the_extra_of_everything_else(
    wheel: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    bin_folder = install(wheel, tmp_path / "environment", only=closure())
    passages = make_passages(50)
    write_data(tmp_path / "data", passages)
    word = max(passages[7].text.split(), key=len)
    for steps in (STEPS, SEARCH):  # the second in a process that has loaded nothing
        done = subprocess.run(
            [bin_folder / "python", "-c", steps, tiny_bundle, word],
            cwd=tmp_path,
            env=clean_environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]


SAME = """
{first}
from two_tower.retriever.engine.qdrant_models import qm as ours
from qdrant_client import models as qm, QdrantClient
from two_tower.retriever.engine.connect import connect
assert "points" in ours.QueryResponse.model_fields
assert all(getattr(ours, name) is getattr(qm, name) for name in ("Filter", "PointStruct", "Record"))
condition = qm.FieldCondition(key="a", match=ours.MatchValue(value=1))
assert ours.Filter(must=[condition]).must == [condition]
client = QdrantClient(":memory:")
client.create_collection("c", vectors_config=ours.VectorParams(size=1, distance="Dot"))
client.upsert("c", [ours.PointStruct(id=1, vector=[1.0], payload=dict(a=1))])
assert client.scroll("c", scroll_filter=ours.Filter(must=[condition]))[0][0].id == 1
"""


@pytest.mark.parametrize("first", ["", "import qdrant_client"])
def test_types_are_those_of_the_client_whichever_comes_first(first: str) -> None:
    command = [sys.executable, "-c", SAME.format(first=first)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


ENDING = """
import atexit, gc
from two_tower.retriever.cli import app
atexit.register(lambda: print(gc.get_freeze_count()))  # the last one is called first
app()
"""


def test_a_command_that_ends_looks_for_no_garbage() -> None:
    command = [sys.executable, "-c", ENDING, "search", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) > 10_000
