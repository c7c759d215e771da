import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pair_models import require_transformers, save_model, their_logits
from topics import train_bundle, write_topics

from two_tower.models.bundle.cross_encoder import CrossEncoderScorer
from two_tower.models.bundle.files import CROSS_SCORER, FUSION
from two_tower.models.bundle.fusion import TOWER_WEIGHT
from two_tower.models.config import from_mapping
from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.examples.candidates import CandidateLists
from two_tower.models.networks.cross_config import CrossConfig
from two_tower.models.networks.cross_encoder import (
    CrossEncoder,
    cross_encoder_files,
    open_cross_encoder,
)
from two_tower.models.networks.transformer import transformer_autocast
from two_tower.models.text.tokenizer import TokenizerConfig
from two_tower.models.training.checkpoint import Checkpoint, RunFolder
from two_tower.models.training.config import TrainConfig
from two_tower.models.training.cross_training import likeliest_scale
from two_tower.models.training.reranking_teacher import RerankingTeacher, open_reranking_teacher

LIMITS = TokenizerConfig(max_passage_tokens=64, max_query_tokens=16)
QUERY = "who wrote the iliad"
PASSAGES = [
    "The Iliad is one of two major ancient Greek epic poems attributed to Homer.",
    "Ice.",
    "A cloud is a mass of tiny water droplets or ice crystals that float in the sky. " * 2,
]
NOTHING = np.zeros(len(PASSAGES), dtype=np.float32)
FAST = {
    "word2vec": {"epochs": 0},
    "tower": {"dim": 16},
    "pretrain": {"epochs": 1, "batch_size": 64},
    "labelled": {"epochs": 1, "batch_size": 64},
    "pca_dims": [4],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    require_transformers()
    return save_model(tmp_path_factory.mktemp("models") / "cross")


@pytest.fixture(scope="module")
def vectors_model(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "vectors", labels=0)


def scorer(encoder: CrossEncoder, *, int8: bool) -> CrossEncoderScorer:
    files = cross_encoder_files(encoder, int8=int8)
    return CrossEncoderScorer(files["cross_encoder.onnx"], files["cross_encoder.json"], LIMITS)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_logits_are_those_of_sentence_transformers(model: str, tmp_path: Path, kind: str) -> None:
    name = model if kind == "bert" else save_model(tmp_path / kind, kind=kind)
    encoder = open_cross_encoder(name, LIMITS, fresh_head=False)
    wanted = their_logits(name, QUERY, PASSAGES)
    assert np.ptp(wanted) > 1e-2
    exact = scorer(encoder, int8=False).score([QUERY] * 3, PASSAGES, threads=2)
    np.testing.assert_allclose(exact, wanted, atol=1e-4)
    small = scorer(encoder, int8=True).score([QUERY] * 3, PASSAGES)
    np.testing.assert_allclose(small, wanted, atol=0.25 * np.ptp(wanted))


def test_each_pair_is_read_alone(model: str) -> None:
    eight_bit = scorer(open_cross_encoder(model, LIMITS, fresh_head=False), int8=True)
    together = eight_bit.score([QUERY] * 3, PASSAGES, threads=2)
    for passage, logit in zip(PASSAGES, together, strict=True):
        assert eight_bit.score([QUERY], [passage])[0] == logit


def test_a_pair_is_what_the_tokenizer_makes_of_it(model: str) -> None:
    from transformers import AutoTokenizer

    limits = TokenizerConfig(max_passage_tokens=6, max_query_tokens=3)
    tokenizer = open_cross_encoder(model, limits, fresh_head=False).tokenizer
    query = tokenizer.encode_queries([QUERY + " of the greeks"])
    passage = tokenizer.encode_passages(["ice ice ice ice ice ice ice ice"])
    pair = tokenizer.join(query.ids, passage.ids)
    wanted = AutoTokenizer.from_pretrained(model)("who wrote the", "ice ice ice ice ice ice")
    assert pair.ids.tolist() == wanted["input_ids"]
    assert pair.types.tolist() == wanted["token_type_ids"]


def test_one_list_can_be_overfit(vectors_model: str) -> None:
    encoder = open_cross_encoder(vectors_model, LIMITS, fresh_head=True)
    queries = encoder.tokenizer.encode_queries([QUERY])
    passages = encoder.tokenizer.encode_passages(PASSAGES)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=2e-3)
    for _ in range(30):
        logits = encoder.logits(queries, passages, bm25=NOTHING, cosine=NOTHING)
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def config(**cross: object) -> TrainConfig:
    return from_mapping(TrainConfig, {**FAST, "cross": {"batch_size": 4, "negatives": 3, **cross}})


def test_a_bundle_runs_it_as_it_comes_and_searches_without_torch(
    model: str, tmp_path: Path
) -> None:
    data = write_topics(tmp_path / "DATA", topics=260)
    settings = config(model=model, epochs=0, int8=False, candidates=7)
    bundle = train_bundle(data, tmp_path / "bundle", config=settings)
    plain = train_bundle(data, tmp_path / "plain", config=config())
    assert bundle.fingerprint == plain.fingerprint
    assert set(bundle.card["extras"]) == {"cross_encoder.onnx", "cross_encoder.json", FUSION}
    program = f"""
import sys, numpy as np
from two_tower.models.bundle.bundle import ModelBundle
bundle = ModelBundle.load({str(tmp_path / "bundle")!r})
nothing = np.zeros(3, dtype=np.float32)
texts = [{QUERY!r}], [{PASSAGES!r}]
(logits,) = bundle.cross_scores(*texts, bm25=[nothing], cosine=[nothing])
print(*logits, bundle.cross_candidates, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    *logits, candidates, torch_loaded = done.stdout.split()
    np.testing.assert_allclose(
        [float(x) for x in logits], their_logits(model, QUERY, PASSAGES), atol=1e-4
    )
    assert (candidates, torch_loaded) == ("7", "False"), done.stderr


def test_fine_tuning_that_was_killed_ends_as_one_that_was_not(
    vectors_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_topics(tmp_path / "DATA", topics=260)
    settings = config(model=vectors_model, epochs=2, learning_rate=1e-3)
    whole = train_bundle(data, tmp_path / "whole", config=settings)
    saved = RunFolder.save

    def killed(self: RunFolder, checkpoint: Checkpoint) -> None:
        saved(self, checkpoint)
        if checkpoint.part("cross") and checkpoint.progress.epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train_bundle(data, tmp_path / "parts", config=settings)
    parts = train_bundle(data, tmp_path / "parts", config=settings)
    assert parts.card["extras"] == whole.card["extras"]


def test_the_rnn_learns_from_a_cross_encoder(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWO_TOWER_CACHE", str(tmp_path / "cache"))
    data = write_topics(tmp_path / "DATA", topics=260)
    rnn = {"epochs": 1, "pool": 5, "dim": 8, "hidden": 4}
    taught, again, alone = (
        train_bundle(data, tmp_path / name, config=config(**rnn, teacher=teacher)).extras
        for name, teacher in [("taught", model), ("again", model), ("alone", None)]
    )
    assert taught[CROSS_SCORER] == again[CROSS_SCORER] != alone[CROSS_SCORER]


def test_a_teacher_scores_as_its_parts_do(model: str, tmp_path: Path) -> None:
    data = write_topics(tmp_path / "DATA", topics=260)
    bundle = train_bundle(data, tmp_path / "bundle", config=config(model=model))
    passages = [passage.content for passage in data.passages()]
    rows = np.array([[3, 1, 4, 0], [5, 9, 2, 6]])
    relevant = np.array([[0, 0, 0, 1], [1, 0, 0, 0]], dtype=bool)
    bm25 = np.arange(8, dtype=np.float32).reshape(2, 4)
    lists = CandidateLists(rows, bm25, np.zeros_like(bm25), relevant)
    teacher = open_reranking_teacher(str(tmp_path / "bundle"), CrossConfig())
    queries = [QUERY, "ice"]
    found = teacher.scores(queries, passages, lists=lists, pool=2)
    assert bundle.fusion
    assert bundle.fusion.final
    hybrid, worth = np.zeros((2, 4)), np.zeros((2, 4))
    for at, query in enumerate(queries):
        texts = [passages[row] for row in rows[at]]
        cosine = bundle.encode_passages(texts) @ bundle.encode_queries([query])[0]
        (logits,) = bundle.cross_scores([query], [texts], bm25=[bm25[at]], cosine=[cosine])
        hybrid[at] = bm25[at] + bundle.fusion.hybrid.tower * cosine
        worth[at] = bundle.fusion.final.hybrid * hybrid[at] + bundle.fusion.final.cross * logits
    worth[0, 2] = min(worth[0, [0, 1, 3]])  # neither among the first two nor an answer
    worth[1, 2:] = min(worth[1, :2])
    np.testing.assert_allclose(found, likeliest_scale(worth, relevant) * worth, rtol=1e-4)
    without = RerankingTeacher(bundle, bundle.fusion, None)
    found = without.scores(queries, passages, lists=lists, pool=2)
    np.testing.assert_allclose(found, likeliest_scale(hybrid, relevant) * hybrid, rtol=1e-4)
    unlearnt = RerankingTeacher(bundle, None, None)  # two queries are too few to learn a weight
    found = unlearnt.scores(queries, passages, lists=lists, pool=2)
    hybrid += (TOWER_WEIGHT - bundle.fusion.hybrid.tower) * (
        (hybrid - bm25) / bundle.fusion.hybrid.tower
    )
    np.testing.assert_allclose(found, likeliest_scale(hybrid, relevant) * hybrid, rtol=1e-3)


def test_what_is_no_cross_encoder_is_refused(vectors_model: str, tmp_path: Path) -> None:
    three = save_model(tmp_path / "three", labels=3)
    with pytest.raises(ConfigError, match=r"BertModel, expected .*; train one from it with"):
        open_cross_encoder(vectors_model, LIMITS, fresh_head=False)
    for fresh_head in (False, True):
        with pytest.raises(ConfigError, match="gives 3 numbers for a pair, expected 1"):
            open_cross_encoder(three, LIMITS, fresh_head=fresh_head)
    with pytest.raises(ConfigError, match=r"expected the folder .* \(config\.json in it\)"):
        open_cross_encoder(str(tmp_path / "nothing"), LIMITS, fresh_head=False)
    (tmp_path / "three" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be opened"):
        open_cross_encoder(three, LIMITS, fresh_head=True)


def test_a_run_refuses_at_its_beginning(vectors_model: str, tmp_path: Path) -> None:
    data = write_topics(tmp_path / "DATA", topics=4)
    for wrong, message in [
        ({"model": vectors_model}, "is no cross-encoder"),
        ({"teacher": vectors_model, "epochs": 1}, r"expected .* \(modules\.json in it\)"),
        ({"teacher": str(tmp_path / "none"), "epochs": 1}, r"expected .* \(config\.json in it\)"),
    ]:
        with pytest.raises(ConfigError, match=message):
            train_bundle(data, tmp_path / "bundle", config=config(**wrong))
        assert not (tmp_path / "bundle.run").exists()
    with pytest.raises(ConfigError, match="only the RNN has a teacher"):
        config(model=vectors_model, teacher=vectors_model)


def test_transformers_learn_in_bfloat16_where_the_cpu_multiplies_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for known in ({}, {"avx512_bf16": True}, {"amx_bf16": True}, {"avx512_f": True}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known)
        with transformer_autocast(torch.device("cpu")):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        half = any(name.endswith("bf16") for name in known)
        assert product.dtype == (torch.bfloat16 if half else torch.float32)


def test_what_is_broken_is_named(model: str, tmp_path: Path) -> None:
    data = write_topics(tmp_path / "DATA", topics=260)
    bundle = train_bundle(data, tmp_path / "bundle", config=config(model=model))
    extras = {k: v for k, v in bundle.extras.items() if k != "cross_encoder.json"}
    broken = bundle.with_extras(extras)
    with pytest.raises(BundleError, match=r"no cross_encoder\.json, which its fusion\.json names"):
        broken.cross_scores([QUERY], [PASSAGES], bm25=[NOTHING], cosine=[NOTHING])
    broken = bundle.with_extras({**bundle.extras, "cross_encoder.onnx": b"no graph"})
    with pytest.raises(BundleError, match=r"graph is broken .*; train the bundle again"):
        broken.cross_scores([QUERY], [PASSAGES], bm25=[NOTHING], cosine=[NOTHING])
    fusion = json.loads(bundle.extras[FUSION])
    assert fusion["cross"]["candidates"] == 20


def test_the_likeliest_scale_is_that_of_the_draws() -> None:
    random = np.random.default_rng(0)
    scores = random.normal(size=(4000, 5)).astype(np.float32)
    chosen = (2.5 * scores + random.gumbel(size=scores.shape)).argmax(axis=1)  # a softmax's draws
    scale = likeliest_scale(scores, np.eye(5, dtype=bool)[chosen])
    assert scale == pytest.approx(2.5, rel=0.05)
