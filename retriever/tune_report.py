"""What `retriever tune` found, as CSV, tables, sentences and a settings file."""

import csv
import io
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import yaml

from retriever.goals import OF_EXACT, RECALLS
from retriever.options import CollectionOptions
from retriever.settings import SearchSettings
from retriever.tune import Tuning
from retriever.tune_choice import QUALITY, Separation, front
from retriever.tune_measure import Row

RECOMMENDED, ON_FRONT = "★", "•"
HEAD = (
    *("sweep", "setting", "recall@1", "@10", "@100", "of exact @1", "@10", "@100"),
    *("p50 ms", "p95 ms", "MB", ""),
)
LEGEND = (
    f"recall@k is against the qrels; of exact, against exact search ({RECOMMENDED} recommended, "
    f"{ON_FRONT} on a Pareto front of recall@10 and p95). MB is computed: vectors in memory that a "
    "query reads, quantized copies and BM25 postings included, graphs and payloads not."
)


def to_csv(tuning: Tuning) -> str:
    """Return one line per setting with all that decides it and all that was measured."""
    text = io.StringIO()
    rows = [_record(row, tuning) for row in tuning.rows]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def table_rows(tuning: Tuning, sweep: str | None = None) -> list[list[str]]:
    """Return the table of all settings, or those of one sweep, the head first."""
    best = fronts(tuning)
    found = [list(HEAD)]
    for row in tuning.rows:
        if sweep in (None, row.setting.sweep):
            recalls = [name + of for of in ("", OF_EXACT) for name in RECALLS]
            mark = (RECOMMENDED if row is tuning.recommended else "") + (
                ON_FRONT if row in best else ""
            )
            numbers = [f"{row.mean(name):.3f}" for name in recalls]
            costs = [f"{row.p50_ms:.1f}", f"{row.p95_ms:.1f}", f"{row.memory_mb:,.1f}"]
            found.append([row.setting.sweep, row.setting.label, *numbers, *costs, mark])
    return found


def fronts(tuning: Tuning) -> list[Row]:
    """Return what is on a front: of the tower's leg by exactness, of both legs by the qrels."""
    alone = [row for row in tuning.rows if not row.setting.is_whole]
    whole = [row for row in tuning.rows if row.setting.is_whole]
    return [*front(alone, QUALITY + OF_EXACT), *front(whole, QUALITY)]


def verdict(tuning: Tuning) -> str:
    """Return in one line what is recommended, or that nothing meets the goal."""
    row = tuning.recommended
    names = dict.fromkeys(
        [c.measure for c in tuning.goal.conditions] + [tuning.goal.aim, QUALITY, "p95"]
    )
    said = f"{row.setting.label} ({', '.join(f'{name} {row.mean(name):.4g}' for name in names)})"
    if tuning.is_met:
        return f"Recommended for {tuning.goal.text!r}: {said}"
    return f"no setting meets {tuning.goal.text!r}; the nearest is {said}"


def warning(separation: Separation | None) -> str | None:
    """Return what chance may have decided; None where the best is settled."""
    if separation is None or separation.is_settled:
        return None
    best, runner_up = separation.best.setting.label, separation.runner_up.setting.label
    return (
        f"too few queries to separate the settings: {QUALITY} of the best two ({best}, "
        f"{runner_up}) differs by {separation.difference:.4f} ± {separation.half_width:.4f}, and "
        f"{separation.alike} of {separation.among} others cannot be told from the best; about "
        f"{separation.needed:,} queries would separate these two"
    )


def remark(tuning: Tuning) -> str | None:
    """Return why the graph's ef makes no difference, where it makes none."""
    graph = [row for row in tuning.rows if row.setting.search.ann.ef and not row.setting.is_whole]
    if not graph or any(row.mean(RECALLS[-1] + OF_EXACT) < 1.0 for row in graph):
        return None
    above_kb = graph[0].setting.options.hnsw.above_kb
    return (
        "ef makes no difference here: segments with less than "
        f"{above_kb:,} kB of a vector (hnsw.above_kb) are searched exactly, without a graph"
    )


def to_yaml(tuning: Tuning, *, source: str) -> str:
    """Return the recommended setting for `ingest load --options` and `--settings`.

    Args:
        tuning: what was measured.
        source: data, split and commit that it was measured with.
    """
    row = tuning.recommended
    found = {
        "collection": differences(row.setting.options, CollectionOptions()),
        "search": {"legs": dict(row.setting.search.legs)}
        | differences(row.setting.search, SearchSettings()),
    }
    measured = ", ".join(f"{name} {row.mean(name):.4f}" for name in row.values)
    comments = [
        verdict(tuning),
        f"Measured on {tuning.queries:,} queries of {source}",
        f"over {tuning.passages:,} passages of {tuning.collection}:",
        measured,
        f"p50 {row.p50_ms:.1f} ms, p95 {row.p95_ms:.1f} ms, vectors {row.memory_mb:,.1f} MB.",
        "A cross-scorer took no part; where the bundle has one, `cross: true` lets it read.",
    ]
    text = yaml.safe_dump(found, sort_keys=False)
    return "".join(f"# {line}\n" for line in comments) + text


def differences(value: Any, default: Any) -> dict[str, Any]:
    """Return the fields of a configuration that are not as in another, as plain values."""
    found: dict[str, Any] = {}
    for name in (field.name for field in fields(value)):
        one, other = getattr(value, name), getattr(default, name)
        if one == other:
            continue
        if is_dataclass(one):
            found[name] = differences(one, other)
        else:
            found[name] = dict(one) if isinstance(one, Mapping) else one
    return found


def _record(row: Row, tuning: Tuning) -> dict[str, Any]:
    search, options = row.setting.search, row.setting.options
    ann, copies = search.ann, options.quantization
    return {
        "sweep": row.setting.sweep,
        "setting": row.setting.label,
        "legs": " ".join(f"{name}:{limit}" for name, limit in search.legs.items()),
        "fusion": search.fusion,
        "tower_weight": search.tower_weight,
        "exact": ann.exact,
        "ef": ann.ef,
        "first_stage": ann.first_stage,
        "first_stage_candidates": ann.first_stage_candidates if ann.first_stage else None,
        "quantization": copies.kind,
        "quantization_bits": copies.bits if copies.kind == "binary" else None,
        "rescore": ann.rescore,
        "oversampling": ann.oversampling,
        "clusters": options.clusters,
        "n_probe": ann.n_probe,
        "above_kb": options.hnsw.above_kb,
        "queries": tuning.queries,
        "passages": tuning.passages,
        **{f"{name}_qrels": f"{row.mean(name):.6f}" for name in RECALLS},
        **{f"{name}_exact": f"{row.mean(name + OF_EXACT):.6f}" for name in RECALLS},
        "p50_ms": f"{row.p50_ms:.3f}",
        "p95_ms": f"{row.p95_ms:.3f}",
        "memory_mb_computed": f"{row.memory_mb:.3f}",
        "memory_mb_if_vectors_were_on_disk_computed": f"{row.on_disk_mb:.3f}",
        "bits_per_passage_searched": f"{row.bits:g}",
        "on_front": row in fronts(tuning),
        "recommended": row is tuning.recommended,
    }
