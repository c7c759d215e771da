import logging
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from two_tower.models import vector_cache
from two_tower.models.cache import cache_folder
from two_tower.models.vector_cache import cached_vectors


class Encoder:
    """Gives a text its length and a number of its letters; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.asked.append(list(texts))
        return np.array([[len(t), sum(map(ord, t)) % 97] for t in texts], dtype=np.float32)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TWO_TOWER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_text_is_encoded_once_for_an_encoder() -> None:
    encoder = Encoder()
    texts = ["a", "bb", "a", "", "ccc", "\ud800"]
    expected = Encoder()(texts)
    np.testing.assert_array_equal(cached_vectors(encoder, texts, encoder="one"), expected)
    np.testing.assert_array_equal(cached_vectors(encoder, texts, encoder="one"), expected)
    assert encoder.asked == [["a", "bb", "", "ccc", "\ud800"]]
    mixed = cached_vectors(encoder, ["new", "bb"], encoder="one")
    np.testing.assert_array_equal(mixed, Encoder()(["new", "bb"]))
    assert encoder.asked[1:] == [["new"]]
    cached_vectors(encoder, ["bb"], encoder="another")
    assert encoder.asked[2:] == [["bb"]]


def test_what_was_encoded_before_a_kill_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_cache, "ENCODED_AT_ONCE", 4)
    texts = [f"text {n}" for n in range(10)]
    encoder = Encoder()

    def killed(part: Sequence[str]) -> np.ndarray:
        if len(encoder.asked) == 2:
            raise KeyboardInterrupt
        return encoder(part)

    with pytest.raises(KeyboardInterrupt):
        cached_vectors(killed, texts, encoder="one")
    rest = Encoder()
    vectors = cached_vectors(rest, texts, encoder="one")
    assert rest.asked == [texts[8:]]
    np.testing.assert_array_equal(vectors, Encoder()(texts))


def test_more_texts_than_a_statement_has_variables() -> None:
    texts = [f"text {n}" for n in range(1301)]
    expected = Encoder()(texts)
    for _ in range(2):
        np.testing.assert_array_equal(cached_vectors(Encoder(), texts, encoder="one"), expected)


@pytest.mark.parametrize("obstacle", ["file", "garbage"])
def test_a_cache_that_cannot_be_used_costs_time_alone(
    folder: Path, obstacle: str, caplog: pytest.LogCaptureFixture
) -> None:
    if obstacle == "file":
        folder.write_text("in the way")
    else:
        (folder / "vectors").mkdir(parents=True)
        (folder / "vectors" / "one.sqlite").write_bytes(b"no database" * 1000)
    with caplog.at_level(logging.WARNING, logger="two_tower"):
        vectors = cached_vectors(Encoder(), ["a", "bb"], encoder="one")
    np.testing.assert_array_equal(vectors, Encoder()(["a", "bb"]))
    assert "vectors are not kept in" in caplog.text


def test_the_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TWO_TOWER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "two-tower-search"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "two-tower-search"


def test_two_processes_write_one_cache(folder: Path) -> None:
    cached_vectors(Encoder(), ["a"], encoder="one")
    other = sqlite3.connect(folder / "vectors" / "one.sqlite")
    other.execute("BEGIN")
    other.execute("SELECT * FROM vectors").fetchall()  # a reader that stays does not block
    cached_vectors(Encoder(), ["b"], encoder="one")
    other.close()
