"""The tables and charts of large collections, from figures that are made up."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "bench"))

import huge_table


def made_up(passages: int, *, step_s: float, load_s: float) -> dict[str, float]:
    """Return one measured size; every time is its stage's place and its percentile."""
    row = {"passages": passages, "step_s": step_s, "load_s": load_s, "settle_s": 2.0}
    row |= {"loader_mb": 500, "peak_server_mb": 4000, "server_held_mb": 3000, "disk_mb": 20_000}
    row |= {"peak_server_anonymous_mb": 3500}
    row |= {"estimated_memory_mb": 3100, "estimated_disk_mb": 21_000, "dense_recall@10": 0.98}
    row |= {"raw_p50_ms": 8.0, "times_raw": 1.1}
    for place, stage in enumerate(huge_table.STAGES):
        row |= {f"{stage}_{p}_ms": 10 * place + i for i, p in enumerate(huge_table.PERCENTILES)}
    return row


STEPS = [made_up(100, step_s=10, load_s=10), made_up(400, step_s=60, load_s=70)]
CURVES = [
    {"curve": "exact", "recall@1": 0.6, "of exact": 1.0, "p50_ms": 9.0, "p95_ms": 12.0},
    *(
        {"curve": "bits", "bits": bits, "rescored": n, "recall@1": 0.5, "of exact": 0.9}
        | {"p50_ms": 1.0, "p95_ms": 2.0}
        for bits in ("1", "8")
        for n in (100, 1600)
    ),
    *(
        {"curve": "clusters", "clusters": c, "probes": n, "recall@1": 0.4, "of exact": 0.8}
        | {"p50_ms": 1.0, "p95_ms": 2.0}
        for c in (64, 256)
        for n in (1, 4)
    ),
]


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def test_a_step_is_timed_by_what_it_added() -> None:
    first, second = cells(huge_table.steps_table(STEPS))
    assert first[:4] == ["100", "0.2 min", "10", "2 s"]
    assert second[:4] == ["400", "1.2 min", "5", "2 s"]  # 300 more in 60 s
    assert second[4:] == ["0.5 GB", "4.0 GB", "3.5 GB", "3.0 GB", "3.1 GB", "20.0 GB", "21.0 GB"]


def test_every_stage_has_its_percentiles() -> None:
    assert cells(huge_table.times_table(STEPS))[0] == [
        *("100", "0.980"),
        *("0 / 1 / 2", "10 / 11 / 12", "20 / 21 / 22", "30 / 31 / 32"),
        *("8.0", "1.10"),
    ]


def test_a_restart_has_a_row_for_its_first_queries_and_one_for_many_clients() -> None:
    row = made_up(100, step_s=1, load_s=1) | {f"first_{p}_ms": 90 for p in huge_table.PERCENTILES}
    row |= {"clients": 8, "clients_p50_ms": 60, "clients_p95_ms": 70, "per_second": 11.5}
    rows = cells(huge_table.restart_table(row))
    assert rows[0] == ["hybrid, the first 200 queries", "90", "90", "90"]
    assert rows[3] == ["hybrid", "20", "21", "22"]
    assert rows[-1] == ["hybrid, 8 clients at once: 12 searches/s", "60", "70", ""]


def test_the_largest_size_is_foreseen_by_a_line_through_the_others() -> None:
    steps = [made_up(size, step_s=1, load_s=1) for size in (100, 200, 400)]
    for row, p95 in zip(steps, (10.0, 20.0, 60.0), strict=True):
        row["hybrid_p95_ms"] = p95
    rows = {name: rest for name, *rest in cells(huge_table.forecast_table(steps))}
    assert rows["hybrid, p95 ms"] == ["40.0", "60.0", "1.50"]
    assert rows["memory, GB"] == ["3.1", "3.0", "0.97"]


def test_a_plan_is_whole_machines_of_the_measured_kind() -> None:
    row = made_up(14_000_000, step_s=1, load_s=4200)
    small, large = cells(huge_table.plan_table(row, cores=2, memory=4, per_second=50))
    # 100 / 14 and 1,000 / 14 shards, rounded up, two replicas; 2 x 12 + 4 x 3 + 30 x .1 dollars
    assert small == ["100,000,000", "8", "16", "64 GB", "480 GB", "62 min", "100", "624"]
    assert large == ["1,000,000,000", "72", "144", "576 GB", "4,320 GB", "69 min", "100", "5,616"]


def test_curves_name_what_was_probed_and_charts_are_drawn(tmp_path: Path) -> None:
    names = [row[0] for row in cells(huge_table.curves_table(CURVES))]
    assert names[:3] == ["exact", "1 bit, 100 rescored", "1 bit, 1,600 rescored"]
    assert names[-1] == "256 clusters, 4 probed"
    huge_table.draw_steps(STEPS, tmp_path / "scale.png")
    huge_table.draw_curves(CURVES, tmp_path / "curves.png")
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("scale.png", "curves.png"))
