"""Mining of hard negatives over a whole corpus, for the command and inside a training run."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    NOTHING,
    Candidates,
    Mined,
    MiningConfig,
    bm25_candidates,
    dense_candidates,
    mine,
    text_groups,
)
from two_tower.models.examples.pairs import HardNegatives, Labelled, read_labelled
from two_tower.models.files import write_bytes
from two_tower.models.text.bm25 import Analyzer
from two_tower.models.vectors import FloatArray, Vectors

FORMAT = 1

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


class Teacher(NamedTuple):
    """A model that reads query and passage together.

    Attributes:
        name: for the record.
        score: (queries, passages), row by row -> (n,) float32.
    """

    name: str
    score: Callable[[list[str], list[str]], FloatArray]


class Row(NamedTuple):
    """One line of the file; see the module."""

    query_id: str
    passage_id: str
    relevance: int
    source: str
    rank: int
    score: float | None
    teacher_score: float | None


def mined_rows(
    mined: Mined, labelled: Labelled, *, passage_ids: Sequence[str], sources: Sequence[str]
) -> Iterator[Row]:
    """Yield each query's known answers, then its hard negatives, best-ranked first."""
    relevant = labelled.relevant
    for i, query_id in enumerate(labelled.query_ids):
        for column in relevant.indices[relevant.indptr[i] : relevant.indptr[i + 1]]:
            yield Row(query_id, passage_ids[column], 1, "qrels", 0, None, None)
        for j in np.flatnonzero(mined.rows[i] != NOTHING):
            source, rank = sources[mined.sources[i, j]], int(mined.ranks[i, j])
            passage_id, score = passage_ids[mined.rows[i, j]], float(mined.scores[i, j])
            yield Row(query_id, passage_id, 0, source, rank, score, None)


def write_rows(path: Path, rows: Sequence[Row], *, about: Mapping[str, Any]) -> None:
    """Write the file in one step.

    Args:
        path: where to.
        rows: its lines.
        about: `data`, DATA's content hash, and whatever else is to be kept (plain JSON values).

    Raises:
        DataError: it cannot be written.
    """
    metadata = {ABOUT: json.dumps({"format": FORMAT, **about}).encode()}
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(SCHEMA)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA.with_metadata(metadata)), sink)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, sink.getvalue().to_pybytes())
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror})") from None


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
    found = json.loads((schema.metadata or {}).get(ABOUT, b"{}"))
    if found.get("format") != FORMAT or schema.names != SCHEMA.names:
        raise DataError(
            f"{path} is no file of mined negatives of format {FORMAT} (columns {schema.names}); "
            f"make it with: models mine DATA --out {path}"
        )
    return dict(found)


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
    table = pq.read_table(path).to_pydict()
    lines = [Row(*values) for values in zip(*table.values(), strict=True)]
    negatives: list[list[tuple[int, float | None]]] = [[] for _ in labelled.query_ids]
    answers: dict[tuple[int, int], float | None] = {}
    for line in lines:
        query, passage = query_of.get(line.query_id), row_of[line.passage_id]
        if query is not None and line.relevance:
            answers[query, passage] = line.teacher_score
        elif query is not None:
            negatives[query].append((passage, line.teacher_score))
    if not any(negatives):
        raise DataError(
            f"{path} has no hard negative for the train queries of {data.path}; mine with other "
            f"guards: models mine {data.path} --out {path}"
        )
    return _hard_negatives(negatives, answers, labelled)


def file_hash(path: Path) -> str:
    """Return the SHA-256 (64 hex digits) of the file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); make it with: models mine DATA --out {path}"
        ) from None


def score_rows(
    rows: Sequence[Row], teacher: Teacher, *, queries: Mapping[str, str], texts: Mapping[str, str]
) -> list[Row]:
    """Return the rows with the teacher's scores.

    Args:
        rows: answers and hard negatives.
        teacher: what scores them.
        queries: query id -> text.
        texts: passage id -> text.
    """
    scores = teacher.score(
        [queries[row.query_id] for row in rows], [texts[row.passage_id] for row in rows]
    )
    return [
        row._replace(teacher_score=float(score)) for row, score in zip(rows, scores, strict=True)
    ]


def _hard_negatives(
    negatives: Sequence[Sequence[tuple[int, float | None]]],
    answers: Mapping[tuple[int, int], float | None],
    labelled: Labelled,
) -> HardNegatives:
    width = max(len(found) for found in negatives)
    rows = np.full((len(negatives), width), NOTHING, dtype=np.int64)
    scores = np.full(rows.shape, np.nan, dtype=np.float32)
    for i, found in enumerate(negatives):
        for j, (passage, score) in enumerate(found):
            rows[i, j] = passage
            scores[i, j] = np.nan if score is None else score
    if np.isnan(scores).all():
        return HardNegatives(rows)
    pairs = zip(*labelled.relevant.nonzero(), strict=True)
    known = [answers.get((int(query), int(passage))) for query, passage in pairs]
    positives = np.array([np.nan if score is None else score for score in known], np.float32)
    return HardNegatives(rows, scores, positives)


def find_negatives(
    labelled: Labelled,
    texts: Sequence[str],
    config: MiningConfig,
    *,
    analyzer: Analyzer,
    encode: Callable[[], Vectors],
) -> Mined:
    """Rank the passages by each source of the configuration and choose hard negatives.

    Args:
        labelled: the queries.
        texts: `Passage.content` of all passages.
        config: sources, ranks and guards.
        analyzer: gives BM25 its terms.
        encode: gives the vectors; called where the towers are a source.
    """
    candidates: list[Candidates] = []
    if "bm25" in config.sources:
        depth = config.last_rank
        found = bm25_candidates(texts, labelled, analyzer=analyzer, depth=depth)
        candidates.append(found)
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
    analyzer: Analyzer,
    bundle: ModelBundle | None = None,
    teacher: Teacher | None = None,
) -> dict[str, dict[str, int]]:
    """Mine negatives for the queries of a split and write them to a file.

    Args:
        data: the corpus and its judgements.
        out: Parquet file to write; `models.negatives_file` describes it.
        split: which judgements name the known answers.
        config: sources, ranks and guards.
        analyzer: gives BM25 its terms.
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

    mined = find_negatives(labelled, texts, config, analyzer=analyzer, encode=encode)
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
