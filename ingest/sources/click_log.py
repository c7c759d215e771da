"""A log of searches and clicks (`retriever serve --log`) as judgements of DATA's passages."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.models.data import Dataset, Qrel, Query
from two_tower.models.errors import ConfigError, DataError
from two_tower.models.progress import progress
from two_tower.retriever.behaviour.click_model import ClickModel
from two_tower.retriever.behaviour.reading import (
    ANSWERS,
    CLICKS,
    RATES,
    Event,
    Search,
    read_events,
    read_searches,
)

CLICK_LOG = "clicks"
"""The kind of source in the manifest."""

LARGEST_STRANGE_SHARE = 0.5
"""Of the passages that were clicked; more of them unknown is a log of another collection."""


class ClickLog:
    """A folder of JSON lines after User Behavior Insights, as a source.

    Searches for the same words, whatever their case and spaces, are one query. All judgements are
    of split train: they say what is better than what was shown, and cannot measure it.
    """

    def __init__(self, path: Path, files: Sequence[Path], corpus: Path | None) -> None:
        """Open the corpus; the log is not read yet.

        Raises:
            ConfigError: no corpus is given.
            DataError: it is no DATA.
        """
        if corpus is None:
            raise ConfigError(
                f"{path} is a log of searches, which has no passages; name the DATA that the "
                "collection was loaded from: --corpus DATA"
            )
        self.name = str(path)
        self._files = files
        self._corpus = Dataset.open(corpus)
        self.details: Mapping[str, Any] = {
            "kind": CLICK_LOG,
            "corpus": str(corpus),
            "corpus_hash": self._corpus.content_hash,
        }

    def write_to(self, writer: DatasetWriter) -> None:
        """Write the corpus, the queries whose searches say enough, and their answers.

        Raises:
            DataError: the log is of another collection, or a file cannot be read.
        """
        ids = set()
        total = self._corpus.passage_count
        for passage in progress(self._corpus.passages(), label="passages", total=total):
            writer.add_passage(passage, identity="id")
            ids.add(passage.passage_id)
        writer.keep_merged(self._corpus.merged_ids())

        def reject(reason: str, where: str, line: str) -> None:
            writer.reject(reason=reason, where=where, row=line)

        events: dict[str, list[Event]] = defaultdict(list)
        for event in read_events(self._files, reject):
            events[event.query_id].append(event)
        models: dict[str, ClickModel] = defaultdict(ClickModel)
        texts: dict[str, str] = {}
        collections: Counter[str] = Counter()
        clicked, strange = set(), set()
        bar = progress(read_searches(self._files, _silent, ids=events), label="searches")
        for search in bar:
            about = events.pop(search.query_id)
            known = [event for event in about if event.passage_id in search.passage_ids]
            for event in about:
                if event not in known:
                    reject("event: its search did not show that passage", event.where, repr(event))
            key = " ".join(search.query.casefold().split())
            texts.setdefault(key, search.query)
            collections[search.collection] += 1
            clicked |= {event.passage_id for event in known}
            strange |= {event.passage_id for event in known if event.passage_id not in ids}
            _count(models[key], search, known)
        for orphans in events.values():
            for event in orphans:
                reject("event: its search is not in the log", event.where, repr(event))
        if len(strange) > LARGEST_STRANGE_SHARE * len(clicked):
            of = ", ".join(name for name, _ in collections.most_common(3) if name) or "another one"
            raise DataError(
                f"{self.name} is of another collection ({of}): {len(strange):,} of "
                f"{len(clicked):,} clicked passages are not in {self._corpus.path}; name the DATA "
                "that it was loaded from: --corpus DATA"
            )
        self._write(writer, texts, models)

    def _write(
        self, writer: DatasetWriter, texts: Mapping[str, str], models: Mapping[str, ClickModel]
    ) -> None:
        unsure = 0
        for key, model in models.items():
            answers = model.answers()
            unsure += not answers
            query_id = writer.add_query(Query("", texts[key])) if answers else None
            for passage_id in answers if query_id else ():
                writer.add_qrel(Qrel(str(query_id), passage_id, 1, "train"), where=key)
        if unsure:
            writer.leave_out("queries whose clicks say too little", unsure)
        if unsure == len(models):
            writer.note(
                "no query has an answer: it takes two searches by different people that ended at "
                "the same passage, or one that says `answers`"
            )


def _count(model: ClickModel, search: Search, events: Sequence[Event]) -> None:
    clicked = {event.passage_id for event in events if event.action in CLICKS}
    said = {event.passage_id: True for event in events if event.action == ANSWERS}
    said |= {event.passage_id: event.rating > 0 for event in events if event.action == RATES}
    for passage_id, is_answer in said.items():
        model.say(passage_id, is_answer=is_answer)
    # Who names an answer has ended there, whatever else was clicked.
    ends = {passage_id for passage_id, is_answer in said.items() if is_answer}
    model.add(search.passage_ids, ends or clicked, person=search.client_id or search.query_id)


def _silent(reason: str, where: str, line: str) -> None:
    """The lines were told about when the events were read."""
