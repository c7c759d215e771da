"""docs/: every link leads somewhere, every snippet is read or run, every number was measured."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.main import get_command

from two_tower.ingest.cli import app as ingest_app
from two_tower.models.cli import app as models_app
from two_tower.models.config import from_mapping
from two_tower.models.training.config import TrainConfig
from two_tower.models.training.sweep import read_space
from two_tower.retriever.cli import app as retriever_app
from two_tower.retriever.evaluation.evaluate import Report
from two_tower.retriever.evaluation.report import to_markdown
from two_tower.retriever.search.settings import read_file

sys.path.insert(0, str(Path(__file__).parent / "bench"))

import ablation_table
import commands
import generated
import guide
import huge_table
import label_curve
import peers_table
import queries_needed
import recipes
import reproduce

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "tests" / "bench" / "results"
PAGES = {
    path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))
}
LINKED = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "deploy/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
PROGRAMS = {"ingest": ingest_app, "models": models_app, "retriever": retriever_app}
OF_THEIR_TIME = "experiments.md"
"""Its commands are those that were run, with the options that there were."""
LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)|^\[[^\]]+\]: (\S+)$", re.M)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.M)
SPAN = re.compile(r"^(?: {4}|\$ )(\S.*)$|`([^`\n]+)`", re.M)
CALL = re.compile(r"\b(ingest|models|retriever) ([a-z]+(?:\|[a-z]+)*)\b([^\n`&#]*)")


def blocks_of(text: str, language: str) -> list[str]:
    """Return the fenced blocks of one language."""
    return [block for found, block in FENCE.findall(text) if found == language]


def slugs_of(path: Path) -> set[str]:
    """Return the anchors of a page, as GitHub makes them of its headings."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    seen: Counter[str] = Counter()
    slugs = set()
    for heading in re.findall(r"^#{1,6} (.+)$", text, re.M):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        slugs.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return slugs


@pytest.mark.parametrize("path", LINKED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_and_anchor_leads_somewhere(path: Path) -> None:
    for first, second in LINK.findall(path.read_text(encoding="utf-8")):
        target = first or second
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        page = (path.parent / file).resolve() if file else path
        assert page.exists(), f"{path.name} links to {target}"
        assert not anchor or anchor in slugs_of(page), f"{path.name} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_begins_with_whom_it_is_for(page: str) -> None:
    assert re.match(r"# .+\n\nFor whoever ", PAGES[page])


def test_every_page_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in PAGES:
        assert f"(docs/{page}" in readme, page


def test_the_commands_are_those_of_the_code() -> None:
    assert PAGES["commands.md"] == commands.render(), "run: make docs"


def test_every_command_has_help_and_a_section() -> None:
    for program, app in PROGRAMS.items():
        for name, command in get_command(app).commands.items():
            assert f"\n### {program} {name}\n" in PAGES["commands.md"]
            assert command.help, f"{program} {name} has no help"


def calls_of(text: str) -> Iterator[tuple[str, str, set[str]]]:
    """Yield program, command and options of every call in code: blocks and inline."""
    code = [block for language, block in FENCE.findall(text) if language != "python"]
    code += [first or second for first, second in SPAN.findall(FENCE.sub("", text))]
    for span in code:
        for program, names, rest in CALL.findall(span):
            for name in names.split("|"):
                yield program, name, set(re.findall(r"(?<!\S)--[a-z-]+", rest))


@pytest.mark.parametrize("path", LINKED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_and_option_that_is_shown_exists(path: Path) -> None:
    if path.name == OF_THEIR_TIME:
        return
    for program, name, options in calls_of(path.read_text(encoding="utf-8")):
        known = get_command(PROGRAMS[program]).commands
        assert name in known, f"{path.name}: {program} {name}"
        parameters = known[name].params
        names = {o for p in parameters for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        assert options <= names, f"{path.name}: {program} {name} {sorted(options - names)}"


def test_json_snippets_are_json() -> None:
    snippets = [block for text in PAGES.values() for block in blocks_of(text, "json")]
    assert len(snippets) >= 4
    for block in snippets:
        assert json.loads(re.sub(r"^POST .*\n", "", block))


def test_yaml_snippets_are_what_the_commands_read(tmp_path: Path) -> None:
    kinds: Counter[str] = Counter()
    for text in PAGES.values():
        for block in blocks_of(text, "yaml"):
            file = tmp_path / "snippet.yaml"
            file.write_text(block, encoding="utf-8")
            content: dict[str, Any] = yaml.safe_load(block)
            if {"collection", "search"} & set(content):
                kinds["settings"] += 1
                assert read_file(file)
            elif all("." in key for key in content):
                kinds["space"] += 1
                assert read_space(file)
            else:
                kinds["recipe"] += 1
                assert from_mapping(TrainConfig, content)
    assert set(kinds) == {"settings", "space", "recipe"}


def test_the_index_lists_every_experiment() -> None:
    text = PAGES[OF_THEIR_TIME]
    index, _, _ = text.partition("\n## ")
    headings = re.findall(r"^## (\d{4}-\d\d-\d\d) · (.+)$", text, re.M)
    lines = re.findall(r"^- (\d{4}-\d\d-\d\d) · \[(.+)\]\(#(.+?)\): \S.+$", index, re.M)
    assert [(date, title) for date, title, _ in lines] == headings
    assert len(headings) == len(re.findall(r"^## ", text, re.M)) > 20
    anchors = [anchor for *_, anchor in lines]
    assert len(set(anchors)) == len(anchors)
    assert set(anchors) <= slugs_of(ROOT / "docs" / OF_THEIR_TIME)
    assert [date for date, _ in headings] == sorted((d for d, _ in headings), reverse=True)


@pytest.mark.parametrize("name", ["msmarco-95k-dev.json", "python-docs-dev.json"])
def test_a_table_of_every_stage_is_the_committed_run(name: str) -> None:
    stored = json.loads((RESULTS / name).read_text())
    table = to_markdown(Report.from_dict(stored)).split("\n\n")[1]
    assert table in PAGES["evaluation.md"]


def test_the_tables_of_recipes_are_the_committed_run() -> None:
    stored = json.loads(recipes.RESULTS.read_text())
    assert recipes.to_markdown(stored) in PAGES["evaluation.md"]
    assert recipes.to_chances(stored) in PAGES["evaluation.md"]


def test_the_tables_beside_other_packages_are_the_committed_run() -> None:
    tables = peers_table.to_markdown(json.loads((RESULTS / "peers.json").read_text()))
    *shown, growth = tables.split("\n\n")
    for table in shown:
        assert table in PAGES["evaluation.md"]
    assert growth in PAGES[OF_THEIR_TIME]


def test_how_long_a_recipe_trains_is_said_once() -> None:
    """The row `cross-scorer` of the ablation is the recipe `fast`."""
    stored = json.loads((RESULTS / "ablation.json").read_text())
    rows = {name: next(iter(stored["rows"][name].values())) for name in stored["rows"]}
    fast, taught, transformer = (
        round((rows[name]["seconds"] + rows[name]["start_seconds"]) / 60)
        for name in ("cross-scorer", "taught", "transformer")
    )
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    page = " ".join(PAGES["evaluation.md"].split())
    assert f"`fast` trains in {fast} minutes on one thread of a machine that other jobs" in readme
    assert f"other jobs share (`seconds` in `ablation.json`): `fast` {fast} minutes" in page
    assert f"`taught` {taught} once" in page
    assert f"`transformer` {transformer}, in" in page
    assert ablation_table.to_brief(stored) in PAGES["evaluation.md"]


@pytest.mark.parametrize("page", ["generating.md", "experiments.md"])
def test_what_generated_queries_are_worth_is_the_committed_run(page: str) -> None:
    measured = json.loads((RESULTS / "ablation.json").read_text())
    engines = json.loads((RESULTS / "generated.json").read_text())
    assert label_curve.to_markdown(measured) in PAGES[page]
    assert generated.to_markdown(engines) in PAGES[page]


def test_what_large_collections_take_is_the_committed_run() -> None:
    tables = huge_table.tables(json.loads((RESULTS / "huge.json").read_text()))
    assert all(table in PAGES["scale.md"] for table in tables)
    assert PAGES["scale.md"].count("\n| --") == len(tables)  # no other one


def test_the_guide_is_what_the_result_files_say() -> None:
    written = guide.TARGET.read_text(encoding="utf-8")
    assert written == guide.render(), "run: python tests/bench/guide.py"


def test_no_number_of_the_guide_is_typed() -> None:
    template = guide.TEMPLATE.read_text(encoding="utf-8")
    assert re.findall(r"\d+[.,]\d+|\.\d+", template) == []


def test_every_file_that_a_page_names_exists() -> None:
    for page, text in PAGES.items():
        for name in re.findall(
            r"`(?:tests/bench/results/)?([\w-]+-dev\.json|[\w-]*needed\.json)`", text
        ):
            assert (RESULTS / name).is_file(), f"{page}: {name}"
        for path in re.findall(r"`python (\S+?\.py)\b", text):
            assert (ROOT / path).is_file(), f"{page}: {path}"
    for name in re.findall(r"`([\w-]+\.json)`", PAGES["guide.md"]):
        assert (RESULTS / name).is_file(), name


def test_the_engines_bm25_is_within_a_hundredth_of_others() -> None:
    for name, row in guide.read("reproductions.json")["zero_shot"].items():
        ours = row["systems"]["bm25"]["ndcg@10"]
        assert abs(ours - row["systems"][reproduce.SAME]["ndcg@10"]) < 0.01, name
        if row["published"]:
            assert abs(ours - row["published"]) < 0.01, name


def test_what_the_guide_says_in_words_is_so() -> None:
    rows = {row["system"]: row["metrics"] for row in guide.read("msmarco-95k-dev.json")["systems"]}
    mrr = {name: metrics["mrr@10"] for name, metrics in rows.items()}
    assert mrr["dense"] < mrr["rrf"] < mrr["bm25"] < mrr["hybrid"] < mrr["cross"]
    assert rows["rrf"]["recall@100"] > rows["bm25"]["recall@100"]
    assert abs(mrr["rerank"] - mrr["hybrid"]) < 0.005
    reproduced = guide.read("reproductions.json")
    for row in reproduced["zero_shot"].values():
        same, other = (
            row["systems"][name]["ndcg@10"] for name in (reproduce.SAME, reproduce.ANSERINI)
        )
        assert same >= other
    assert 2 * min(guide.analyzer_ps(reproduced)) > 0.05  # two systems were compared with ours


def test_half_widths_are_those_of_the_bootstrap() -> None:
    """The formula, at the number of queries there are, against the interval of the report."""
    needed, dev = guide.read("queries-needed.json"), guide.read("msmarco-95k-dev.json")
    (row,) = [r for r in dev["systems"] if r["system"] == needed["baseline"]]
    low, high = row["intervals"][needed["measure"]]
    by_root = [each["half_width"] * each["queries"] ** 0.5 for each in needed["rows"]]
    for constant in by_root:
        assert abs(constant / needed["queries"] ** 0.5 - (high - low) / 2) < 0.001


def test_smallest_difference_is_seen_four_times_in_five() -> None:
    differences = np.random.default_rng(2).normal(0.0, 0.4, size=20_000)
    differences -= differences.mean()
    smallest = queries_needed.smallest_difference(differences, 200)
    assert abs(queries_needed.share_seen(differences + smallest, 200) - 0.8) < 0.05
    assert queries_needed.share_seen(differences, 200) < 0.08
