"""What must hold before an engine takes the place of another: a paired test on judged queries."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from two_tower.ingest.loading import loader
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.data import Dataset
from two_tower.models.errors import ConfigError
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.evaluation.evaluate import Report
from two_tower.retriever.evaluation.measures import MEASURES
from two_tower.retriever.evaluation.run import evaluate
from two_tower.retriever.evaluation.systems import default_systems
from two_tower.retriever.evaluation.verdict import MEASURE
from two_tower.retriever.search.bundles import find_bundle
from two_tower.retriever.search.retriever import Retriever
from two_tower.retriever.search.settings import SearchSettings

NOW = "now"

BETTER, NOT_WORSE = "better", "not worse"

_FORM = re.compile(rf"(?P<measure>[a-z0-9@]+)\s+(?P<wish>{BETTER}|{NOT_WORSE})")


class Condition(NamedTuple):
    """What the newer engine must be, by a measure: `better` or `not worse`."""

    measure: str
    wish: str


class Outcome(NamedTuple):
    """Whether a condition holds, and a sentence with the numbers of the test behind it."""

    holds: bool
    says: str


def read_condition(text: str) -> Condition:
    """Read `MEASURE better` or `MEASURE not worse`.

    Raises:
        ConfigError: it has another form, or there is no such measure.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None or match["measure"] not in MEASURES:
        raise ConfigError(
            f"the condition is {text!r}, expected a measure ({', '.join(MEASURES)}) and what it "
            f"must be, such as 'mrr@10 {NOT_WORSE}' or 'ndcg@10 {BETTER}'"
        )
    return Condition(match["measure"], match["wish"])


def compare_versions(
    engine: Engine,
    new: str,
    old: str,
    data: Dataset,
    *,
    split: str,
    condition: Condition,
) -> Outcome:
    """Compare two versions of a collection, each with its bundle and default settings.

    Raises:
        DataError: no query of the split has an answer in the new version.
        BundleError: a bundle is nowhere to be found.
    """
    newer, older = (
        Retriever(engine, name, find_bundle(engine, name), settings=SearchSettings())
        for name in (new, old)
    )
    report = evaluate(
        newer,
        data,
        split=split,
        systems=default_systems(newer)[-1:],
        others={NOW: older},
        baseline=NOW,
    )
    return judge(report, condition)


def try_bundle(data: Dataset, bundle: ModelBundle, *, baseline: str) -> Outcome:
    """Compare an engine of DATA and this bundle with one of its stages, on split dev by nDCG@10.

    The collection is loaded into a folder that is removed afterwards.

    Args:
        data: passages and judged queries.
        bundle: what is to be judged.
        baseline: a system of `retriever evaluate`, such as bm25.

    Raises:
        DataError: no query of split dev has an answer.
    """
    with TemporaryDirectory() as folder:
        engine = connect(path=Path(folder, "edge"))
        try:
            name = loader.load(engine, data, bundle, name="trial").collection
            retriever = Retriever(engine, name, bundle, settings=SearchSettings())
            systems = [baseline, default_systems(retriever)[-1]]
            report = evaluate(retriever, data, split="dev", systems=systems, baseline=baseline)
        finally:
            engine.close()
    return judge(report, Condition(MEASURE, BETTER))


def judge(report: Report, condition: Condition) -> Outcome:
    """Return whether the last system of a report is what it must be beside the baseline.

    It is better, or worse, where the paired test says that chance would seldom do it.
    """
    measure, wish = condition
    rows = {row.system: row for row in report.systems}
    newer = report.systems[-1]
    if newer.system == report.baseline:
        return Outcome(wish == NOT_WORSE, f"{newer.system} is the best stage of both")
    compared = newer.comparisons[measure]
    low, high = compared.interval
    says = (
        f"{newer.system} has {measure} {newer.metrics[measure]:.4f}, {report.baseline} "
        f"{rows[str(report.baseline)].metrics[measure]:.4f}: {compared.difference:+.4f} "
        f"[{low:+.4f}, {high:+.4f}] on {newer.queries:,} queries, p={compared.p:.3f}"
    )
    if wish == BETTER:
        return Outcome(compared.is_significant and compared.difference > 0, says)
    return Outcome(not compared.is_significant or compared.difference >= 0, says)
