import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from topics import QUICK, train_bundle, write_aliases, write_topics
from torch import nn
from typer.testing import CliRunner

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.files import CONFIG, DECIDING_FILES
from two_tower.models.bundle.recurrence import Cell
from two_tower.models.bundle.recurrent_encoder import READ_AT_ONCE, RecurrentEncoder
from two_tower.models.cli import app
from two_tower.models.config import from_mapping, with_values
from two_tower.models.data import Dataset
from two_tower.models.errors import BundleError, ConfigError, TrainingError
from two_tower.models.networks.recurrent import BUCKET, RnnTower
from two_tower.models.networks.tokens import Tokens
from two_tower.models.networks.tower_config import RnnConfig, TowerConfig
from two_tower.models.networks.towers import MeanTower, TwoTower, encode_rows
from two_tower.models.objectives.losses import Encoded, in_batch_softmax
from two_tower.models.text.tokenizer import TokenRows, token_rows
from two_tower.models.training.config import TrainConfig
from two_tower.models.training.run import Inputs

CPU = torch.device("cpu")
RANDOM = np.random.default_rng(0)
VECTORS = RANDOM.normal(size=(50, 8)).astype(np.float32)
WEIGHTS = RANDOM.uniform(0.5, 2, size=50).astype(np.float32)
LISTS = [RANDOM.integers(0, 50, size=n).tolist() for n in RANDOM.integers(1, 40, BUCKET + 30)]
ROWS = token_rows(LISTS)
VARIANTS = list(itertools.product(("gru", "lstm"), (False, True), ("last", "mean", "max")))


def make(cell: str, *, seed: int = 0, **settings: object) -> RnnTower:
    """A tower whose projection and biases are not zero."""
    config = RnnConfig(**{"hidden": 6, "skip": False, "pretrain": True, **settings})
    tower = RnnTower(cell, config, vectors=VECTORS, weights=WEIGHTS, seed=seed)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in tower.named_parameters():
        if "bias" in name or "projection" in name:
            nn.init.normal_(parameter, std=0.3, generator=generator)
    return tower


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gru_states(network: nn.GRU, inputs: np.ndarray) -> np.ndarray:
    """Cho et al., 2014, token by token, in the form that torch documents."""
    w, u, b, c = (parameter.detach().double().numpy() for parameter in network.parameters())
    state, states = np.zeros(network.hidden_size), []
    for x in inputs:
        (xr, xz, xn), (hr, hz, hn) = np.split(w @ x + b, 3), np.split(u @ state + c, 3)
        keep = sigmoid(xz + hz)
        state = (1 - keep) * np.tanh(xn + sigmoid(xr + hr) * hn) + keep * state
        states.append(state)
    return np.stack(states)


def lstm_states(network: nn.LSTM, inputs: np.ndarray) -> np.ndarray:
    """Hochreiter and Schmidhuber, 1997, with a forget gate, token by token."""
    w, u, b, c = (parameter.detach().double().numpy() for parameter in network.parameters())
    state, cell, states = np.zeros(network.hidden_size), np.zeros(network.hidden_size), []
    for x in inputs:
        i, f, g, o = np.split(w @ x + b + u @ state + c, 4)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        state = sigmoid(o) * np.tanh(cell)
        states.append(state)
    return np.stack(states)


def encoder(tower: RnnTower) -> RecurrentEncoder:
    arrays = {name: array.detach().numpy() for name, array in tower.named_parameters()}
    cell: Cell = "gru" if isinstance(tower.onward, nn.GRU) else "lstm"
    return RecurrentEncoder(cell, tower.config, arrays)


def naive_vector(tower: RnnTower, ids: list[int]) -> np.ndarray:
    read = gru_states if isinstance(tower.onward, nn.GRU) else lstm_states
    inputs = VECTORS[ids].astype(float) * WEIGHTS[ids][:, None]
    directions = [read(tower.onward, inputs)]  # type: ignore[arg-type]
    if tower.back is not None:
        directions.append(read(tower.back, inputs[::-1]))  # type: ignore[arg-type]
    how = {"last": lambda s: s[-1], "mean": lambda s: s.mean(0), "max": lambda s: s.max(0)}
    vector = np.concatenate([how[tower.config.pooling](states) for states in directions])
    if tower.projection is not None:
        vector = tower.projection.weight.detach().double().numpy() @ vector
    if tower.config.skip:
        vector = vector + inputs.sum(0) / np.linalg.norm(inputs.sum(0))
    return np.asarray(vector / np.linalg.norm(vector))


@pytest.mark.parametrize(("cell", "both", "pooling"), VARIANTS)
def test_a_batch_agrees_with_reading_row_by_row(cell: str, both: bool, pooling: str) -> None:
    """The rows of one batch have many lengths: padding would show."""
    for skip in (False, True):
        tower = make(cell, bidirectional=both, pooling=pooling, skip=skip)
        expected = np.stack([naive_vector(tower, ids) for ids in LISTS])
        found = encode_rows(tower, ROWS).numpy()
        assert found == pytest.approx(expected, abs=2e-6)
        for row in (0, 7, len(LISTS) - 1):
            alone = encode_rows(tower, token_rows([LISTS[row]])).numpy()
            assert alone[0] == pytest.approx(found[row], abs=1e-6)


@pytest.mark.parametrize(("cell", "both", "pooling"), VARIANTS)
def test_without_torch_a_tower_encodes_the_same(cell: str, both: bool, pooling: str) -> None:
    random = np.random.default_rng(1)
    many = [random.integers(0, 50, n).tolist() for n in random.integers(1, 25, 2 * READ_AT_ONCE)]
    for skip in (False, True):
        tower = make(cell, bidirectional=both, pooling=pooling, skip=skip)
        reader = encoder(tower)
        expected = np.stack([naive_vector(tower, ids) for ids in LISTS])
        found = reader.encode(ROWS)
        assert found.dtype == np.float32
        assert found == pytest.approx(expected, abs=2e-6)
        for ids, vector in ((LISTS[7], expected[7]), ([3], naive_vector(tower, [3]))):
            assert reader.encode(token_rows([ids]))[0] == pytest.approx(vector, abs=2e-6)
        rows = token_rows([*many, []])
        assert reader.encode(rows) == pytest.approx(encode_rows(tower, rows).numpy(), abs=1e-5)


def test_without_projection_the_states_are_the_vector() -> None:
    tower = make("gru", hidden=4, bidirectional=True, projection=False)
    expected = np.stack([naive_vector(tower, ids) for ids in LISTS[:5]])
    rows = token_rows(LISTS[:5])
    assert encode_rows(tower, rows).numpy() == pytest.approx(expected, abs=2e-6)
    assert encoder(tower).encode(rows) == pytest.approx(expected, abs=2e-6)


def test_order_matters_to_a_network_and_not_to_the_mean_tower() -> None:
    turned = token_rows([[1, 2, 3], [3, 2, 1]])
    one, other = encode_rows(make("gru"), turned)
    assert not torch.allclose(one, other, atol=1e-3)
    one, other = encode_rows(MeanTower(VECTORS, WEIGHTS), turned)
    assert torch.allclose(one, other)


def test_with_skip_an_untrained_tower_is_the_mean_tower() -> None:
    config = TowerConfig("gru", dim=8)
    towers = TwoTower.start(config, vectors=VECTORS, weights=WEIGHTS)
    expected = encode_rows(MeanTower(VECTORS, WEIGHTS), ROWS)
    assert torch.allclose(encode_rows(towers.query, ROWS), expected, atol=1e-6)
    trained = make("gru", skip=True)
    whole = encode_rows(trained, ROWS)
    assert not torch.allclose(whole, expected, atol=1e-2)
    two = TwoTower(trained, trained)
    two.skip_only(True)
    assert torch.allclose(encode_rows(trained, ROWS), expected, atol=1e-6)
    two.skip_only(False)
    assert torch.equal(encode_rows(trained, ROWS), whole)


def test_the_seed_decides_the_network_and_nothing_else_does() -> None:
    def arrays(seed: int) -> dict[str, np.ndarray]:
        config = TowerConfig("lstm", dim=8, shared=False)
        return TwoTower.start(config, vectors=VECTORS, weights=WEIGHTS, seed=seed).arrays()

    torch.manual_seed(1)
    first = arrays(5)
    before = torch.random.get_rng_state()
    again, other = arrays(5), arrays(6)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    name = "query.onward.weight_ih_l0"
    assert not np.array_equal(first[name], other[name])
    assert np.array_equal(first[name], first["passage.onward.weight_ih_l0"])


def test_gradients_are_the_same_every_time_and_reach_every_parameter() -> None:
    seen = set()
    for _ in range(3):
        tower = make("gru", bidirectional=True, skip=True)
        (tower(Tokens.of(ROWS, CPU)) * torch.arange(8.0)).sum().backward()
        gradients = [parameter.grad for parameter in tower.parameters()]
        assert all(gradient is not None and gradient.any() for gradient in gradients)
        seen.add(b"".join(gradient.numpy().tobytes() for gradient in gradients))  # type: ignore[union-attr]
    assert len(seen) == 1


def test_one_batch_can_be_learnt_by_heart() -> None:
    tower = make("gru", hidden=16)
    queries, passages = (Tokens.of(token_rows(part), CPU) for part in (LISTS[:16], LISTS[16:32]))
    optimizer = torch.optim.Adam(tower.parameters(), lr=0.02)
    nothing = torch.zeros(16, 16, dtype=torch.bool)
    for _ in range(60):
        optimizer.zero_grad()
        loss = in_batch_softmax(
            Encoded(tower(queries), tower(passages), nothing, None), temperature=0.1
        )
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss.item() < 0.05


def test_a_row_without_tokens_is_a_callers_bug() -> None:
    empty = TokenRows(np.array([1, 2]), np.array([0, 2, 2]))
    with pytest.raises(ValueError, match="a row has no token"):
        encode_rows(make("gru"), empty)
    with pytest.raises(ValueError, match="a row has no token"):
        encoder(make("gru")).encode(empty)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rnn": {"hidden": 0}}, r"tower\.rnn\.hidden is 0"),
        ({"rnn": {"pooling": "sum"}}, r"tower\.rnn\.pooling is 'sum', expected 'last' or"),
        ({"rnn": {"projection": False}}, r"tower\.rnn\.projection is false"),
        ({"rnn": {"skip": False}}, r"tower\.rnn\.pretrain is false"),
        (
            {"rnn": {"skip": False, "pretrain": True, "projection": False, "hidden": 7}},
            r"tower\.dim is 256, expected 7 \(the width",
        ),
    ],
)
def test_impossible_networks_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(TowerConfig, {"kind": "gru", **settings}, where="tower.")


def quick(**dotted: object) -> TrainConfig:
    named = {key.replace("__", "."): value for key, value in dotted.items()}
    start = with_values(QUICK, {"tower.kind": "gru", "tower.rnn.hidden": 16})
    return from_mapping(TrainConfig, with_values(start, named))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_topics(tmp_path_factory.mktemp("topics") / "DATA")


@pytest.fixture(scope="module")
def mean(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mean") / "mean"
    train_bundle(data, out, config=quick(tower__kind="mean"))
    return out


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_trained_bundle_encodes_what_training_saw(
    data: Dataset, tmp_path: Path, cell: str
) -> None:
    config = quick(tower__kind=cell, tower__rnn__bidirectional=True, tower__shared=False)
    first, second = (train_bundle(data, tmp_path / name, config=config) for name in "ab")
    assert first.fingerprint == second.fingerprint
    bundle = ModelBundle.load(tmp_path / "a")
    assert bundle.fingerprint == first.fingerprint
    queries = bundle.encode_queries([q.text for q in data.queries("dev")])
    passages = list(data.passages())
    vectors = bundle.encode_passages([p.content for p in passages])
    best = [passages[i].passage_id for i in (queries @ vectors.T).argmax(axis=1)]
    answers = {q.query_id: q.passage_id for q in data.qrels("dev")}
    hits = [best[i] == answers[q.query_id] for i, q in enumerate(data.queries("dev"))]
    assert np.mean(hits) == pytest.approx(bundle.card["dev"]["dense"]["recall@1"])
    assert bundle.card["dev"]["dense"]["recall@3"] > 0.8
    for texts in (["what is it", "the river bank", "", "\x00"], ["one"]):
        vectors = bundle.encode_queries(texts)
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)


class Stop(Exception):  # noqa: N818
    """Ends a training from outside."""


def test_a_stopped_run_goes_on_and_ends_in_the_same_bundle(data: Dataset, tmp_path: Path) -> None:
    unbroken = train_bundle(data, tmp_path / "unbroken", config=quick())
    for line in ("pretrain 2/2", "labelled 3/3"):

        def stop(said: str, line: str = line) -> None:
            if said.startswith(line):
                raise Stop

        with pytest.raises(Stop):
            train_bundle(data, tmp_path / "stopped", config=quick(), notify=stop)
    again = train_bundle(data, tmp_path / "stopped", config=quick())
    assert again.fingerprint == unbroken.fingerprint


def test_a_network_learns_without_the_skip_path(tmp_path: Path) -> None:
    data = write_aliases(tmp_path / "DATA")
    config = quick(
        tower__rnn__skip=False,
        tower__rnn__pretrain=True,
        tower__rnn__hidden=32,
        pretrain__epochs=0,
        labelled__epochs=40,
        labelled__patience=40,
        labelled__learning_rate=0.01,
    )
    bundle = train_bundle(data, tmp_path / "bundle", config=config)
    assert bundle.card["dev"]["dense"]["recall@1"] > 0.9


def test_files_that_do_not_fit_are_refused(data: Dataset, tmp_path: Path) -> None:
    bundle = train_bundle(data, tmp_path / "bundle", config=quick(pretrain__epochs=0))
    files = {name: (tmp_path / "bundle" / name).read_bytes() for name in DECIDING_FILES}
    for key, value, message in (
        ("hidden", 17, "does not fit config.json"),
        ("hidden", 0, "config.json is broken"),
        ("bidirectional", True, "does not fit config.json"),
    ):
        tower = with_values(bundle.config["tower"], {f"rnn.{key}": value})
        config = json.dumps({**bundle.config, "tower": tower}).encode()
        with pytest.raises(BundleError, match=message) as caught:
            ModelBundle({**files, CONFIG: config}, {})
        assert "\n" not in str(caught.value)


def test_a_network_starts_as_the_mean_bundle_it_is_given(
    data: Dataset, mean: Path, tmp_path: Path
) -> None:
    source = ModelBundle.load(mean)
    nothing = quick(pretrain__epochs=0, labelled__epochs=0)
    bundle = train_bundle(data, tmp_path / "gru", config=nothing, inputs=Inputs(start=source))
    assert bundle.tokenizer.model == source.tokenizer.model
    texts = [passage.content for passage in data.passages()]
    assert bundle.encode_passages(texts) == pytest.approx(source.encode_passages(texts), abs=1e-6)
    assert bundle.card["start"] == source.fingerprint
    assert bundle.card["dev"]["dense"] == source.card["dev"]["dense"]

    trained = train_bundle(data, tmp_path / "more", config=quick(), inputs=Inputs(start=bundle))
    again = train_bundle(data, tmp_path / "same", config=nothing, inputs=Inputs(start=trained))
    assert again.fingerprint == trained.fingerprint  # every parameter was taken over
    other = quick(pretrain__epochs=0, labelled__epochs=0, tower__rnn__hidden=8)
    smaller = train_bundle(data, tmp_path / "other", config=other, inputs=Inputs(start=trained))
    assert np.array_equal(smaller.towers()["query.vectors"], trained.towers()["query.vectors"])
    assert not smaller.towers()["query.projection.weight"].any()


def test_start_of_another_width_is_refused(data: Dataset, mean: Path, tmp_path: Path) -> None:
    inputs = Inputs(start=ModelBundle.load(mean))
    with pytest.raises(TrainingError, match=r"query\.vectors of \(\d+, 64\), expected \(\d+, 32\)"):
        train_bundle(data, tmp_path / "bundle", config=quick(tower__dim=32), inputs=inputs)


def test_separate_towers_may_start_from_shared_ones(mean: Path) -> None:
    arrays = ModelBundle.load(mean).towers()
    blank = {name.removeprefix("query."): np.zeros_like(array) for name, array in arrays.items()}
    towers = TwoTower.start(TowerConfig(dim=64, shared=False), **blank)
    towers.load_start(arrays)
    for name, array in towers.arrays().items():
        assert np.array_equal(array, arrays[name.replace("passage.", "query.")])


def test_the_command_trains_a_gru_from_a_start(data: Dataset, mean: Path, tmp_path: Path) -> None:
    words = ["train", data.path, "--out", tmp_path / "bundle", "--tower", "gru", "--start", mean]
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(with_values(QUICK, {"tower.rnn.hidden": 8})))
    words += ["--config", config, "--epochs", "1", "--pretrain-epochs", "1"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.stderr
    assert "learning the vocabulary" not in done.stderr
    bundle = ModelBundle.load(tmp_path / "bundle")
    assert bundle.config["tower"]["kind"] == "gru"
    assert bundle.card["start"] == ModelBundle.load(mean).fingerprint
