"""The end of a training run: what its bundle will give, measured, and what its config.json says."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from two_tower.models.bundle_files import FORMAT
from two_tower.models.corpus import Corpus
from two_tower.models.evaluation import ranking_metrics
from two_tower.models.examples import Labelled
from two_tower.models.mining import Vectors
from two_tower.models.reduction import Reduction
from two_tower.models.tokenizer import TokenizerConfig
from two_tower.models.towers import TwoTower, encode_rows
from two_tower.models.training import TrainConfig
from two_tower.models.transformer_encoding import GRAPH, OnnxRows

FloatArray = npt.NDArray[np.float32]


def deciding_config(
    config: TrainConfig, tokenizer: TokenizerConfig, *, reduction: Reduction
) -> dict[str, Any]:
    """Return the content of config.json."""
    return {
        "format": FORMAT,
        "tower": {**config.tower.deciding(), "dim": len(reduction.mean)},
        "prefixes": asdict(config.prefixes),
        "tokenizer": {
            "max_passage_tokens": tokenizer.max_passage_tokens,
            "max_query_tokens": tokenizer.max_query_tokens,
        },
        "pca_dims": list(reduction.dims),
    }


def final_vectors(towers: TwoTower, files: Mapping[str, bytes], *, corpus: Corpus) -> Vectors:
    """Return the vectors of dev queries and passages as the bundle will give them."""
    if GRAPH in files:
        rows = OnnxRows(files[GRAPH])
        return Vectors(rows.encode(corpus.dev_queries), rows.encode(corpus.passages))
    queries = encode_rows(towers.query, corpus.dev_queries)
    passages = encode_rows(towers.passage, corpus.passages)
    return Vectors(queries.cpu().numpy(), passages.cpu().numpy())


def dev_metrics(
    queries: FloatArray, passages: FloatArray, *, reduction: Reduction, dev: Labelled
) -> dict[str, dict[str, float]]:
    """Return the dev metrics of the full and of each reduced vector, by name."""
    small_queries, small_passages = reduction.apply(queries), reduction.apply(passages)
    pairs = {"dense": (queries, passages)} | {
        f"pca_{d}": (small_queries[d], small_passages[d]) for d in reduction.dims
    }
    return {
        name: ranking_metrics(torch.from_numpy(q), torch.from_numpy(p), relevant=dev.relevant)
        for name, (q, p) in pairs.items()
    }
