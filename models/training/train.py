"""`train`: from DATA to a bundle in one call, as `models train` does it.

The library below takes an analyzer and stored vectors, and knows no engine. This call names the
engine's, and by name only: nothing below models/ imports from retriever/ or ingest/.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.files import check_target
from two_tower.models.data import Dataset
from two_tower.models.errors import ConfigError, TrainingError
from two_tower.models.files import put_in_place
from two_tower.models.training.config import TrainConfig
from two_tower.models.training.recipe import read_config
from two_tower.models.training.run import Inputs, RunOptions, train_bundle
from two_tower.models.training.tracking import wandb_options

if TYPE_CHECKING:
    from two_tower.models.objectives.alignment import DocumentVectors
    from two_tower.models.text.bm25 import Analyzer

BASELINES = ("bm25", "tfidf")

NO_CHANGES: Mapping[str, Any] = MappingProxyType({})


def train(
    data: str | Path | Dataset,
    out: str | Path,
    *,
    config: str | None = None,
    changes: Mapping[str, Any] = NO_CHANGES,
    negatives: str | Path | None = None,
    start: str | Path | ModelBundle | None = None,
    only: Sequence[str] | None = None,
    documents: str | None = None,
    url: str | None = None,
    path: str | Path | None = None,
    device: str = "auto",
    wandb: str = "disabled",
    force: bool = False,
    must_beat: str | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> ModelBundle:
    """Train a bundle and write it to `out`; after a kill the same call goes on where it was.

    Args:
        data: what `prepare` made.
        out: the bundle's folder to make.
        config: a recipe's name or a YAML file; the default otherwise, or `light` with `documents`.
        changes: dotted key -> value, as in `{"labelled.epochs": 3}`; they win over `config`.
        negatives: file of hard negatives, as `models mine` makes it.
        start: a bundle to begin from.
        only: which parts to learn, of query, fusion and cross; the others are those of `start`.
        documents: a collection whose vectors the query tower is learnt for, NAME or NAME:VECTOR.
        url: Qdrant server that has it.
        path: folder of the embedded engine that has it.
        device: auto, cpu or cuda.
        wandb: disabled, offline or online.
        force: replace a bundle, and drop an unfinished run with other settings.
        must_beat: a stage, bm25 or tfidf, that an engine with the bundle must be better than, by
            nDCG@10 and a paired test on split dev; otherwise it stays at `<out>.candidate`.
        notify: is told what happens, a line each.

    Raises:
        ConfigError: an unknown key or recipe, or an impossible value.
        DataError: DATA is missing or broken.
        TrainingError: the training cannot start or go on, or `must_beat` is not beaten.
        BundleError: `out` or `start` is no bundle, or `out` is one and `force` is off.
    """
    dataset = data if isinstance(data, Dataset) else Dataset.open(data)
    out = Path(out)
    if must_beat is not None:
        _check_baseline(must_beat, dataset)
        check_target(out, force=force)
    if documents and config is None:
        settings = read_config("light", changes).without_model()
    else:
        settings = read_config(config, changes)
    if settings.documents.url:
        settings = settings.with_own_vocabulary()
    if only is not None:
        settings = _only(settings, only, has_start=start is not None)
    if start is not None and not isinstance(start, ModelBundle):
        start = ModelBundle.load(start)
    vectors = _stored_vectors(dataset, documents, url, path) if documents else None
    candidate = out if must_beat is None else out.with_name(f"{out.name}.candidate")
    bundle = train_bundle(
        dataset,
        candidate,
        config=settings,
        analyzer=engine_analyzer(dataset.language),
        options=RunOptions(device, wandb_options(wandb), force or candidate != out),
        inputs=Inputs(Path(negatives) if negatives else None, start, vectors),
        notify=notify,
    )
    if must_beat is None:
        return bundle
    outcome = import_module("two_tower.ingest.versions.conditions").try_bundle(
        dataset, bundle, baseline=must_beat
    )
    if not outcome.holds:
        raise TrainingError(
            f"the bundle does not beat {must_beat} ({outcome.says}); {out} is as it was, and the "
            f"bundle stays at {candidate}"
        )
    notify(outcome.says)
    put_in_place(candidate, out)
    return ModelBundle.load(out)


def _check_baseline(must_beat: str, data: Dataset) -> None:
    if must_beat not in BASELINES:
        raise ConfigError(f"must-beat is {must_beat!r}, expected {' or '.join(BASELINES)}")
    if "dev" not in data.splits:
        raise ConfigError(
            f"{data.path} has no split dev to measure on; make one: ingest prepare SOURCE --out "
            "DATA --dev-fraction 0.1"
        )


def _only(config: TrainConfig, parts: Sequence[str], *, has_start: bool) -> TrainConfig:
    if "query" not in parts and not has_start:
        raise ConfigError(
            f"only {', '.join(parts)} is to be learnt, which needs towers: add --start BUNDLE "
            "or query"
        )
    return config.only(list(parts))


def _stored_vectors(
    data: Dataset, collection: str, url: str | None, path: str | Path | None
) -> "DocumentVectors":
    from two_tower.models.objectives.alignment import DocumentVectors

    module = import_module("two_tower.ingest.adoption.foreign")
    return DocumentVectors(*module.document_vectors(data, collection, url=url, path=path))


def engine_analyzer(language: str, bundle: ModelBundle | None = None) -> "Analyzer":
    """Return what BM25 searches with.

    Pieces are those of the bundle; where there is none yet, words stand for them.
    """
    module = import_module("two_tower.retriever.collection.bm25_vectors")
    analyzer: Analyzer = module.words_or_pieces(language, bundle)
    return analyzer
