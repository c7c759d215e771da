"""Mining of hard negatives over a whole corpus, for the command and inside a training run."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from two_tower.models.bundle import ModelBundle
from two_tower.models.data import Dataset
from two_tower.models.examples import HardNegatives, Labelled, read_labelled
from two_tower.models.files import write_bytes
from two_tower.models.negatives import (
    Candidates,
    Mined,
    MiningConfig,
    bm25_candidates,
    dense_candidates,
    mine,
    text_groups,
)
from two_tower.models.negatives_file import Teacher, mined_rows, score_rows, write_rows

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


def mine_file(
    data: Dataset,
    out: Path,
    *,
    split: str,
    config: MiningConfig,
    bundle: ModelBundle | None = None,
    teacher: Teacher | None = None,
) -> dict[str, dict[str, int]]:
    """Mine negatives for the queries of a split and write them to a file.

    Args:
        data: the corpus and its judgements.
        out: Parquet file to write; `models.negatives_file` describes it.
        split: which judgements name the known answers.
        config: sources, ranks and guards.
        bundle: the towers that rank, where they are a source.
        teacher: adds its scores of answers and negatives.

    Returns:
        Source -> what became of its candidates -> how many.

    Raises:
        DataError: DATA is broken or the file cannot be written.
        TrainingError: no query of the split has an answer.
        ValueError: the towers are a source and there is no bundle.
    """
    content = {passage.passage_id: passage.content for passage in data.passages()}
    ids, texts = list(content), list(content.values())
    labelled = read_labelled(data, split, row_of={name: row for row, name in enumerate(ids)})

    def encode() -> Vectors:
        if bundle is None:
            raise ValueError(f"source {config.source} needs a bundle")
        return Vectors(bundle.encode_queries(labelled.texts), bundle.encode_passages(texts))

    mined = find_negatives(labelled, texts, config, encode=encode)
    rows = list(mined_rows(mined, labelled, passage_ids=ids, sources=config.sources))
    if teacher:
        queries = dict(zip(labelled.query_ids, labelled.texts, strict=True))
        rows = score_rows(rows, teacher, queries=queries, texts=content)
    made_with = {
        "bundle": bundle.fingerprint if bundle and "dense" in config.sources else None,
        "teacher": teacher.name if teacher else None,
    }
    asked = {"data": data.content_hash, "split": split, "mining": asdict(config)}
    write_rows(out, rows, about={**asked, **made_with, "counts": mined.counts})
    return mined.counts


def mined_once(path: Path, find: Callable[[], Mined]) -> HardNegatives:
    """Return the negatives kept in a safetensors file, which is made when it is missing.

    A run that goes on in the middle of a phase must see what the towers found at its beginning.
    """
    if not path.exists():
        write_bytes(path, save_arrays({"rows": find().rows}))
    return HardNegatives(load_arrays(path.read_bytes())["rows"])
