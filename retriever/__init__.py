"""Searching: a collection that `ingest load` made, asked, measured, tuned and served.

The names of `two_tower` (`Retriever`, `SearchSettings`, …) can be imported from here, too.
"""

from typing import TYPE_CHECKING, Any

import two_tower

if TYPE_CHECKING:
    from two_tower import (
        AnnSettings,
        Hit,
        Retriever,
        SearchResult,
        SearchSettings,
        read_settings,
    )

__all__ = ["AnnSettings", "Hit", "Retriever", "SearchResult", "SearchSettings", "read_settings"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'two_tower.retriever' has no attribute {name!r}")
    return getattr(two_tower, name)
