from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import make_passages
from pair_models import require_transformers, save_model, their_logits

from two_tower.ingest.loading import loader
from two_tower.ingest.versions import versions as collections
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.files import FUSION
from two_tower.models.bundle.fusion import FinalWeights, Fusion, HybridWeights
from two_tower.models.data import Dataset
from two_tower.models.networks.cross_config import CrossConfig
from two_tower.models.networks.cross_encoder import cross_encoder_files, open_cross_encoder
from two_tower.models.text.tokenizer import TokenizerConfig
from two_tower.retriever import Hit, Retriever, SearchSettings
from two_tower.retriever.engine.protocol import Engine

PASSAGES = make_passages(60)
QUERY = "storm on the river bank"
EVERYTHING = SearchSettings(legs={"dense": 60, "bm25": 60})
READS = 9


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    require_transformers()
    return save_model(tmp_path_factory.mktemp("models") / "cross")


@pytest.fixture(scope="module")
def bundle(model: str, tiny_bundle: Path) -> ModelBundle:
    config = CrossConfig(model=model, int8=False, candidates=READS)
    limits = TokenizerConfig(
        max_passage_tokens=config.passage_tokens, max_query_tokens=config.query_tokens
    )
    encoder = open_cross_encoder(model, limits, fresh_head=False)
    weights = HybridWeights(6.0), FinalWeights(hybrid=0.8, cross=200.0, nothing=4.0, offset=-0.5)
    fusion = Fusion(*weights, asdict(config))
    files = cross_encoder_files(encoder, int8=False)
    return ModelBundle.load(tiny_bundle).with_extras({FUSION: fusion.to_bytes(), **files})


@pytest.fixture
def retriever(
    engine: Engine, name: str, bundle: ModelBundle, make_data: Callable[..., Dataset]
) -> Retriever:
    report = loader.load(engine, make_data(PASSAGES), bundle, name=name)
    collections.promote(engine, name, report.collection)
    return Retriever(engine, name, bundle, settings=EVERYTHING)


def ids(hits: list[Hit]) -> list[str]:
    return [hit.passage_id for hit in hits]


def test_the_best_are_ranked_by_what_the_other_library_says(
    retriever: Retriever, model: str
) -> None:
    before = retriever.search(QUERY, k=30, settings=replace(EVERYTHING, cross=False))
    contents = {passage.passage_id: passage.content for passage in PASSAGES}
    read = [contents[hit.passage_id] for hit in before[:READS]]
    logits = their_logits(model, QUERY, read)
    order = np.argsort([-0.8 * h.score - 200.0 * x for h, x in zip(before, logits, strict=False)])
    assert order.tolist() != list(range(READS))
    result = retriever.explain(QUERY, k=30)
    assert result.stages_run[-1] == "cross"
    assert ids(result.hits) == [
        *(before[row].passage_id for row in order),
        *ids(before[READS:]),
    ]
    for hit, row in zip(result.hits, order, strict=False):
        assert hit.stages["cross"].score == pytest.approx(logits[row], abs=1e-4)
    assert all("cross" not in hit.stages for hit in result.hits[READS:])


def test_a_search_may_let_it_read_more(retriever: Retriever) -> None:
    settings = replace(EVERYTHING, cross_candidates=14)
    hits = retriever.search(QUERY, k=30, settings=settings)
    assert sum("cross" in hit.stages for hit in hits) == 14
