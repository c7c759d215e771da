"""However a text is composed, BM25 finds it, the tower reads it and the page marks it alike."""

import unicodedata
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from conftest import HashEncoder

from two_tower.ingest.loading import loader
from two_tower.ingest.loading.verify import verify
from two_tower.models.data import Dataset, Passage
from two_tower.models.text.bm25 import Bm25Config
from two_tower.models.text.tokenizer import Tokenizer, TokenizerConfig
from two_tower.retriever import Retriever, SearchSettings
from two_tower.retriever.collection.bm25_vectors import Bm25Encoder, EngineAnalyzer
from two_tower.retriever.collection.schema import read_metadata
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.search.snippets import highlight

FORMS = {
    "composed": ("résumé", unicodedata.normalize("NFD", "résumé")),
    "vietnamese": ("Tiếng Việt", unicodedata.normalize("NFD", "Tiếng Việt")),
    "ligature": ("file office", "\ufb01le o\ufb03ce"),
    "full width": ("ABC 123", "\uff21\uff22\uff23 \uff11\uff12\uff13"),
    "half width": ("カタカナ", "\uff76\uff80\uff76\uff85"),
    "hangul": ("한국어", unicodedata.normalize("NFD", "한국어")),
    "ohm": ("Ω resistor", "\u2126 resistor"),
    "no-break space": ("river bank", "river\u00a0bank"),
    "superscript": ("m2 area", "m\u00b2 area"),
}


@pytest.mark.parametrize("form", FORMS)
def test_terms_and_tokens_are_those_of_the_other_form(form: str) -> None:
    one, other = FORMS[form]
    analyzer, encoder = EngineAnalyzer(), Bm25Encoder(Bm25Config(avg_len=4.0))
    assert analyzer.term_counts(one) == analyzer.term_counts(other) != {}
    assert encoder.encode_query(one) == encoder.encode_query(other)
    vectors = encoder.encode_texts([one, other])
    assert (vectors[0].indices, vectors[0].values) == (vectors[1].indices, vectors[1].values)
    tokenizer = Tokenizer.train([one, other, "some more words"], TokenizerConfig(), seed=0)
    first, second = (tokenizer.encode_queries([text]).ids.tolist() for text in (one, other))
    assert first == second


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("swap", [False, True])
def test_marks_are_those_of_the_other_form(form: str, swap: bool) -> None:
    one, other = reversed(FORMS[form]) if swap else FORMS[form]
    text = f"begin {one} end"
    segments = highlight(text, other)
    assert "".join(segment.text for segment in segments) == text  # it stays as it was
    marked = "".join(segment.text for segment in segments if segment.is_match)
    assert set("".join(one.split())) == set("".join(marked.split()))


def test_every_form_is_found_and_shown_as_it_was(
    engine: Engine, name: str, encoder: HashEncoder, make_data: Callable[..., Dataset]
) -> None:
    texts = [form for pair in FORMS.values() for form in pair]
    data = make_data(Passage(f"p{n}", f"{text} word{n}") for n, text in enumerate(texts))
    collection = loader.load(engine, data, encoder, name=name).collection
    settings = SearchSettings(legs={"bm25": 30}, rerank=False)
    retriever = Retriever(engine, collection, encoder, settings=settings)  # type: ignore[arg-type]
    for number, text in enumerate(texts):
        pair = {f"p{number - number % 2}", f"p{number - number % 2 + 1}"}
        hits = {hit.passage_id: hit for hit in retriever.search(text, k=30)}
        assert pair <= hits.keys()
        assert hits[f"p{number}"].text == f"{text} word{number}"
    verify(engine, collection, data, encoder)


def test_a_collection_of_an_earlier_version_keeps_its_terms(
    engine: Engine,
    name: str,
    encoder: HashEncoder,
    make_data: Callable[..., Dataset],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def earlier(**values: Any) -> Bm25Config:
        return replace(Bm25Config(**values), normalization="none")

    data = make_data([Passage("p0", unicodedata.normalize("NFD", "résumé"))])
    with monkeypatch.context() as patch:
        patch.setattr("two_tower.ingest.loading.setup.Bm25Config", earlier)
        collection = loader.load(engine, data, encoder, name=name).collection
    stored = dict(read_metadata(engine, collection).bm25)
    stored.pop("normalization")
    engine.update_collection(collection, metadata={"bm25": stored})
    assert read_metadata(engine, collection).bm25["normalization"] == "none"
    verify(engine, collection, data, encoder)
