from pathlib import Path, PurePosixPath

import pytest

from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.sources.docstrings import as_query, prose_words, split_docstring
from two_tower.ingest.sources.prepare import prepare
from two_tower.ingest.sources.python_docs import (
    PythonDocs,
    SourceFile,
    documented_objects,
    installed_versions,
    package_files,
    stdlib_files,
)
from two_tower.models.data import Dataset
from two_tower.models.errors import ConfigError


@pytest.mark.parametrize(
    ("docstring", "summary", "body"),
    [
        ("One line.", "One line.", ""),
        ("Do a thing.\n\nWith care.", "Do a thing.", "With care."),
        ("Do a thing\nover two lines.\n\nBody.", "Do a thing over two lines.", "Body."),
        ("Do a thing.\nBody at once.", "Do a thing.", "Body at once."),
        ("Do a thing\nArgs:\n    x: y", "Do a thing", "Args:\n    x: y"),
        ("f(x, y=None)\n\nAdd two.\n\nMore.", "Add two.", "More."),
        ("Title\n=====\n\nBody\n----\ntext", "Title", "Body\ntext"),
        ("a\nb\nc\nd\n\nNo summary can be told apart.", "", None),
    ],
)
def test_split_docstring(docstring: str, summary: str, body: str | None) -> None:
    assert split_docstring(docstring) == (summary, docstring if body is None else body)


@pytest.mark.parametrize(
    ("summary", "query"),
    [
        ("Return the ``dict`` of :class:`~a.Foo`.", "Return the dict of a.Foo"),
        ("Too short.", ""),
        ("x = y + z ** 2", ""),
        ("word " * 41, ""),
        ("Notes on use:", "Notes on use"),
    ],
)
def test_as_query(summary: str, query: str) -> None:
    assert as_query(summary) == query


def test_documented_objects_are_the_public_ones(tmp_path: Path) -> None:
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("'''Pack.'''\nfrom ._hidden import shown\n")
    (package / "_hidden.py").write_text(
        "'''Hidden module.'''\n"
        "def shown():\n    '''Shown here.'''\n"
        "def kept_back():\n    '''Not exported.'''\n"
    )
    (package / "open.py").write_text(
        "raise SystemExit('this file must never run')\n"
        "class A:\n    r'''A \\d'''\n    def m(self): 'Method.'\n    def _p(self): 'Private.'\n"
        "if True:\n    async def f():\n        'Function.'\n        def inner(): 'Inner.'\n"
    )

    def found(name: str) -> list[tuple[str, str, str]]:
        file = SourceFile("pack", package / name, PurePosixPath("pack", name))
        return [(item.url, item.qualified_name, item.kind) for item in documented_objects(file)]

    assert found("__init__.py") == [("pack", "pack", "module")]
    assert found("_hidden.py") == [("pack:shown", "pack.shown", "function")]
    assert found("open.py") == [
        ("pack.open:A", "pack.open.A", "class"),
        ("pack.open:A.m", "pack.open.A.m", "method"),
        ("pack.open:f", "pack.open.f", "function"),
    ]
    (package / "broken.py").write_text("def (:\n")
    with pytest.raises(ValueError, match="not Python of this version"):
        found("broken.py")


def test_standard_library_files_are_public() -> None:
    names = {str(file.relative) for file in stdlib_files()}
    assert {"json/__init__.py", "textwrap.py", "asyncio/tasks.py"} <= names
    assert not any(name.startswith(("test/", "_", "site-packages/")) for name in names)
    assert not any("/tests/" in name for name in names)


def prepared(folder: Path, source: PythonDocs) -> tuple[Dataset, DatasetWriter]:
    with DatasetWriter(folder, source="python-docs", dev_fraction=0.1) as writer:
        source.write_to(writer)
    return Dataset.open(folder), writer


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared(tmp_path_factory.mktemp("questions") / "DATA", PythonDocs())[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared(tmp_path_factory.mktemp("whole") / "DATA", PythonDocs(whole=True))[0]


def test_python_docs_is_a_labelled_corpus(
    questions: Dataset, whole: Dataset, tmp_path: Path
) -> None:
    passages = {p.passage_id: p for p in questions.passages()}
    queries = {q.query_id: q.text for q in questions.queries()}
    assert 5_000 < len(passages) < 12_000
    assert {p.fields["package"] for p in passages.values()} == {"python"}
    dedent = passages["textwrap:dedent"]
    assert dedent.title == "textwrap.dedent"
    assert dedent.fields == {"package": "python", "kind": "function"}
    assert dedent.text.startswith("This can be used to make triple-quoted strings line up")
    judged = [*questions.qrels("train"), *questions.qrels("dev")]
    asked = {queries[q.query_id] for q in judged if q.passage_id == "textwrap:dedent"}
    assert asked == {"Remove any common leading whitespace from every line in text"}
    for qrel in judged:
        flat = " ".join(passages[qrel.passage_id].text.split()).lower()
        assert queries[qrel.query_id].lower() not in flat
    assert len(judged) > 0.2 * len(passages)

    some, writer = prepared(tmp_path / "some", PythonDocs(limit=200))
    taken = {p.passage_id for p in some.passages()}
    assert 150 < len(taken) <= 200
    assert taken <= {p.passage_id for p in whole.passages()}
    assert writer.counts["left_out"]["object outside the sample of --limit"] > len(passages) - 200


def test_no_passage_holds_the_question_of_another(questions: Dataset) -> None:
    queries = {" ".join(q.text.lower().split()): q.query_id for q in questions.queries()}
    answers = {(q.query_id, q.passage_id) for s in questions.splits for q in questions.qrels(s)}
    for passage in questions.passages():
        first = " ".join(passage.text.split("\n\n")[0].lower().split()).rstrip(".:")
        if first in queries:
            assert (queries[first], passage.passage_id) in answers


def test_whole_docstrings_are_for_searching(questions: Dataset, whole: Dataset) -> None:
    assert list(whole.queries()) == []
    passages = {p.passage_id: p for p in whole.passages()}
    assert passages["textwrap:dedent"].text.startswith(
        "Remove any common leading whitespace from every line in `text`.\n\nThis can be used"
    )
    assert {p.passage_id for p in questions.passages()} <= passages.keys()
    assert "locale:str.lstrip" not in passages  # taken under a private name


@pytest.mark.parametrize(
    ("passage_id", "title", "kind", "words"),
    [
        ("builtins:str.split", "str.split", "method", "Return a list of the substrings"),
        ("builtins:len", "len", "function", "Return the number of items in a container."),
        ("itertools:permutations", "itertools.permutations", "class", "Return successive r-length"),
        ("os:listdir", "os.listdir", "function", "Return a list containing the names of the files"),
        ("collections:deque.append", "collections.deque.append", "method", "Add an element"),
        ("math:hypot", "math.hypot", "function", "Multidimensional Euclidean distance"),
    ],
)
def test_what_is_written_in_c_is_there(
    whole: Dataset, passage_id: str, title: str, kind: str, words: str
) -> None:
    (passage,) = (p for p in whole.passages() if p.passage_id == passage_id)
    assert passage.title == title
    assert passage.fields == {"package": "python", "kind": kind}
    assert words in " ".join(passage.text.split())


def test_packages_are_taken_by_name(tmp_path: Path) -> None:
    source = PythonDocs(packages=["Typer"])
    data, _ = prepared(tmp_path / "DATA", source)
    assert {p.fields["package"] for p in data.passages()} == {"python", "typer"}
    assert source.details["packages"].keys() == {"typer"}
    assert PythonDocs(packages=["all"]).details["packages"] == installed_versions()
    with pytest.raises(ConfigError, match="package typr is not installed here; did you mean typer"):
        PythonDocs(packages=["typr"])
    (tmp_path / "rows.csv").write_text("query,passage\nwhy,because\n")
    with pytest.raises(ConfigError, match=r"--packages does not apply to .*rows.csv"):
        prepare(tmp_path / "rows.csv", tmp_path / "no", packages=["typer"])


def test_doctests_are_no_prose() -> None:
    assert prose_words("Two words.\n>>> from here import nothing\n... at all\n``x = 1``") == 2


def test_files_of_installed_packages() -> None:
    files = package_files()
    relatives = [str(file.relative) for file in files]
    assert len(set(relatives)) == len(relatives)
    assert {"typer/main.py", "numpy/linalg/_linalg.py"} <= set(relatives)
    assert not any(name.startswith(("ingest/", "retriever/")) for name in relatives)
    versions = installed_versions()
    assert {file.package for file in files} <= set(versions)
    assert "two-tower-search" not in versions
