"""BM25 of other languages: its terms, where they are recorded, what is refused; on both engines."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import make_bundle
from typer.testing import CliRunner, Result

from two_tower import prepare
from two_tower.ingest.changes.collection import Collection
from two_tower.ingest.cli import app
from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.loading import loader
from two_tower.ingest.loading.verify import verify
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.card import describe
from two_tower.models.bundle.no_tower import NoTower
from two_tower.models.data import Dataset, Passage, Qrel, Query
from two_tower.models.errors import ConfigError
from two_tower.models.language import ENGLISH, NONE, PIECES
from two_tower.models.text.bm25 import Bm25Index
from two_tower.models.text.pieces import PieceAnalyzer
from two_tower.models.text.tokenizer import Tokenizer, TokenizerConfig
from two_tower.models.training import run as run_module
from two_tower.models.training.out_of_fold import RankingTrainer
from two_tower.models.training.train import train
from two_tower.retriever import Retriever, SearchSettings
from two_tower.retriever.collection.bm25_vectors import LANGUAGES, EngineAnalyzer
from two_tower.retriever.collection.schema import read_metadata
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.errors import CollectionMismatch
from two_tower.retriever.evaluation.systems import rank_bm25_ranker

GERMAN = {
    "cats": "Die Katzen schlafen in den Häusern.",
    "dog": "Der Hund bewacht das Haus und den Garten.",
    "bread": "Das Brot kommt aus dem Ofen.",
}
JAPANESE = {
    "files": "ファイルの一覧を表示する。隠しファイルも表示できる。",
    "disk": "ディスクの空き容量を調べる。",
    "time": "時刻を設定する。現在の時刻を表示する。",
    "user": "利用者の名前と端末を一覧にする。",
}
LETTERS = "あいうえおかきくけこさしすせそたちつてとなにぬねの"
BM25 = SearchSettings(legs={"bm25": 10}, rerank=False)


def written(path: Path, texts: dict[str, str], language: str = ENGLISH) -> Dataset:
    with DatasetWriter(path, source="test", language=language, overwrite=True) as writer:
        for name, text in texts.items():
            writer.add_passage(Passage(name, text))
    return Dataset.open(path)


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [*map(str, words)])


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """A bundle whose tokenizer has read Japanese."""
    return ModelBundle.load(
        make_bundle(tmp_path_factory.mktemp("b") / "b", texts=JAPANESE.values())
    )


def test_every_language_has_terms_and_words_as_they_stand_are_all_kept() -> None:
    for language in (*LANGUAGES, NONE):
        assert EngineAnalyzer(language).term_counts("xylo 42 xylo")
    counts = EngineAnalyzer(NONE).term_counts("The houses of the house")
    assert sorted(counts.values()) == [1, 1, 1, 2]
    assert len(EngineAnalyzer("german").term_counts("Die Katzen, die Katze")) == 1


@pytest.mark.parametrize(
    ("language", "advice"),
    [("germn", "did you mean german?"), ("French", "did you mean french?"), ("xyz", "arabic")],
)
def test_an_unknown_language_is_refused_in_one_line(
    tmp_path: Path, language: str, advice: str
) -> None:
    (tmp_path / "text.txt").write_text("Die Katze schläft.", encoding="utf-8")
    result = run("prepare", tmp_path / "text.txt", "--out", tmp_path / "D", "--language", language)
    assert result.exit_code == 1
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert advice in lines[0]
    assert not (tmp_path / "D").exists()


def test_data_records_its_language(tmp_path: Path) -> None:
    source = tmp_path / "text.txt"
    source.write_text(" ".join(GERMAN.values()), encoding="utf-8")
    result = run("prepare", source, "--out", tmp_path / "D", "--language", "german")
    assert result.exit_code == 0, result.stderr
    assert json.loads((tmp_path / "D" / "manifest.json").read_text())["language"] == "german"
    assert prepare(tmp_path / "D", tmp_path / "P", passage_words=5).language == "german"
    english = prepare(source, tmp_path / "E")
    assert english.language == ENGLISH
    assert english.content_hash != Dataset.open(tmp_path / "D").content_hash
    manifest = {k: v for k, v in english.manifest.items() if k != "language"}
    (tmp_path / "E" / "manifest.json").write_text(json.dumps(manifest))  # as it was before
    assert Dataset.open(tmp_path / "E").language == ENGLISH


def test_a_collection_has_the_terms_of_its_language(
    engine: Engine, name: str, tmp_path: Path
) -> None:
    data = written(tmp_path / "D", GERMAN, "german")
    report = loader.load(engine, data, NoTower(), name=name)
    assert verify(engine, report.collection, data, NoTower()).points == 3
    assert read_metadata(engine, report.collection).language == "german"
    retriever = Retriever(engine, report.collection, NoTower(), settings=SearchSettings())
    assert [hit.passage_id for hit in retriever.search("schlafende Katze")] == ["cats"]
    assert retriever.search("der die das und") == []
    assert retriever.explain("Kaatze").read_as == {"Kaatze": "katzen"}  # the form that is written
    Collection(engine, report.collection, NoTower()).add([Passage("new", "Viele Bäume")])
    assert [hit.passage_id for hit in retriever.search("vieler Baum Bäumen")] == ["new"]
    with pytest.raises(CollectionMismatch, match=r"has terms of german.* of language english"):
        loader.load(engine, written(tmp_path / "E", GERMAN), NoTower(), name=name)


def test_pieces_are_sentencepieces_own(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(JAPANESE.values(), TokenizerConfig(max_passage_tokens=4), seed=0)
    analyzer = PieceAnalyzer(tokenizer)
    for text in (*JAPANESE.values(), "many words, and ﷺ " * 300):
        ids = tokenizer._processor.EncodeAsIds(text)
        assert analyzer.term_counts(text) == Counter(ids)
        assert list(analyzer.term_counts(text)) == list(dict.fromkeys(ids))


def test_texts_without_spaces_are_found_by_pieces(
    engine: Engine, name: str, tmp_path: Path, pieces: ModelBundle
) -> None:
    data = written(tmp_path / "D", JAPANESE, PIECES)
    report = loader.load(engine, data, pieces, name=name)
    assert verify(engine, report.collection, data, pieces).points == 4
    retriever = Retriever(engine, report.collection, pieces, settings=BM25)
    assert retriever.metadata.language == PIECES
    query = "時刻の表示"
    index = Bm25Index([*JAPANESE.values()], PieceAnalyzer(pieces.row_tokenizer))
    expected = [
        (list(JAPANESE)[row], pytest.approx(score, rel=1e-5))
        for row, score in zip(*(part[0].tolist() for part in index.search([query], 4)), strict=True)
        if row >= 0
    ]
    assert [(hit.passage_id, hit.score) for hit in retriever.search(query)] == expected
    assert expected[0][0] == "time"
    ranker = rank_bm25_ranker(list(retriever.passages()), index.config, index._analyzer)
    assert ranker.rank([Query("q", query)], 1) == [["time"]]
    Collection(engine, report.collection, pieces).add([Passage("new", "端末の大きさを変える")])
    assert retriever.search("端末の大きさ", k=1)[0].passage_id == "new"


def test_pieces_without_a_bundle_are_refused(
    edge_engine: Engine, name: str, tmp_path: Path
) -> None:
    data = written(tmp_path / "D", JAPANESE, PIECES)
    with pytest.raises(ConfigError, match="add --bundle BUNDLE, or prepare DATA with --language"):
        loader.load(edge_engine, data, NoTower(), name=name)
    assert not edge_engine.get_collections().collections


def test_training_weighs_the_terms_of_the_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    analyzers = []

    def trainer(**arguments: Any) -> RankingTrainer:
        analyzers.append(arguments["analyzer"])
        return RankingTrainer(**arguments)

    monkeypatch.setattr(run_module, "RankingTrainer", trainer)
    with DatasetWriter(tmp_path / "D", source="test", language=PIECES) as writer:
        for number in range(24):
            text = "".join(sorted(LETTERS, key=lambda letter: ord(letter) * (number + 7) % 101))
            writer.add_passage(Passage(f"p{number}", text))
            writer.add_query(Query(f"q{number}", text[4:8]))
            writer.add_qrel(Qrel(f"q{number}", f"p{number}", 1, "train" if number % 3 else "dev"))
    sections = {"pretrain.epochs": 1, "labelled.epochs": 1, "fusion.folds": 2, "tower.dim": 16}
    sections |= {"word2vec.epochs": 1, "tokenizer.vocab_size": 400}
    bundle = train(tmp_path / "D", tmp_path / "B", changes={**sections, "pca_dims": [8]})
    assert bundle.card["data"]["language"] == PIECES
    own = PieceAnalyzer(bundle.row_tokenizer).term_counts(LETTERS)
    assert [analyzer.term_counts(LETTERS) for analyzer in analyzers] == [own]
    assert ("language", PIECES) in describe(bundle.card, bundle.config)
