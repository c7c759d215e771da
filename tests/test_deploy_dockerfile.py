import json
import re
import shlex
import tomllib
from typing import NamedTuple

import pytest
from conftest import ROOT
from services import run_serve

DOCKERFILE = ROOT / "deploy" / "Dockerfile"
KNOWN = {
    *("FROM", "ARG", "WORKDIR", "RUN", "COPY", "ENV", "USER", "EXPOSE", "HEALTHCHECK"),
    *("ENTRYPOINT", "CMD"),
}


class Instruction(NamedTuple):
    """One instruction, its lines joined."""

    stage: int
    name: str
    rest: str


@pytest.fixture(scope="module")
def instructions() -> list[Instruction]:
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    found: list[Instruction] = []
    for line in filter(None, joined.splitlines()):
        name, _, rest = line.partition(" ")
        stage = (found[-1].stage if found else -1) + (name == "FROM")
        found.append(Instruction(stage, name, rest.strip()))
    return found


def of(instructions: list[Instruction], name: str, stage: int) -> list[str]:
    return [i.rest for i in instructions if i.name == name and i.stage == stage]


def test_it_has_two_stages_of_one_slim_image(instructions: list[Instruction]) -> None:
    assert instructions[0][1:] == ("ARG", "BASE=python:3.11-slim")
    assert {i.name for i in instructions} <= KNOWN
    bases = [i.rest for i in instructions if i.name == "FROM"]
    assert bases == ["$BASE AS build", "$BASE"]
    assert of(instructions, "COPY", 1) == ["--from=build /venv /venv"]


def test_it_copies_all_that_the_package_is_built_from(instructions: list[Instruction]) -> None:
    sources = {word for rest in of(instructions, "COPY", 0) for word in shlex.split(rest)[:-1]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {
        *("pyproject.toml", "constraints.txt", project["project"]["readme"]),
        *project["project"]["license-files"],
        *("locks", "two_tower", "models", "retriever", "ingest"),
    }
    assert sources == needed
    for source in sources:
        assert (ROOT / source).exists()
    ignored = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == sources


def test_each_step_of_the_installation_has_one_source(instructions: list[Instruction]) -> None:
    steps = [rest for rest in of(instructions, "RUN", 0) if "pip install" in rest]
    locked, ours = steps
    assert all("--no-deps" in step and "extra-index" not in step for step in steps)
    assert "--require-hashes --requirement locks/serve.txt" in locked
    assert not any("torch" in step for step in steps)
    assert "--no-build-isolation . && /venv/bin/pip check" in ours


def test_it_runs_as_nobody_special_and_says_how_it_is(instructions: list[Instruction]) -> None:
    assert of(instructions, "USER", 1) == ["10001"]
    assert of(instructions, "EXPOSE", 1) == ["8080"]
    (check,) = of(instructions, "HEALTHCHECK", 1)
    command = json.loads(check[check.index("CMD") + 3 :])
    compile(command[2], "healthcheck", "exec")
    assert "http://127.0.0.1:8080/health" in command[2]


def test_it_starts_a_command_that_exists(instructions: list[Instruction]) -> None:
    (entry,) = of(instructions, "ENTRYPOINT", 1)
    program, command, *flags = json.loads(entry)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert program in project["project"]["scripts"]
    assert command == "serve"
    done = run_serve(*flags, *json.loads(*of(instructions, "CMD", 1)))
    assert done.returncode == 0
    assert "TWO_TOWER_BUNDLE" in done.stdout
