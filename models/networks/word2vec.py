"""Token vectors from unlabelled text: skip-gram or CBOW with negative sampling (gensim).

Mikolov et al., "Distributed Representations of Words and Phrases and their Compositionality",
2013, https://arxiv.org/abs/1310.4546.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from pydantic import Field

from two_tower.models.config import configuration
from two_tower.models.progress import progress
from two_tower.models.text.tokenizer import TokenRows
from two_tower.models.vectors import FloatArray, normalized

WINDOW = 3  # tokens to either side that count as near

NOISE_TOKENS = 3  # per near token


@configuration("word2vec")
class Word2VecConfig:
    """How token vectors are learnt before any pair is seen.

    Attributes:
        epochs: passes over the corpus; 0 starts from random directions alone.
        weight: length of a learnt vector beside its token's random direction of length 1.
        sample: how strongly frequent tokens are thinned out.
        cbow: predict a token from its neighbours instead of the neighbours from it.
    """

    epochs: int = Field(default=1, ge=0)
    weight: float = Field(default=0.35, ge=0)
    sample: float = Field(default=1e-4, ge=0)
    cbow: bool = False


def random_vectors(vocab_size: int, dim: int, *, seed: int) -> FloatArray:
    """Draw (vocab_size, dim) float32 directions, L2-normalised.

    A mean of such vectors is a random projection of the text's term weights, which keeps their
    dot products (Johnson and Lindenstrauss, 1984): an untrained tower starts as a blurred TF-IDF.
    """
    drawn = np.random.default_rng(seed).normal(size=(vocab_size, dim)).astype(np.float32)
    return normalized(drawn)


def learn_vectors(
    rows: TokenRows, config: Word2VecConfig, *, vocab_size: int, dim: int, seed: int
) -> FloatArray:
    """Return (vocab_size, dim) float32 token vectors, L2-normalised.

    A token starts as a random direction, which tells it from all others, plus `weight` times
    what was learnt, which brings it near its relatives. What all learnt vectors have in common
    is subtracted first, or else it would be all that a mean of them says (Mu and Viswanath,
    "All-but-the-Top", 2018, https://arxiv.org/abs/1702.01417).
    """
    vectors = random_vectors(vocab_size, dim, seed=seed)
    if not config.epochs or not config.weight:
        return vectors
    # gensim is slow to import and is needed nowhere else.
    from gensim.models import Word2Vec

    model = Word2Vec(
        sentences=_Sentences(rows, epochs=config.epochs),
        vector_size=dim,
        sg=int(not config.cbow),
        negative=NOISE_TOKENS,
        window=WINDOW,
        sample=config.sample,
        min_count=1,
        epochs=config.epochs,
        workers=1,  # with more of them equal seeds give other vectors
        seed=seed,
    )
    known = np.array([int(token) for token in model.wv.index_to_key])  # tokens that occur
    learnt = np.asarray(model.wv.vectors, dtype=np.float32)
    counts = np.bincount(rows.ids, minlength=vocab_size)[known]
    common = (counts[:, None] * learnt).sum(axis=0) / counts.sum()
    vectors[known] += config.weight * normalized(learnt - common)
    return normalized(vectors)


class _Sentences:
    """Token rows as gensim wants them: lists of strings, as often as it asks."""

    def __init__(self, rows: TokenRows, *, epochs: int) -> None:
        self._rows = rows
        self._passes, self._epochs = 0, epochs

    def __iter__(self) -> Iterator[list[str]]:
        ids, offsets = self._rows
        label = f"token vectors {self._passes}/{self._epochs}"  # the first pass counts the tokens
        self._passes += 1
        for start, end in progress(pairwise(offsets.tolist()), label=label, total=len(offsets) - 1):
            yield [str(i) for i in ids[start:end]]
