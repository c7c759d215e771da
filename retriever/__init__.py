"""The query side: search a collection that `ingest load` made.

    from retriever import Retriever

    with Retriever.open("python-docs", bundle="runs/demo/bundle") as engine:
        hits = engine.search("parse a date from a string", k=10)

Importing this package loads neither torch nor the engine; the first use of a name does.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retriever.records import Hit, SearchResult
    from retriever.search import Retriever
    from retriever.settings import AnnSettings, SearchSettings
    from retriever.settings_file import read_settings

__all__ = ["AnnSettings", "Hit", "Retriever", "SearchResult", "SearchSettings", "read_settings"]

_HOME = {
    "AnnSettings": "retriever.settings",
    "Hit": "retriever.records",
    "Retriever": "retriever.search",
    "SearchResult": "retriever.records",
    "SearchSettings": "retriever.settings",
    "read_settings": "retriever.settings_file",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'retriever' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
