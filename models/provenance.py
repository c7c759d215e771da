"""Where a number came from: commit, versions, environment, and seconds of each part of a run."""

import importlib.metadata
import os
import platform
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "gensim", "sentencepiece", "safetensors")


@cache
def commit() -> str:
    """Return the short hash of this code's git commit, `+` behind it if files were changed.

    `unknown` where the code does not lie in a git checkout.
    """
    here = Path(__file__).parent
    try:
        head = _git("rev-parse", "--short", "HEAD", cwd=here)
        return f"{head}+" if _git("status", "--porcelain", "-uno", cwd=here) else head
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that can change a number."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **packages}


def environment(device: str) -> dict[str, Any]:
    """Return what a number may depend on beside configuration and data, as plain JSON values.

    `device` is what a run trains on, as torch names it.
    """
    import torch

    cuda = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {
        "commit": commit(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "device_name": cuda,
        "versions": versions(),
    }


def _git(*words: str, cwd: Path) -> str:
    result = subprocess.run(["git", *words], cwd=cwd, check=True, capture_output=True, text=True)
    return result.stdout.strip()


class Clock:
    """Seconds spent on each named part of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Book the time since the last lap under `name`."""
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 1)
        self._last = now
