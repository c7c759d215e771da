"""Versions of a collection: which there are, which one the alias points to, promote and drop."""

from typing import Any, NamedTuple

from qdrant_client import models as qm

from ingest.verifier import verify_counts
from retriever.engine import Engine
from retriever.errors import CollectionMismatch, CollectionNotFound, EngineError
from retriever.schema import CollectionMetadata, base_name, check_name, read_metadata


class Version(NamedTuple):
    """One collection that `ingest load` made.

    Attributes:
        name: what an alias of it is called.
        collection: its versioned name.
        points: how many it holds.
        aliases: the aliases that point to it.
        metadata: what it says about itself.
    """

    name: str
    collection: str
    points: int
    aliases: tuple[str, ...]
    metadata: CollectionMetadata

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that `ingest list --json` prints."""
        return {
            "name": self.name,
            "collection": self.collection,
            "points": self.points,
            "expected_points": self.metadata.expected_points,
            "aliases": list(self.aliases),
            "fingerprint": self.metadata.bundle_fingerprint,
            "created_at": self.metadata.created_at,
        }


def versions(engine: Engine, name: str | None = None) -> list[Version]:
    """Return our collections, by name and then newest first; those of others are left out."""
    pointing: dict[str, list[str]] = {}
    for alias in engine.get_aliases().aliases:
        pointing.setdefault(alias.collection_name, []).append(alias.alias_name)
    found = []
    for collection in sorted(c.name for c in engine.get_collections().collections):
        if name not in (None, base_name(collection)):
            continue
        try:
            metadata = read_metadata(engine, collection)
        except CollectionMismatch:
            continue
        points = engine.count(collection, exact=True).count
        aliases = tuple(sorted(pointing.get(collection, ())))
        found.append(Version(base_name(collection), collection, points, aliases, metadata))
    found.sort(key=lambda version: version.metadata.created_at, reverse=True)
    return sorted(found, key=lambda version: version.name)


def promote(engine: Engine, name: str, collection: str | None = None) -> str:
    """Point the alias `name` to a collection that holds all its points, in one step.

    Args:
        engine: where.
        name: the alias.
        collection: one of its versions; the newest by default.

    Returns:
        The collection it points to now.

    Raises:
        CollectionNotFound: `name` has no such version.
        VerificationFailed: the version's load was not finished.
    """
    candidates = [version.collection for version in versions(engine, check_name(name))]
    chosen = collection or next(iter(candidates), None)
    if chosen not in candidates:
        wanted = f"version {collection}" if collection else "version"
        raise CollectionNotFound(
            f"{name!r} has no {wanted} (found: {', '.join(candidates) or 'none'}); "
            f"run: ingest load DATA --bundle BUNDLE --collection {name}"
        )
    verify_counts(engine, chosen)
    create = qm.CreateAlias(collection_name=chosen, alias_name=name)
    operations: list[Any] = [qm.CreateAliasOperation(create_alias=create)]
    if any(alias.alias_name == name for alias in engine.get_aliases().aliases):
        delete = qm.DeleteAliasOperation(delete_alias=qm.DeleteAlias(alias_name=name))
        operations.insert(0, delete)
    engine.update_collection_aliases(operations)
    return chosen


def drop(engine: Engine, name: str, *, yes: bool = False) -> list[str]:
    """Delete one version, or with `yes` everything that belongs to a name.

    Args:
        engine: where.
        name: one of our versioned collections that no alias points to; or, with `yes`, any
            collection, or an alias, which then goes with all its versions.
        yes: delete what is in use or was made by something else, too.

    Returns:
        The collections that were deleted.

    Raises:
        CollectionNotFound: there is nothing of that name.
        EngineError: it is in use and `yes` is off.
    """
    collections = {found.name for found in engine.get_collections().collections}
    aliases = {a.alias_name: a.collection_name for a in engine.get_aliases().aliases}
    ours = {version.collection for version in versions(engine, base_name(name))}
    doomed = [name] if name in collections else sorted(ours | _target(aliases, name))
    if not doomed:
        raise CollectionNotFound(f"no collection or alias {name!r}; see: ingest list")
    in_use = [f"{alias} -> {target}" for alias, target in aliases.items() if target in doomed]
    if not yes and (in_use or doomed != [name] or name not in ours):
        raise EngineError(
            f"{name!r} would delete {', '.join(doomed)} (aliases: {', '.join(in_use) or 'none'}); "
            f"if that is meant, run: ingest drop {name} --yes"
        )
    for collection in doomed:
        engine.delete_collection(collection)
    return doomed


def _target(aliases: dict[str, str], name: str) -> set[str]:
    return {aliases[name]} if name in aliases else set()
