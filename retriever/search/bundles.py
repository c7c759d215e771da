"""Where the bundle of a collection lies: it is found by its fingerprint.

    TWO_TOWER_BUNDLE       a bundle, or a folder of bundles
    <path>/bundles/        in the embedded engine's folder, a folder of bundles
    the metadata           the folder that `ingest load` took it from, and what lies beside that

The order is that of this list.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from two_tower.models.bundle.files import CARD
from two_tower.models.config import SHORT
from two_tower.models.errors import BundleError, ConfigError
from two_tower.retriever.collection.schema import CollectionMetadata, read_metadata
from two_tower.retriever.engine.protocol import Engine

if TYPE_CHECKING:
    from two_tower.models.bundle.bundle import ModelBundle
    from two_tower.models.bundle.no_tower import NoTower

VARIABLE = "TWO_TOWER_BUNDLE"

BUNDLES = "bundles"


def find_bundle(engine: Engine, name: str, *, device: str = "cpu") -> "ModelBundle | NoTower":
    """Return the bundle that a collection was loaded with; the module says where it is looked for.

    A collection of BM25 alone needs none. A transformer reads on `device`, see `bundle.devices`.

    Raises:
        BundleError: it is not complete.
        ConfigError: it is not found.
        EngineError: there is no such collection.
    """
    collection = engine.resolve(name)
    metadata = read_metadata(engine, collection)
    if not metadata.has_tower:
        from two_tower.models.bundle.no_tower import NoTower

        return NoTower()
    from two_tower.models.bundle.bundle import ModelBundle

    found = ModelBundle.load(find_bundle_folder(engine, collection, metadata))
    return _on(found, device)


def load_bundle(
    bundle: "str | Path | ModelBundle | None", *, device: str = "cpu"
) -> "ModelBundle | None":
    """Return a bundle as it is, or load it from its folder; None where none is given.

    A transformer reads on `device`, see `bundle.devices`.

    Raises:
        BundleError: no complete bundle there.
        ConfigError: it is neither a folder nor a bundle, or there is no such device.
    """
    if device != "cpu":
        from two_tower.models.bundle.devices import check_device

        check_device(device)
    if bundle is None:
        return None
    from two_tower.models.bundle.bundle import ModelBundle

    if isinstance(bundle, ModelBundle):
        return _on(bundle, device)
    if not isinstance(bundle, str | Path):
        raise ConfigError(
            f"the bundle is {SHORT.repr(bundle)}; expected its folder or ModelBundle.load(…)"
        )
    return _on(ModelBundle.load(bundle), device)


def _on(bundle: "ModelBundle", device: str) -> "ModelBundle":
    if device != "cpu":
        from two_tower.models.bundle.devices import put_on

        put_on(bundle, device)
    return bundle


def find_bundle_folder(engine: Engine, collection: str, metadata: CollectionMetadata) -> Path:
    """Return the folder of the bundle that a collection was loaded with.

    Args:
        engine: that holds the collection.
        collection: its versioned name, for messages.
        metadata: of the collection.

    Raises:
        BundleError: TWO_TOWER_BUNDLE names neither a bundle nor a folder of bundles.
        ConfigError: there is none of that fingerprint in any of the places.
    """
    named = os.environ.get(VARIABLE)
    if named and not any(map(fingerprint_of, _bundles_at(Path(named)))):
        if not Path(named).exists():
            what = f"and there is no such folder in {Path.cwd()}"
        else:
            what = "which is neither a bundle nor a folder of bundles"
        raise BundleError(
            f"{VARIABLE} is {named}, {what}; make a bundle with: models train DATA --out {named}"
        )
    for folder in _candidates(engine, metadata):
        if fingerprint_of(folder) == metadata.bundle_fingerprint:
            return folder
    loaded_from = f", loaded from {metadata.bundle_path}," if metadata.bundle_path else ""
    raise ConfigError(
        f"{collection} needs bundle {metadata.bundle_fingerprint[:12]}{loaded_from} which is not "
        f"found; name its folder with --bundle (in Python: bundle=), or set {VARIABLE} to it or to "
        "a folder of bundles"
    )


def fingerprint_of(folder: Path) -> str | None:
    """Return the fingerprint of a complete bundle, None where there is none."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        return str(card["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _candidates(engine: Engine, metadata: CollectionMetadata) -> Iterator[Path]:
    if named := os.environ.get(VARIABLE):
        yield from _bundles_at(Path(named))
    if engine.is_embedded:
        yield from _bundles_at(Path(engine.where, BUNDLES))
    if metadata.bundle_path:
        recorded = Path(metadata.bundle_path)
        yield recorded
        yield from _bundles_at(recorded.parent)


def _bundles_at(folder: Path) -> Iterator[Path]:
    """Yield a folder, and those in it that have a card."""
    yield folder
    try:
        yield from sorted(card.parent for card in folder.glob(f"*/{CARD}"))
    except OSError:
        return
