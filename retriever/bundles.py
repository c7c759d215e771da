"""Which bundle a retriever is opened with."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from two_tower.models.errors import ConfigError

if TYPE_CHECKING:
    from two_tower.models.bundle.bundle import ModelBundle


def load_bundle(bundle: "str | Path | ModelBundle | None") -> "ModelBundle":
    """Return the bundle given, that of a folder, or of the folder that TWO_TOWER_BUNDLE names.

    Raises:
        BundleError: no complete bundle there.
        ConfigError: none is named.
    """
    from two_tower.models.bundle.bundle import ModelBundle

    if isinstance(bundle, ModelBundle):
        return bundle
    folder = bundle or os.environ.get("TWO_TOWER_BUNDLE")
    if not folder:
        raise ConfigError("no bundle is named; give one or set TWO_TOWER_BUNDLE to its folder")
    return ModelBundle.load(folder)
