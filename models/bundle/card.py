"""The card of a bundle: where it came from, for people."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from two_tower.models.bundle.documents import endpoint_url
from two_tower.models.bundle.files import ENDPOINT
from two_tower.models.data import Dataset
from two_tower.models.language import ENGLISH
from two_tower.models.provenance import commit, versions


def make_card(
    data: Dataset, config: Mapping[str, Any], *, results: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the card of a training run as plain JSON values.

    Args:
        data: what was learnt from.
        config: the training configuration.
        results: what the run found (metrics, seconds, …).
    """
    return {
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "seed": config["seed"],
        "data": {
            key: data.manifest.get(key) for key in ("source", "content_hash", "counts", "language")
        },
        **results,
        "config": dict(config),
        "versions": versions(),
    }


def describe(card: Mapping[str, Any], config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a bundle is and where it came from, as names and values.

    Args:
        card: the content of card.json.
        config: the content of config.json.
    """
    tower, data = config["tower"], card.get("data", {})
    source, counts = data.get("source"), data.get("counts") or {}
    name = source.get("name", source) if isinstance(source, Mapping) else source
    content = str(data.get("content_hash"))[:8]
    kind = f"{tower['kind']}, {'shared' if tower['shared'] else 'separate'}"
    if tower["kind"] == ENDPOINT:
        kind = f"{ENDPOINT}, {config['documents']['model']} at {endpoint_url(card)}"
    widths = ", ".join(f"pca_{d}" for d in config["pca_dims"]) or "no PCA"
    queries = card.get("queries", {})
    return [
        ("fingerprint", card["fingerprint"]),
        ("tower", kind),
        ("vectors", f"dense {tower.get('dim', '?')}, {widths}"),
        ("vocabulary", f"{card.get('vocabulary', '?')} tokens"),
        ("language", str(data.get("language") or ENGLISH)),
        ("data", f"{name}, {counts.get('passages', '?')} passages, content {content}"),
        ("queries", ", ".join(f"{count} {split}" for split, count in queries.items())),
        ("trained", f"{card.get('created_at')} at commit {card.get('commit')}"),
        ("seconds", ", ".join(f"{k} {v}" for k, v in card.get("seconds", {}).items())),
    ]


def dev_rows(card: Mapping[str, Any]) -> list[list[str]]:
    """Return a row of metrics per system, the head first; none where there was no split dev."""
    metrics: Mapping[str, Mapping[str, float]] = card.get("dev", {})
    if not metrics:
        return []
    names = list(next(iter(metrics.values())))
    rows = [[s, *(f"{values[name]:.4f}" for name in names)] for s, values in metrics.items()]
    return [["dev", *names], *rows]
