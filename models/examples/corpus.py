"""A DATA folder as a training run sees it: labelled queries, then everything in tokens."""

from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

import numpy as np

from two_tower.models.config import configuration
from two_tower.models.data import PEOPLE, Dataset
from two_tower.models.examples.pairs import Labelled, Split, hold_out, no_queries, read_labelled
from two_tower.models.progress import progress
from two_tower.models.text.tokenizer import RowTokenizer, TokenRows, concat_rows

READ_BATCH = 8192

DEV_SPLITS = ("dev", "generated-dev")

Notify = Callable[[str], None]
"""Gets a line of news."""


@configuration("prefixes")
class PrefixConfig:
    """What is put before each text, as E5's `query: ` and `passage: `; mind the space."""

    query: str = ""
    passage: str = ""


NO_PREFIXES = PrefixConfig()


class Corpus(NamedTuple):
    """A DATA folder in tokens: passages in stored order, queries as in `train` and `dev`.

    `train` is what a model learns from; `dev` says when to stop. `passages` is what the passage
    tower reads: the tokens, or each passage's place in a table of frozen vectors.
    """

    passages: TokenRows
    passage_tokens: TokenRows
    train: Labelled
    dev: Labelled
    train_queries: TokenRows
    dev_queries: TokenRows


def read_split(data: Dataset, *, dev_share: float, seed: int, notify: Notify) -> Split:
    """Read the labelled queries; without a dev split, hold out a seeded share of train.

    Of generated queries `ingest generate` has held some out: those of other passages. A single
    query, that could only be measured with after it was learnt from, is left out.

    Raises:
        TrainingError: no judgement is positive, or one names an unknown passage.
    """
    row_of = {passage.passage_id: row for row, passage in enumerate(data.passages())}
    if "train" not in data.splits:
        notify(
            f"{data.path} has no labelled query in split train: what is learnt comes from the "
            "passages alone"
        )
    dev_name = next((name for name in DEV_SPLITS if name in data.splits), None)
    train, dev = (
        read_labelled(data, name, row_of=row_of) if name in data.splits else no_queries(len(row_of))
        for name in ("train", dev_name or "")
    )
    for name in ("train", dev_name):
        if name in data.splits and (judge := data.judge(name)) != PEOPLE:
            notify(f"the queries of split {name} are {judge}, not of people")
    if dev_name or not train.texts:
        return Split(train, dev)
    if len(train.texts) == 1:
        notify(
            f"{data.path} has one labelled query, too few to learn from and to measure with: what "
            "is learnt comes from the passages alone"
        )
        return Split(no_queries(len(row_of)), dev)
    split = hold_out(train, share=dev_share, seed=seed)
    notify(
        f"{data.path} has no dev split: {len(split.dev.texts)} of {len(train.texts)} "
        "train queries are held out for early stopping"
    )
    return split


def tokenise(
    data: Dataset,
    tokenizer: RowTokenizer,
    *,
    split: Split,
    prefixes: PrefixConfig = NO_PREFIXES,
    frozen: bool = False,
) -> Corpus:
    """Turn the passages (streamed) and the queries of both parts into tokens.

    With `frozen`, the passage tower is a table, and what it reads is each passage's place.
    """
    contents = (prefixes.passage + passage.content for passage in data.passages())
    bar = progress(contents, label="tokenising", total=data.passage_count)
    rows = []
    while batch := list(islice(bar, READ_BATCH)):
        rows.append(tokenizer.encode_passages(batch))
    train, dev = (
        tokenizer.encode_queries([prefixes.query + text for text in part.texts]) for part in split
    )
    tokens = concat_rows(rows)
    places = np.arange(len(tokens.lengths) + 1)
    passages = TokenRows(places[:-1], places) if frozen else tokens
    return Corpus(passages, tokens, split.train, split.dev, train, dev)


def dev_corpus(corpus: Corpus, *, size: int, seed: int) -> Corpus:
    """Return the corpus with `size` passages: what answers dev, and others drawn with the seed.

    A size of 0 keeps all, and so does one that is not below their number.
    """
    count = len(corpus.passages.lengths)
    if not size or size >= count:
        return corpus
    answers = np.unique(corpus.dev.relevant.nonzero()[1])
    others = np.setdiff1d(np.arange(count), answers)
    missing = min(max(0, size - len(answers)), len(others))
    drawn = np.random.default_rng(seed).choice(others, missing, replace=False)
    rows = np.sort(np.concatenate([answers, drawn])).astype(np.int64)
    return corpus._replace(
        passages=corpus.passages.take(rows),
        passage_tokens=corpus.passage_tokens.take(rows),
        train=corpus.train._replace(relevant=corpus.train.relevant[:, rows]),
        dev=corpus.dev._replace(relevant=corpus.dev.relevant[:, rows]),
    )
