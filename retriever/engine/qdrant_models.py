"""The types of `qdrant_client.http.models`, without the client.

    from two_tower.retriever.engine.qdrant_models import qm

Importing `qdrant_client` takes half a second, most of it for gRPC and HTTP, which the embedded
engine does not use. The types stand in one file that needs pydantic alone. Here that file is loaded
under its own name, so that a `qm.Filter` is that of an application that imports the client as well;
and when the first type is asked for, for its 344 classes take a fifth of a start, and a search of
an embedded collection without a filter needs none of them.
"""

import sys
from functools import reduce
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["qm"]

FILES = (
    "qdrant_client._pydantic_compat",
    "qdrant_client._numpy_vectors",  # not in every version
    "qdrant_client.http.models.models",
)
"""What the file imports from its package, then the file itself."""


def _load() -> ModuleType:
    if "qdrant_client" in sys.modules:
        from qdrant_client.http import models

        return models
    loaded = [_load_file(name) for name in FILES]
    if loaded[-1] is None:
        raise ImportError("qdrant_client has no http/models/models.py; expected a 1.x version")
    return loaded[-1]


def _load_file(name: str) -> ModuleType | None:
    """Load one file of a package, and not the package."""
    spec = reduce(_find, name.split("."), None)
    if spec is None or spec.loader is None:
        return None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    # Known only when it is whole: another thread may be importing the client now.
    return sys.modules.setdefault(name, module)


def _find(parent: ModuleSpec | None, name: str) -> ModuleSpec | None:
    if parent is None:
        return PathFinder.find_spec(name)
    places = parent.submodule_search_locations
    return PathFinder.find_spec(f"{parent.name}.{name}", places) if places else None


if TYPE_CHECKING:
    from qdrant_client.http import models as qm
else:

    class _Types:
        """The file, loaded by the first look at one of its types."""

        def __getattr__(self, name: str) -> Any:
            self.__dict__.update(vars(_load()))
            try:
                return self.__dict__[name]
            except KeyError:
                raise AttributeError(f"qdrant_client has no type {name}") from None

    qm = _Types()
