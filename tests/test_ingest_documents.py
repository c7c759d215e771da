"""Text files and folders as a source, questions in a second file, and how both go together."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from two_tower.ingest.cli import app
from two_tower.ingest.sources.documents import split_title
from two_tower.models.data import Dataset, Passage


def run(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["prepare", *map(str, words)])
    assert result.exit_code == code, result.output + result.stderr
    return result


def passages(path: Path) -> dict[str, Passage]:
    return {passage.passage_id: passage for passage in Dataset.open(path).passages()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {
        "cats.txt": "An indoor cat lives for twelve to fifteen years.\n",
        "dogs_and-chocolate.txt": "Chocolate poisons dogs.",
        "birds/penguins.md": "# Penguins\n\nThey breed on the coasts of the south.\n",
        "birds/deep/Owls.MD": "Owls hunt at night.\n\n## Food\n\nMice.\n",
        "birds/front.md": "---\ntags: [a]\ntitle: 'Front matter'\n---\n# Other\n\nBody.\n",
        "empty.txt": "  \n",
        ".hidden.txt": "not read",
        ".git/config.txt": "not read",
        "photo.jpg": "\x00",
    }
    for name, text in files.items():
        path = tmp_path / "notes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "notes"


def test_a_folder_of_texts(folder: Path, tmp_path: Path) -> None:
    done = run(folder, "--out", tmp_path / "data")
    found = passages(tmp_path / "data")
    assert {i: (p.title, p.text) for i, p in found.items()} == {
        "cats.txt": ("cats", "An indoor cat lives for twelve to fifteen years."),
        "dogs_and-chocolate.txt": ("dogs and chocolate", "Chocolate poisons dogs."),
        "birds/penguins.md": ("Penguins", "They breed on the coasts of the south."),
        "birds/deep/Owls.MD": ("Food", "Owls hunt at night.\n\n## Food\n\nMice."),
        "birds/front.md": ("Front matter", "# Other\n\nBody."),
    }
    for passage_id, passage in found.items():
        assert passage.fields == {"document_id": passage_id, "path": passage_id}
    assert "1 passage: empty text" in done.stdout
    assert "Note: not read: photo.jpg" in done.stderr
    assert f"run: ingest load {tmp_path / 'data'} --collection NAME" in done.stderr
    (rejected,) = (tmp_path / "data" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(rejected)["where"] == "empty.txt"


@pytest.mark.parametrize(("tables", "is_text"), [(1, False), (0, True)])
def test_a_table_among_few_texts_is_the_source(
    folder: Path, tmp_path: Path, tables: int, is_text: bool
) -> None:
    for number in range(tables):
        (folder / f"{number}.csv").write_text("query,text\nwhat purrs,a cat\n")
    done = run(folder, "--out", tmp_path / "data")
    assert ("cats.txt" in passages(tmp_path / "data")) == is_text
    assert "Note: not read: " in done.stderr


def test_a_table_among_many_texts_is_not(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    for number in range(11):
        (tmp_path / "notes" / f"{number}.md").write_text(f"# Note {number}\n\nSomething.\n")
    (tmp_path / "notes" / "sheet.csv").write_text("query,text\nwhat purrs,a cat\n")
    done = run(tmp_path / "notes", "--out", tmp_path / "data")
    assert len(passages(tmp_path / "data")) == 11
    assert "Note: not read: sheet.csv" in done.stderr


def test_a_single_file(folder: Path, tmp_path: Path) -> None:
    run(folder / "birds" / "penguins.md", "--out", tmp_path / "data")
    assert list(passages(tmp_path / "data")) == ["penguins.md"]


@pytest.mark.parametrize(
    ("markdown", "title", "rest"),
    [
        ("# One\ntext", "One", "text"),
        ("\n\n  ## Two ##  \n\ntext", "Two", "\ntext"),
        ("Under\n=====\ntext", "Under", "text"),
        ("text\n# Later\nmore", "Later", "text\n# Later\nmore"),
        ("```sh\n# no heading\n```\ntext", "", "```sh\n# no heading\n```\ntext"),
        ("~~~\n```\n# no\n~~~\n# Yes\ntext", "Yes", "~~~\n```\n# no\n~~~\n# Yes\ntext"),
        ("#hashtag\ntext", "", "#hashtag\ntext"),
        ("# Alone", "Alone", "# Alone"),
        ("", "", ""),
        ("---\ntitle: T\n---\ntext", "T", "text"),
        ("---\nno: title\n---\n# H\ntext", "H", "text"),
        ("---\nnever closed\n# H\ntext", "H", "---\nnever closed\n# H\ntext"),
    ],
)
def test_titles_of_markdown(markdown: str, title: str, rest: str) -> None:
    assert split_title(markdown) == (title, rest)


@pytest.mark.parametrize(
    ("content", "outcome"),
    [
        ("\ufeffbär".encode(), "bär"),
        ("bär".encode("utf-16"), "bär"),
        ("b\u00e4r\r\nund\rmehr".encode(), "bär\r\nund\rmehr"),
        ("bär".encode("latin-1"), "file: no readable text"),
        (b"\x89PNG\x00\x01", "file: no readable text"),
        (b"", "file: no readable text"),
    ],
)
def test_encodings(content: bytes, outcome: str, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "other.txt").write_text("there is another")
    (tmp_path / "notes" / "one.txt").write_bytes(content)
    done = run(tmp_path / "notes", "--out", tmp_path / "data")
    found = passages(tmp_path / "data")
    if outcome.startswith("file: "):
        assert list(found) == ["other.txt"]
        assert outcome in done.stdout
    else:
        assert found["one.txt"].text == outcome


def test_long_texts_are_cut_at_once(tmp_path: Path) -> None:
    words = " ".join(f"w{number}" for number in range(250))
    (tmp_path / "long.txt").write_text(words)
    run(tmp_path / "long.txt", "--out", tmp_path / "data", "--passage-words", "100")
    found = passages(tmp_path / "data")
    assert list(found) == ["long.txt#1", "long.txt#2", "long.txt#3"]
    assert " ".join(p.text for p in found.values()) == words
    assert {p.fields["document_id"] for p in found.values()} == {"long.txt"}
    assert [p.fields["part"] for p in found.values()] == [1, 2, 3]
    assert Dataset.open(tmp_path / "data").manifest["source"]["words"] == 100


QUESTIONS = {
    "q.jsonl": '{"query": "how long do cats live", "passage_id": "cats.txt"}\n{"query": "why"}\n',
    "q.csv": "query,passage_id\nhow long do cats live,cats.txt\nwhy,\n",
    "q.tsv": "query\tpassage_id\nhow long do cats live\tcats.txt\nwhy\t\n",
    "q.txt": "how long do cats live\n\nwhy\n",
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions_in_a_second_file(name: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text(QUESTIONS[name])
    done = run(folder, "--out", tmp_path / "data", "--queries", tmp_path / name)
    data = Dataset.open(tmp_path / "data")
    assert [query.text for query in data.queries()] == ["how long do cats live", "why"]
    if name == "q.txt":
        assert data.splits == []
        assert "judgements    none" in done.stdout
    else:
        (split,) = data.splits
        (qrel,) = data.qrels(split)
        assert (qrel.passage_id, qrel.relevance) == ("cats.txt", 1)
        assert data.manifest["counts"]["unlabelled_queries"] == 1
    assert "query:" not in done.stdout  # none is rejected


def test_judgements_of_a_cut_document_go_to_the_part_most_like_the_query(tmp_path: Path) -> None:
    filler = " ".join(["filler"] * 60)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text(f"{filler} penguins breed here {filler}")
    (tmp_path / "q.csv").write_text(
        "query,passage_id,relevance,split\n"
        "where do penguins breed,a.txt,2,dev\nwhere,../q.csv,1,dev\nwhere,b.txt,1,dev\n"
    )
    words = ("--passage-words", "40", "--queries", tmp_path / "q.csv")
    done = run(tmp_path / "notes", "--out", tmp_path / "data", *words)
    (qrel,) = Dataset.open(tmp_path / "data").qrels("dev")
    assert "penguins breed" in passages(tmp_path / "data")[qrel.passage_id].text
    assert qrel.relevance == 2
    assert "2 judgement: unknown passage" in done.stdout


def test_questions_beside_a_table_of_passages(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("passage_id,text,price\n7,a cat,3\n8,a dog,4\n")
    (tmp_path / "q.csv").write_text("question,passage_id\nwhat purrs,7\nwhat barks,8\n")
    words = ("--out", tmp_path / "data", "--dev-fraction", "0")
    done = run(tmp_path / "rows.csv", *words, "--queries", tmp_path / "q.csv")
    data = Dataset.open(tmp_path / "data")
    assert sorted(qrel.passage_id for qrel in data.qrels("train")) == ["7", "8"]
    assert "rejected      0" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("notes", "--queries", "nothing.csv"), "no file nothing.csv"),
        (("notes", "--queries", "q.pdf"), "is of no known kind"),
        (("notes", "--queries", "q.csv"), "no column named query or question"),
        (("notes", "--limit", "3"), "--limit does not apply"),
        (("notes", "--title-column", "x"), "--*-column does not apply"),
        (("notes/photo.jpg",), "is of no known kind"),
        (("blank",), "found: nothing"),
        (("only-empty",), "gave no passage"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    folder: Path, tmp_path: Path, words: tuple[str, ...], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blank").mkdir()
    (tmp_path / "only-empty").mkdir()
    (tmp_path / "only-empty" / "a.txt").write_text("")
    (tmp_path / "q.pdf").write_text("query\n")
    (tmp_path / "q.csv").write_text("a,b\n1,2\n")
    failed = run(*words, "--out", "data", code=1)
    assert message in failed.stderr
    assert failed.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()
