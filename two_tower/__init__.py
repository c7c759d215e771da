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

if TYPE_CHECKING:
    from two_tower.retriever.records import Hit, SearchResult
    from two_tower.retriever.search.retriever import Retriever
    from two_tower.retriever.search.settings import AnnSettings, SearchSettings, read_settings

__all__ = ["AnnSettings", "Hit", "Retriever", "SearchResult", "SearchSettings", "read_settings"]

_HOMES = {
    "AnnSettings": "two_tower.retriever.search.settings",
    "Hit": "two_tower.retriever.records",
    "Retriever": "two_tower.retriever.search.retriever",
    "SearchResult": "two_tower.retriever.records",
    "SearchSettings": "two_tower.retriever.search.settings",
    "read_settings": "two_tower.retriever.search.settings",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        try:
            return version("two-tower-search")
        except PackageNotFoundError:  # a checkout that is not installed
            return "unknown"
    if name not in _HOMES:
        raise AttributeError(f"module 'two_tower' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
