"""What huge.json holds, as the tables and charts of docs/scale.md.

    python tests/bench/huge_table.py

Prints Markdown, and draws docs/img/scale.png and docs/img/curves.png.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ablation_table import aligned

from two_tower.models.drawing import COLOURS, drawing, save

ROOT = Path(__file__).parent.parent.parent
RESULTS = Path(__file__).parent / "results" / "huge.json"
IMAGES = ROOT / "docs" / "img"
STAGES = ("dense", "bm25", "hybrid", "cross")
PERCENTILES = ("p50", "p95", "p99")
PLANNED = (100_000_000, 1_000_000_000)
FOUND = {"recall@1": "recall@1 by the judgements", "of exact": "recall@10 of an exact search"}
REPLICAS = 2
DOLLARS = {"core": 12.0, "memory_gb": 3.0, "disk_gb": 0.1}  # a month; assumed, and easily replaced
SPARE = 1.5  # of disk: a new version grows beside the old one, a part at a time
Row = Mapping[str, Any]


def steps_table(steps: Sequence[Row]) -> str:
    """Return what each size took: load, memory, disk, and what was foreseen."""
    heads = ["passages", "loaded in", "passages/s", "at rest after", "loader's peak"]
    heads += [
        "server's peak",
        "its peak without a file",
        "held at rest",
        "estimate",
        "disk",
        "estimate",
    ]
    table = [heads]
    for before, row in zip([None, *steps], steps, strict=False):
        new = row["passages"] - (before["passages"] if before else 0)
        table.append(
            [
                f"{row['passages']:,}",
                f"{row['load_s'] / 60:.1f} min",
                f"{new / row['step_s']:,.0f}",
                f"{row['settle_s']:.0f} s",
                *(
                    f"{row[name] / 1000:.1f} GB"
                    for name in (
                        "loader_mb",
                        "peak_server_mb",
                        "peak_server_anonymous_mb",
                        "server_held_mb",
                        "estimated_memory_mb",
                        "disk_mb",
                        "estimated_disk_mb",
                    )
                ),
            ]
        )
    return "\n".join(aligned(table))


def times_table(steps: Sequence[Row]) -> str:
    """Return p50, p95 and p99 in ms of each stage at each size, and the dense leg's recall."""
    stages = [stage for stage in STAGES if f"{stage}_p50_ms" in steps[0]]
    table = [["passages", "dense recall@10 of exact", *stages, "raw request, p50", "hybrid / raw"]]
    for row in steps:
        costs = [" / ".join(f"{row[f'{s}_{p}_ms']:.0f}" for p in PERCENTILES) for s in stages]
        raw = [f"{row['raw_p50_ms']:.1f}", f"{row['times_raw']:.2f}"]
        table.append([f"{row['passages']:,}", f"{row['dense_recall@10']:.3f}", *costs, *raw])
    return "\n".join(aligned(table))


def restart_table(row: Row) -> str:
    """Return what queries of a server cost that was started again, the first ones before all."""
    names = {"first": "hybrid, the first 200 queries"} | {stage: stage for stage in STAGES}
    table = [["after a restart", *(f"{p}, ms" for p in PERCENTILES)]]
    for stage, name in names.items():
        table.append([name, *(f"{row[f'{stage}_{p}_ms']:.0f}" for p in PERCENTILES)])
    clients = f"hybrid, {row['clients']} clients at once: {row['per_second']:.0f} searches/s"
    table.append([clients, *(f"{row[f'clients_{p}_ms']:.0f}" for p in PERCENTILES[:2]), ""])
    return "\n".join(aligned(table))


def forecast_table(steps: Sequence[Row]) -> str:
    """Return what was foreseen of the largest size, and what it took.

    Memory and disk are foreseen by `ingest load --dry-run`, times by a line through the smaller
    sizes.
    """
    *smaller, largest = steps
    sizes = [row["passages"] for row in smaller]
    table = [[f"{largest['passages']:,} passages", "foreseen", "measured", "measured / foreseen"]]
    for what, name, estimated in (
        ("memory, GB", "server_held_mb", "estimated_memory_mb"),
        ("disk, GB", "disk_mb", "estimated_disk_mb"),
    ):
        table.append([what, *_foreseen(largest[estimated] / 1000, largest[name] / 1000)])
    for stage in (stage for stage in STAGES if f"{stage}_p95_ms" in largest):
        slope, start = np.polyfit(sizes, [row[f"{stage}_p95_ms"] for row in smaller], 1)
        foreseen = start + slope * largest["passages"]
        table.append([f"{stage}, p95 ms", *_foreseen(foreseen, largest[f"{stage}_p95_ms"])])
    return "\n".join(aligned(table))


def _foreseen(foreseen: float, measured: float) -> list[str]:
    return [f"{foreseen:.1f}", f"{measured:.1f}", f"{measured / foreseen:.2f}"]


def likeness_table(likeness: Mapping[str, Row]) -> str:
    """Return the statistics of real and made passages beside each other."""
    table = [["", *likeness]]
    for name in likeness["real"]:
        table.append([name.replace("_", " "), *(str(each[name]) for each in likeness.values())])
    return "\n".join(aligned(table))


def curves_table(rows: Sequence[Row]) -> str:
    """Return every way to search approximately: what it finds and what it costs."""
    table = [["search", "recall@1", "recall@10 of exact", "p50 ms", "p95 ms"]]
    for row in rows:
        costs = [f"{row[name]:.1f}" for name in ("p50_ms", "p95_ms")]
        found = [f"{row[name]:.3f}" for name in ("recall@1", "of exact")]
        table.append([_name(row), *found, *costs])
    return "\n".join(aligned(table))


def _name(row: Row) -> str:
    if row["curve"] == "bits":
        bits = "1 bit" if row["bits"] == "1" else f"{row['bits']} bits"
        return f"{bits}, {row['rescored']:,} rescored"
    if row["curve"] == "clusters":
        return f"{row['clusters']:,} clusters, {row['probes']} probed"
    return "exact"


def plan_table(row: Row, *, cores: int, memory: float, per_second: float) -> str:
    """Return how many machines like the measured one larger corpora take, and what they cost.

    Every shard has a loader of its own.

    Args:
        row: the largest size measured: a machine holds one shard of so many passages.
        cores: of the machine.
        memory: of the machine, in GB.
        per_second: searches that the machine answered, each of which asks every shard.
    """
    disk = SPARE * row["disk_mb"] / 1000
    dollars = cores * DOLLARS["core"] + memory * DOLLARS["memory_gb"] + disk * DOLLARS["disk_gb"]
    heads = [
        "passages",
        "shards",
        "machines",
        "memory",
        "disk",
        "loaded in",
        "searches/s",
        "dollars a month",
    ]
    table = [heads]
    for passages in PLANNED:
        shards = math.ceil(passages / row["passages"])
        machines = shards * REPLICAS
        table.append(
            [
                f"{passages:,}",
                str(shards),
                str(machines),
                f"{machines * memory:,.0f} GB",
                f"{machines * disk:,.0f} GB",
                f"{passages / shards / row['passages'] * row['load_s'] / 60:.0f} min",
                f"{REPLICAS * per_second:.0f}",
                f"{machines * dollars:,.0f}",
            ]
        )
    return "\n".join(aligned(table))


@drawing()
def draw_steps(steps: Sequence[Row], target: Path) -> None:
    """Draw memory, disk and times against the number of passages."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    sizes = [row["passages"] / 1e6 for row in steps]
    panels = figure.subplots(1, 3)
    for panel, name, label in zip(
        panels, ("server_held_mb", "disk_mb"), ("memory", "disk"), strict=False
    ):
        estimated = "estimated_memory_mb" if name == "server_held_mb" else "estimated_disk_mb"
        panel.plot(sizes, [row[name] / 1000 for row in steps], "o-", label="measured")
        panel.plot(sizes, [row[estimated] / 1000 for row in steps], "x--", label="estimate")
        panel.set(title=f"{label}, GB")
    for stage, colour in zip(STAGES, COLOURS, strict=False):
        if f"{stage}_p95_ms" in steps[0]:
            values = [row[f"{stage}_p95_ms"] for row in steps]
            panels[-1].plot(sizes, values, "o-", color=colour, label=stage)
    panels[-1].set(title="p95 of a query, ms")
    for panel in panels:
        panel.set(xlabel="million passages", ylim=(0, None))
        panel.grid(alpha=0.3)
        panel.legend()
    save(figure, target, dpi=110)


@drawing()
def draw_curves(rows: Sequence[Row], target: Path) -> None:
    """Draw what is found against bits by rescored candidates, and against clusters by probes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.4), layout="constrained")
    exact = next(row for row in rows if row["curve"] == "exact")
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    panels[0, 0].set_ylim(0, None)
    for column, (x, colour_by) in enumerate((("bits", "rescored"), ("clusters", "probes"))):
        curve = [row for row in rows if row["curve"] == x]
        places = [str(value) for value in dict.fromkeys(row[x] for row in curve)]
        for line, (found, label) in enumerate(FOUND.items()):
            panel = panels[line, column]
            values = sorted({row[colour_by] for row in curve})
            for colour, value in zip(COLOURS, values, strict=False):
                points = [row for row in curve if row[colour_by] == value]
                at = [places.index(str(row[x])) for row in points]
                name = f"{value:,} {colour_by}"
                panel.plot(at, [row[found] for row in points], "o-", color=colour, label=name)
            panel.axhline(exact[found], color=COLOURS[-1], linestyle=":", label="exact")
            panel.set(ylabel=label if column == 0 else None, xlabel=x if line else None)
            panel.grid(alpha=0.3)
        panels[1, column].set_xticks(range(len(places)), places)
        panels[0, column].legend(loc="upper right", fontsize="small", ncols=2)
    save(figure, target, dpi=110)


def tables(found: Mapping[str, Any]) -> list[str]:
    """Return the tables of docs/scale.md, in its order."""
    steps = found["steps"]
    return [
        steps_table(steps),
        times_table(steps),
        restart_table(found["restarted"]),
        forecast_table(steps),
        curves_table(found["curves"]["rows"]),
        likeness_table(found["likeness"]),
        plan_table(
            steps[-1],
            cores=found["cores"],
            memory=found["memory_gb"],
            per_second=found["restarted"]["per_second"],
        ),
    ]


def main() -> None:
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    print("\n\n".join(tables(found)))
    draw_steps(found["steps"], IMAGES / "scale.png")
    draw_curves(found["curves"]["rows"], IMAGES / "curves.png")


if __name__ == "__main__":
    main()
