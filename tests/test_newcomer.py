"""The first hour of somebody who has installed the package: `newcomer.py`, run with the wheel."""

import os
import shutil
import subprocess
from pathlib import Path

from conftest import ROOT, Server
from wheels import clean_environment


def test_every_step_works_with_the_wheel_alone(
    environment: Path, server: Server, tmp_path: Path
) -> None:
    script = shutil.copy(ROOT / "tests" / "newcomer.py", tmp_path)
    path = f"{environment}{os.pathsep}{os.environ['PATH']}"
    folder = tmp_path / "empty"
    folder.mkdir()
    key = {"QDRANT_API_KEY": server.api_key} if server.api_key else {}
    done = subprocess.run(
        [environment / "python", script, server.url],
        cwd=folder,
        env=clean_environment() | {"PATH": path} | key,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) >= 30
