from pathlib import Path

import numpy as np
import pytest
import torch
from topics import QUICK, train_bundle, write_topics

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.files import CROSS_SCORER, FUSION, parse_arrays
from two_tower.models.config import from_mapping, with_values
from two_tower.models.data import Dataset
from two_tower.models.errors import ConfigError
from two_tower.models.networks.cross_config import CrossConfig
from two_tower.models.networks.cross_scorer import CrossScorer, Padded, stage_features
from two_tower.models.training.checkpoint import run_path
from two_tower.models.training.config import TrainConfig
from two_tower.models.training.run import Inputs
from two_tower.models.training.tracking import read_metrics

CROSS = {
    **{"epochs": 2, "negatives": 4, "pool": 10, "batch_size": 16, "dim": 16, "hidden": 8},
    "learning_rate": 0.02,
}


def quick(**sections: object) -> TrainConfig:
    learnt = {"fusion": {"folds": 2}, "cross": CROSS, "labelled": {"epochs": 1}}
    return from_mapping(TrainConfig, with_values({**QUICK, **learnt, **sections}, {}))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_topics(tmp_path_factory.mktemp("many") / "DATA", topics=240)


@pytest.fixture(scope="module")
def trained(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "bundle"
    train_bundle(data, out, config=quick())
    return out


def test_a_run_learns_fusion_and_cross_scorer_and_leaves_the_vectors_alone(
    data: Dataset, trained: Path, tmp_path: Path
) -> None:
    bundle = ModelBundle.load(trained)
    plain = train_bundle(data, tmp_path / "plain", config=quick(fusion={"folds": 0}))
    assert bundle.fingerprint == plain.fingerprint
    assert plain.fusion is None
    assert not plain.has_cross_scorer
    assert set(bundle.extras) == {CROSS_SCORER, FUSION}
    assert bundle.fusion is not None
    assert bundle.fusion.hybrid.tower > 0
    assert bundle.has_cross_scorer
    phases = [record["phase"] for record in read_metrics(run_path(trained))]
    assert phases[-2:] == ["cross", "cross"]


def test_the_bundles_cross_scores_put_the_answer_first(data: Dataset, trained: Path) -> None:
    bundle = ModelBundle.load(trained)
    content = {passage.passage_id: passage.content for passage in data.passages()}
    queries = {query.query_id: query.text for query in data.queries("dev")}
    random, first = np.random.default_rng(0), []
    for qrel in list(data.qrels("dev"))[:40]:
        others = random.choice([i for i in content if i != qrel.passage_id], 9, replace=False)
        texts = [content[i] for i in [qrel.passage_id, *others]]
        nothing = np.zeros(10, dtype=np.float32)
        query = queries[qrel.query_id]
        (scores,) = bundle.cross_scores([query], [texts], bm25=[nothing], cosine=[nothing])
        assert scores.shape == (10,)
        first.append(scores.argmax() == 0)
    assert np.mean(first) > 0.6  # by chance .1


def test_the_bundle_scores_as_the_trained_network_does(data: Dataset, trained: Path) -> None:
    bundle = ModelBundle.load(trained)
    arrays = parse_arrays(CROSS_SCORER, bundle.extras[CROSS_SCORER])
    assert bundle.fusion is not None
    config = from_mapping(CrossConfig, bundle.fusion.cross or {})
    network = CrossScorer(*(torch.from_numpy(arrays[n]) for n in ("vectors", "idf")), config=config)
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    assert not network.load_state_dict(state, strict=False).unexpected_keys
    texts = ["", "\x00", *(passage.content for passage in data.passages())][:60]
    bm25, cosine = np.random.default_rng(1).random((2, len(texts))).astype(np.float32)
    for query in ["", *(query.text for query in data.queries("dev"))][:20]:
        rows = bundle.tokenizer.encode_queries([query]), bundle.tokenizer.encode_passages(texts)
        read = (Padded.of(part, limit=128) for part in rows)
        with torch.inference_mode():
            expected = network.eval()(*read, stage_features(bm25, cosine))[0].numpy()
        (found,) = bundle.cross_scores([query], [texts], bm25=[bm25], cosine=[cosine])
        # Logits of up to 14 in float32, and every processor sums in an order of its own.
        assert found == pytest.approx(expected, abs=1e-4, rel=1e-5)


def test_without_epochs_the_fusion_alone_is_learnt(data: Dataset, tmp_path: Path) -> None:
    bundle = train_bundle(data, tmp_path / "bundle", config=quick(cross={"epochs": 0}))
    assert set(bundle.extras) == {FUSION}
    assert bundle.fusion is not None
    assert bundle.fusion.final is None


def test_towers_that_know_the_labels_keep_their_fusion_and_cross_scorer(
    data: Dataset, trained: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    start = ModelBundle.load(trained)
    again = train_bundle(
        data, tmp_path / "again", config=quick(), inputs=Inputs(start=start), notify=said.append
    )
    assert again.fingerprint != start.fingerprint
    assert again.extras == start.extras
    assert any(line.startswith("--start has learnt from these labels") for line in said)
    third = train_bundle(data, tmp_path / "third", config=quick(), inputs=Inputs(start=again))
    assert third.card["labels"] == again.card["labels"] == start.card["labels"]
    assert third.extras == start.extras


def test_towers_that_know_no_label_or_others_learn_a_fusion_of_their_own(
    data: Dataset, trained: Path, tmp_path: Path
) -> None:
    blind = quick(fusion={"folds": 0}, labelled={"epochs": 0})
    start = train_bundle(data, tmp_path / "blind", config=blind)
    assert start.card["labels"] == []
    inputs, alone = Inputs(start=start), quick(cross={"epochs": 0})
    assert train_bundle(data, tmp_path / "own", config=alone, inputs=inputs).fusion is not None
    other = write_topics(tmp_path / "OTHER", topics=200, source="others")
    moved = Inputs(start=ModelBundle.load(trained))
    bundle = train_bundle(other, tmp_path / "moved", config=alone, inputs=moved)
    assert bundle.fusion is not None
    assert set(bundle.extras) == {FUSION}  # and not the cross-scorer of the start
    assert len(bundle.card["labels"]) == 4


def test_too_few_queries_leave_the_fixed_fusion(tmp_path: Path) -> None:
    few = write_topics(tmp_path / "few", topics=15)
    said: list[str] = []
    bundle = train_bundle(few, tmp_path / "bundle", config=quick(), notify=said.append)
    assert bundle.extras == {}
    assert any(line.startswith("too few labelled queries") for line in said)


@pytest.mark.parametrize(
    "moment", ["labelled 1/", "training towers without", "cross 1/", "cross 2/"]
)
def test_a_run_stopped_anywhere_ends_in_the_same_files(
    data: Dataset, trained: Path, tmp_path: Path, moment: str
) -> None:
    class StoppedError(Exception):
        pass

    def stop(line: str) -> None:
        if line.startswith(moment):
            raise StoppedError

    out = tmp_path / "bundle"
    with pytest.raises(StoppedError):
        train_bundle(data, out, config=quick(), notify=stop)
    again = train_bundle(data, out, config=quick())
    whole = ModelBundle.load(trained)
    assert again.fingerprint == whole.fingerprint
    assert again.extras == whole.extras
    assert {p.name for p in run_path(out).iterdir()} == {
        "environment.json",
        "finished.json",
        "metrics.jsonl",
    }


def test_one_fold_is_refused() -> None:
    with pytest.raises(ConfigError, match="folds is 1, expected 0, or 2 or more"):
        quick(fusion={"folds": 1})
