"""Text files as documents: one `.txt` or `.md` file, or a folder of them and its subfolders.

A document's id is its path inside the folder, so that a changed file replaces its own passages and
no others. A Markdown file is called what its front matter or its first heading says, any other
what its name says. The text stays as it stands, without front matter and without the title's line.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.sources.folders import source_files, tell_unread
from two_tower.ingest.sources.long_documents import SplitConfig, most_like, split_passage
from two_tower.ingest.sources.text_lines import read_lines
from two_tower.models.data import Passage
from two_tower.models.errors import DataError
from two_tower.models.progress import progress
from two_tower.models.text.bm25 import Analyzer

MARKDOWN = (".md", ".markdown")
SUFFIXES = (".txt", *MARKDOWN)

_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(?P<title>.*?)[ \t]*#*[ \t]*")
_UNDERLINE = re.compile(r" {0,3}=+[ \t]*")
_FENCE = re.compile(r" {0,3}(```|~~~)")
_TITLE_KEY = re.compile(r"title:[ \t]*(?P<title>.*?)[ \t]*", re.IGNORECASE)


class TextDocuments:
    """A text file, or a folder of text files, as a source."""

    def __init__(self, path: Path, *, split: tuple[SplitConfig, Analyzer] | None = None) -> None:
        """Look for the files; none is read yet.

        Args:
            path: the file or folder.
            split: how to cut them into passages, and what tells which part a judgement goes to;
                None leaves every document whole.
        """
        self.name = str(path)
        self._path = path
        self._split = split
        root = path if path.is_dir() else path.parent
        self._files = {file.relative_to(root).as_posix(): file for file in text_files(path)}
        cut = {"words": split[0].words, "overlap": split[0].overlap} if split else {}
        self.details: Mapping[str, Any] = {"kind": "text", **cut}

    def write_to(self, writer: DatasetWriter) -> None:
        """Write every document, or its parts."""
        for document_id in progress(self._files, label="documents"):
            try:
                parts = self._parts(document_id)
            except DataError as error:
                row = str(error)
                writer.reject(reason="file: no readable text", where=document_id, row=row)
                continue
            for part in parts:
                writer.add_passage(part, where=document_id, identity="id")
        tell_unread(self._path, self._files.values(), writer)

    def part_for(self, query: str, document_id: str) -> str:
        """Return the id of the part of a document that is most like a query, or its own.

        A document that is not there keeps its id, and so is missed by whoever looks for it.
        """
        if self._split is None or document_id not in self._files:
            return document_id
        try:
            return most_like(query, self._parts(document_id), self._split[1]).passage_id
        except DataError:
            return document_id

    def _parts(self, document_id: str) -> list[Passage]:
        """Read a document and return what it becomes: its parts, or itself.

        Raises:
            DataError: the file cannot be read, or is no text.
        """
        file = self._files[document_id]
        title, text = "", "".join(read_lines(file))
        if file.suffix.lower() in MARKDOWN:
            title, text = split_title(text)
        if not title and text.strip():  # a name alone says nothing
            title = file.stem.replace("_", " ").replace("-", " ").strip()
        fields = {"document_id": document_id, "path": document_id}
        document = Passage(document_id, text, title, fields=fields)
        return split_passage(document, self._split[0]) if self._split else [document]


def split_title(markdown: str) -> tuple[str, str]:
    """Return the title of a Markdown text, empty where it has none, and the rest of the text.

    A heading that is not the first line is the title too, and stays in the text. Nothing within a
    fenced block is a heading.
    """
    title, markdown = _front_matter(markdown)
    if title:
        return title, markdown
    lines = markdown.splitlines()
    in_fence, has_text_before = "", False
    for number, line in enumerate(lines):
        if fence := _FENCE.match(line):
            in_fence = "" if in_fence == fence[1] else in_fence or fence[1]
        if in_fence or not line.strip():
            continue
        heading = _HEADING.fullmatch(line)
        underlined = number + 1 < len(lines) and _UNDERLINE.fullmatch(lines[number + 1])
        if heading or underlined:
            found = heading["title"] if heading else line.strip()
            rest = "\n".join(lines[number + (1 if heading else 2) :])
            # A text of a title alone is that title.
            return found, markdown if has_text_before or not rest.strip() else rest
        has_text_before = True
    return "", markdown


def _front_matter(markdown: str) -> tuple[str, str]:
    """Return the title that the front matter gives, and the text without it."""
    lines = markdown.splitlines()
    if not lines or lines[0].rstrip() != "---":
        return "", markdown
    for number, line in enumerate(lines[1:], 1):
        if line.rstrip() in ("---", "..."):
            keys = filter(None, map(_TITLE_KEY.fullmatch, lines[1:number]))
            title = next((key["title"].strip("\"'") for key in keys), "")
            return title, "\n".join(lines[number + 1 :])
    return "", markdown


def text_files(path: Path) -> list[Path]:
    """Return the text files of a folder and below, or the file itself where it is one."""
    files = source_files(path) if path.is_dir() else [path]
    return [file for file in files if file.suffix.lower() in SUFFIXES]
