"""What is installed: one import package and three commands, beside any project's own modules."""

import subprocess
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from conftest import ROOT, make_passages, write_data
from wheels import PACKAGES, clean_environment

OWN_MODULES = ("models.py", "ingest.py", "retriever.py", "models/__init__.py")


def test_nothing_but_two_tower_and_three_commands(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = [name for name in names if name.endswith("/entry_points.txt")]
        parser = ConfigParser()
        parser.read_string(archive.read(entry_points).decode())
    metadata = entry_points.split("/")[0]
    assert {name.split("/")[0] for name in names} == {"two_tower", metadata}
    assert {section: dict(parser[section]) for section in parser.sections()} == {
        "console_scripts": {name: f"two_tower.commands:{name}" for name in PACKAGES}
    }


def test_every_file_of_the_folders_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        installed = set(archive.namelist())
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"two_tower/{path.relative_to(ROOT).as_posix()}" in installed
    assert {"two_tower/__init__.py", "two_tower/py.typed"} <= installed


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return the folder of an application with modules of the same names as our folders."""
    for name in OWN_MODULES:
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("ITS_OWN = True\n")
    return tmp_path / "project"


def run(command: list[str | Path], folder: Path) -> str:
    env = clean_environment()
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_searches_beside_a_project_with_its_own_models(
    environment: Path, project: Path, tiny_bundle: Path
) -> None:
    passages = make_passages(50)
    data = write_data(project / "DATA", passages)
    load = ["load", data.path, "--bundle", tiny_bundle, "--collection", "mine"]
    assert "mine -> mine--" in run([environment / "ingest", *load], project)
    (project / "app.py").write_text(
        "import ingest, models, retriever\n"
        "assert ingest.ITS_OWN and models.ITS_OWN and retriever.ITS_OWN\n"
        "import two_tower\n"
        "from two_tower import Retriever\n"
        f"with Retriever.open('mine', bundle={str(tiny_bundle)!r}) as engine:\n"
        f"    print(two_tower.__file__, engine.search({passages[7].text!r}, k=1)[0].passage_id)\n"
    )
    imported_from, passage_id = run([environment / "python", "app.py"], project).split()
    assert Path(imported_from).is_relative_to(environment.parent)
    assert passage_id == "p7"
    search = ["search", "mine", passages[7].text, "--bundle", tiny_bundle, "--json"]
    assert '"passage_id": "p7"' in run([environment / "retriever", *search], project)
    assert "fast" in run([environment / "models", "train", "--help"], project)
