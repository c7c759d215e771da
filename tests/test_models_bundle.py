import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save
from topics import QUICK, train_bundle, write_topics

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.files import (
    CARD,
    CONFIG,
    CROSS_SCORER,
    DECIDING_FILES,
    FUSION,
    PCA,
    TOKENIZER,
    TOWERS,
)
from two_tower.models.bundle.fusion import FinalWeights, Fusion, HybridWeights
from two_tower.models.config import from_mapping
from two_tower.models.errors import BundleError
from two_tower.models.training.config import TrainConfig

TEXTS = ["what is it", "the river bank", "", "\x00\ud800", "漢字", "word " * 2000]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    data = write_topics(folder / "DATA")
    separate = {**QUICK, "tower": {"dim": 64, "shared": False}}
    train_bundle(data, folder / "bundle", config=from_mapping(TrainConfig, separate))
    return folder / "bundle"


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_a_bundle_holds_exactly_its_five_files(saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == {*DECIDING_FILES, CARD}


def test_vectors_are_valid_for_any_text(saved: Path) -> None:
    bundle = ModelBundle.load(saved)
    assert (bundle.dim, bundle.pca_dims) == (64, (8, 4))
    for encode in (bundle.encode_passages, bundle.encode_queries):
        vectors = encode(TEXTS)
        assert vectors.shape == (len(TEXTS), 64)
        assert vectors.dtype == np.float32
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
        assert np.array_equal(vectors[2], vectors[3])
        assert encode([]).shape == (0, 64)
        for dim, reduced in bundle.reduce(vectors).items():
            assert reduced.shape == (len(TEXTS), dim)
            assert np.linalg.norm(reduced, axis=1) == pytest.approx(1)


def test_a_text_encodes_the_same_alone_and_in_a_batch(saved: Path) -> None:
    bundle = ModelBundle.load(saved)
    for encode in (bundle.encode_passages, bundle.encode_queries):
        batch = encode(TEXTS)
        for row, text in enumerate(TEXTS):
            assert np.array_equal(encode([text])[0], batch[row])


def test_save_and_load_round_trip(saved: Path, tmp_path: Path) -> None:
    bundle = ModelBundle.load(saved)
    bundle.save(tmp_path / "again")
    again = ModelBundle.load(tmp_path / "again")
    assert again.fingerprint == bundle.fingerprint
    assert again.card == bundle.card
    assert np.array_equal(again.encode_queries(TEXTS), bundle.encode_queries(TEXTS))
    for name in DECIDING_FILES:
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


@pytest.mark.parametrize("name", DECIDING_FILES)
def test_every_deciding_file_moves_the_fingerprint(saved: Path, name: str) -> None:
    files = {each: (saved / each).read_bytes() for each in DECIDING_FILES}
    before = ModelBundle(files, {}).fingerprint
    changed = {**files, name: _changed(name, files[name])}
    assert ModelBundle(changed, {}).fingerprint != before
    assert ModelBundle(files, {"seed": 1}).fingerprint == before


def _changed(name: str, content: bytes) -> bytes:
    if name == CONFIG:
        return content + b"\n"
    if name == TOKENIZER:
        return content + b"\x12\x00"  # an empty trainer_spec: protobuf merges it into the first
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("name", [*DECIDING_FILES, CARD])
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(BundleError, match=name) as caught:
        ModelBundle.load(copied)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", DECIDING_FILES)
def test_a_changed_file_is_refused(copied: Path, name: str) -> None:
    (copied / name).write_bytes((copied / name).read_bytes() + b"\n")
    with pytest.raises(BundleError, match="a file was changed; train it again"):
        ModelBundle.load(copied)


def replaced_config(**values: object) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    def change(files: dict[str, bytes]) -> dict[str, bytes]:
        config = {**json.loads(files[CONFIG]), **values}
        return {**files, CONFIG: json.dumps(config).encode()}

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: {**files, TOWERS: b"short"}, "towers.safetensors is broken"),
        (lambda files: {**files, TOWERS: files[PCA]}, "towers.safetensors lacks 'query.vectors'"),
        (lambda files: {**files, PCA: files[TOWERS]}, "pca.safetensors lacks mean"),
        (lambda files: {**files, TOKENIZER: b""}, "not a SentencePiece model"),
        (lambda files: {**files, CONFIG: b"{"}, "config.json is broken"),
        (lambda files: {**files, CONFIG: b"[]"}, "config.json is broken"),
        (replaced_config(tower={"kind": "mean"}), "config.json is broken"),
        (replaced_config(tower={"kind": "gpt", "shared": True}), "tower 'gpt', expected mean"),
        (replaced_config(tokenizer={"max_tokens": 1}), "unknown configuration key"),
        (replaced_config(pca_dims=[9]), "has 8 components, expected 9"),
    ],
)
def test_broken_files_are_one_line_errors(
    saved: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]], message: str
) -> None:
    files = {name: (saved / name).read_bytes() for name in DECIDING_FILES}
    with pytest.raises(BundleError, match=message) as caught:
        ModelBundle(change(files), {})
    assert "\n" not in str(caught.value)


def test_towers_that_do_not_fit_the_tokenizer_are_refused(saved: Path) -> None:
    narrow = {
        f"{tower}.{part}": np.ones(shape, dtype=np.float32)
        for tower in ("query", "passage")
        for part, shape in (("vectors", (5, 64)), ("weights", (5,)))
    }
    files = {name: (saved / name).read_bytes() for name in DECIDING_FILES}
    with pytest.raises(BundleError, match=r"vectors of \(5, 64\), expected"):
        ModelBundle({**files, TOWERS: save(narrow)}, {})
    spoilt = np.frombuffer(files[TOWERS], dtype=np.uint8).copy()
    spoilt[-4:] = np.frombuffer(np.float32(np.nan).tobytes(), dtype=np.uint8)
    with pytest.raises(BundleError, match="not finite"):
        ModelBundle({**files, TOWERS: spoilt.tobytes()}, {})


@pytest.mark.parametrize("card", ["{", "[]", '{"format": 99}'])
def test_a_broken_card_is_refused(copied: Path, card: str) -> None:
    (copied / CARD).write_text(card)
    with pytest.raises(BundleError, match=r"card\.json is not JSON|bundle format"):
        ModelBundle.load(copied)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no such folder.*models train DATA"):
        ModelBundle.load(tmp_path / "nothing")
    (tmp_path / "some").write_text("x")
    with pytest.raises(BundleError, match=r"unfinished: no card\.json.*models train DATA"):
        ModelBundle.load(tmp_path)
    with pytest.raises(BundleError, match="no such folder"):
        ModelBundle.load(tmp_path / "some")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(BundleError, match=r"a DATA folder.*models train \S+ --out BUNDLE"):
        ModelBundle.load(tmp_path)


def test_saving_replaces_nothing_that_it_should_not(saved: Path, tmp_path: Path) -> None:
    bundle = ModelBundle.load(saved)
    other = tmp_path / "other"
    other.mkdir()
    bundle.save(other)  # an empty folder may be used
    with pytest.raises(BundleError, match="already holds a bundle; replace it with --force"):
        bundle.save(other)
    bundle.save(other, force=True)
    (other / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"found notes\.txt"):
        bundle.save(other, force=True)
    with pytest.raises(BundleError, match="is a file"):
        bundle.save(other / "notes.txt", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


def test_the_fingerprint_is_the_hash_of_the_four_files_by_hand(saved: Path) -> None:
    total = hashlib.sha256()
    for name in ("config.json", "pca.safetensors", "tokenizer.model", "towers.safetensors"):
        digest = hashlib.sha256((saved / name).read_bytes()).hexdigest()
        total.update(f"{name} {digest}\n".encode())
    assert ModelBundle.load(saved).fingerprint == total.hexdigest()


def test_prefixes_come_before_the_texts_of_their_side(saved: Path) -> None:
    files = {name: (saved / name).read_bytes() for name in DECIDING_FILES}
    plain = ModelBundle(files, {})
    change = replaced_config(prefixes={"query": "river: ", "passage": "bank: "})
    bundle = ModelBundle(change(files), {})
    assert np.array_equal(
        bundle.encode_queries(["a", "b"]), plain.encode_queries(["river: a", "river: b"])
    )
    assert np.array_equal(bundle.encode_passages(["a"]), plain.encode_passages(["bank: a"]))
    assert bundle.fingerprint != plain.fingerprint
    with pytest.raises(BundleError, match="prefixes"):
        ModelBundle(replaced_config(prefixes={"query": 1})(files), {})


EXTRAS = {CROSS_SCORER: b"scorer", FUSION: Fusion(HybridWeights(8.0)).to_bytes()}


def test_extra_files_are_kept_beside_the_same_vectors(saved: Path, tmp_path: Path) -> None:
    plain = ModelBundle.load(saved)
    bundle = plain.with_extras(EXTRAS)
    bundle.save(tmp_path / "more")
    loaded = ModelBundle.load(tmp_path / "more")
    assert loaded.extras == EXTRAS
    assert loaded.fingerprint == plain.fingerprint
    assert loaded.card["extras"] == {
        name: hashlib.sha256(content).hexdigest() for name, content in EXTRAS.items()
    }
    loaded.with_extras({}).save(tmp_path / "more", force=True)
    again = ModelBundle.load(tmp_path / "more")
    assert (again.extras, again.card) == ({}, plain.card)


@pytest.mark.parametrize("name", EXTRAS)
def test_a_changed_added_or_missing_extra_file_is_refused(
    copied: Path, tmp_path: Path, name: str
) -> None:
    (copied / name).write_bytes(b"slipped in")
    with pytest.raises(BundleError, match=f"{name} has hash .* says None: the file was changed"):
        ModelBundle.load(copied)
    (copied / name).unlink()
    ModelBundle.load(copied).with_extras(EXTRAS).save(tmp_path / "more")
    (tmp_path / "more" / name).write_bytes(b"other")
    with pytest.raises(BundleError, match="the file was changed"):
        ModelBundle.load(tmp_path / "more")
    (tmp_path / "more" / name).unlink()
    with pytest.raises(BundleError, match=name):
        ModelBundle.load(tmp_path / "more")


@pytest.mark.parametrize(
    ("fusion", "message"),
    [
        (None, r"has no cross_scorer\.safetensors; train with cross\.epochs"),
        (Fusion(HybridWeights(8.0)), r"does not say how to read the cross-scorer"),
        (
            Fusion(HybridWeights(8.0), FinalWeights(1, 1, 1, 1), {"hiden": 8}),
            r"fusion\.json is broken \(.*did you mean cross\.hidden",
        ),
        (
            Fusion(HybridWeights(8.0), FinalWeights(1, 1, 1, 1), {"hidden": 8}),
            r"cross_scorer\.safetensors is broken",
        ),
    ],
)
def test_a_cross_scorer_that_cannot_be_read_is_refused(
    saved: Path, fusion: Fusion | None, message: str
) -> None:
    extras = {CROSS_SCORER: b"scorer", FUSION: fusion.to_bytes()} if fusion else {}
    bundle = ModelBundle.load(saved).with_extras(extras)
    one = np.ones(1, dtype=np.float32)
    with pytest.raises(BundleError, match=message) as caught:
        bundle.cross_scores(["a"], [["b"]], bm25=[one], cosine=[one])
    assert "\n" not in str(caught.value)


def test_reducing_vectors_of_another_width_is_a_callers_bug(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"expected \(n, 64\)"):
        ModelBundle.load(saved).reduce(np.zeros((2, 63), dtype=np.float32))


def test_encoding_imports_neither_torch_nor_scikit_learn(saved: Path) -> None:
    program = (
        "import sys; from two_tower.models.bundle.bundle import ModelBundle; "
        f"bundle = ModelBundle.load({str(saved)!r}); "
        "bundle.reduce(bundle.encode_queries(['a'])); bundle.encode_passages(['a', 'b']); "
        "print(sorted({'torch', 'sklearn', 'gensim', 'wandb', 'pickle5'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
