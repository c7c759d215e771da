"""Which passages get queries: a seeded draw over all documents."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from two_tower.ingest.dataset.cleaning import order_key
from two_tower.models.data import Passage

FEWEST_CHARS = 40  # a shorter passage gives a language model nothing to ask about


class Draw(NamedTuple):
    """The passages that get queries.

    Attributes:
        passage_ids: theirs.
        too_short: passages of fewer than `FEWEST_CHARS` characters, which get none.
    """

    passage_ids: frozenset[str]
    too_short: int


def draw(passages: Iterable[Passage], *, at_most: int | None, seed: int) -> Draw:
    """Draw passages such that every document has one before any has two.

    A passage that was cut from a document says so in its field `document_id`; any other is a
    document itself. A larger `at_most` draws the same passages and others.
    """
    keys, too_short = [], 0
    for passage in passages:
        if len(passage.content) < FEWEST_CHARS:
            too_short += 1
            continue
        document = str(passage.fields.get("document_id", passage.passage_id))
        keys.append((order_key(f"{seed} {passage.passage_id}"), passage.passage_id, document))
    turns: Counter[str] = Counter()
    drawn = []
    for key, passage_id, document in sorted(keys):
        drawn.append((turns[document], key, passage_id))
        turns[document] += 1
    ids = frozenset(passage_id for *_, passage_id in sorted(drawn)[:at_most])
    return Draw(ids, too_short)
