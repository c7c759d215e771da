"""What goes wrong with an engine, told in one line."""

from collections.abc import Mapping

from two_tower.retriever.errors import CollectionNotFound

AGAIN = "run the same command again"
LONGEST = 300


def unknown_name(name: str, where: str, aliases: Mapping[str, str]) -> CollectionNotFound:
    """Return the error for a name that is neither a collection nor an alias."""
    known = ", ".join(sorted(aliases)) or "none"
    return CollectionNotFound(
        f"no collection {name!r} at {where} (aliases there: {known}); "
        f"run: ingest load DATA --bundle BUNDLE --collection {name}"
    )


def one_line(reason: object) -> str:
    """Return what went wrong, without line breaks and not too long."""
    text = " ".join(str(reason).split()) or type(reason).__name__
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"
