"""Long documents to passages that a tower reads whole, with stable ids.

A tower makes one vector of the first words of a text, so the rest of a long one cannot be found by
it. Here a DATA folder of documents becomes one of passages. Parts end where a sentence does, where
there is such a place, and are of about the same length. Their ids are the document's with `#1`,
`#2`, …, so that a changed document changes its own passages alone; the fields `document_id` and
`part` say where they come from, and a search that groups by `document_id` finds documents.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.models.data import Dataset, Passage, Qrel
from two_tower.models.errors import ConfigError
from two_tower.models.language import word_spans
from two_tower.models.progress import progress
from two_tower.models.text.bm25 import Analyzer

_SENTENCE_END = re.compile(r"[.!?…\u3002\uff01\uff1f\u061f\u0964][\"'”)\]]*$")

_PARAGRAPH = re.compile(r"\n[^\S\n]*\n")


@dataclass(frozen=True)
class SplitConfig:
    """How long passages are.

    Attributes:
        words: of a passage at most.
        overlap: words of a passage that the next one repeats.
    """

    words: int
    overlap: int = 0

    def __post_init__(self) -> None:
        if self.words < 1:
            raise ConfigError(f"--passage-words is {self.words}, expected 1 or more")
        if not 0 <= self.overlap <= self.words // 2:
            raise ConfigError(
                f"--overlap-words is {self.overlap}, expected 0 to {self.words // 2}, "
                f"half of --passage-words {self.words}"
            )


class LongDocuments:
    """A DATA folder as a source of passages."""

    def __init__(self, path: Path, config: SplitConfig, analyzer: Analyzer) -> None:
        """Open the folder; the analyzer says which part a judgement goes to.

        Raises:
            DataError: it is no DATA folder.
        """
        self.name = str(path)
        self._data = Dataset.open(path)
        self._config = config
        self._analyzer = analyzer
        self.details: Mapping[str, Any] = {
            "kind": "split",
            "documents": self._data.content_hash,
            **asdict(config),
        }
        if judges := self._data.manifest["source"].get("judges"):
            self.details = {**self.details, "judges": judges}

    def write_to(self, writer: DatasetWriter) -> None:
        """Write the passages; a document's judgement goes to the part that is most like the query.

        That is the one with the most terms of the query, the first of several.
        """
        queries = {query.query_id: query for query in self._data.queries()}
        for query in queries.values():
            writer.add_query(query)
        judged: dict[str, list[Qrel]] = defaultdict(list)
        for split in self._data.splits:
            for qrel in self._data.qrels(split):
                judged[qrel.passage_id].append(qrel)
        uncut, total = set(), self._data.passage_count
        for document in progress(self._data.passages(), label="documents", total=total):
            parts = split_passage(document, self._config)
            if len(parts) == 1:
                uncut.add(document.passage_id)
            for part in parts:
                writer.add_passage(part, where=document.passage_id, identity="id")
            for qrel in judged.get(document.passage_id, ()):
                best = most_like(queries[qrel.query_id].text, parts, self._analyzer)
                writer.add_qrel(qrel._replace(passage_id=best.passage_id))
        merged = self._data.merged_ids().items()
        writer.keep_merged({passage_id: into for passage_id, into in merged if into in uncut})


def split_passage(document: Passage, config: SplitConfig) -> list[Passage]:
    """Return the parts of a document; one that is short enough keeps its id."""
    texts = split_text(document.text, config)
    document_id = document.passage_id
    parts = []
    for number, text in enumerate(texts, 1):
        part_id = f"{document_id}#{number}" if len(texts) > 1 else document_id
        fields = {**document.fields, "document_id": document_id, "part": number}
        parts.append(document._replace(passage_id=part_id, text=text, fields=fields))
    return parts


def split_text(text: str, config: SplitConfig) -> list[str]:
    """Cut a text into pieces of at most `config.words` words, as it stands otherwise."""
    words = word_spans(text)
    pieces, start = [], 0
    while (left := len(words) - start) > config.words:
        count = ceil((left - config.overlap) / (config.words - config.overlap))
        aim = start + ceil((left - config.overlap) / count) + config.overlap
        first, last = start + config.overlap + 1, start + config.words
        end = _cut(text, words, aim=aim, first=first, last=last)
        pieces.append(text[words[start][0] : words[end - 1][1]])
        start = end - config.overlap
    return [*pieces, text[words[start][0] :].rstrip() if words else text]


def most_like(query: str, parts: Sequence[Passage], analyzer: Analyzer) -> Passage:
    """Return the part with the most different terms of the query, the first of several."""
    if len(parts) == 1:
        return parts[0]
    terms = set(analyzer.term_counts(query))
    return max(parts, key=lambda part: len(terms.intersection(analyzer.term_counts(part.content))))


def _cut(text: str, words: Sequence[tuple[int, int]], *, aim: int, first: int, last: int) -> int:
    """Return the number of words before the cut: a sentence's end near `aim`, or `aim` itself."""

    def ends_sentence(count: int) -> bool:
        start, stop = words[count - 1]
        gap = text[stop : words[count][0]]
        return bool(_SENTENCE_END.search(text[start:stop]) or _PARAGRAPH.search(gap))

    reach = (last - first) // 3
    near = range(max(first, aim - reach), min(last, aim + reach) + 1)
    return min(filter(ends_sentence, near), key=lambda count: abs(count - aim), default=aim)
