"""Versions of a collection, and the alias that points to one of them: promote, roll back, drop.

A switch is two writes: the new version records the one that it replaces, then the alias moves in
one operation. A stop between the two leaves the alias where it was.
"""

from typing import Any, NamedTuple

from two_tower.ingest.loading.parts import parts_in
from two_tower.ingest.loading.verify import verify_counts
from two_tower.retriever.collection.schema import CollectionMetadata, base_name, check_name
from two_tower.retriever.collection.serving import LATELY_S, served_lately
from two_tower.retriever.engine.protocol import Engine, collection_names, stored_metadata
from two_tower.retriever.engine.qdrant_models import qm
from two_tower.retriever.errors import (
    CollectionDamaged,
    CollectionMismatch,
    CollectionNotFound,
    EngineError,
)

PREVIOUS = "previous"  # in a collection's metadata: what its alias pointed to before


class Version(NamedTuple):
    """One collection that `ingest load` made.

    Attributes:
        name: of the alias that it was loaded for.
        collection: its versioned name.
        points: how many it holds.
        aliases: the aliases that point to it.
        metadata: of the collection.
        previous: the version that the alias pointed to before; `rollback` returns there.
        is_damaged: whether the engine cannot open it, and so cannot count its points.
        parts: which of its parts have been loaded and wait for `ingest finish`.
        of: how many parts it is loaded in; 0 where it does not wait.
    """

    name: str
    collection: str
    points: int
    aliases: tuple[str, ...]
    metadata: CollectionMetadata
    previous: str | None
    is_damaged: bool = False
    parts: tuple[int, ...] = ()
    of: int = 0

    @property
    def complete(self) -> bool:
        """Whether it holds as many points as its last load expected."""
        return not self.is_damaged and self.points == self.metadata.expected_points

    @property
    def awaits_finish(self) -> bool:
        """Whether all of its parts have been loaded, and `ingest finish` was not run."""
        return self.of > 0 and len(self.parts) == self.of

    @property
    def in_use(self) -> bool:
        """Whether the alias points to it."""
        return self.name in self.aliases

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that `ingest list --json` prints."""
        return {
            "name": self.name,
            "collection": self.collection,
            "points": self.points,
            "expected_points": self.metadata.expected_points,
            "complete": self.complete,
            "is_damaged": self.is_damaged,
            "parts": {"loaded": list(self.parts), "of": self.of} if self.of else None,
            "aliases": list(self.aliases),
            "previous": self.previous,
            "fingerprint": self.metadata.bundle_fingerprint,
            "created_at": self.metadata.created_at,
        }


def versions(engine: Engine, name: str | None = None) -> list[Version]:
    """Return the collections that `ingest load` made, by name and then newest first."""
    aliases = _aliases(engine)
    ours = []
    for collection in sorted(collection_names(engine)):
        if name not in (None, base_name(collection)):
            continue
        try:
            stored = stored_metadata(engine, collection)
            metadata = CollectionMetadata.from_dict(stored)
        except (ValueError, CollectionDamaged):
            continue
        parts = sorted(parts_in(stored))
        points, is_damaged = 0, False
        try:
            points = engine.count(collection, exact=True).count
        except CollectionDamaged:
            is_damaged = True
        ours.append(
            Version(
                name=base_name(collection),
                collection=collection,
                points=points,
                aliases=tuple(sorted(a for a, target in aliases.items() if target == collection)),
                metadata=metadata,
                previous=stored.get(PREVIOUS),
                is_damaged=is_damaged,
                parts=tuple(part.number for part in parts),
                of=parts[0].of if parts else 0,
            )
        )
    ours.sort(key=lambda version: version.metadata.created_at, reverse=True)
    return sorted(ours, key=lambda version: version.name)


def promote(engine: Engine, name: str, collection: str | None = None) -> str:
    """Point the alias `name` to one of its versions, the newest by default, in one step.

    Returns:
        The collection it points to now.

    Raises:
        CollectionNotFound: `name` has no such version.
        CollectionMismatch: the alias points to what something else made.
        VerificationFailed: the version's load was not finished.
    """
    target, candidates = choose_version(engine, name, collection)
    verify_counts(engine, target)
    current = current_version(engine, name)
    if current not in (None, *candidates):
        raise CollectionMismatch(
            f"the alias {name!r} points to {current!r}, expected one of {', '.join(candidates)}: "
            "something else made it; load into another name with --collection"
        )
    if current != target:
        engine.update_collection(target, metadata={PREVIOUS: current})
        # One operation: a crash of the engine cannot leave the alias without a target.
        create = qm.CreateAlias(collection_name=target, alias_name=name)
        engine.update_collection_aliases([qm.CreateAliasOperation(create_alias=create)])
    return target


def choose_version(engine: Engine, name: str, collection: str | None) -> tuple[str, list[str]]:
    """Return a version of `name`, the newest by default, and all versions.

    Raises:
        CollectionNotFound: there is none, or not that one.
    """
    candidates = [version.collection for version in versions(engine, check_name(name))]
    target = collection or next(iter(candidates), None)
    if target is None or target not in candidates:
        version = f"version {collection}" if collection else "version"
        raise CollectionNotFound(
            f"{name!r} has no {version} (found: {', '.join(candidates) or 'none'}); "
            f"run: ingest load DATA --bundle BUNDLE --collection {name}"
        )
    return target, candidates


def current_version(engine: Engine, name: str) -> str | None:
    """Return what the alias `name` points to, None where there is no such alias."""
    return _aliases(engine).get(name)


def rollback(engine: Engine, name: str) -> str:
    """Point the alias `name` back to its previous version; a second call returns to the first.

    Returns:
        The collection it points to now.

    Raises:
        CollectionNotFound: `name` is no alias, or what it pointed to is gone.
        EngineError: it never pointed to anything else.
        VerificationFailed: what it pointed to is not complete any more.
    """
    ours = {version.collection: version for version in versions(engine, check_name(name))}
    current = next((version for version in ours.values() if version.in_use), None)
    if current is None:
        raise CollectionNotFound(f"{name!r} stands for no version of ours; see: ingest list")
    others = sorted(ours.keys() - {current.collection})
    choice = (
        f"for another version run: ingest promote {name} --to {others[0]}"
        if others
        else "there is no other version; to make one run: ingest load"
    )
    if current.previous is None:
        raise EngineError(f"{name!r} pointed to nothing before {current.collection}; {choice}")
    if current.previous not in ours:
        raise CollectionNotFound(
            f"{name!r} pointed to {current.previous} before, which has been dropped; {choice}"
        )
    return promote(engine, name, current.previous)


def drop(engine: Engine, name: str, *, yes: bool = False) -> list[str]:
    """Delete one of our versions that no alias points to and no service searched lately.

    Returns:
        What was deleted.

    With `yes`, `name` may be any collection, even one in use or made by something else, or an
    alias, which is deleted with all its versions.

    Raises:
        CollectionNotFound: there is nothing of that name.
        EngineError: it is in use, or was lately, and `yes` is off.
    """
    collections = collection_names(engine)
    aliases = _aliases(engine)
    ours = {version.collection for version in versions(engine, base_name(name))}
    aliased = {aliases[name]} if name in aliases else set()
    doomed = [name] if name in collections else sorted(ours | aliased)
    if not doomed:
        raise CollectionNotFound(f"no collection or alias {name!r}; see: ingest list")
    in_use = [f"{alias} -> {target}" for alias, target in aliases.items() if target in doomed]
    if not yes and (in_use or doomed != [name] or name not in ours):
        raise EngineError(
            f"{name!r} would delete {', '.join(doomed)} (aliases: {', '.join(in_use) or 'none'}); "
            f"if that is meant, run: ingest drop {name} --yes"
        )
    for collection in doomed:
        if not yes and (service := served_lately(engine, collection)):
            raise EngineError(
                f"{collection!r} was searched by a service on {service.host} {service.age_s:.0f} s "
                f"ago; one that follows its name has left it {LATELY_S:.0f} s after the name "
                f"moved: wait for that, or run: ingest drop {name} --yes"
            )
    for collection in doomed:
        engine.delete_collection(collection)
    return doomed


def _aliases(engine: Engine) -> dict[str, str]:
    return {alias.alias_name: alias.collection_name for alias in engine.get_aliases().aliases}
