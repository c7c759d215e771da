"""The card of a bundle: where it came from, for people."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from two_tower.models.data import Dataset
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
        "data": {key: data.manifest.get(key) for key in ("source", "content_hash", "counts")},
        **results,
        "config": dict(config),
        "versions": versions(),
    }


def describe(card: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return a bundle's card as readable lines.

    Args:
        card: the content of card.json.
        config: the content of config.json.
    """
    tower, data = config["tower"], card.get("data", {})
    source, counts = data.get("source"), data.get("counts") or {}
    name = source.get("name", source) if isinstance(source, Mapping) else source
    content = str(data.get("content_hash"))[:8]
    widths = ", ".join(f"pca_{d}" for d in config["pca_dims"]) or "no PCA"
    queries = card.get("queries", {})
    lines = [
        ("fingerprint", card["fingerprint"]),
        ("tower", f"{tower['kind']}, {'shared' if tower['shared'] else 'separate'}"),
        ("vectors", f"dense {tower['dim']}, {widths}"),
        ("vocabulary", f"{card.get('vocabulary', '?')} tokens"),
        ("data", f"{name}, {counts.get('passages', '?')} passages, content {content}"),
        ("queries", ", ".join(f"{count} {split}" for split, count in queries.items())),
        ("trained", f"{card.get('created_at')} at commit {card.get('commit')}"),
        ("seconds", ", ".join(f"{k} {v}" for k, v in card.get("seconds", {}).items())),
    ]
    shown = [f"{name:12} {value}" for name, value in lines]
    return "\n".join([*shown, "", *_metric_table(card.get("dev", {}))])


def _metric_table(metrics: Mapping[str, Mapping[str, float]]) -> list[str]:
    if not metrics:
        return []
    names = list(next(iter(metrics.values())))
    head = f"{'dev':12} " + " ".join(f"{name:>10}" for name in names)
    rows = [
        f"{system:12} " + " ".join(f"{values[name]:10.4f}" for name in names)
        for system, values in metrics.items()
    ]
    return [head, *rows]
