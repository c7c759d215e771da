"""Bundles with a learnt fusion, a cross-scorer, recurrent towers: their numbers mean nothing."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.numpy import save

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.files import CROSS_SCORER, FUSION, TOKENIZER, TOWERS
from two_tower.models.bundle.fusion import FinalWeights, Fusion, HybridWeights
from two_tower.models.bundle.recurrence import Cell
from two_tower.models.bundle.reduction import fit_reduction
from two_tower.models.networks.cross_config import CrossConfig
from two_tower.models.networks.cross_scorer import CrossScorer, scorer_arrays
from two_tower.models.networks.tower_config import RnnConfig, TowerConfig
from two_tower.models.networks.towers import TwoTower

HYBRID = HybridWeights(tower=6.0)
FINAL = FinalWeights(hybrid=0.8, cross=1.5, nothing=4.0, offset=-0.5)
CONFIG = CrossConfig(dim=12, hidden=4)


def crossed(bundle: ModelBundle) -> ModelBundle:
    """The bundle with a scorer of random weights."""
    torch.manual_seed(3)
    count = bundle.tokenizer.vocab_size
    scorer = CrossScorer(torch.randn(count, CONFIG.dim), torch.rand(count) + 0.5, config=CONFIG)
    arrays = scorer_arrays(scorer.eval())
    fusion = Fusion(HYBRID, FINAL, asdict(CONFIG))
    return bundle.with_extras({FUSION: fusion.to_bytes(), CROSS_SCORER: save(arrays)})


def recurrent(bundle: ModelBundle, cell: Cell) -> ModelBundle:
    """The bundle with recurrent towers of random weights."""
    arrays = {name.removeprefix("query."): array for name, array in bundle.towers().items()}
    config = TowerConfig(cell, dim=bundle.dim, rnn=RnnConfig(hidden=6, bidirectional=True))
    towers = TwoTower.start(config, **arrays, seed=1)
    torch.nn.init.normal_(towers.query.projection.weight)  # type: ignore[union-attr, arg-type]
    settings = {**bundle.config, "tower": config.deciding()}
    files = {TOKENIZER: bundle.tokenizer.model, TOWERS: save(towers.arrays())}
    reduction = fit_reduction(arrays["vectors"], bundle.pca_dims)
    return ModelBundle.of_files(settings, files, reduction=reduction, card={})


def fused(bundle: ModelBundle) -> ModelBundle:
    """The bundle with a learnt fusion alone."""
    return bundle.with_extras({FUSION: Fusion(HYBRID).to_bytes()})


@pytest.fixture(scope="module")
def cross_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `tiny_bundle` with both; a collection loaded with either fits the other."""
    path = tmp_path_factory.mktemp("cross") / "bundle"
    crossed(ModelBundle.load(tiny_bundle)).save(path)
    return path
