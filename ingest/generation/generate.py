"""GenQ: a language model writes queries for passages, and what passes the checks becomes DATA.

    draw passages -> ask (cached) -> clean -> round trip -> DATA: train and generated-dev

Each passage is a question of its own, so that what one says reaches no other. Nothing is asked
twice: see `models.endpoint.answer_cache`.
"""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from two_tower.ingest.dataset.writer import DatasetWriter, is_dev
from two_tower.ingest.generation.cleaning import Cleaner, Written
from two_tower.ingest.generation.drawing import Draw, draw
from two_tower.ingest.generation.prompt import Prompt
from two_tower.ingest.generation.round_trip import finds_its_passage
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.config import configuration
from two_tower.models.data import GENERATED, Dataset, Passage, Qrel, Query
from two_tower.models.endpoint.answer_cache import CachedModel
from two_tower.models.endpoint.language_model import Sampling, in_parallel
from two_tower.models.errors import ConfigError, DataError, EndpointError, PromptTooLong
from two_tower.models.files import write_bytes
from two_tower.models.progress import progress
from two_tower.models.text.bm25 import Analyzer

TRAIN, DEV = "train", "generated-dev"
NOT_FOUND = "not found by the round trip"

TOP_P = 0.9

LONGEST_CHARS = 2000  # of a passage
SHORTEST_CUT = 40  # characters below which a passage is cut no further
CHARS_PER_TOKEN = 4  # of English, roughly


@configuration("generation")
class GenerationConfig:
    """What decides the queries, beside passages, prompt and model.

    Attributes:
        per_passage: texts that are asked for each passage.
        at_most: passages that get queries, drawn over all documents; None for all.
        round_trip: a query is kept where a search has its passage among the best so many; 0 keeps
            all.
        dev_share: of the passages whose queries become split `generated-dev`.
        temperature: of the model's draw.
        max_tokens: in a query.
        seed: of the model's draw, and of that of the passages.
    """

    per_passage: int = Field(default=5, ge=1, le=50)
    at_most: int | None = Field(default=None, ge=1)
    round_trip: int = Field(default=3, ge=0, le=1000)
    dev_share: float = Field(default=0.1, ge=0, lt=1)
    temperature: float = Field(default=0.8, ge=0, le=2)
    max_tokens: int = Field(default=40, ge=4, le=1000)
    seed: int = Field(default=0, ge=0)

    @property
    def sampling(self) -> Sampling:
        """How the model draws."""
        return Sampling(
            n=self.per_passage,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=TOP_P,
            stop=("\n",),
            seed=self.seed,
        )


class Estimate(NamedTuple):
    """What a run would ask.

    Attributes:
        passages: that get queries.
        calls: passages whose answer is not known yet.
        prompt_tokens: in these calls, roughly.
        answer_tokens: at most.
    """

    passages: int
    calls: int
    prompt_tokens: int
    answer_tokens: int

    def __str__(self) -> str:
        return (
            f"{self.calls:,} calls for {self.passages:,} passages "
            f"({self.passages - self.calls:,} answered before): about {self.prompt_tokens:,} "
            f"tokens of prompt, at most {self.answer_tokens:,} of answers"
        )


@dataclass
class Report:
    """What became of the texts.

    Attributes:
        passages: that got queries.
        too_short: passages that are too short for any.
        cut: passages of which the model read the beginning alone.
        asked: calls to the model.
        written: texts that it wrote.
        dropped: reason -> texts.
        kept: queries.
        with_query: passages that kept one or more.
    """

    passages: int = 0
    too_short: int = 0
    cut: int = 0
    asked: int = 0
    written: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    with_query: int = 0

    def pairs(self) -> list[tuple[str, str]]:
        """Return names and values to print."""
        shares = [
            ("", f"{count:,} {reason} ({count / max(1, self.written):.0%})")
            for reason, count in self.dropped.most_common()
        ]
        return [
            ("passages", f"{self.passages:,} ({self.too_short:,} too short, {self.cut:,} cut)"),
            ("calls", f"{self.asked:,} ({self.passages - self.asked:,} answered before)"),
            ("written", f"{self.written:,} texts"),
            ("dropped", f"{self.dropped.total():,}"),
            *shares,
            (
                "kept",
                f"{self.kept:,} queries ({self.kept / max(1, self.written):.0%}) of "
                f"{self.with_query:,} passages",
            ),
        ]


def estimate(
    data: Dataset, prompt: Prompt, model: CachedModel, config: GenerationConfig
) -> Estimate:
    """Return what `generate_queries` would ask."""
    drawn = draw(data.passages(), at_most=config.at_most, seed=config.seed)
    calls = chars = 0
    for passage in _drawn(data, drawn):
        asked = prompt.fill(_beginning(passage, LONGEST_CHARS))
        if not model.holds(asked, config.sampling):
            calls, chars = calls + 1, chars + len(asked)
    answers = calls * config.per_passage * config.max_tokens
    return Estimate(len(drawn.passage_ids), calls, chars // CHARS_PER_TOKEN, answers)


def generate_queries(
    data: Dataset,
    out: Path,
    *,
    prompt: Prompt,
    model: CachedModel,
    config: GenerationConfig,
    analyzer: Analyzer,
    bundle: ModelBundle | None = None,
    at_once: int = 4,
    table: Path | None = None,
    overwrite: bool = False,
) -> Report:
    """Write DATA with all passages and the queries that a language model wrote for some of them.

    Args:
        data: whose passages; its own queries and judgements are people's, and stay there.
        out: the DATA folder to make.
        prompt: what the model is given for each passage.
        model: what writes.
        config: what decides the queries.
        analyzer: gives terms, to compare queries and for BM25.
        bundle: makes the round trip instead of BM25.
        at_once: calls at the same time.
        table: a CSV file to write beside: id, text, query_1, query_2, …
        overwrite: replace a DATA folder.

    Raises:
        ConfigError: `out` is DATA itself, or the prompt leaves no room for a passage.
        DataError: `out` must not be written, or no passage is long enough.
        EndpointError: the model does not answer; what it answered is kept.
    """
    if out.resolve() == data.path.resolve():
        raise ConfigError(
            f"--out is {out}, DATA itself; generated queries go into a folder of their own, beside "
            "those of people"
        )
    drawn = draw(data.passages(), at_most=config.at_most, seed=config.seed)
    if not drawn.passage_ids:
        raise DataError(f"{data.path} has no passage long enough to write queries for")
    about = _about(data, prompt, model.model.model, config, bundle)
    name = _name(data)
    with DatasetWriter(
        out,
        source=name,
        details=about,
        overwrite=overwrite,
        merge=False,
        language=data.language,
    ) as writer:
        report = Report(len(drawn.passage_ids), drawn.too_short)
        asker = _Asker(prompt, model, config.sampling)
        queries = _written(asker.ask_all(_drawn(data, drawn), at_once, report), analyzer, report)
        passages = list(data.passages())
        if config.round_trip:
            queries = _round_trip(queries, passages, config, analyzer, bundle, report)
        by_passage: dict[str, list[str]] = defaultdict(list)
        for query in queries:
            by_passage[query.passage_id].append(query.text)
        report.kept, report.with_query = len(queries), len(by_passage)
        _write(writer, passages, by_passage, dev_share=config.dev_share)
        writer.keep_merged(data.merged_ids())
        for reason, count in report.dropped.items():
            writer.leave_out(f"generated text: {reason}", count)
        if table is not None:
            write_table(table, by_passage, passages, columns=config.per_passage)
    return report


def _name(data: Dataset) -> str:
    return f"generated for {data.manifest.get('source', {}).get('name', data.path)}"


def _about(
    data: Dataset, prompt: Prompt, model: str, config: GenerationConfig, bundle: ModelBundle | None
) -> dict[str, Any]:
    """Return what the manifest says about where the queries are from."""
    return {
        "kind": "generated",
        "passages_of": {"path": str(data.path), "content_hash": data.content_hash},
        "model": model,
        "prompt": {"name": prompt.name, "digest": prompt.digest, "text": prompt.text},
        "settings": asdict(config),
        "round_trip_by": bundle.fingerprint if bundle else "bm25",
        "judges": dict.fromkeys((TRAIN, DEV), GENERATED + model),
    }


class _Asker:
    """Asks for the queries of passages; one that is too long for the model is cut."""

    def __init__(self, prompt: Prompt, model: CachedModel, sampling: Sampling) -> None:
        self._prompt = prompt
        self._model = model
        self._sampling = sampling
        self._cut = 0

    def ask_all(
        self, passages: Iterable[Passage], at_once: int, report: Report
    ) -> Iterator[tuple[Passage, list[str]]]:
        """Yield each passage with what the model wrote for it; count them in `report`."""
        answers = in_parallel(self._ask, passages, at_once=at_once)
        asked, done = self._model.asked, 0
        try:
            for answer in progress(answers, label="asking", total=report.passages):
                done += 1
                yield answer
        except EndpointError as error:
            raise type(error)(
                f"{error} ({done:,} of {report.passages:,} passages are answered; their answers "
                "are kept)"
            ) from None
        report.asked, report.cut = self._model.asked - asked, self._cut

    def _ask(self, passage: Passage) -> list[str]:
        length = len(_flat(passage))
        chars = min(LONGEST_CHARS, length)
        while True:
            asked = self._prompt.fill(_beginning(passage, chars))
            try:
                texts = self._model.complete(asked, self._sampling)
            except PromptTooLong as error:
                chars //= 2
                if chars < SHORTEST_CUT:
                    raise ConfigError(
                        f"the prompt {self._prompt.name} leaves no room for a passage ({error}); "
                        "shorten it, or give the server a larger context"
                    ) from None
            else:
                self._cut += chars < length
                return texts


def _written(
    answers: Iterable[tuple[Passage, list[str]]], analyzer: Analyzer, report: Report
) -> list[Written]:
    """Return the texts that are queries; count the others by their reason."""
    cleaner = Cleaner(analyzer)
    texts = [text for answer in answers for text in cleaner.clean(*answer)]
    report.written = len(texts)
    report.dropped.update(text.reason for text in texts if text.reason)
    return [text for text in texts if not text.reason]


def _round_trip(
    queries: Sequence[Written],
    passages: Sequence[Passage],
    config: GenerationConfig,
    analyzer: Analyzer,
    bundle: ModelBundle | None,
    report: Report,
) -> list[Written]:
    """Return the queries that find their passage; count the others."""
    row_of = {passage.passage_id: row for row, passage in enumerate(passages)}
    is_back = finds_its_passage(
        [query.text for query in queries],
        np.array([row_of[query.passage_id] for query in queries], dtype=np.int64),
        [passage.content for passage in passages],
        within=config.round_trip,
        analyzer=analyzer,
        titles=[passage.title for passage in passages],
        bundle=bundle,
    )
    if lost := int((~is_back).sum()):
        report.dropped[NOT_FOUND] = lost
    return [query for query, is_kept in zip(queries, is_back, strict=True) if is_kept]


def _drawn(data: Dataset, drawn: Draw) -> Iterator[Passage]:
    return (p for p in data.passages() if p.passage_id in drawn.passage_ids)


def _flat(passage: Passage) -> str:
    return " ".join(passage.content.split())


def _beginning(passage: Passage, chars: int) -> str:
    """Return so much of a passage, without a part of a word at its end where words have spaces."""
    text = _flat(passage)
    if len(text) <= chars:
        return text
    whole, space, _ = text[:chars].rpartition(" ")
    return whole if space and len(whole) > chars // 2 else text[:chars]


def _write(
    writer: DatasetWriter,
    passages: Iterable[Passage],
    by_passage: Mapping[str, Sequence[str]],
    *,
    dev_share: float,
) -> None:
    """Add passages, queries and judgements; all queries of a passage go to the same split."""
    for passage in passages:
        writer.add_passage(passage)
    for passage_id, texts in by_passage.items():
        split = DEV if is_dev(passage_id, dev_share) else TRAIN
        for number, text in enumerate(texts, 1):
            query_id = f"generated:{passage_id}:{number}"
            writer.add_query(Query(query_id, text))
            writer.add_qrel(Qrel(query_id, passage_id, 1, split))


def write_table(
    path: Path,
    by_passage: Mapping[str, Sequence[str]],
    passages: Iterable[Passage],
    *,
    columns: int,
) -> None:
    """Write the passages that have queries as CSV: id, text, query_1, query_2 and so on.

    Raises:
        DataError: the file cannot be written.
    """
    content = io.StringIO(newline="")
    rows = csv.writer(content)
    rows.writerow(["id", "text", *(f"query_{number + 1}" for number in range(columns))])
    for passage in passages:
        if texts := by_passage.get(passage.passage_id):
            blanks = [""] * (columns - len(texts))
            rows.writerow([passage.passage_id, passage.content, *texts, *blanks])
    try:
        write_bytes(path, content.getvalue().encode())
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror})") from None
