"""What comes along with an installation: all of it pinned, its licences told, and nobody called."""

import hashlib
import itertools
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

sys.path.insert(0, str(ROOT / "tests" / "bench"))
import lock
from licences import EXTRAS, NAME, PAGE, PROJECT, closure, normal, page

PINNED = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line
)


def test_everything_that_is_installed_with_us_is_pinned() -> None:
    names = {normal(name) for name in PINNED}
    assert closure("dev") - names == set()
    assert names - closure("dev") - {"setuptools"} == set()


def test_each_requirement_takes_the_version_that_is_pinned() -> None:
    project = tomllib.loads(PROJECT.read_text())
    optional = project["project"]["optional-dependencies"]
    texts = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    requirements = [Requirement(text) for text in (*texts, *itertools.chain(*optional.values()))]
    pins = lock.pins()
    refused = [
        str(r)
        for r in requirements
        if r.name != NAME and not r.specifier.contains(pins[normal(r.name)], prereleases=True)
    ]
    assert refused == []


@pytest.mark.parametrize(("name", "extras"), lock.EXTRAS.items())
def test_a_lock_has_every_pin_of_its_extras_with_hashes(name: str, extras: tuple[str, ...]) -> None:
    pins, written = lock.pins(), lock.written(name)
    assert list(written) == lock.locked(name)
    assert {name: version for name, (version, _) in written.items()} == {
        name: pins[name] for name in written
    }
    assert closure(*extras) - set(written) == closure(*extras) & {lock.UNLOCKED}
    for name, (_, hashes) in written.items():
        assert hashes, name
        assert all(re.fullmatch("[0-9a-f]{64}", one) for one in hashes), name
        assert len(set(hashes)) == len(hashes), name


@pytest.mark.parametrize(
    ("file", "is_one"),
    [
        ("a-1.0.tar.gz", True),
        ("a-1.0.1.tar.gz", False),
        ("a-1.0-py3-none-any.whl", True),
        ("a-1.0-py2.py3-none-any.whl", True),
        ("a-1.0-cp311-cp311-manylinux_2_28_x86_64.whl", True),
        ("a-1.0-cp314-cp314-manylinux_2_17_aarch64.manylinux2014_aarch64.whl", True),
        ("a-1.0-cp38-abi3-macosx_11_0_arm64.whl", True),
        ("a-1.0-cp312-cp312-macosx_10_9_universal2.whl", True),
        ("a-1.0-cp310-cp310-manylinux_2_28_x86_64.whl", False),
        ("a-1.0-cp314-cp314t-manylinux_2_28_x86_64.whl", False),
        ("a-1.0-cp311-cp311-musllinux_1_2_x86_64.whl", False),
        ("a-1.0-cp311-cp311-win_amd64.whl", False),
        ("a-1.0-cp311-cp311-macosx_10_9_x86_64.whl", False),
        ("a-1.0-pp311-pypy311_pp73-manylinux_2_28_x86_64.whl", False),
        ("a-1.0.win32.exe", False),
        ("a-1.0-py3.11.egg", False),
    ],
)
def test_which_files_a_lock_takes(file: str, is_one: bool) -> None:
    assert lock.is_for_us(file, "1.0", SpecifierSet(">=3.11")) is is_one


def test_a_file_with_another_hash_is_not_installed(tmp_path: Path) -> None:
    wheel = tmp_path / "a-1.0-py3-none-any.whl"
    about = "Metadata-Version: 2.1\nName: a\nVersion: 1.0\n"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("a-1.0.dist-info/METADATA", about)
        file.writestr("a-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr("a-1.0.dist-info/RECORD", "")
    right = hashlib.sha256(wheel.read_bytes()).hexdigest()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-index"]
    command += ["--find-links", str(tmp_path), "--dest", str(tmp_path / "to")]
    for digest, code in ((right, 0), (right[::-1], 1)):
        (tmp_path / "lock.txt").write_text(f"a==1.0 \\\n    --hash=sha256:{digest}\n")
        words = [*command, "--require-hashes", "--requirement", str(tmp_path / "lock.txt")]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert ("DO NOT MATCH THE HASHES" in done.stderr) is bool(code)


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
    assert set(EXTRAS) <= {
        "train",
        "onnx",
        "serve",
        "haystack",
        "langchain",
        "sweep",
        "transformer",
    }


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
