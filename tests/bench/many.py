"""How much faster `search_many` is than one call each, on the engine that is named.

    python tests/bench/many.py NAME DATA BUNDLE (--url URL | --path DIR) [--rounds 5]

Dev queries of DATA, none remembered, without the cross-scorer: single calls and batches of 16, 32
and 64 in turns. Prints wall and CPU ms of this process per query, and the ratio to the single
calls of the same round.
"""

import argparse
import os
import time
from itertools import cycle
from pathlib import Path

import numpy as np

from two_tower.models.data import Dataset
from two_tower.retriever import Retriever, SearchSettings

SIZES = (1, 16, 32, 64)
QUERIES, ROUND = 640, 320


def timed(retriever: Retriever, queries: list[str], size: int) -> tuple[float, float]:
    """Return wall and CPU ms per query of calls with so many queries each."""
    cpu, wall = time.process_time(), time.perf_counter()
    for first in range(0, len(queries), size):
        if size == 1:
            retriever.search(queries[first])
        else:
            retriever.search_many(queries[first : first + size])
    spent = (time.perf_counter() - wall, time.process_time() - cpu)
    return spent[0] * 1000 / len(queries), spent[1] * 1000 / len(queries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("data", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--url")
    parser.add_argument("--path", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    queries = [query.text for query in Dataset.open(flags.data).queries("dev")][:QUERIES]
    settings = SearchSettings(cross=False)
    rows: dict[int, list[tuple[float, float]]] = {size: [] for size in SIZES}
    with Retriever.open(
        flags.name, bundle=flags.bundle, url=flags.url, path=flags.path, settings=settings
    ) as retriever:
        retriever.search_many(queries[:64])
        # Halves in turns: an encoder remembers fewer queries than lie between two of the same.
        halves = cycle((queries[:ROUND], queries[ROUND:]))
        for number in range(-1, flags.rounds):
            for size in SIZES:
                row = timed(retriever, next(halves), size)
                if number >= 0:  # the first round warms up
                    rows[size].append(row)
    single = [wall for wall, _ in rows[1]]
    for size in SIZES:
        wall, cpu = np.median(rows[size], axis=0)
        ratio = np.median([one / many for one, (many, _) in zip(single, rows[size], strict=True)])
        print(f"{size:3} a call: {wall:6.2f} ms, {cpu:5.2f} ms CPU, {ratio:.2f} times single calls")
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
