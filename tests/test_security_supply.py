"""What comes along with an installation: all of it pinned, its licences told, and nobody called."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests" / "bench"))
from licences import EXTRAS, PAGE, closure, normal, page

PINNED = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line
)


def test_everything_that_is_installed_with_us_is_pinned() -> None:
    names = {normal(name) for name in PINNED}
    assert closure("dev") - names == set()


def test_what_is_pinned_is_what_is_tested() -> None:
    differing = {
        name: (pin, version(name))
        for name, pin in PINNED.items()
        if version(name).partition("+")[0] != pin
    }
    assert differing == {}


def test_the_page_of_licences_is_that_of_what_is_installed() -> None:
    names = [line.split(" | ")[0].removeprefix("| ") for line in page().splitlines()]
    written = [line.split(" | ")[0].removeprefix("| ") for line in PAGE.read_text().splitlines()]
    assert written == names
    assert "see the package" not in PAGE.read_text()
    assert all(name in PAGE.read_text() for name in ("gensim", "tqdm", "orjson", "certifi"))
    assert set(EXTRAS) <= {"serve", "haystack", "langchain", "sweep", "transformer"}


HOOK = """
import os, sys
calls = []
def hook(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = args[0]
    elif event in ("socket.connect", "socket.sendto"):
        host = args[1][0] if isinstance(args[1], tuple) else ""
    else:
        return
    host = os.fsdecode(host or "")
    if host and not host.startswith(("127.", "localhost", "::1")):
        calls.append(f"{event} {host}")
sys.addaudithook(hook)
"""

COMMANDS = (
    HOOK
    + """
import json
from typer.testing import CliRunner
from two_tower.ingest.cli import app as ingest
from two_tower.models.cli import app as models
from two_tower.retriever.cli import app as retriever
os.chdir(sys.argv[1])
open("c.yaml", "w").write(
    "tokenizer: {vocab_size: 400}\\npretrain: {epochs: 1}\\nlabelled: {epochs: 1}\\n"
    "word2vec: {epochs: 1}\\ntower: {dim: 16}\\npca_dims: [8]\\n"
)
open("rows.csv", "w").write("query,passage\\n" + "".join(
    f"what is thing{n} number{n},the thing{n} is a number{n} of things and words{n % 7}\\n"
    for n in range(60)
))
steps = [
    (ingest, "prepare rows.csv --out data"),
    (models, "train data --out bundle --config c.yaml --wandb offline"),
    (models, "show bundle"),
    (ingest, "load data --bundle bundle --collection c"),
    (ingest, "verify c"),
    (ingest, "list"),
    (ingest, "snapshot c --out out"),
    (retriever, "search c thing7 --bundle bundle"),
    (retriever, "evaluate c data --bundle bundle --out report"),
    (ingest, "copy c --to-path other"),
    (ingest, "drop c --yes --path other"),
]
for app, words in steps:
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 0, (words, done.output, done.exception)
from two_tower.retriever.haystack import TwoTowerRetriever
from haystack import Pipeline
pipeline = Pipeline()
pipeline.add_component("r", TwoTowerRetriever("c", bundle="bundle"))
assert pipeline.run({"r": {"query": "thing7"}})["r"]["documents"]
pipeline.get_component("r").close()
import two_tower.retriever.langchain
print(json.dumps(calls))
"""
)


def test_no_command_and_no_adapter_calls_anybody(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMMANDS, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == []


CALLS = ["socket.getaddrinfo('host.invalid', 80)", "urlopen('http://host.invalid')"]


@pytest.mark.parametrize("call", CALLS)
def test_the_hook_sees_a_call(call: str) -> None:
    lines = [HOOK, "import contextlib, socket", "from urllib.request import urlopen"]
    lines += ["with contextlib.suppress(OSError):", f"    {call}", "print(calls)"]
    command = [sys.executable, "-c", "\n".join(lines)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "getaddrinfo host.invalid" in shown.stdout
