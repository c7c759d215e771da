"""A language model judges what several systems find, and the grades become a split of DATA.

    systems rank -> pool -> ask (cached) -> DATA: judged, and beside judgements of people the check

Nothing is asked twice: see `models.endpoint.answer_cache`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.judging.agreement import FEWEST, Agreement, agreement
from two_tower.ingest.judging.grading import Grader, Grades, Pair
from two_tower.ingest.judging.pooling import Pool, pool
from two_tower.ingest.judging.prompt import GradePrompt
from two_tower.ingest.sources.judgements import read_judgements
from two_tower.ingest.sources.values import as_integer
from two_tower.models.data import Dataset, Qrel, Query
from two_tower.models.endpoint.answer_cache import CachedModel
from two_tower.models.errors import DataError
from two_tower.retriever.evaluation.judging import CHECK_SPLITS, JUDGED, MODEL_FROM, PEOPLE_FROM
from two_tower.retriever.evaluation.measures import Rankings

CHECK_QUERIES = 100

Ranker = Callable[[Sequence[Query]], Mapping[str, Rankings]]
"""Queries -> system -> what it finds for them."""


class Questions(NamedTuple):
    """What a model is asked about.

    Attributes:
        queries: those without judgement.
        checked: those of the check.
        people: their judgements.
    """

    queries: list[Query]
    checked: list[Query]
    people: list[Qrel]

    @property
    def texts(self) -> dict[str, str]:
        """query_id -> text."""
        return {query.query_id: query.text for query in (*self.queries, *self.checked)}


class Judged(NamedTuple):
    """What became of it.

    Attributes:
        pools: the pools of queries and of checked queries.
        grades: of both.
        agreement: with people; None without a check.
    """

    pools: Pool
    grades: Grades
    agreement: Agreement | None

    def pairs(self) -> list[tuple[str, str]]:
        """Return names and values to print."""
        grades = self.grades
        counts = np.bincount(list(grades.by_pair.values()), minlength=4)
        named = ", ".join(f"{count:,} of {grade}" for grade, count in enumerate(counts))
        left_out = [("unknown", f"{self.pools.unknown:,} ranked passages that DATA does not have")]
        malformed = [("no grade", f"{grades.malformed:,} answers, as {grades.example[:40]!r}")]
        return [
            ("queries", f"{len(self.pools.passages):,}"),
            ("pooled", f"{self.pools.pairs:,} pairs ({grades.cut:,} passages cut)"),
            *(left_out if self.pools.unknown else []),
            ("calls", f"{grades.asked:,} ({self.pools.pairs - grades.asked:,} answered before)"),
            ("grades", named),
            *(malformed if grades.malformed else []),
            *(("check", line) for line in (self.agreement.lines() if self.agreement else [])),
        ]


def find_questions(data: Dataset, people: Sequence[Qrel]) -> Questions:
    """Return the queries of DATA that have no judgement, and up to 100 that people judged.

    Raises:
        DataError: there is none without, or too few judgements for a check, or DATA is judged.
    """
    if JUDGED in data.splits:
        raise DataError(
            f"{data.path} has the split {JUDGED!r} already; judge the DATA that it was made from"
        )
    judged = {q.query_id for split in data.splits for q in data.qrels(split)}
    all_queries = data.queries()
    if not all_queries:
        raise DataError(
            f"{data.path} has no query; bring some with: ingest prepare SOURCE --queries FILE "
            "--out DATA"
        )
    queries = [query for query in all_queries if query.query_id not in judged]
    if not queries:
        raise DataError(
            f"every query of {data.path} has a judgement, expected some without; add them with: "
            "ingest prepare SOURCE --queries FILE --out DATA"
        )
    by_people = {qrel.query_id for qrel in people}
    checked = [query for query in all_queries if query.query_id in by_people]
    order = np.random.default_rng(0).permutation(len(checked))[:CHECK_QUERIES]
    checked = [checked[row] for row in sorted(order)]
    ids = {query.query_id for query in checked}
    people = [qrel for qrel in people if qrel.query_id in ids]
    if by_people and len(people) < FEWEST:
        raise DataError(
            f"--check has {len(people):,} judgements of queries of {data.path}, expected {FEWEST} "
            "or more; leave it out, or judge more by hand"
        )
    return Questions([q for q in queries if q.query_id not in ids], checked, people)


def read_people(file: Path) -> list[Qrel]:
    """Return the judgements of people in a file of any form that `ingest prepare` reads.

    Raises:
        DataError: there is no such file, or a line is no judgement.
    """

    def refuse(*, reason: str, where: str, row: Any) -> None:
        raise DataError(f"--check {where} holds {str(row)[:80]!r} ({reason})")

    if not file.is_file():
        raise DataError(
            f"--check is {file}, which is neither a split of DATA nor a file; leave it out "
            "where people judged nothing"
        )
    qrels = []
    for each in read_judgements(file, refuse):
        if not isinstance(score := as_integer(each.score), int):
            refuse(reason="judgement: its score is no number", where=each.where, row=each.score)
        qrels.append(Qrel(each.query_id, each.passage_id, score, ""))
    return qrels


class Judge:
    """One run: its pools are made once, for an estimate or for the grades."""

    def __init__(
        self,
        data: Dataset,
        questions: Questions,
        systems: Mapping[str, Rankings],
        *,
        model: CachedModel,
        prompt: GradePrompt,
        depth: int,
    ) -> None:
        """Pool what the systems find.

        Raises:
            DataError: no system finds a passage of DATA for any query without judgement.
        """
        self._data, self._questions, self._systems = data, questions, list(systems)
        self._model, self._prompt, self._depth = model, prompt, depth
        by_people: dict[str, list[str]] = defaultdict(list)
        for qrel in questions.people:
            by_people[qrel.query_id].append(qrel.passage_id)
        self.pools = pool(
            systems.values(),
            questions.texts,
            depth=depth,
            known=frozenset(passage.passage_id for passage in data.passages()),
            judged=by_people,
        )
        if not any(query.query_id in self.pools.passages for query in questions.queries):
            raise DataError(
                f"{', '.join(systems)} find no passage for the queries of {data.path} without "
                "judgement; expected rankings of these queries and passages, by their ids"
            )
        ids = set(chain.from_iterable(self.pools.passages.values()))
        texts = {p.passage_id: p.content for p in data.passages() if p.passage_id in ids}
        self._grader = Grader(model, prompt, queries=questions.texts, passages=texts)

    def estimate(self) -> str:
        """Return how much would be asked."""
        calls, tokens = self._grader.estimate(self._pairs())
        return (
            f"{calls:,} calls for {self.pools.pairs:,} pairs of {len(self.pools.passages):,} "
            f"queries ({self.pools.pairs - calls:,} answered before): about {tokens:,} tokens of "
            "prompt"
        )

    def run(self, out: Path, *, at_once: int, check: str, overwrite: bool) -> Judged:
        """Ask, and write DATA with the grades; `check` names the split of people's judgements.

        Run it again after a kill: what was answered is known.

        Raises:
            ConfigError: the prompt leaves no room for a passage.
            DataError: no answer is a grade, or `out` must not be written.
            EndpointError: the model does not answer; what it answered is kept.
        """
        grades = self._grader.grade(self._pairs(), total=self.pools.pairs, at_once=at_once)
        if not grades.by_pair:
            raise DataError(
                f"none of {grades.malformed:,} answers is a grade (as {grades.example[:40]!r}), "
                "expected 0, 1, 2 or 3; change the prompt with --prompt FILE, or take another model"
            )
        judged = Judged(self.pools, grades, self._agreement(grades))
        source = self._data.manifest.get("source", {})
        about = {**source, **self._about(judged, check)}
        name = str(about.pop("name", self._data.path))
        with DatasetWriter(
            out,
            source=name,
            details=about,
            overwrite=overwrite,
            merge=False,
            language=self._data.language,
        ) as w:
            for passage in self._data.passages():
                w.add_passage(passage)
            for query in self._data.queries():
                w.add_query(query)
            for qrel in chain(self._known(), self._graded(grades)):
                w.add_qrel(qrel)
            w.keep_merged(self._data.merged_ids())
        return judged

    def _pairs(self) -> Iterable[Pair]:
        return ((query, id_) for query, ids in self.pools.passages.items() for id_ in ids)

    @property
    def _checked_ids(self) -> set[str]:
        return {query.query_id for query in self._questions.checked}

    def _agreement(self, grades: Grades) -> Agreement | None:
        ids = self._checked_ids
        model = {pair: grade for pair, grade in grades.by_pair.items() if pair[0] in ids}
        if not model:
            return None
        people = {(q.query_id, q.passage_id): q.relevance for q in self._questions.people}
        return agreement(people, model, people_from=PEOPLE_FROM, model_from=MODEL_FROM)

    def _known(self) -> Iterable[Qrel]:
        """Yield the judgements that stay, those of people in the check among them."""
        for split in self._data.splits:
            yield from self._data.qrels(split)
        for qrel in self._questions.people:
            yield qrel._replace(split=CHECK_SPLITS.people)

    def _graded(self, grades: Grades) -> Iterable[Qrel]:
        ids = self._checked_ids
        for (query_id, passage_id), grade in grades.by_pair.items():
            split = CHECK_SPLITS.model if query_id in ids else JUDGED
            yield Qrel(query_id, passage_id, grade, split)

    def _about(self, judged: Judged, check: str) -> dict[str, Any]:
        """Return what the manifest says of the judgements."""
        model = self._model.model.model
        by = f"grades by {model}"
        earlier = self._data.manifest.get("source", {}).get("judges", {})
        judging = {
            "model": model,
            "prompt": self._prompt.about(),
            "depth": self._depth,
            "systems": self._systems,
            "malformed": judged.grades.malformed,
            "cut": judged.grades.cut,
            "check": check or None,
            "agreement": judged.agreement.to_dict() if judged.agreement else None,
            "says": judged.agreement.lines() if judged.agreement else [],
        }
        judges = {JUDGED: by, **({CHECK_SPLITS.model: by} if judged.agreement else {})}
        return {"judges": {**earlier, **judges}, "judging": judging}
