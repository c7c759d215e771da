"""Words that no passage has are read as near words that some have, on both engines."""

import json
import unicodedata
from collections.abc import Callable

import pytest
from conftest import HashEncoder

from two_tower.ingest.changes.collection import Collection
from two_tower.ingest.loading import loader
from two_tower.models.bundle.no_tower import NoTower
from two_tower.models.data import Dataset, Passage
from two_tower.retriever import Retriever, SearchSettings
from two_tower.retriever.collection.bm25_vectors import EngineAnalyzer
from two_tower.retriever.commands.terminal import Look, show_hits
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.search.spelling import LONGEST, MOST_TERMS, edits

TEXTS = {
    "lake": "A lighthouse stands beside the lake.",
    "sea": "The lighthouse keeper watches the harbour and the sea.",
    "tea": "Green tea grows on the hills.",
    "runs": "He was running along the harbour.",
    "os": "Walk a directory tree, from the top or from the bottom.",
    "part": "A pump, model RUNX1, with valve 2210.",
}
TITLES = {"os": "os.walk"}
PASSAGES = [Passage(name, text, TITLES.get(name, "")) for name, text in TEXTS.items()]


@pytest.fixture
def words(engine: Engine, name: str, make_data: Callable[..., Dataset]) -> Retriever:
    report = loader.load(engine, make_data(PASSAGES), NoTower(), name=name)
    return Retriever(engine, report.collection, NoTower(), settings=SearchSettings())


def damerau(left: str, right: str) -> int:
    """Return the edits between two words, swaps of neighbours among them."""
    table = {(i, -1): i + 1 for i in range(-1, len(left))}
    table |= {(-1, j): j + 1 for j in range(-1, len(right))}
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            table[i, j] = min(
                table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a != b)
            )
            if i and j and a == right[j - 1] and left[i - 1] == b:
                table[i, j] = min(table[i, j], table[i - 2, j - 2] + 1)
    return table[len(left) - 1, len(right) - 1]


def test_edits_are_all_words_at_distance_one() -> None:
    near = edits("abca", "abc")
    assert {damerau("abca", word) for word in near} == {1}
    # 3 shorter words that differ are 4 of which none is twice; 3 swaps; 4 places x 2 other letters;
    # 5 gaps x 3 letters, less one for each letter that is put in beside its like.
    assert len(near) == 4 + 3 + 4 * 2 + (5 * 3 - 4)


TYPED = [
    ("lighthuse keeper", "lighthuse", "lighthouse", "sea"),
    ("the harbuor and sea", "harbuor", "harbour", "sea"),
    ("grean tea", "grean", "green", "tea"),
    ("Dirrectory tree", "Dirrectory", "directory", "os"),
    ("GREAN TEA", "grean", "green", "tea"),
    ("GREAN", "GREAN", None, None),  # perhaps a name
    (unicodedata.normalize("NFD", "gréen tea"), "gréen", "green", "tea"),
    ("how do i wolk a directory", "wolk", "walk", "os"),
    ("os.wakl", "wakl", "walk", "os"),
]

LEFT = [
    "a lighthouse by the sea",
    "runs along harbours",  # what the analyzer stems
    "sae",  # too short
    "RUNX2 and 2211",  # near are other parts
    "walK",
    "the of and",
    "mountaineering",  # near is nothing
    "lighthuse" + "x" * LONGEST,
    "lighthuse " + " ".join(f"{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(MOST_TERMS)),
    "光の塔",
]


def test_an_unknown_word_is_read_as_a_near_one(words: Retriever) -> None:
    for query, word, near, first in TYPED:
        result = words.explain(query)
        if near is None:
            assert result.read_as == {}
            continue
        assert result.read_as == {word: near}
        assert result.hits[0].passage_id == first
        assert result.query == query
        assert json.loads(json.dumps(result.to_dict()))["read_as"] == {word: near}
        assert words.explain(query, settings=SearchSettings(spelling=False)).read_as == {}


def test_what_is_known_or_has_no_near_word_stays(words: Retriever) -> None:
    for query in LEFT:
        off = words.explain(query, settings=SearchSettings(spelling=False))
        for _ in range(2):  # not known yet, then known
            result = words.explain(query)
            assert result.read_as == {}, query
            assert [h.score for h in result.hits] == [h.score for h in off.hits]


def test_near_words_weigh_by_how_many_passages_have_them(
    engine: Engine, name: str, make_data: Callable[..., Dataset]
) -> None:
    texts = ["a boat", "the boats", "boat here", "a goat"]
    data = make_data([Passage(f"p{n}", text) for n, text in enumerate(texts)])
    report = loader.load(engine, data, NoTower(), name=name)
    retriever = Retriever(engine, report.collection, NoTower(), settings=SearchSettings())
    known = {hit.passage_id: hit.score for q in ("boat", "goat") for hit in retriever.search(q)}
    result = retriever.explain("moat")
    assert result.read_as == {"moat": "boat"}
    # Of the three passages of its stem two have "boat" itself, and half a one more is allowed for.
    boat, goat = 3 * (2 + 0.5) / (3 + 1), 1 * (1 + 0.5) / (1 + 1)
    shares = dict.fromkeys(("p0", "p1", "p2"), boat / (boat + goat)) | {"p3": goat / (boat + goat)}
    expected = {passage_id: share * known[passage_id] for passage_id, share in shares.items()}
    assert {h.passage_id: h.score for h in result.hits} == pytest.approx(expected, rel=1e-5)


def test_a_stem_alone_is_no_word(
    engine: Engine, name: str, make_data: Callable[..., Dataset]
) -> None:
    """`dedicency` has the stem of `dedicate`, which is frequent, and is written nowhere."""
    texts = ["dedicated people", "they dedicate it", "a dedication", "a deficiency of iron"]
    data = make_data([Passage(f"p{n}", text) for n, text in enumerate(texts)])
    report = loader.load(engine, data, NoTower(), name=name)
    retriever = Retriever(engine, report.collection, NoTower(), settings=SearchSettings())
    dedicate, dedicency = (EngineAnalyzer().term_counts(w) for w in ("dedicate", "dedicency"))
    assert dedicate == dedicency
    result = retriever.explain("deficency")
    assert result.read_as == {"deficency": "deficiency"}
    assert result.hits[0].passage_id == "p3"


def test_the_vocabulary_is_that_of_now(
    engine: Engine, name: str, make_data: Callable[..., Dataset]
) -> None:
    report = loader.load(engine, make_data(PASSAGES), NoTower(), name=name)
    retriever = Retriever(engine, report.collection, NoTower(), settings=SearchSettings())
    collection = Collection(engine, report.collection, NoTower())
    assert retriever.explain("grean").read_as == {"grean": "green"}
    collection.add([Passage("new", "Grean is a name.")])
    result = retriever.explain("grean")
    assert (result.read_as, result.hits[0].passage_id) == ({}, "new")
    collection.delete(["tea"])
    assert retriever.explain("graen").read_as == {"graen": "grean"}


def test_a_tower_reads_the_near_word(
    engine: Engine, name: str, encoder: HashEncoder, make_data: Callable[..., Dataset]
) -> None:
    report = loader.load(engine, make_data(PASSAGES), encoder, name=name)
    retriever = Retriever(engine, report.collection, encoder, settings=SearchSettings())
    typed, right = retriever.explain("grean tea"), retriever.explain("green tea")
    assert typed.read_as == {"grean": "green"}
    assert [(h.passage_id, h.score) for h in typed.hits] == [
        (h.passage_id, pytest.approx(h.score)) for h in right.hits
    ]
    many = retriever.explain_many(["green tea", "grean tea", "grean tea", "lighthuse"])
    assert [result.read_as for result in many] == [
        {},
        {"grean": "green"},
        {"grean": "green"},
        {"lighthuse": "lighthouse"},
    ]


def test_a_terminal_says_what_was_read(words: Retriever) -> None:
    result = words.explain("lighthuse keeper")
    shown = show_hits(result, Look())
    assert "No passage has these words; read: lighthuse as lighthouse" in shown.plain
    marked = {
        shown.plain[span.start : span.end] for span in shown.spans if "yellow" in str(span.style)
    }
    assert "lighthouse" in marked


def test_what_is_shown_is_written(
    engine: Engine, name: str, make_data: Callable[..., Dataset]
) -> None:
    """`repare` is an edit from `reare`, whose stem is that of `rear`; nobody writes `reare`."""
    data = make_data([Passage("a", "The rear wheel turns."), Passage("b", "A front wheel.")])
    report = loader.load(engine, data, NoTower(), name=name)
    retriever = Retriever(engine, report.collection, NoTower(), settings=SearchSettings())
    assert EngineAnalyzer().term_counts("reare") == EngineAnalyzer().term_counts("rear")
    result = retriever.explain("repare a wheel")
    assert result.read_as == {"repare": "rear"}
    assert result.hits[0].passage_id == "a"
