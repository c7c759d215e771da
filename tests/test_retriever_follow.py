"""A bundle is found by its fingerprint, and an open retriever follows its name."""

import logging
import math
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import make_bundle, make_passages, write_data
from typer.testing import CliRunner

from two_tower.ingest.loading import loader
from two_tower.ingest.versions import versions as collections
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.errors import BundleError, ConfigError
from two_tower.retriever import Retriever
from two_tower.retriever.cli import app
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.search.bundles import find_bundle

PASSAGES = make_passages(40)
QUERY = "storm on the river bank"


class Place(NamedTuple):
    """An embedded engine with two versions of `mine`, and the folders of their bundles."""

    folder: Path
    bundles: Path
    old: str
    new: str

    def promote(self, collection: str) -> None:
        engine = connect(path=self.folder)
        collections.promote(engine, "mine", collection)
        engine.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("follow")
    data = write_data(root / "DATA", PASSAGES)
    engine = connect(path=root / "edge")
    versions = []
    for name, seed in (("old", 1), ("new", 2)):
        make_bundle(root / "bundles" / name, seed=seed)
        bundle = ModelBundle.load(root / "bundles" / name)
        versions.append(loader.load(engine, data, bundle, name="mine").collection)
    collections.promote(engine, "mine", versions[0])
    engine.close()
    return Place(root / "edge", root / "bundles", *versions)


@pytest.fixture
def place(made: Place, tmp_path: Path) -> Place:
    """As it was made; the bundles lie where they were loaded from."""
    return made._replace(folder=shutil.copytree(made.folder, tmp_path / "edge"))


@pytest.fixture
def moved(made: Place, tmp_path: Path) -> Place:
    """The same with bundles that have moved since."""
    root = shutil.copytree(made.folder.parent, tmp_path / "root")
    engine = connect(path=root / "edge")
    for collection in (made.old, made.new):
        engine.update_collection(collection, metadata={"bundle_path": str(tmp_path / "gone/b")})
    engine.close()
    return made._replace(folder=root / "edge", bundles=root / "bundles")


def found(place: Place, name: str = "mine") -> ModelBundle:
    engine = connect(path=place.folder)
    try:
        return find_bundle(engine, name)
    finally:
        engine.close()


def test_a_bundle_is_found_where_it_was_loaded_from(place: Place) -> None:
    for collection, name in ((place.old, "old"), (place.new, "new")):
        bundle = found(place, collection)
        assert bundle.folder == place.bundles / name
        assert collection.endswith(bundle.fingerprint[:8])


def test_a_bundle_that_moved_is_found_in_the_places_that_are_said(
    moved: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="TWO_TOWER_BUNDLE") as failure:
        found(moved)
    assert "\n" not in str(failure.value)
    for named in (moved.bundles / "old", moved.bundles):
        monkeypatch.setenv("TWO_TOWER_BUNDLE", str(named))
        assert found(moved).folder == moved.bundles / "old"
    monkeypatch.setenv("TWO_TOWER_BUNDLE", str(moved.bundles / "new"))  # another one alone
    with pytest.raises(ConfigError, match="not found"):
        found(moved)
    monkeypatch.setenv("TWO_TOWER_BUNDLE", str(tmp_path))  # none at all
    with pytest.raises(BundleError, match="neither a bundle nor a folder of bundles"):
        found(moved)
    monkeypatch.delenv("TWO_TOWER_BUNDLE")
    shutil.move(moved.bundles, moved.folder / "bundles")
    assert found(moved, moved.new).folder == moved.folder / "bundles" / "new"
    (moved.folder / "bundles" / "new" / "card.json").write_text("{")
    with pytest.raises(ConfigError, match="not found"):
        found(moved, moved.new)


def test_loading_a_moved_bundle_again_says_where_it_is(moved: Place, made: Place) -> None:
    from two_tower.models.data import Dataset

    engine = connect(path=moved.folder)
    data = Dataset.open(made.folder.parent / "DATA")
    loader.load(engine, data, ModelBundle.load(moved.bundles / "old"), name="mine")
    engine.close()
    assert found(moved).folder == moved.bundles / "old"


def test_an_open_retriever_follows_its_name_with_the_right_bundle(place: Place) -> None:
    with Retriever.open("mine", path=place.folder, follow_s=0) as retriever:
        twin = retriever.with_settings(retriever.settings).with_rewriter(lambda query: [query])
        fixed = Retriever.open(place.old, path=place.folder, follow_s=0)
        still = Retriever.open("mine", path=place.folder, follow_s=math.inf)
        before = retriever.search(QUERY)
        for target in (place.new, place.old, place.new):
            place.promote(target)
            after = retriever.search(QUERY)
            with Retriever.open(target, path=place.folder) as expected:
                assert after == expected.search(QUERY)
                assert retriever.bundle.fingerprint == expected.bundle.fingerprint
            assert retriever.collection == target
            assert "rewrite" in twin.explain(QUERY).stages_run
            assert twin.collection == target
            assert fixed.search(QUERY) == still.search(QUERY) == before
        assert still.refresh()
        assert still.collection == place.new
        assert not still.refresh()
        fixed.close()
        still.close()


def test_a_version_that_was_dropped_is_left_at_once(place: Place) -> None:
    with Retriever.open("mine", path=place.folder, follow_s=1000) as retriever:
        assert retriever.collection == place.old
        place.promote(place.new)
        engine = connect(path=place.folder)
        assert collections.drop(engine, place.old) == [place.old]
        engine.close()
        with Retriever.open(place.new, path=place.folder) as expected:
            assert retriever.search(QUERY) == expected.search(QUERY)
            assert retriever.search_many([QUERY] * 20)[7] == expected.search(QUERY)


def test_a_version_without_a_bundle_is_not_followed_but_told(
    moved: Place, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = moved.bundles / "old"
    with Retriever.open("mine", bundle=bundle, path=moved.folder, follow_s=0) as retriever:
        expected = retriever.search(QUERY)
        moved.promote(moved.new)
        with caplog.at_level(logging.WARNING):
            assert retriever.search(QUERY) == expected
        assert f"still searching {moved.old}: {moved.new} needs bundle" in caplog.text


def test_searches_in_threads_go_on_while_the_name_moves(place: Place) -> None:
    with Retriever.open("mine", path=place.folder, follow_s=0) as retriever:
        answers, failures, ended = [], [], threading.Event()

        def keep_searching() -> None:
            while not ended.is_set():
                try:
                    answers.append([hit.passage_id for hit in retriever.search(QUERY, k=5)])
                except BaseException as error:
                    failures.append(error)

        threads = [threading.Thread(target=keep_searching) for _ in range(3)]
        for thread in threads:
            thread.start()
        for target in (place.new, place.old) * 4:
            place.promote(target)
        ended.set()
        for thread in threads:
            thread.join()
        assert not failures
        expected = []
        for version in (place.old, place.new):
            with Retriever.open(version, path=place.folder) as one:
                expected.append([hit.passage_id for hit in one.search(QUERY, k=5)])
        assert answers
        assert all(answer in expected for answer in answers)


def test_new_passages_count_after_a_look(
    edge_engine: Engine, name: str, tiny_bundle: Path, make_data: Callable[..., object]
) -> None:
    bundle = ModelBundle.load(tiny_bundle)
    report = loader.load(edge_engine, make_data(PASSAGES[:3]), bundle, name=name)
    collections.promote(edge_engine, name, report.collection)
    with Retriever.open(name, path=edge_engine.where, follow_s=0) as retriever:
        assert len(retriever.search("river", k=10)) == 3
        loader.load(edge_engine, make_data(PASSAGES[:6], name="MORE"), bundle, name=name)
        assert len(retriever.search("river", k=10)) == 6


def test_commands_need_no_bundle_where_it_is_found(place: Place) -> None:
    for words in (["search", "mine", QUERY], ["similar", "mine", "p1"]):
        done = CliRunner().invoke(app, [*words, "--path", str(place.folder)])
        assert done.exit_code == 0, done.output
