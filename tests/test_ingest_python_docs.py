from pathlib import Path, PurePosixPath

import pytest

from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.sources.python_docs import (
    PythonDocs,
    SourceFile,
    as_query,
    documented_objects,
    installed_versions,
    package_files,
    prose_words,
    split_docstring,
    stdlib_files,
)
from two_tower.models.data import Dataset


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


def test_python_docs_is_a_labelled_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The standard library alone: what is installed beside it differs from machine to machine.
    monkeypatch.setattr("two_tower.ingest.sources.python_docs.package_files", list)
    with DatasetWriter(tmp_path / "all", source="python-docs", dev_fraction=0.1) as writer:
        PythonDocs().write_to(writer)
    data = Dataset.open(tmp_path / "all")
    passages = {p.passage_id: p for p in data.passages()}
    queries = {q.query_id: q.text for q in data.queries()}
    assert 1_500 < len(passages) < 5_000
    dedent = passages["textwrap:dedent"]
    assert dedent.title == "textwrap.dedent"
    assert dedent.fields == {"package": "python", "kind": "function"}
    assert dedent.text.startswith("This can be used to make triple-quoted strings line up")
    judged = [*data.qrels("train"), *data.qrels("dev")]
    asked = {queries[q.query_id] for q in judged if q.passage_id == "textwrap:dedent"}
    assert asked == {"Remove any common leading whitespace from every line in text"}
    for qrel in judged:
        flat = " ".join(passages[qrel.passage_id].text.split()).lower()
        assert queries[qrel.query_id].lower() not in flat
    assert len(judged) > 0.6 * len(passages)

    with DatasetWriter(tmp_path / "some", source="python-docs") as writer:
        PythonDocs(limit=200).write_to(writer)
    some = list(Dataset.open(tmp_path / "some").passages())
    assert len(some) == 200
    assert all(passages[p.passage_id] == p for p in some)
    assert writer.counts["left_out"]["object outside the sample of --limit"] == len(passages) - 200


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
