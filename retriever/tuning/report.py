"""What `retriever tune` measured, as CSV, tables, sentences and a settings file."""

import csv
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import yaml

from two_tower.retriever.collection.options import CollectionOptions
from two_tower.retriever.search.settings import SearchSettings
from two_tower.retriever.tuning.choice import (
    QUALITY,
    changes,
    difference,
    front,
    half_interval,
)
from two_tower.retriever.tuning.goals import COSTS, OF_EXACT, RECALLS
from two_tower.retriever.tuning.measure import Row
from two_tower.retriever.tuning.tune import Tuning

RECOMMENDED, TIED, ON_FRONT = "★", "≈", "•"

MOST_SHOWN = 4

NOISY = 0.25

HEAD = (
    *("sweep", "setting", "recall@1", "@10", "@100", "of exact @1", "@10", "@100"),
    *("p50 ms", "p95 ms", "MB", ""),
)

LEGEND = (
    f"{RECOMMENDED} recommended, {TIED} tied with it, {ON_FRONT} on a Pareto front of recall@10 "
    "and p95. recall@k is against the qrels; of exact, against exact search: of the tower's leg, "
    "or of both legs with 500 candidates each. Times are medians over rounds in which the default "
    "search was timed too. MB is computed: vectors in memory that a query reads, quantized copies "
    "and BM25 postings included, graphs and payloads not."
)


def to_csv(tuning: Tuning) -> str:
    """Return one line per setting with all that decides it and all that was measured."""
    text = io.StringIO()
    best = fronts(tuning)
    rows = [_record(row, tuning, is_on_front=row in best) for row in tuning.rows]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _record(row: Row, tuning: Tuning, *, is_on_front: bool) -> dict[str, Any]:
    search, options = row.setting.search, row.setting.options
    ann, copies = search.ann, options.quantization
    p50, p95 = row.latency
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
        "p50_ms": f"{p50.ms:.3f}",
        "p95_ms": f"{p95.ms:.3f}",
        "p50_noise": f"{p50.noise:.3f}",
        "p95_noise": f"{p95.noise:.3f}",
        "memory_mb_computed": f"{row.memory_mb:.3f}",
        "memory_mb_if_vectors_were_on_disk_computed": f"{row.on_disk_mb:.3f}",
        "bits_per_passage_searched": f"{row.bits:g}",
        "on_front": is_on_front,
        "recommended": row is tuning.recommended,
        "tied_with_recommended": row in tuning.tied,
    }


def table_rows(tuning: Tuning, sweep: str | None = None) -> list[list[str]]:
    """Return the table of all settings, or those of one sweep, the head first."""
    best = fronts(tuning)
    recalls = [name + suffix for suffix in ("", OF_EXACT) for name in RECALLS]
    rows = [list(HEAD)]
    for row in tuning.rows:
        if sweep not in (None, row.setting.sweep):
            continue
        mark = TIED if row in tuning.tied else ""
        mark = RECOMMENDED if row is tuning.recommended else mark
        numbers = [f"{row.mean(name):.3f}" for name in recalls]
        numbers += [f"{each.ms:.1f}" for each in row.latency] + [f"{row.memory_mb:,.1f}"]
        mark += ON_FRONT if row in best else ""
        rows.append([row.setting.sweep, row.setting.label, *numbers, mark])
    return rows


def fronts(tuning: Tuning) -> list[Row]:
    """Return what is on a front: of the tower's leg by exactness, of both legs by the qrels."""
    return [*front(tuning.alone, QUALITY + OF_EXACT), *front(tuning.hybrid, QUALITY)]


MOST_NAMED = 5


def verdict(tuning: Tuning) -> str:
    """Return in one line what is recommended, or that nothing meets the goal."""
    row, goal = tuning.recommended, tuning.goal
    names = dict.fromkeys([*(c.measure for c in goal.conditions), goal.aim, QUALITY, "p95"])
    values = ", ".join(f"{name} {_value(row, name)}" for name in names)
    setting = f"{row.setting.label} ({values})"
    if tuning.is_met:
        return f"Recommended for {goal.text!r}: {setting}"
    meeting = [row for row in tuning.rows if goal.shortfall(row.mean) == 0.0]
    if not meeting:
        return f"no setting meets {goal.text!r}; the nearest is {setting}"
    named = ", ".join(f"{row.setting.sweep}: {row.setting.label}" for row in meeting[:MOST_NAMED])
    more = f" and {len(meeting) - MOST_NAMED} more" if len(meeting) > MOST_NAMED else ""
    return (
        f"no search by both legs with the chosen fusion meets {goal.text!r}; the nearest is "
        f"{setting}. Rows that meet it and are never recommended by themselves, for one leg or "
        f"another fusion: {named}{more}"
    )


def ties(tuning: Tuning) -> str | None:
    """Return what noise cannot tell from the recommended setting, and why that one is kept."""
    tied, aim = tuning.tied, tuning.goal.aim
    if not tied:
        return None
    names = [f"{row.setting.label} ({_value(row, aim)})" for row in tied[:MOST_SHOWN]]
    if len(tied) > MOST_SHOWN:
        names.append(f"{len(tied) - MOST_SHOWN} more, marked {TIED}")
    return (
        f"Tied with it in {aim}, as far as these measurements can tell: {', '.join(names)}. "
        "Of all these it takes the least memory, then departs least from the defaults"
    )


def doubts(tuning: Tuning) -> list[str]:
    """Return what may be chance, for there are too few queries; nothing where all is settled."""
    return [*_doubt_of_best(tuning), *_doubts_of_goal(tuning), *_doubt_of_times(tuning)]


def _doubt_of_best(tuning: Tuning) -> Iterator[str]:
    """Whether the queries tell the best search by both legs from the next one that differs."""
    best, *others = sorted(tuning.hybrid, key=lambda row: -row.mean(QUALITY))
    gaps = [difference(best, row) for row in others]
    place = next((place for place, (gap, _) in enumerate(gaps) if gap > 0), None)
    if place is None:
        if others:
            yield (
                f"too few queries to separate the settings: {QUALITY} of all {len(others) + 1} "
                f"searches by both legs is {best.mean(QUALITY):.4f} on these {tuning.queries:,}"
            )
        return
    gap, half_width = gaps[place]
    if gap > half_width:
        return
    alike = sum(each <= half for each, half in gaps)
    needed = int(np.ceil(tuning.queries * (half_width / gap) ** 2))
    yield (
        f"too few queries to separate the settings: {QUALITY} of the best two "
        f"({best.setting.label}, {others[place].setting.label}) differs by {gap:.4f} ± "
        f"{half_width:.4f}, and {alike} of {len(others)} others cannot be told from the best; "
        f"about {needed:,} queries would separate these two"
    )


def _doubts_of_goal(tuning: Tuning) -> Iterator[str]:
    """Which conditions on a recall lie within its interval."""
    row = tuning.recommended
    for measure, _, bound in tuning.goal.conditions:
        if measure in COSTS:
            continue
        half, gap = half_interval(row.values[measure]), abs(row.mean(measure) - bound)
        if gap < half:
            more = f"about {int(np.ceil(tuning.queries * (half / gap) ** 2)):,}" if gap else "more"
            yield (
                f"too few queries to be sure of {bound:g} for {measure}, which is "
                f"{_value(row, measure)}; {more} would tell"
            )


def _doubt_of_times(tuning: Tuning) -> Iterator[str]:
    row, goal = tuning.recommended, tuning.goal
    for measure in dict.fromkeys([goal.aim, *(c.measure for c in goal.conditions)]):
        if measure in ("p50", "p95") and getattr(row.latency, measure).noise > NOISY:
            yield (
                f"{measure} of the recommended setting is {_value(row, measure)}: the machine was "
                "busy; measure again when it is not"
            )


def _value(row: Row, measure: str) -> str:
    """Return a value with its unit, or with half of its 95% interval."""
    if measure == "memory":
        return f"{row.memory_mb:,.1f} MB"
    if measure in COSTS:
        noise = getattr(row.latency, measure).noise
        return f"{row.mean(measure):.1f} ms ± {min(noise, 9.99):.0%}"
    return f"{row.mean(measure):.4f} ± {half_interval(row.values[measure]):.4f}"


def remark(tuning: Tuning) -> str | None:
    """Return why the graph's ef makes no difference, where it makes none."""
    graph = [row for row in tuning.alone if row.setting.search.ann.ef]
    if not graph or any(row.mean(RECALLS[-1] + OF_EXACT) < 1.0 for row in graph):
        return None
    above_kb = graph[0].setting.options.hnsw.above_kb
    return (
        "ef makes no difference here: segments with less than "
        f"{above_kb:,} kB of a vector (hnsw.above_kb) are searched exactly, without a graph"
    )


def to_yaml(tuning: Tuning, *, source: str) -> str:
    """Return the recommended setting for `ingest load --options` and `--settings`.

    `source` names the data, the split and the commit of the measurement.
    """
    row = tuning.recommended
    search = row.setting.search
    sections = {
        "collection": changes(row.setting.options, CollectionOptions()),
        "search": {"legs": dict(search.legs)} | changes(search, SearchSettings()),
    }
    comments = [
        verdict(tuning),
        f"Measured on {tuning.queries:,} queries of {source}",
        f"over {tuning.passages:,} passages of {tuning.collection}:",
        ", ".join(f"{name} {row.mean(name):.4f}" for name in row.values),
        ", ".join(f"{name} {_value(row, name)}" for name in COSTS) + " of vectors and postings.",
        *([f"{tied}."] if (tied := ties(tuning)) else []),
        "A cross-scorer took no part; where the bundle has one, `cross: true` lets it read.",
    ]
    text = yaml.safe_dump(sections, sort_keys=False)
    return "".join(f"# {line}\n" for line in comments) + text
