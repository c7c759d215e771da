"""How much disk and memory an engine has."""

import os
import re
from pathlib import Path
from typing import NamedTuple


class Machine(NamedTuple):
    """What an engine has to itself.

    Attributes:
        disk: bytes; what is free for the embedded engine, and the size of a server's whole disk.
        memory: bytes.
    """

    disk: float
    memory: float


def machine_memory() -> float:
    """Return the bytes of memory that this process may have at most."""
    sizes = [float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(limit).read_text()
        except OSError:
            continue
        if re.fullmatch(r"\d+\s*", text):
            sizes.append(float(text))
    return min(sizes)
