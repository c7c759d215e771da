import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"


def unavailable(reason: str) -> None:
    """Skip on a developer's machine; fail in CI, where nothing may be skipped for want of it."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (and CI=true allows no skip)")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED.is_dir():
        unavailable(f"no benchmark data at {SHARED}")
    return SHARED
