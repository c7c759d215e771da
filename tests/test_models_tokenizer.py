import time

import numpy as np
import pytest

from two_tower.models.errors import BundleError, ConfigError, TrainingError
from two_tower.models.text.tokenizer import (
    CHARS_PER_TOKEN,
    UNKNOWN_ID,
    Tokenizer,
    TokenizerConfig,
    TokenRows,
    clean,
    concat_rows,
    sample_texts,
    token_rows,
)

TEXTS = [f"the river bank {i} holds water and fish number {i}" for i in range(50)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, TokenizerConfig(), seed=0)


def test_a_tiny_corpus_gets_a_small_vocabulary(tokenizer: Tokenizer) -> None:
    assert 256 < tokenizer.vocab_size < 1000
    assert Tokenizer.train(["a"], TokenizerConfig(), seed=0).vocab_size < 500


def test_the_same_texts_give_the_same_model(tokenizer: Tokenizer) -> None:
    again = Tokenizer.train(iter(TEXTS), TokenizerConfig(), seed=0)
    assert again.model == tokenizer.model


def test_words_of_the_corpus_are_found_in_any_case_and_form(tokenizer: Tokenizer) -> None:
    plain = tokenizer.encode_queries(["river bank"])
    assert "".join(tokenizer.pieces(plain.ids)) == "▁river▁bank"
    for variant in ("RIVER Bank", "\uff52iver bank", "  river\nbank "):
        assert tokenizer.encode_queries([variant]).ids.tolist() == plain.ids.tolist()


@pytest.mark.parametrize("text", ["", " \n", "\x00", "\ud800", "\udfff\x00 "])
def test_a_blank_text_is_one_unknown_token(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode_queries([text]).ids.tolist() == [UNKNOWN_ID]
    rows = tokenizer.encode_passages(["river", text])
    assert rows.take(np.array([1])).ids.tolist() == [UNKNOWN_ID]


def test_broken_characters_split_words_like_spaces(tokenizer: Tokenizer) -> None:
    assert clean("a\x00b\ud800c") == "a b c"
    broken = tokenizer.encode_passages(["river\x00bank\udc00"])
    assert broken.ids.tolist() == tokenizer.encode_passages(["river bank"]).ids.tolist()


def test_unseen_characters_become_their_bytes(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_queries(["漢"]).ids
    assert tokenizer.pieces(ids)[-3:] == [f"<0x{b:02X}>" for b in "漢".encode()]
    assert UNKNOWN_ID not in ids


def test_long_texts_are_cut() -> None:
    config = TokenizerConfig(max_passage_tokens=5, max_query_tokens=3)
    tokenizer = Tokenizer.train(TEXTS, config, seed=0)
    whole = Tokenizer(tokenizer.model, TokenizerConfig()).encode_passages(TEXTS[:1]).ids
    assert tokenizer.encode_passages(TEXTS[:2]).lengths.tolist() == [5, 5]
    assert tokenizer.encode_passages(TEXTS[:1]).ids.tolist() == whole[:5].tolist()
    assert tokenizer.encode_queries(TEXTS[:1]).ids.tolist() == whole[:3].tolist()
    assert len(tokenizer.encode_queries(["river " * 200_000]).ids) == 3


def test_a_batch_equals_its_texts_one_by_one(tokenizer: Tokenizer) -> None:
    texts = ["river bank", "", "fish 漢 \x00", "the"]
    batch = tokenizer.encode_queries(texts)
    for row, text in enumerate(texts):
        alone = tokenizer.encode_queries([text])
        assert batch.take(np.array([row])).ids.tolist() == alone.ids.tolist()


def test_rows_are_taken_filtered_and_joined_like_lists() -> None:
    lists = [[3, 4], [5], [6, 7, 8]]
    rows = token_rows(lists)
    assert as_lists(rows) == lists
    assert rows.rows.tolist() == [0, 0, 1, 2, 2, 2]
    assert as_lists(rows.take(np.array([2, 0, 2]))) == [lists[2], lists[0], lists[2]]
    assert as_lists(rows.where(rows.ids % 2 == 0)) == [[4], [], [6, 8]]
    assert as_lists(concat_rows([rows, token_rows([[9]])])) == [*lists, [9]]


def as_lists(rows: TokenRows) -> list[list[int]]:
    return [
        rows.ids[start:end].tolist()
        for start, end in zip(rows.offsets[:-1], rows.offsets[1:], strict=True)
    ]


def test_sampling_is_even_seeded_and_keeps_the_order() -> None:
    stream = [str(i) for i in range(100)]
    assert sample_texts(iter(stream), size=100, seed=0) == stream
    drawn = sample_texts(iter(stream), size=10, seed=0)
    assert drawn == sample_texts(iter(stream), size=10, seed=0)
    assert drawn != sample_texts(iter(stream), size=10, seed=1)
    assert [int(t) for t in drawn] == sorted(int(t) for t in set(drawn))
    counts = np.zeros(100)
    for seed in range(2000):
        counts[[int(t) for t in sample_texts(iter(stream), size=10, seed=seed)]] += 1
    # Each text is drawn 200 times on average, with a standard deviation of 13.4.
    assert counts.min() > 200 - 5 * 13.4
    assert counts.max() < 200 + 5 * 13.4


def test_nothing_to_learn_from_is_an_error() -> None:
    with pytest.raises(TrainingError, match="all texts are blank"):
        Tokenizer.train(["", " \x00"], TokenizerConfig(), seed=0)


def test_a_broken_model_is_an_error() -> None:
    with pytest.raises(BundleError, match="not a SentencePiece model"):
        Tokenizer(b"\x00broken", TokenizerConfig())


@pytest.mark.parametrize("values", [{"vocab_size": 10}, {"max_query_tokens": 0}])
def test_impossible_values_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"tokenizer.{next(iter(values))}"):
        TokenizerConfig(**values)


def test_a_vocabulary_is_learnt_from_what_a_tower_reads() -> None:
    config = TokenizerConfig(vocab_size=400, max_passage_tokens=8)
    read = 8 * CHARS_PER_TOKEN
    texts = [(text + " ") * 20 for text in TEXTS]
    heads = [text[:read] for text in texts]
    assert (
        Tokenizer.train(texts, config, seed=0).model == Tokenizer.train(heads, config, seed=0).model
    )


def test_two_versions_of_a_long_text_take_no_square() -> None:
    random = np.random.default_rng(0)
    long = " ".join("".join(random.choice(list("abcdefgh"), 6)) for _ in range(100_000))
    start = time.process_time()
    Tokenizer.train([long, long + " x", *TEXTS], TokenizerConfig(vocab_size=400), seed=0)
    assert time.process_time() - start < 20  # the square of 700,000 characters takes minutes
