"""The files of deploy/ that load in parts: each starts every part of one load, once."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

FAKE = '#!/bin/sh\nprintf "%s " "$@"\n'


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Variables for a shell whose `ingest` prints what it is given."""
    command = tmp_path / "ingest"
    command.write_text(FAKE)
    command.chmod(0o755)
    return {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}


def parts(commands: list[list[str]], environments: list[dict[str, str]]) -> list[str]:
    said = [
        subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split()
        for command, env in zip(commands, environments, strict=True)
    ]
    assert all(words[0] == "load" for words in said)
    return [words[words.index("--part") + 1] for words in said]


def test_every_pod_of_the_job_has_a_part(environment: dict[str, str]) -> None:
    job = yaml.safe_load((ROOT / "deploy" / "load-job.yaml").read_text())["spec"]
    assert (job["completionMode"], job["parallelism"]) == ("Indexed", job["completions"])
    (container,) = job["template"]["spec"]["containers"]
    pods = range(job["completions"])
    command = [*container["command"], *container["args"]]
    variables = [
        environment | {"JOB_COMPLETION_INDEX": str(pod), "COLLECTION": "passages"} for pod in pods
    ]
    assert parts([command for _ in pods], variables) == [f"{pod + 1}/{len(pods)}" for pod in pods]


def test_every_task_of_the_array_has_a_part(environment: dict[str, str]) -> None:
    script = ROOT / "deploy" / "load.sbatch"
    (array,) = [line for line in script.read_text().splitlines() if "--array=" in line]
    first, last = map(int, array.partition("=")[2].split("-"))
    tasks = range(first, last + 1)
    count = {"SLURM_ARRAY_TASK_COUNT": str(len(tasks))}
    variables = [environment | count | {"SLURM_ARRAY_TASK_ID": str(task)} for task in tasks]
    commands = [["sh", str(script), "DATA", "BUNDLE", "passages"] for _ in tasks]
    assert parts(commands, variables) == [f"{task}/{len(tasks)}" for task in tasks]
