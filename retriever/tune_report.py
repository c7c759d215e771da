"""What `retriever tune` found, as CSV, tables, sentences and a settings file."""

import csv
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import yaml

from two_tower.retriever.departures import departures
from two_tower.retriever.goals import COSTS, OF_EXACT, RECALLS
from two_tower.retriever.options import CollectionOptions
from two_tower.retriever.settings import SearchSettings
from two_tower.retriever.tune import Tuning
from two_tower.retriever.tune_choice import QUALITY, front, half_interval
from two_tower.retriever.tune_measure import Row

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
            mark = _mark(row, tuning) + (ON_FRONT if row in best else "")
            numbers = [f"{row.mean(name):.3f}" for name in recalls]
            times = [f"{pace.ms:.1f}" for pace in row.times]
            costs = [*times, f"{row.memory_mb:,.1f}", mark]
            found.append([row.setting.sweep, row.setting.label, *numbers, *costs])
    return found


def _mark(row: Row, tuning: Tuning) -> str:
    if row is tuning.recommended:
        return RECOMMENDED
    return TIED if row in tuning.choice.tied else ""


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
    said = f"{row.setting.label} ({', '.join(f'{name} {_value(row, name)}' for name in names)})"
    if tuning.is_met:
        return f"Recommended for {tuning.goal.text!r}: {said}"
    return f"no setting meets {tuning.goal.text!r}; the nearest is {said}"


def ties(tuning: Tuning) -> str | None:
    """Return what noise cannot tell from the recommended setting, and why that one is kept."""
    tied, aim = tuning.choice.tied, tuning.goal.aim
    if not tied:
        return None
    shown = [f"{row.setting.label} ({_value(row, aim)})" for row in tied[:MOST_SHOWN]]
    more = [f"{len(tied) - MOST_SHOWN} more, marked {TIED}"] if len(tied) > MOST_SHOWN else []
    return (
        f"Tied with it in {aim}, as far as these measurements can tell: "
        f"{', '.join([*shown, *more])}. Of all these it takes the least memory, then departs least "
        "from the defaults"
    )


def doubts(tuning: Tuning) -> list[str]:
    """Return what may be chance, for there are too few queries; nothing where all is settled."""
    return [*_doubt_of_best(tuning), *_doubts_of_goal(tuning), *_doubt_of_times(tuning)]


def _doubt_of_best(tuning: Tuning) -> Iterator[str]:
    found = tuning.separation
    whole = [row for row in tuning.rows if row.setting.is_whole]
    if found is None and len(whole) > 1:
        yield (
            f"too few queries to separate the settings: {QUALITY} of all {len(whole)} searches by "
            f"both legs is {whole[0].mean(QUALITY):.4f} on these {tuning.queries:,}"
        )
    if found is None or found.is_settled:
        return
    best, runner_up = found.best.setting.label, found.runner_up.setting.label
    yield (
        f"too few queries to separate the settings: {QUALITY} of the best two ({best}, "
        f"{runner_up}) differs by {found.difference:.4f} ± {found.half_width:.4f}, and "
        f"{found.alike} of {found.among} others cannot be told from the best; about "
        f"{found.needed:,} queries would separate these two"
    )


def _doubts_of_goal(tuning: Tuning) -> Iterator[str]:
    """Conditions on a recall that is nearer to its bound than its interval is wide."""
    row = tuning.recommended
    for measure, _, bound in tuning.goal.conditions:
        if measure in COSTS:
            continue
        half, gap = half_interval(row.values[measure]), abs(row.mean(measure) - bound)
        if gap < half:
            needed = (
                f"about {int(np.ceil(tuning.queries * (half / gap) ** 2)):,}" if gap else "more"
            )
            yield (
                f"too few queries to be sure of {bound:g} for {measure}, which is "
                f"{_value(row, measure)}; {needed} would tell"
            )


def _doubt_of_times(tuning: Tuning) -> Iterator[str]:
    row, goal = tuning.recommended, tuning.goal
    for measure in dict.fromkeys([goal.aim, *(c.measure for c in goal.conditions)]):
        if measure in ("p50", "p95") and getattr(row.times, measure).noise > NOISY:
            yield (
                f"{measure} of the recommended setting is {_value(row, measure)}: the machine was "
                "busy; measure again when it is not"
            )


def _value(row: Row, measure: str) -> str:
    """Return a value with its unit, or with half of its 95% interval."""
    if measure == "memory":
        return f"{row.memory_mb:,.1f} MB"
    if measure in COSTS:
        noise = getattr(row.times, measure).noise
        return f"{row.mean(measure):.1f} ms ± {min(noise, 9.99):.0%}"
    return f"{row.mean(measure):.4f} ± {half_interval(row.values[measure]):.4f}"


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
        "collection": departures(row.setting.options, CollectionOptions()),
        "search": {"legs": dict(row.setting.search.legs)}
        | departures(row.setting.search, SearchSettings()),
    }
    measured = ", ".join(f"{name} {row.mean(name):.4f}" for name in row.values)
    comments = [
        verdict(tuning),
        f"Measured on {tuning.queries:,} queries of {source}",
        f"over {tuning.passages:,} passages of {tuning.collection}:",
        measured,
        ", ".join(f"{name} {_value(row, name)}" for name in COSTS) + " of vectors and postings.",
        *([f"{tied}."] if (tied := ties(tuning)) else []),
        "A cross-scorer took no part; where the bundle has one, `cross: true` lets it read.",
    ]
    text = yaml.safe_dump(found, sort_keys=False)
    return "".join(f"# {line}\n" for line in comments) + text


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
        "p50_ms": f"{row.times.p50.ms:.3f}",
        "p95_ms": f"{row.times.p95.ms:.3f}",
        "p50_noise": f"{row.times.p50.noise:.3f}",
        "p95_noise": f"{row.times.p95.noise:.3f}",
        "memory_mb_computed": f"{row.memory_mb:.3f}",
        "memory_mb_if_vectors_were_on_disk_computed": f"{row.on_disk_mb:.3f}",
        "bits_per_passage_searched": f"{row.bits:g}",
        "on_front": row in fronts(tuning),
        "recommended": row is tuning.recommended,
        "tied_with_recommended": row in tuning.choice.tied,
    }
