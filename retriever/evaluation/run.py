"""An evaluation from beginning to end: systems chosen, measured, and written down."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from two_tower.models.data import Dataset
from two_tower.models.files import require_place
from two_tower.models.progress import progress, working
from two_tower.retriever.evaluation.contrast import find_contrasts
from two_tower.retriever.evaluation.evaluate import Report, measure_all
from two_tower.retriever.evaluation.page import write_report
from two_tower.retriever.evaluation.requirements import read_requirement
from two_tower.retriever.evaluation.systems import choose_systems, run_system
from two_tower.retriever.search.chances import JUDGEMENTS, judgements_of
from two_tower.retriever.search.retriever import Retriever

log = logging.getLogger(__name__)

NO_OTHERS: Mapping[str, Retriever] = MappingProxyType({})


def evaluate(
    retriever: Retriever,
    data: str | Path | Dataset,
    out: str | Path | None = None,
    *,
    split: str = "dev",
    systems: Sequence[str] | None = None,
    others: Mapping[str, Retriever] = NO_OTHERS,
    runs: Sequence[str | Path] = (),
    baseline: str | None = None,
    relevant_from: int | None = None,
    keep_own: bool = False,
    require: Sequence[str] = (),
) -> Report:
    """Measure systems over the whole corpus, as `retriever evaluate` does.

    Args:
        retriever: an open collection.
        data: DATA with the judged queries.
        out: folder for the report's files; none are written where it is None.
        split: which judgements.
        systems: their names; all but rank_bm25 by default.
        others: name -> another collection, whose systems are `name/dense` and the like.
        runs: TREC run files of other engines.
        baseline: system that the others are compared with; bm25 by default, where it is measured.
        relevant_from: grade from which a passage is relevant to recall, MRR and MAP; by default 1,
            and 2 for grades of a model.
        keep_own: count the passage that a query is itself, by its id.
        require: what `requirements.misses` will be asked; checked before anything is measured.

    Raises:
        ConfigError: an unknown system, an impossible requirement, or `out` cannot be written.
        DataError: DATA or a run cannot be used, or no query of the split has an answer there.
        EndpointError: the settings name a language model that does not answer.
    """
    dataset = data if isinstance(data, Dataset) else Dataset.open(data)
    folder = None if out is None else Path(out)
    if folder:
        require_place(folder, what="a report")
    measured = choose_systems(retriever, None if systems is None else [*systems], others=others)
    every = [*(run_system(Path(file), dataset, split=split) for file in runs), *measured]
    _check(require, [system.name for system in every])
    if retriever.rewriting:
        retriever.rewriting.check()
    evaluation = measure_all(
        retriever,
        dataset,
        systems=every,
        split=split,
        baseline=baseline,
        relevant_from=relevant_from,
        keep_own=keep_own,
    )
    if split == "train" and dataset.content_hash in retriever.bundle.card.get("labels", ()):
        log.warning(
            "the bundle learnt from these very queries, so its rows say too much; measure with "
            "split dev, which ingest prepare --dev-fraction sets aside"
        )
    if retriever.metadata.fusion.get(JUDGEMENTS) == judgements_of(dataset, split):
        log.warning(
            "the collection was calibrated on these very queries, so its weight and chances fit "
            "them; measure with another split, or with other judged queries"
        )
    if folder:
        passages = progress(
            retriever.passages(), label="Reading for the report", total=retriever.size
        )
        contrasts = find_contrasts(evaluation, passages)
        with working("Writing the report"):
            write_report(evaluation, contrasts, folder)
    return evaluation.report


def _check(requirements: Sequence[str], systems: Sequence[str]) -> None:
    for text in requirements:
        read_requirement(text, systems)
