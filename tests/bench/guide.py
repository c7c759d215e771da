"""Write docs/guide.md: the text of tests/bench/guide.md with numbers from the result files.

    python tests/bench/guide.py

No number is typed: each stands in a file under tests/bench/results, or the text would not render.
"""

import json
from pathlib import Path
from typing import Any

import queries_needed
import reproduce

ROOT = Path(__file__).parent.parent.parent
TEMPLATE = Path(__file__).parent / "guide.md"
TARGET = ROOT / "docs" / "guide.md"
RESULTS = Path(__file__).parent / "results"
STAGES = ("recall@1", "recall@10", "recall@100", "mrr@10")


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return content


def render() -> str:
    """Return docs/guide.md as the result files have it now."""
    dev, needed = read("msmarco-95k-dev.json"), read("queries-needed.json")
    reproduced = read("reproductions.json")
    text = TEMPLATE.read_text(encoding="utf-8")
    values = {
        **_of_systems(dev),
        **_of_queries(needed),
        "passages": f"{dev['passages']:,}",
        "stages": stages_table(dev),
        "notes": reproduce.notes_markdown(reproduced["notes"]),
        "zero_shot": reproduce.zero_shot_markdown(reproduced["zero_shot"]),
        "anserini": reproduce.ANSERINI,
        "analyzer_p": f"{min(analyzer_ps(reproduced)):.2f}",
        "needed": queries_needed.to_markdown(needed),
    }
    return text.format(**values)


def stages_table(dev: dict[str, Any]) -> str:
    lines = [f"| stage | {' | '.join(STAGES)} | p50 ms |", "| --- " + "| ---: " * 5 + "|"]
    for row in dev["systems"]:
        values = " | ".join(f"{row['metrics'][name]:.3f}" for name in STAGES)
        lines.append(f"| {row['system']} | {values} | {row['p50_ms']:.1f} |")
    return "\n".join(lines)


def analyzer_ps(reproduced: dict[str, Any]) -> list[float]:
    """Return the p of the engine's terms against Anserini's, one per corpus."""
    rows = reproduced["zero_shot"].values()
    return [float(row["systems"][reproduce.ANSERINI]["p"]) for row in rows]


def _of_systems(dev: dict[str, Any]) -> dict[str, str]:
    rows = {row["system"]: row for row in dev["systems"]}
    mrr = {f"{name}_mrr": f"{row['metrics']['mrr@10']:.3f}" for name, row in rows.items()}
    recall = {f"{name}_recall": f"{row['metrics']['recall@100']:.3f}" for name, row in rows.items()}
    ms = {f"{name}_ms": f"{row['p50_ms']:.0f}" for name, row in rows.items()}
    return {**mrr, **recall, **ms, "queries": f"{dev['systems'][0]['queries']:,}"}


def _of_queries(needed: dict[str, Any]) -> dict[str, str]:
    rows = {row["queries"]: row for row in needed["rows"]}
    gaps = {f"gap_{name}": f"{gap:+.3f}" for name, gap in needed["differences"].items()}
    return {
        **gaps,
        "half_1000": f"{rows[1000]['half_width']:.3f}",
        "small_1000": f"{rows[1000]['smallest']['rerank']:.3f}",
        "half_100": f"{rows[100]['half_width']:.3f}",
        "small_100": f"{rows[100]['smallest']['rerank']:.3f}",
    }


def main() -> None:
    TARGET.write_text(render(), encoding="utf-8")
    print(f"Wrote {TARGET.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
