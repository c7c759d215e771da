"""The end of a load in parts: all of them are there, their points are counted, the name moves."""

from collections.abc import Callable

from two_tower.ingest.loading.parts import Part, loaded_parts
from two_tower.ingest.loading.verify import VerifyReport, verify_counts
from two_tower.ingest.versions.versions import promote, versions
from two_tower.retriever.collection.schema import check_name, read_metadata
from two_tower.retriever.engine.protocol import OPTIMIZE_ABOVE, Engine
from two_tower.retriever.errors import CollectionNotFound, VerificationFailed

Notify = Callable[[str], None]

NAMED = 10  # parts, where many are missing


def finish(engine: Engine, name: str, *, notify: Notify = lambda line: None) -> VerifyReport:
    """Check that every part of `name` has been loaded, count the points, and promote.

    Where that has been done, and no part was loaded since, the points are counted again. `notify`
    is told which parts were there.

    Raises:
        CollectionNotFound: no version of `name` has a part.
        VerificationFailed: parts are missing, or points.
        EngineError: the engine fails; run the same command again to go on.
    """
    collections = [version.collection for version in versions(engine, check_name(name))]
    begun = [collection for collection in collections if loaded_parts(engine, collection)]
    aliases = {alias.alias_name: alias.collection_name for alias in engine.get_aliases().aliases}
    if not begun and name in aliases:
        return verify_counts(engine, aliases[name])
    if not begun:
        raise CollectionNotFound(
            f"{name!r} has no version that was loaded in parts; "
            f"run: ingest load DATA --bundle BUNDLE --collection {name} --part 1/8"
        )
    collection = begun[0]
    parts = loaded_parts(engine, collection)
    _require_all(collection, list(parts))
    passages = sum(note["passages"] for note in parts.values())
    notify(f"{collection}: all {len(parts)} parts are there, with {passages:,} passages of DATA")
    metadata = read_metadata(engine, collection)
    points = engine.count(collection, exact=True).count
    data = {**metadata.data, "kept": max(0, points - passages)}
    engine.update_collection(collection, metadata={"data": data})
    if points > OPTIMIZE_ABOVE or metadata.options.wants_index:
        engine.optimize(collection)
    report = verify_counts(engine, collection)
    promote(engine, name, collection)
    engine.update_collection(collection, metadata={part.note: None for part in parts})
    return report


def _require_all(collection: str, parts: list[Part]) -> None:
    of = parts[0].of
    missing = [number for number in range(1, of + 1) if Part(number, of) not in parts]
    if missing:
        numbers = ", ".join(map(str, missing[:NAMED]))
        more = f" and {len(missing) - NAMED:,} more" if len(missing) > NAMED else ""
        raise VerificationFailed(
            f"collection {collection!r} lacks {len(missing):,} of {of} parts: {numbers}{more}; "
            f"run: ingest load DATA … --part {missing[0]}/{of}"
        )
