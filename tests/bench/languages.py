"""BM25 on texts that are not English: the right language, words as they stand, pieces.

    apt-get download debian-reference-de manpages-de …      (any language that has both packages)
    python tests/bench/languages.py FOLDER de german ja - …  (pairs: code, language or - for none)

FOLDER holds the .deb files. Two tasks a language, both known-item searches: the heading of a
section of the Debian Reference finds its text, and the one-line description of a manual page the
rest of it. Pieces are those of a tokenizer learnt from the passages, as a bundle's is.
"""

import argparse
import gzip
import re
import subprocess
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from two_tower.models.language import ENGLISH, NONE
from two_tower.models.text.bm25 import Analyzer, Bm25Index
from two_tower.models.text.pieces import PieceAnalyzer
from two_tower.models.text.tokenizer import Tokenizer, TokenizerConfig
from two_tower.retriever.collection.bm25_vectors import EngineAnalyzer

SHORTEST, LONGEST = 40, 4000  # characters of a passage
Pairs = list[tuple[str, str]]


class Sections(HTMLParser):
    """Collects (heading, text) pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: Pairs = []
        self._heading: list[str] | None = None
        self._title, self._text = "", [""]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if re.fullmatch("h[1-6]", tag):
            self.close_section()
            self._heading = []

    def handle_endtag(self, tag: str) -> None:
        if re.fullmatch("h[1-6]", tag) and self._heading is not None:
            self._title = re.sub(r"^[\d.\s]+", "", " ".join("".join(self._heading).split()))
            self._heading = None

    def handle_data(self, data: str) -> None:
        (self._text if self._heading is None else self._heading).append(data)

    def close_section(self) -> None:
        self.pairs.append((self._title, " ".join("".join(self._text).split())))
        self._title, self._text = "", []


def reference(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("ch*.html")):
        parser = Sections()
        parser.feed(path.read_text(encoding="utf-8"))
        parser.close_section()
        yield from parser.pairs


def manuals(folder: Path, code: str) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob(f"man/{code}/man*/*.gz")):
        if path.is_symlink():
            continue
        text = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
        name = re.search(r"^\.SH .*\n((?:.+\n)+?)(?=\.SH|\.\\\")", text, flags=re.MULTILINE)
        if not name:
            continue
        _, dash, line = plain(name[1]).partition(" - ")
        rest = plain(text[name.end() :])
        if dash:
            yield line.strip(), rest


def plain(roff: str) -> str:
    """Return the words of a manual page without its commands."""
    roff = re.sub(r"^[.'](\\\".*|[A-Z]{2}\b|[a-z]+\b)", "", roff, flags=re.MULTILINE)
    roff = re.sub(r"\\f\(..|\\f.|\\\(..|\\[&|^]", "", roff).replace("\\-", "-")
    return " ".join(roff.replace("\\", " ").split())


def usable(pairs: Iterator[tuple[str, str]]) -> Pairs:
    """Return the pairs with both parts, each heading and each text once."""
    texts: dict[str, str] = {}
    for heading, text in pairs:
        if heading and len(text) >= SHORTEST:
            texts.setdefault(heading, text[:LONGEST])
    return list({text: (heading, text) for heading, text in texts.items()}.values())


def quality(pairs: Pairs, analyzer: Analyzer) -> tuple[float, float]:
    """Return recall@10 and MRR@10 of the headings."""
    index = Bm25Index([text for _, text in pairs], analyzer)
    rows = index.search([heading for heading, _ in pairs], 10).rows.tolist()
    ranks = [best.index(at) + 1 for at, best in enumerate(rows) if at in best]
    return len(ranks) / len(pairs), sum(1 / rank for rank in ranks) / len(pairs)


def unpack(packages: Path, code: str, out: Path) -> None:
    for package in sorted(packages.glob(f"*-{code}_*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, out], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("languages", nargs="+", metavar="CODE LANGUAGE")
    arguments = parser.parse_args()
    print("| | pairs | english | its language | none | pieces |\n|---|---|---|---|---|---|")
    given = iter(arguments.languages)
    for code, language in zip(given, given, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            unpack(arguments.folder, code, out)
            tasks = {"reference": reference(out), "manuals": manuals(out, code)}
            for task, found in tasks.items():
                pairs = usable(found)
                if not pairs:
                    continue
                texts = (text for _, text in pairs)
                tokenizer = Tokenizer.train(texts, TokenizerConfig(), seed=0)
                analyzers: list[Analyzer | None] = [
                    EngineAnalyzer(ENGLISH),
                    None if language == "-" else EngineAnalyzer(language),
                    EngineAnalyzer(NONE),
                    PieceAnalyzer(tokenizer),
                ]
                cells = [
                    "{:.3f} ({:.3f})".format(*quality(pairs, each)) if each else "-"
                    for each in analyzers
                ]
                print(f"| {code} {task} | {len(pairs):,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
