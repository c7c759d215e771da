"""A DATA folder as a training run sees it: labelled queries, then everything in tokens."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from models.console import progress
from models.data import Dataset
from models.examples import Labelled, Split, hold_out, read_labelled
from models.tokenizer import Tokenizer, TokenRows, concat_rows

READ_BATCH = 8192

Say = Callable[[str], None]


class Corpus(NamedTuple):
    """A DATA folder in tokens.

    Attributes:
        passages: one row per passage, in stored order.
        train: queries to learn from.
        dev: queries that say when to stop.
        train_queries: token rows of `train`.
        dev_queries: token rows of `dev`.
    """

    passages: TokenRows
    train: Labelled
    dev: Labelled
    train_queries: TokenRows
    dev_queries: TokenRows


def read_split(data: Dataset, *, dev_share: float, seed: int, say: Say) -> Split:
    """Read the labelled queries; without a dev split, hold out a seeded share of train.

    Raises:
        DataError: there is no train split.
        TrainingError: no judgement is positive, or one names an unknown passage.
    """
    data.qrels("train")  # fail before the corpus is read
    row_of = {passage.passage_id: row for row, passage in enumerate(data.passages())}
    train = read_labelled(data, "train", row_of=row_of)
    if "dev" in data.splits:
        return Split(train, read_labelled(data, "dev", row_of=row_of))
    split = hold_out(train, share=dev_share, seed=seed)
    say(
        f"{data.path} has no dev split: {len(split.dev.texts)} of {len(train.texts)} "
        "train queries are held out for early stopping"
    )
    return split


def vocabulary_texts(data: Dataset, train: Labelled) -> Iterator[str]:
    """Yield what the vocabulary is learnt from: all passages and the train queries."""
    for passage in data.passages():
        yield passage.content
    yield from train.texts


def tokenise(data: Dataset, tokenizer: Tokenizer, *, split: Split) -> Corpus:
    """Turn the passages (streamed) and the queries of both parts into tokens."""
    contents = (passage.content for passage in data.passages())
    bar = progress(contents, label="tokenising", total=data.passage_count)
    rows = []
    while batch := list(islice(bar, READ_BATCH)):
        rows.append(tokenizer.encode_passages(batch))
    return Corpus(
        concat_rows(rows),
        split.train,
        split.dev,
        tokenizer.encode_queries(split.train.texts),
        tokenizer.encode_queries(split.dev.texts),
    )
