"""Titles count more than text in BM25, and the names in them are found as they are typed."""

import importlib.metadata
import re
from collections.abc import Callable, Iterator

import pytest

from two_tower.ingest.loading import loader
from two_tower.ingest.sources.python_docs import documented_objects, package_files
from two_tower.models.bundle.no_tower import NoTower
from two_tower.models.data import Dataset, Passage
from two_tower.models.text.bm25 import Bm25Config, Bm25Index, average_length
from two_tower.models.text.names import LONGEST, exact_names, name_term, title_names
from two_tower.retriever.collection.bm25_vectors import Bm25Encoder, EngineAnalyzer
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.search.retriever import Retriever
from two_tower.retriever.search.settings import SearchSettings

# Not those that the weight of titles was chosen on.
PACKAGES = ("fsspec", "jinja2", "networkx", "pydantic", "pygments", "rich", "typer")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("split a string into words", set()),
        ("", set()),
        ("os.walk", {"os.walk"}),
        ("How do I use os.walk()?", {"os.walk"}),
        ("pandas.read_csv", {"pandas.read_csv", "read_csv"}),
        ("a.b.c", {"a.b.c", "b.c"}),
        ("part XR-2210/B, new", {"xr-2210/b"}),
        ("std::vector<int>", {"std::vector"}),
        ("__init__", set()),
        ("the state-of-the-art", {"state-of-the-art"}),
        ("snake_case", {"snake_case"}),
        ("Straße.Öl", {"strasse.öl"}),
        ("x." * LONGEST + "x", set()),
    ],
)
def test_names_of_a_query(text: str, names: set[str]) -> None:
    assert exact_names(text) == names


def test_a_path_in_a_title_is_found_by_its_ends() -> None:
    names = title_names("pandas.io.readers.read_csv")
    assert names == {
        *("pandas.io.readers.read_csv", "io.readers.read_csv", "readers.read_csv", "read_csv"),
        "pandas.read_csv",
    }
    assert title_names("two words") == set()


def test_no_word_has_the_term_of_a_name() -> None:
    terms = EngineAnalyzer().term_counts(" ".join(f"word{n} os walk" for n in range(2000)))
    assert max(terms) < 1 << 31 <= name_term("os.walk") < 1 << 32


def test_weight_of_a_title_by_hand() -> None:
    passage = Passage("p", "cat cat dog", "cat tree")
    analyzer = EngineAnalyzer()
    (cat,), (tree,), (dog,) = (analyzer.term_counts(word) for word in ("cat", "tree", "dog"))
    (vector,) = Bm25Encoder(Bm25Config(avg_len=10.0)).encode_passages([passage])
    weights = dict(zip(vector.indices, vector.values, strict=True))
    norm = 1 - 0.4 + 0.4 * 5 / 10  # "cat tree cat cat dog"
    frequencies = {cat: 3 / norm + 20 / 2, tree: 1 / norm + 20 / 2, dog: 1 / norm}
    assert weights == pytest.approx({t: f * 1.9 / (f + 0.9) for t, f in frequencies.items()})


def test_a_name_weighs_as_much_as_a_word_of_a_text_of_mean_length() -> None:
    (vector,) = Bm25Encoder(Bm25Config(avg_len=3.0)).encode_passages([Passage("p", "x", "os.walk")])
    weights = dict(zip(vector.indices, vector.values, strict=True))
    assert weights[name_term("os.walk")] == pytest.approx(1.0)


def test_older_collections_read_titles_as_text() -> None:
    config = Bm25Config(avg_len=3.0, title_weight=0.0)
    passage, query = Passage("p", "x", "os.walk"), "os.walk"
    (vector,) = Bm25Encoder(config).encode_passages([passage])
    (plain,) = Bm25Encoder(config).encode_texts([passage.content])
    assert (vector.indices, vector.values) == (plain.indices, plain.values)
    assert all(term < 1 << 31 for term in Bm25Encoder(config).encode_query(query).indices)


def documented() -> Iterator[Passage]:
    installed = {(d.name or "").lower() for d in importlib.metadata.distributions()}
    if missing := sorted(set(PACKAGES) - installed):
        pytest.skip(f"needs {', '.join(missing)}")
    seen = set()
    for file in package_files():
        if file.package in PACKAGES:
            for item in documented_objects(file):
                if item.qualified_name not in seen:
                    seen.add(item.qualified_name)
                    yield Passage(item.url, item.docstring, item.qualified_name)


@pytest.fixture(scope="module")
def manual() -> list[Passage]:
    return list(documented())


def typed(title: str, way: int) -> str:
    """A name as somebody types it: whole, its last two steps, its two ends, or its last step."""
    steps = title.split(".")
    return (title, ".".join(steps[-2:]), f"{steps[0]}.{steps[-1]}", steps[-1])[way]


def is_called(title: str, name: str) -> bool:
    ends = re.escape(name).replace(r"\.", r"\.(?:.*\.)?")
    return re.search(rf"(?:^|\.){ends}$", title) is not None


def share_found(manual: list[Passage], first: Callable[[str], str]) -> float:
    """Of fifty names, how many have a passage of that name as the first hit."""
    titles = [passage.title for passage in manual]
    functions = [t for t in titles if t.count(".") >= 2 and "_" in t.rpartition(".")[2].strip("_")]
    chosen = functions[:: len(functions) // 50][:50]
    names = [typed(title, number % 4) for number, title in enumerate(chosen)]
    assert len(names) == 50
    return sum(is_called(first(name), name) for name in names) / 50


def test_fifty_names_come_first(manual: list[Passage]) -> None:
    contents, titles = [p.content for p in manual], [p.title for p in manual]
    analyzer = EngineAnalyzer()
    index = Bm25Index(contents, analyzer, titles=titles)
    plain = Bm25Index(contents, analyzer)

    def first(index: Bm25Index) -> Callable[[str], str]:
        return lambda name: titles[index.search([name], 1).rows[0, 0]]

    assert share_found(manual, first(index)) >= 0.95
    assert share_found(manual, first(plain)) < 0.8


def test_both_engines_score_titles_and_names_as_the_index_does(
    engine: Engine, name: str, manual: list[Passage], make_data: Callable[..., Dataset]
) -> None:
    part = manual[:: len(manual) // 300]
    report = loader.load(engine, make_data(part), NoTower(), name=name)
    contents, titles = [p.content for p in part], [p.title for p in part]
    analyzer = EngineAnalyzer()
    config = Bm25Config(avg_len=average_length(contents, analyzer))
    index = Bm25Index(contents, analyzer, config, titles=titles)
    retriever = Retriever(engine, report.collection, NoTower(), settings=SearchSettings())
    for title in titles[::15]:
        found = retriever.search(title, k=5)
        rows = index.search([title], 5)
        assert found[0].title == title
        assert [hit.score for hit in found] == pytest.approx(rows.scores[0][: len(found)], rel=1e-4)


def test_a_name_in_a_path() -> None:
    passages = [
        Passage("1", "Calls os.walk for every folder, and os.walk again.", "tree.walk_all"),
        Passage("2", "Yields the folders below a folder.", "os.walk"),
        Passage("3", "Like os.walk, over a file system.", "fs.walk"),
    ]
    titles = [p.title for p in passages]
    index = Bm25Index([p.content for p in passages], EngineAnalyzer(), titles=titles)
    assert [titles[index.search([q], 1).rows[0, 0]] for q in titles] == titles
