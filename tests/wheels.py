"""The wheel, and a fresh environment that has it: what a user of the package has."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable
from importlib.metadata import distribution
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


def install(wheel: Path, folder: Path, *, only: Iterable[str] | None = None) -> Path:
    """Make a fresh environment with the wheel and packages beside it; return its bin folder.

    The packages are those of this environment, `only` some or all.
    """
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
    if only is None:
        # The dependencies, without the .pth files beside them: no editable checkout comes along.
        (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        return folder / "bin"
    tops = {file.parts[0] for name in only for file in distribution(name).files or ()}
    for top in tops - {"..", "__pycache__"}:
        (site_packages / top).symlink_to(Path(sysconfig.get_path("purelib"), top))
    return folder / "bin"


def clean_environment() -> dict[str, str]:
    """Return the variables without a path to a checkout."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
