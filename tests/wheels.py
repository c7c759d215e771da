"""The wheel, and a fresh environment that has it: what a user of the package has."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("models", "retriever", "ingest")


def build_wheel(folder: Path) -> Path:
    """Build the wheel in a folder; return its path."""
    source = folder / "source"  # a copy: setuptools leaves a build folder behind
    for name in (*PACKAGES, "two_tower"):
        shutil.copytree(ROOT / name, source / name, symlinks=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--wheel-dir", folder, source),
        ],
        check=True,
    )
    (path,) = folder.glob("*.whl")
    return path


def install(wheel: Path, folder: Path) -> Path:
    """Make a fresh environment with the wheel and what it depends on; return its bin folder."""
    venv.create(folder, with_pip=False)
    paths = {"base": str(folder), "platbase": str(folder)}
    site_packages = Path(sysconfig.get_path("purelib", vars=paths))
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install"),
            *("--quiet", "--no-deps", "--no-index", wheel),
        ],
        check=True,
    )
    # The dependencies, without the .pth files beside them: no editable checkout comes along.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def clean_environment() -> dict[str, str]:
    """Return the variables without a path to a checkout."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
