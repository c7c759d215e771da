"""Train a two-tower search engine from labelled rows, load it into Qdrant, search it.

    from two_tower import Retriever

    with Retriever.open("python-docs", bundle="runs/demo/bundle") as engine:
        hits = engine.search("parse a date from a string", k=10)

The subpackages are `two_tower.models` (learning), `two_tower.retriever` (searching) and
`two_tower.ingest` (loading). Importing this package loads neither torch nor a Qdrant client; the
first use of a name does.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors follow
    from two_tower.ingest.changes.collection import Collection as Collection
    from two_tower.ingest.generation.generate import GenerationConfig as GenerationConfig
    from two_tower.ingest.generation.run import generate as generate
    from two_tower.ingest.judging.run import judge as judge
    from two_tower.ingest.loading.loader import load as load
    from two_tower.ingest.loading.verify import verify as verify
    from two_tower.ingest.sources.prepare import prepare as prepare
    from two_tower.ingest.versions.copying import copy as copy
    from two_tower.ingest.versions.snapshots import restore as restore
    from two_tower.ingest.versions.snapshots import snapshot as snapshot
    from two_tower.ingest.versions.versions import drop as drop
    from two_tower.ingest.versions.versions import promote as promote
    from two_tower.ingest.versions.versions import rollback as rollback
    from two_tower.models.bundle.bundle import ModelBundle as ModelBundle
    from two_tower.models.data import Dataset as Dataset
    from two_tower.models.data import Passage as Passage
    from two_tower.models.errors import TwoTowerError as TwoTowerError
    from two_tower.models.training.recipe import read_config as read_config
    from two_tower.models.training.run import train_bundle as train_bundle
    from two_tower.models.training.train import train as train
    from two_tower.retriever.collection.options import CollectionOptions as CollectionOptions
    from two_tower.retriever.engine.connect import connect as connect
    from two_tower.retriever.evaluation.run import evaluate as evaluate
    from two_tower.retriever.records import Hit as Hit
    from two_tower.retriever.records import SearchResult as SearchResult
    from two_tower.retriever.search.retriever import Retriever as Retriever
    from two_tower.retriever.search.settings import AnnSettings as AnnSettings
    from two_tower.retriever.search.settings import SearchSettings as SearchSettings
    from two_tower.retriever.search.settings import read_settings as read_settings
    from two_tower.retriever.tuning.tune import tune as tune

_MODULES = {  # where the same names are at run time, imported at first use
    "AnnSettings": "two_tower.retriever.search.settings",
    "Collection": "two_tower.ingest.changes.collection",
    "CollectionOptions": "two_tower.retriever.collection.options",
    "Dataset": "two_tower.models.data",
    "GenerationConfig": "two_tower.ingest.generation.generate",
    "Hit": "two_tower.retriever.records",
    "ModelBundle": "two_tower.models.bundle.bundle",
    "Passage": "two_tower.models.data",
    "Retriever": "two_tower.retriever.search.retriever",
    "SearchResult": "two_tower.retriever.records",
    "SearchSettings": "two_tower.retriever.search.settings",
    "TwoTowerError": "two_tower.models.errors",
    "connect": "two_tower.retriever.engine.connect",
    "copy": "two_tower.ingest.versions.copying",
    "drop": "two_tower.ingest.versions.versions",
    "evaluate": "two_tower.retriever.evaluation.run",
    "generate": "two_tower.ingest.generation.run",
    "judge": "two_tower.ingest.judging.run",
    "load": "two_tower.ingest.loading.loader",
    "prepare": "two_tower.ingest.sources.prepare",
    "promote": "two_tower.ingest.versions.versions",
    "read_config": "two_tower.models.training.recipe",
    "read_settings": "two_tower.retriever.search.settings",
    "restore": "two_tower.ingest.versions.snapshots",
    "rollback": "two_tower.ingest.versions.versions",
    "snapshot": "two_tower.ingest.versions.snapshots",
    "train": "two_tower.models.training.train",
    "train_bundle": "two_tower.models.training.run",
    "tune": "two_tower.retriever.tuning.tune",
    "verify": "two_tower.ingest.loading.verify",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        try:
            return version("two-tower-search")
        except PackageNotFoundError:  # a checkout that is not installed
            return "unknown"
    if name not in _MODULES:
        raise AttributeError(f"module 'two_tower' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
