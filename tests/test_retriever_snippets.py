from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from two_tower.retriever.search.snippets import Segment, highlight, snippet


def matches(segments: list[Segment]) -> list[str]:
    return [segment.text for segment in segments if segment.is_match]


def joined(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def test_words_match_by_their_stems() -> None:
    text = "He RUNS, she ran; running (the run) overruns."
    segments = highlight(text, "run")
    assert matches(segments) == ["RUNS", "running", "run"]
    assert joined(segments) == text


def test_stop_words_match_nothing() -> None:
    assert highlight("the of and", "the of") == [Segment("the of and", False)]
    assert highlight("some text", "") == [Segment("some text", False)]
    assert highlight("", "run") == []


def test_hostile_text_stays_text() -> None:
    text = '<script>alert("river")</script>'
    segments = highlight(text, "river")
    assert segments == [
        Segment('<script>alert("', False),
        Segment("river", True),
        Segment('")</script>', False),
    ]


def test_a_snippet_is_the_part_with_most_different_terms() -> None:
    filler = "nothing to see here at all, move along. " * 10
    text = f"river river river. {filler}A boat on the river in a storm. {filler}"
    found = snippet(text, "river boat storm", width=80)
    assert matches(found) == ["boat", "river", "storm"]
    assert joined(found).startswith("… ")
    assert joined(found).endswith(" …")
    assert len(joined(found)) <= 80


def test_a_short_text_is_its_own_snippet() -> None:
    assert joined(snippet("  a\n river\t bank ", "bank")) == "a river bank"
    assert snippet("", "bank") == []


def test_without_a_match_it_is_the_beginning_in_whole_words() -> None:
    text = "alpha beta gamma delta epsilon zeta eta theta"
    assert joined(snippet(text, "nothing", width=24)) == "alpha beta gamma …"


def test_width_is_checked() -> None:
    with pytest.raises(ValueError, match="width is 19"):
        snippet("text", "query", width=19)


WORDS = st.sampled_from(
    ["river", "boats", "sail", "a", "wind-storm", "x" * 90, "naïve", "日本", "."]
)


@given(st.lists(WORDS, max_size=60), st.lists(WORDS, max_size=4), st.integers(20, 120))
def test_a_snippet_is_a_piece_of_the_text(words: list[str], query: list[str], width: int) -> None:
    text = " ".join(words)
    found = snippet(text, " ".join(query), width=width)
    assert len(joined(found)) <= width
    assert joined(found).removeprefix("… ").removesuffix(" …") in text
    assert all(a.is_match != b.is_match for a, b in pairwise(found))
    assert joined(highlight(text, " ".join(query))) == text
