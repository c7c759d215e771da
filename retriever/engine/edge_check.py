"""Whether the engine can read a collection's files, tried in a process of its own.

Files of a snapshot may be forged together with their hashes, and the engine trusts its files: it
may take any memory, fill the disk, or end its process. `python -m two_tower.retriever.engine.
edge_check SHARD BYTES` reads every point of a shard within limits.
"""

import resource
import subprocess
import sys
from pathlib import Path

from two_tower.retriever.errors import CollectionDamaged

GIB = 2**30

LEAST_MEMORY = 4 * GIB  # beside what grows with the files

LARGEST_GROWTH = GIB  # of one file, beyond the largest that is there

LEAST_S, BYTES_PER_S = 120.0, 2e6

PAGE = 256  # points


def check_shard(shard: Path, collection: str) -> None:
    """Let another process open the shard of a collection and read all of its points.

    Raises:
        CollectionDamaged: that fails, or takes more memory, disk or time than its files explain.
    """
    sizes = [file.stat().st_size for file in shard.rglob("*") if file.is_file()]
    total, largest = sum(sizes), max(sizes, default=0)
    limits = [LEAST_MEMORY + 4 * total, LARGEST_GROWTH + largest]
    command = [sys.executable, "-P", "-m", __name__, str(shard), *map(str, limits)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=LEAST_S + total / BYTES_PER_S,
        )
    except subprocess.TimeoutExpired as error:
        raise _damaged(collection, f"it reads for more than {error.timeout:.0f} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise _damaged(collection, lines[-1][:300])


def _damaged(collection: str, reason: str) -> CollectionDamaged:
    return CollectionDamaged(
        f"{collection} is not restored: the engine cannot read its files ({reason}); take another "
        "copy of the archive, or load the collection anew"
    )


def read_all(shard: str) -> None:
    """Open a shard and read each of its points, with payload and vectors."""
    import qdrant_edge as edge

    opened = edge.EdgeShard.load(shard)
    offset = None
    while True:
        request = edge.ScrollRequest(offset=offset, limit=PAGE, with_payload=True, with_vector=True)
        _, offset = opened.scroll(request)
        if offset is None:
            break
    opened.close()


if __name__ == "__main__":
    memory, file_size = map(int, sys.argv[2:])
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    read_all(sys.argv[1])
