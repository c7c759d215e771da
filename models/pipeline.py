"""From a DATA folder to a bundle: vocabulary, token vectors, phases, PCA, card."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from models.bundle import ModelBundle
from models.bundle_files import FORMAT, check_target
from models.card import make_card
from models.checkpoint import Checkpoint, Progress, RunFolder, parts, run_path
from models.corpus import Corpus, Say, read_split, tokenise, vocabulary_texts, warn_of_few_pairs
from models.data import Dataset
from models.errors import TrainingError
from models.evaluation import ranking_metrics
from models.examples import Labelled, PairSampler, Split
from models.losses import matryoshka_loss, mean_pairwise_cosine, softmax_loss
from models.pretrain import SpanSampler
from models.provenance import environment
from models.reduction import Reduction, fit_reduction
from models.tokenizer import Tokenizer
from models.towers import TwoTower, choose_device, encode_rows, token_idf
from models.tracking import Tracker, WandbOptions
from models.training import (
    DevResult,
    Phase,
    TrainConfig,
    Trainer,
    labelled_loss,
)
from models.word2vec import learn_vectors

FloatArray = npt.NDArray[np.float32]


class Clock:
    """Seconds spent on each named part of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Book the time since the last lap under `name`."""
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 1)
        self._last = now


class RunOptions(NamedTuple):
    """How a run is done, which does not decide what comes out.

    Attributes:
        device: `auto` (CUDA where there is one), `cpu` or `cuda`.
        wandb: whether W&B listens.
        force: replace a complete bundle, and drop an unfinished run with other settings.
    """

    device: str = "auto"
    wandb: WandbOptions = WandbOptions()
    force: bool = False


DEFAULT_OPTIONS = RunOptions()


def train_bundle(
    data: Dataset,
    out: str | Path,
    *,
    config: TrainConfig,
    options: RunOptions = DEFAULT_OPTIONS,
    say: Say = lambda line: None,
) -> ModelBundle:
    """Train a bundle and write it to `out`; run again after a kill, it goes on where it was.

    Args:
        data: what to learn from.
        out: the bundle folder to make; checkpoints and metrics go to its sibling `<name>.run`.
        config: everything that decides the bundle.
        options: what does not decide the bundle: device, W&B, force.
        say: gets a line of news now and then.

    Raises:
        BundleError: `out` holds something that must not be replaced.
        ConfigError: there is no such device.
        DataError: DATA is broken or has no labelled query.
        TrainingError: there is nothing to learn from, an unfinished run differs, or a collapse.
    """
    check_target(Path(out), force=options.force)
    device = choose_device(options.device)
    split = read_split(data, dev_share=config.dev_share, seed=config.seed, say=say)
    if config.labelled.epochs:
        warn_of_few_pairs(split.train, say)
    folder = RunFolder(run_path(out))
    with folder.held():
        identity = {"config": config.to_dict(), "data": data.content_hash}
        resumed = folder.load() if folder.claim(identity, force=options.force) else None
        records = resumed.progress.records if resumed else 0
        if resumed:
            say(f"going on with an unfinished run, {records} epochs of which are done")
        folder.describe(environment(str(device)))
        with Tracker(
            folder.path, config=config.to_dict(), wandb=options.wandb, resumed=records, say=say
        ) as tracker:
            try:
                bundle = _Run(data, config, folder, tracker, device, say).execute(split, resumed)
            except TrainingError:
                folder.end("failed")
                raise
            bundle.save(out, force=options.force)
            folder.end("finished")
            tracker.keep_bundle(Path(out), about=bundle.card)
    return bundle


@dataclass
class _Run:
    """One execution of a training run, fresh or resumed."""

    data: Dataset
    config: TrainConfig
    folder: RunFolder
    tracker: Tracker
    device: torch.device
    say: Say

    def execute(self, split: Split, resumed: Checkpoint | None) -> ModelBundle:
        """Run all stages; those that a checkpoint holds are not done again."""
        clock, config = Clock(), self.config
        tokenizer = self._tokenizer(split.train)
        clock.lap("vocabulary")
        corpus = tokenise(self.data, tokenizer, split=split)
        clock.lap("tokenising")
        towers = self._towers(corpus, tokenizer.vocab_size, resumed=resumed).to(self.device)
        clock.lap("token vectors")
        trainer = Trainer(
            towers,
            lambda: self._evaluate(towers, corpus),
            self.folder,
            self.tracker,
            config.seed,
            self.say,
        )
        trainer.run(self._phases(corpus), resumed)
        clock.lap("phases")
        return self._bundle(towers, tokenizer, corpus=corpus, clock=clock)

    def _tokenizer(self, train: Labelled) -> Tokenizer:
        config = self.config.tokenizer
        model = self.folder.read_tokenizer()
        if model is not None:
            return Tokenizer(model, config)
        self.say("learning the vocabulary")
        texts = vocabulary_texts(self.data, train)
        tokenizer = Tokenizer.train(texts, config, seed=self.config.seed)
        self.folder.write_tokenizer(tokenizer.model)
        return tokenizer

    def _towers(self, corpus: Corpus, vocab_size: int, *, resumed: Checkpoint | None) -> TwoTower:
        config = self.config.tower
        idf = token_idf(corpus.passages, vocab_size=vocab_size)
        if resumed is not None:
            blank = np.zeros((vocab_size, config.dim), dtype=np.float32)
            towers = TwoTower.start(config, vectors=blank, weights=idf)
            towers.load_arrays(resumed.part("towers"))
            return towers
        self.say("learning token vectors")
        vectors = learn_vectors(
            corpus.passages,
            self.config.word2vec,
            vocab_size=vocab_size,
            dim=config.dim,
            seed=self.config.seed,
        )
        towers = TwoTower.start(config, vectors=vectors, weights=idf)
        self.folder.save(Checkpoint(Progress(), parts(towers=towers.arrays())))
        return towers

    def _phases(self, corpus: Corpus) -> list[Phase]:
        spans, pairs = self.config.pretrain, self.config.labelled
        short = self.config.matryoshka_dims
        return [
            Phase(
                "pretrain",
                SpanSampler(corpus.passages, spans),
                matryoshka_loss(softmax_loss(temperature=spans.temperature), short),
                spans.epochs,
                spans.batch_size,
                spans.learning_rate,
            ),
            Phase(
                "labelled",
                PairSampler(corpus.train_queries, corpus.passages, relevant=corpus.train.relevant),
                matryoshka_loss(labelled_loss(pairs), short),
                pairs.epochs,
                pairs.batch_size,
                pairs.learning_rate,
                pairs.patience,
                pairs.margin if pairs.loss == "triplet" else None,
            ),
        ]

    def _evaluate(self, towers: TwoTower, corpus: Corpus) -> DevResult:
        queries = encode_rows(towers.query, corpus.dev_queries)
        passages = encode_rows(towers.passage, corpus.passages)
        metrics = ranking_metrics(queries, passages, relevant=corpus.dev.relevant)
        return DevResult(metrics, mean_pairwise_cosine(passages))

    def _bundle(
        self, towers: TwoTower, tokenizer: Tokenizer, *, corpus: Corpus, clock: Clock
    ) -> ModelBundle:
        queries = encode_rows(towers.query, corpus.dev_queries).cpu().numpy()
        passages = encode_rows(towers.passage, corpus.passages).cpu().numpy()
        wanted = self.config.pca_dims
        reduction = fit_reduction(passages, wanted, seed=self.config.seed)
        for dim in sorted(set(wanted) - set(reduction.dims), reverse=True):
            self.say(f"pca_{dim} is left out: it needs more than {dim} passages and dims")
        metrics = _dev_metrics(queries, passages, reduction=reduction, dev=corpus.dev)
        clock.lap("reduction")
        results = {
            "queries": {"train": len(corpus.train.texts), "dev": len(corpus.dev.texts)},
            "vocabulary": tokenizer.vocab_size,
            "dev": metrics,
            "seconds": clock.seconds,
            "device": str(self.device),
        }
        card = make_card(self.data, self.config.to_dict(), results=results)
        config = _deciding_config(self.config, reduction)
        return ModelBundle.build(
            config, tokenizer, towers=towers.arrays(), reduction=reduction, card=card
        )


def _deciding_config(config: TrainConfig, reduction: Reduction) -> dict[str, Any]:
    tokenizer = config.tokenizer
    return {
        "format": FORMAT,
        "tower": asdict(config.tower),
        "tokenizer": {
            "max_passage_tokens": tokenizer.max_passage_tokens,
            "max_query_tokens": tokenizer.max_query_tokens,
        },
        "pca_dims": list(reduction.dims),
    }


def _dev_metrics(
    queries: FloatArray, passages: FloatArray, *, reduction: Reduction, dev: Labelled
) -> dict[str, dict[str, float]]:
    """Return the dev metrics of the full and of each reduced vector, by name."""
    small_queries, small_passages = reduction.apply(queries), reduction.apply(passages)
    pairs = {"dense": (queries, passages)} | {
        f"pca_{d}": (small_queries[d], small_passages[d]) for d in reduction.dims
    }
    return {
        name: ranking_metrics(torch.from_numpy(q), torch.from_numpy(p), relevant=dev.relevant)
        for name, (q, p) in pairs.items()
    }
