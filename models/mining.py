"""Mining of hard negatives over a whole corpus, for the command and inside a training run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from models.examples import HardNegatives, Labelled
from models.files import write_bytes
from models.negatives import (
    Candidates,
    Mined,
    MiningConfig,
    bm25_candidates,
    dense_candidates,
    mine,
    text_groups,
)

FloatArray = npt.NDArray[np.float32]


class Vectors(NamedTuple):
    """What towers make of the labelled queries (n, dim) and of all passages (m, dim)."""

    queries: FloatArray
    passages: FloatArray


def find_negatives(
    labelled: Labelled,
    texts: Sequence[str],
    config: MiningConfig,
    *,
    encode: Callable[[], Vectors],
) -> Mined:
    """Rank the passages by each source of the configuration and choose hard negatives.

    Args:
        labelled: the queries.
        texts: `Passage.content` of all passages.
        config: sources, ranks and guards.
        encode: gives the vectors; called where the towers are a source.
    """
    candidates: list[Candidates] = []
    if "bm25" in config.sources:
        candidates.append(bm25_candidates(texts, labelled, depth=config.last_rank))
    if "dense" in config.sources:
        vectors = encode()
        found = dense_candidates(
            vectors.queries,
            vectors.passages,
            relevant=labelled.relevant,
            depth=config.last_rank,
        )
        candidates.append(found)
    return mine(labelled, candidates, config, same_text=text_groups(texts))


def mined_once(path: Path, find: Callable[[], Mined]) -> HardNegatives:
    """Return the negatives kept in a safetensors file, which is made when it is missing.

    A run that goes on in the middle of a phase must see what the towers found at its beginning.
    """
    if not path.exists():
        write_bytes(path, save_arrays({"rows": find().rows}))
    return HardNegatives(load_arrays(path.read_bytes())["rows"])
