"""Mining of hard negatives over a whole corpus, for the command and inside a training run.

A file of mined negatives has one row per known answer (relevance 1, source `qrels`) and per hard
negative (relevance 0), and says in its metadata what it was mined from.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.data import Dataset
from two_tower.models.errors import DataError
from two_tower.models.examples.negatives import (
    Candidates,
    Mined,
    MiningConfig,
    bm25_candidates,
    choose_negatives,
    dense_candidates,
    text_groups,
)
from two_tower.models.examples.pairs import NOTHING, HardNegatives, Labelled, read_labelled
from two_tower.models.files import write_bytes
from two_tower.models.text.bm25 import Analyzer
from two_tower.models.vectors import FloatArray, Vectors

NEGATIVES_FORMAT = 1
ABOUT = b"two_tower_negatives"
SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        ("passage_id", pa.string()),
        ("relevance", pa.int32()),
        ("source", pa.string()),
        ("rank", pa.int32()),
        ("score", pa.float32()),
        ("teacher_score", pa.float32()),
    ]
)


class PairScorer(NamedTuple):
    """A model by its name, and its scores (n,) float32 of n queries and passages, row by row."""

    name: str
    score: Callable[[list[str], list[str]], FloatArray]


def mine_file(
    data: Dataset,
    out: Path,
    *,
    split: str,
    config: MiningConfig,
    analyzer: Analyzer,
    bundle: ModelBundle | None = None,
    teacher: PairScorer | None = None,
) -> dict[str, dict[str, int]]:
    """Mine negatives for the queries of a split and write them to a Parquet file.

    Args:
        data: the corpus and its judgements.
        out: the file to write.
        split: which judgements name the known answers.
        config: sources, ranks and guards.
        analyzer: gives BM25 its terms.
        bundle: its towers rank where they are a source.
        teacher: adds its scores of answers and negatives.

    Returns:
        Source -> what became of its candidates -> how many.

    Raises:
        DataError: DATA is broken or the file cannot be written.
        TrainingError: no query of the split has an answer.
        ValueError: the towers are a source and there is no bundle.
    """
    passages = list(data.passages())
    ids, texts = [each.passage_id for each in passages], [each.content for each in passages]
    labelled = read_labelled(data, split, row_of={name: row for row, name in enumerate(ids)})

    def encode() -> Vectors:
        if bundle is None:
            raise ValueError(f"source {config.source} needs a bundle")
        return Vectors(bundle.encode_queries(labelled.texts), bundle.encode_passages(texts))

    titles = [each.title for each in passages]
    mined = find_negatives(labelled, texts, config, analyzer=analyzer, encode=encode, titles=titles)
    rows = _mined_rows(mined, labelled, passage_ids=ids, sources=config.sources)
    if teacher:
        queries = dict(zip(labelled.query_ids, labelled.texts, strict=True))
        content = dict(zip(ids, texts, strict=True))
        scores = teacher.score(
            [queries[row["query_id"]] for row in rows], [content[row["passage_id"]] for row in rows]
        )
        rows = [
            row | {"teacher_score": float(score)} for row, score in zip(rows, scores, strict=True)
        ]
    about = {
        **{"data": data.content_hash, "split": split, "mining": asdict(config)},
        "bundle": bundle.fingerprint if bundle and "dense" in config.sources else None,
        "teacher": teacher.name if teacher else None,
        "counts": mined.counts,
    }
    _write_rows(out, rows, about=about)
    return mined.counts


def find_negatives(
    labelled: Labelled,
    texts: Sequence[str],
    config: MiningConfig,
    *,
    analyzer: Analyzer,
    encode: Callable[[], Vectors],
    titles: Sequence[str] = (),
) -> Mined:
    """Rank all passages (`texts`) by each source of the configuration and choose hard negatives.

    `encode` gives the vectors; it is called where the towers are a source. BM25 reads the `titles`.
    """
    candidates: list[Candidates] = []
    depth = config.last_rank
    if "bm25" in config.sources:
        candidates.append(
            bm25_candidates(texts, labelled, analyzer=analyzer, depth=depth, titles=titles)
        )
    if "dense" in config.sources:
        candidates.append(dense_candidates(*encode(), relevant=labelled.relevant, depth=depth))
    return choose_negatives(labelled, candidates, config, same_text=text_groups(texts))


def cached_negatives(path: Path, find: Callable[[], Mined]) -> HardNegatives:
    """Return the negatives stored in a safetensors file, which is made when it is missing.

    A run that goes on in the middle of a phase must see what the towers ranked at its beginning.
    """
    if not path.exists():
        write_bytes(path, save_arrays({"rows": find().rows}))
    return HardNegatives(load_arrays(path.read_bytes())["rows"])


def read_negatives(path: Path, data: Dataset, labelled: Labelled) -> HardNegatives:
    """Read hard negatives for the queries of `labelled`; a query may have none.

    Raises:
        DataError: the file is broken, was mined from another DATA, or has nothing for them.
    """
    mined_from = read_about(path)["data"]
    if mined_from != data.content_hash:
        raise DataError(
            f"{path} was mined from DATA {mined_from[:8]}, {data.path} is "
            f"{data.content_hash[:8]}; mine again with: models mine {data.path} --out {path}"
        )
    row_of = {passage.passage_id: row for row, passage in enumerate(data.passages())}
    query_of = {query_id: i for i, query_id in enumerate(labelled.query_ids)}
    negatives: list[list[tuple[int, float]]] = [[] for _ in labelled.query_ids]
    answers: dict[tuple[int, int], float] = {}
    for line in pq.read_table(path).to_pylist():
        query, passage = query_of.get(line["query_id"]), row_of[line["passage_id"]]
        score = np.nan if line["teacher_score"] is None else line["teacher_score"]
        if query is not None and line["relevance"]:
            answers[query, passage] = score
        elif query is not None:
            negatives[query].append((passage, score))
    if not any(negatives):
        raise DataError(
            f"{path} has no hard negative for the train queries of {data.path}; mine with other "
            f"guards: models mine {data.path} --out {path}"
        )
    rows = np.full((len(negatives), max(map(len, negatives))), NOTHING, dtype=np.int64)
    scores = np.full(rows.shape, np.nan, dtype=np.float32)
    for i, pairs in enumerate(negatives):
        if pairs:
            rows[i, : len(pairs)], scores[i, : len(pairs)] = zip(*pairs, strict=True)
    if np.isnan(scores).all():
        return HardNegatives(rows)
    known = zip(*labelled.relevant.nonzero(), strict=True)
    positives = [answers.get((int(query), int(passage)), np.nan) for query, passage in known]
    return HardNegatives(rows, scores, np.array(positives, np.float32))


def read_about(path: Path) -> dict[str, Any]:
    """Return what the file says about itself.

    Raises:
        DataError: there is no such file, or it is something else.
    """
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{path} cannot be read as Parquet ({error}); make it with: "
            f"models mine DATA --out {path}"
        ) from None
    about = json.loads((schema.metadata or {}).get(ABOUT, b"{}"))
    if about.get("format") != NEGATIVES_FORMAT or schema.names != SCHEMA.names:
        raise DataError(
            f"{path} is no file of mined negatives of format {NEGATIVES_FORMAT} "
            f"(columns {schema.names}); make it with: models mine DATA --out {path}"
        )
    return dict(about)


def _mined_rows(
    mined: Mined, labelled: Labelled, *, passage_ids: Sequence[str], sources: Sequence[str]
) -> list[dict[str, Any]]:
    """Return each query's known answers, then its hard negatives, best-ranked first."""
    rows: list[dict[str, Any]] = []
    answer_rows = np.split(labelled.relevant.indices, labelled.relevant.indptr[1:-1])
    for i, (query_id, known) in enumerate(zip(labelled.query_ids, answer_rows, strict=True)):
        answers = [(row, 1, "qrels", 0, None) for row in known]
        columns = zip(mined.rows[i], mined.sources[i], mined.ranks[i], mined.scores[i], strict=True)
        negatives = [
            (row, 0, sources[source], rank, score)
            for row, source, rank, score in columns
            if row != NOTHING
        ]
        for row, relevance, source, rank, score in [*answers, *negatives]:
            values = (query_id, passage_ids[row], relevance, source, rank, score)
            rows.append(dict(zip(SCHEMA.names, values, strict=False)))
    return rows


def _write_rows(path: Path, rows: list[dict[str, Any]], *, about: Mapping[str, Any]) -> None:
    """Write the file in one step.

    Raises:
        DataError: it cannot be written.
    """
    metadata = {ABOUT: json.dumps({"format": NEGATIVES_FORMAT, **about}).encode()}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(metadata)), sink)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, sink.getvalue().to_pybytes())
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror})") from None
