"""Where a number came from."""

import subprocess
from functools import cache
from pathlib import Path


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


def _git(*words: str, cwd: Path) -> str:
    done = subprocess.run(["git", *words], cwd=cwd, check=True, capture_output=True, text=True)
    return done.stdout.strip()
