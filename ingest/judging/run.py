"""A judging from beginning to end: who ranks, who judged, what the model is asked."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from two_tower.ingest.dataset.folder import require_free
from two_tower.ingest.judging.judge import Judge, Judged, find_questions, read_people
from two_tower.ingest.judging.prompt import read_grade_prompt
from two_tower.models.data import Dataset, Qrel, Query
from two_tower.models.endpoint.answer_cache import CachedModel
from two_tower.models.endpoint.language_model import LanguageModel
from two_tower.models.errors import ConfigError
from two_tower.models.progress import progress
from two_tower.retriever.evaluation.measures import Rankings
from two_tower.retriever.evaluation.systems import choose_systems, read_ahead
from two_tower.retriever.evaluation.trec import read_run
from two_tower.retriever.search.retriever import Retriever

BATCH = 64


def judge(
    data: str | Path | Dataset,
    out: str | Path,
    *,
    llm: str,
    model: str,
    retriever: Retriever | None = None,
    systems: Sequence[str] | None = None,
    runs: Sequence[str | Path] = (),
    check: str | Path | None = None,
    prompt: str | Path | None = None,
    depth: int = 10,
    at_once: int = 4,
    overwrite: bool = False,
) -> Judged:
    """Let a language model grade what systems find for the queries of DATA that nobody judged.

    What the model answered is kept: the same call after a kill asks for the rest alone.

    Args:
        data: DATA with queries without judgement.
        out: the DATA folder to make: all of `data`, and the grades in split `judged`.
        llm: URL of a service with OpenAI's interface; its key comes from TWO_TOWER_API_KEY.
        model: the model's name there.
        retriever: an open collection whose systems rank.
        systems: their names; all but rank_bm25 by default.
        runs: TREC run files of further systems.
        check: split of DATA, or file, with 50 or more judgements by people: the model judges those
            queries as well, and its agreement is returned and kept.
        prompt: text file with {query} and {passage} in it that asks for a grade from 0 to 3.
        depth: passages of each system and query.
        at_once: calls at the same time.
        overwrite: replace a DATA folder.

    Raises:
        ConfigError: nothing ranks, or the prompt cannot be used.
        DataError: no query is without judgement, a file cannot be read, or `out` not be written.
        EndpointError: the model does not answer; what it answered is kept.
    """
    dataset = data if isinstance(data, Dataset) else Dataset.open(data)
    require_free(Path(out).resolve(), overwrite=overwrite)
    with CachedModel(LanguageModel(llm, model)) as judging:
        run = open_judge(
            dataset,
            judging,
            retriever=retriever,
            systems=systems,
            runs=runs,
            check=check,
            prompt=prompt,
            depth=depth,
        )
        return run.run(Path(out), at_once=at_once, check=str(check or ""), overwrite=overwrite)


def open_judge(
    data: Dataset,
    model: CachedModel,
    *,
    retriever: Retriever | None,
    systems: Sequence[str] | None,
    runs: Sequence[str | Path],
    check: str | Path | None,
    prompt: str | Path | None,
    depth: int,
) -> Judge:
    """Let the systems rank, and pool what they find; see `judge`."""
    if retriever is None and not runs:
        raise ConfigError("nothing ranks passages; add --collection NAME, or --run FILE")
    text = read_grade_prompt(None if prompt is None else Path(prompt))
    merged = data.merged_ids()
    questions = find_questions(data, _people(data, check, merged))
    rankings: dict[str, Rankings] = {
        Path(file).stem: read_run(Path(file), merged=merged) for file in runs
    }
    if retriever is not None:
        asked = [*questions.queries, *questions.checked]
        rankings |= _rankings(retriever, systems, asked, depth=depth)
    return Judge(data, questions, rankings, model=model, prompt=text, depth=depth)


def _people(data: Dataset, check: str | Path | None, merged: Mapping[str, str]) -> list[Qrel]:
    """Return the judgements of people that `check` names."""
    if check is None:
        return []
    if str(check) in data.splits:
        return data.qrels(str(check))
    people = read_people(Path(check))
    return [q._replace(passage_id=merged.get(q.passage_id, q.passage_id)) for q in people]


def _rankings(
    retriever: Retriever, systems: Sequence[str] | None, queries: Sequence[Query], *, depth: int
) -> Mapping[str, Rankings]:
    """Let the systems of a collection rank."""
    chosen = choose_systems(retriever, None if systems is None else [*systems], others={})
    read_ahead(retriever, queries)
    batches = [queries[start : start + BATCH] for start in range(0, len(queries), BATCH)]
    rankings = {}
    for system in chosen:
        rank = system.start().rank
        rankings[system.name] = {
            query.query_id: ids
            for batch in progress(batches, label=system.name)
            for query, ids in zip(batch, rank(batch, min(depth, retriever.size)), strict=True)
        }
    return rankings
