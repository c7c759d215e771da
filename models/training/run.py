"""From a DATA folder to a bundle: vocabulary, token vectors, phases, PCA, card."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.card import make_card
from two_tower.models.bundle.encoders import OnnxEncoder
from two_tower.models.bundle.files import FORMAT, TOKENIZER, TOWERS, check_target
from two_tower.models.bundle.reduction import Reduction, fit_reduction
from two_tower.models.data import Dataset
from two_tower.models.errors import TrainingError
from two_tower.models.examples.corpus import (
    Corpus,
    Say,
    dev_corpus,
    read_split,
    tokenise,
    vocabulary_texts,
    warn_of_few_pairs,
)
from two_tower.models.examples.mining import file_hash, find_negatives, mined_once, read_negatives
from two_tower.models.examples.negatives import Mined
from two_tower.models.examples.pairs import HardNegatives, Labelled, Split
from two_tower.models.files import write_bytes
from two_tower.models.networks.towers import TwoTower, choose_device, encode_rows, token_idf
from two_tower.models.networks.transformer import Transformer, open_transformer, transformer_files
from two_tower.models.networks.word2vec import learn_vectors
from two_tower.models.objectives.distillation import Lesson, Lessons
from two_tower.models.objectives.losses import mean_pairwise_cosine
from two_tower.models.provenance import Clock, environment
from two_tower.models.text.bm25 import Analyzer
from two_tower.models.text.tokenizer import Tokenizer, TokenizerConfig
from two_tower.models.text.transformer_tokenizer import GRAPH, TransformerTokenizer
from two_tower.models.training.checkpoint import (
    BEFORE_LABELS,
    TEACHER,
    Checkpoint,
    Progress,
    RunFolder,
    parts,
    run_path,
)
from two_tower.models.training.config import TrainConfig
from two_tower.models.training.dev_metrics import ranking_metrics
from two_tower.models.training.loop import DevResult, Phase, Trainer
from two_tower.models.training.out_of_fold import Done, RankingPart
from two_tower.models.training.phases import HARD, LABELLED, check_negatives, make_phases
from two_tower.models.training.tracking import Tracker, WandbOptions
from two_tower.models.vectors import FloatArray, Vectors

AnyTokenizer = Tokenizer | TransformerTokenizer


class Inputs(NamedTuple):
    """What a run begins with beside DATA; part of its identity.

    Attributes:
        negatives: file of mined negatives for the labelled phase, from `models mine`.
        start: a trained bundle, whose tokenizer and towers are where the run begins.
    """

    negatives: Path | None = None
    start: ModelBundle | None = None

    def identity(self) -> dict[str, str]:
        """Return a hash for each input that there is."""
        negatives = {"negatives": file_hash(self.negatives)} if self.negatives else {}
        return negatives | ({"start": self.start.fingerprint} if self.start else {})

    def labels(self, data: Dataset, *, epochs: int) -> list[str]:
        """Return what the card calls the labels that towers have seen, those of `start` included.

        Args:
            data: what they learn from now.
            epochs: of its labelled phase.
        """
        before = self.start.card.get("labels", []) if self.start else []
        return sorted({*before, *(_names(data) if epochs else ())})

    def has_seen(self, data: Dataset) -> bool:
        """Return whether the towers of `start` have learnt from these labels, or older ones."""
        return bool(self.start and {*self.start.card.get("labels", [])} & _names(data))


def _names(data: Dataset) -> set[str]:
    return {data.content_hash, str(data.manifest.get("source", {}).get("name", data.path))}


@dataclass
class Beginning:
    """Makes what a run trains, or takes it from a checkpoint.

    Attributes:
        data: what to learn from.
        config: of the run.
        folder: keeps the vocabulary and the first checkpoint.
        lessons: what a teacher gives; None without one.
        inputs: a bundle to begin with, perhaps.
        say: gets a line of news now and then.
    """

    data: Dataset
    config: TrainConfig
    folder: RunFolder
    lessons: Lessons | None
    inputs: Inputs
    say: Say

    def __post_init__(self) -> None:
        self._transformer: Transformer | None = None
        if self.config.tower.kind == "transformer":
            name = self.config.transformer.model
            self._transformer = open_transformer(name, self.config.tokenizer)

    def tokenizer(self, train: Labelled) -> AnyTokenizer:
        """Return the run's tokenizer; a vocabulary is learnt once and kept in the folder."""
        if self._transformer is not None:
            return self._transformer.tokenizer
        config = self.config.tokenizer
        model = self.folder.read_tokenizer()
        if model is None and self.inputs.start is not None:
            model = self.inputs.start.tokenizer.model
        if model is not None:
            return Tokenizer(model, config)
        self.say("learning the vocabulary")
        texts = vocabulary_texts(self.data, train)
        tokenizer = Tokenizer.train(texts, config, seed=self.config.seed)
        self.folder.write_tokenizer(tokenizer.model)
        return tokenizer

    def towers(
        self, corpus: Corpus, tokenizer: AnyTokenizer, *, resumed: Checkpoint | None
    ) -> TwoTower:
        """Return the towers as they are before the first phase, or as a checkpoint has them."""
        if self._transformer is not None:
            towers = TwoTower(self._transformer.tower, self._transformer.tower)
        else:
            towers = self._token_towers(corpus, tokenizer, fresh=resumed is None)
        if resumed is not None:
            towers.load_arrays(resumed.part("towers"))
        return towers

    def _token_towers(self, corpus: Corpus, tokenizer: AnyTokenizer, *, fresh: bool) -> TwoTower:
        config, vocab_size, seed = self.config.tower, tokenizer.vocab_size, self.config.seed
        weights = np.ones(vocab_size, dtype=np.float32)
        if config.idf:
            weights = token_idf(corpus.passages, vocab_size=vocab_size)
        start = self.inputs.start
        if not fresh or start is not None:
            blank = np.zeros((vocab_size, config.dim), dtype=np.float32)
            towers = TwoTower.start(config, vectors=blank, weights=weights, seed=seed)
            if start is not None:
                towers.load_start(start.towers())
            return towers
        vectors = self._token_vectors(corpus, tokenizer)
        towers = TwoTower.start(config, vectors=vectors, weights=weights, seed=seed)
        self.folder.save(Checkpoint(Progress(), parts(towers=towers.arrays())))
        return towers

    def _token_vectors(self, corpus: Corpus, tokenizer: AnyTokenizer) -> FloatArray:
        config, dim, seed = self.config, self.config.tower.dim, self.config.seed
        if self.lessons is not None and config.teacher.token_vectors:
            return self.lessons.token_vectors(tokenizer, dim=dim, say=self.say)
        self.say("learning token vectors")
        size = tokenizer.vocab_size
        return learn_vectors(corpus.passages, config.word2vec, vocab_size=size, dim=dim, seed=seed)


def deciding_config(
    config: TrainConfig, tokenizer: TokenizerConfig, *, reduction: Reduction
) -> dict[str, Any]:
    """Return the content of config.json."""
    return {
        "format": FORMAT,
        "tower": {**config.tower.deciding(), "dim": len(reduction.mean)},
        "prefixes": asdict(config.prefixes),
        "tokenizer": {
            "max_passage_tokens": tokenizer.max_passage_tokens,
            "max_query_tokens": tokenizer.max_query_tokens,
        },
        "pca_dims": list(reduction.dims),
    }


def final_vectors(towers: TwoTower, files: Mapping[str, bytes], *, corpus: Corpus) -> Vectors:
    """Return the vectors of dev queries and passages as the bundle will give them."""
    if GRAPH in files:
        rows = OnnxEncoder(files[GRAPH])
        return Vectors(rows.encode(corpus.dev_queries), rows.encode(corpus.passages))
    queries = encode_rows(towers.query, corpus.dev_queries)
    passages = encode_rows(towers.passage, corpus.passages)
    return Vectors(queries.cpu().numpy(), passages.cpu().numpy())


def dev_metrics(
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


MINED = "negatives.safetensors"


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


NO_INPUTS = Inputs()


def train_bundle(
    data: Dataset,
    out: str | Path,
    *,
    config: TrainConfig,
    analyzer: Analyzer,
    options: RunOptions = DEFAULT_OPTIONS,
    inputs: Inputs = NO_INPUTS,
    say: Say = lambda line: None,
) -> ModelBundle:
    """Train a bundle and write it to `out`; run again after a kill, it goes on where it was.

    Args:
        data: what to learn from.
        out: the bundle folder to make; checkpoints and metrics go to its sibling `<name>.run`.
        config: everything that decides the bundle.
        analyzer: gives BM25 its terms, in mining and in what is learnt of the fusion.
        options: what does not decide the bundle: device, W&B, force.
        inputs: what decides it beside DATA and configuration.
        say: gets a line of news now and then.

    Raises:
        BundleError: `out` holds something that must not be replaced.
        ConfigError: there is no such device, or the loss and the negatives do not fit.
        DataError: DATA is broken or has no labelled query.
        TrainingError: there is nothing to learn from, an unfinished run differs, or a collapse.
    """
    check_target(Path(out), force=options.force)
    device = choose_device(options.device)
    split = read_split(data, dev_share=config.dev_share, seed=config.seed, say=say)
    if config.labelled.epochs:
        warn_of_few_pairs(split.train, say)
    given = read_negatives(inputs.negatives, data, split.train) if inputs.negatives else None
    check_negatives(config, given)
    folder = RunFolder(run_path(out))
    with folder.held():
        identity = {"config": config.to_dict(), "data": data.content_hash, **inputs.identity()}
        resumed = folder.load() if folder.claim(identity, force=options.force) else None
        records = resumed.progress.records if resumed else 0
        if resumed:
            say(f"going on with an unfinished run, {records} epochs of which are done")
        folder.describe(environment(str(device)))
        with Tracker(
            folder.path, config=config.to_dict(), wandb=options.wandb, resumed=records, say=say
        ) as tracker:
            try:
                run = _Run(data, config, folder, tracker, device, say, inputs, analyzer)
                bundle = run.execute(split, resumed, given)
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
    inputs: Inputs
    analyzer: Analyzer

    def execute(
        self, split: Split, resumed: Checkpoint | None, given: HardNegatives | None
    ) -> ModelBundle:
        """Run all stages; those that a checkpoint holds are not done again."""
        clock, config = Clock(), self.config
        beginning = Beginning(self.data, config, self.folder, self._lessons, self.inputs, self.say)
        tokenizer = beginning.tokenizer(split.train)
        clock.lap("vocabulary")
        corpus = tokenise(self.data, tokenizer, split=split, prefixes=config.prefixes)
        ranked = dev_corpus(corpus, size=config.dev_passages, seed=config.seed)
        clock.lap("tokenising")
        towers = beginning.towers(corpus, tokenizer, resumed=resumed).to(self.device)
        clock.lap("token vectors")
        trainer = Trainer(
            towers,
            lambda: self._evaluate(towers, ranked),
            self.folder,
            self.tracker,
            config.seed,
            self.say,
        )
        phases = make_phases(
            config,
            corpus,
            given=given,
            mine=lambda: self._mine(towers, corpus),
            teach=lambda: self._lesson(corpus, tokenizer),
        )
        before = self._train(trainer, phases, resumed)
        (self.folder.path / MINED).unlink(missing_ok=True)
        clock.lap("phases")
        bundle = self._bundle(towers, tokenizer, corpus=ranked, clock=clock)
        if not config.fusion.folds:
            return bundle
        if self.inputs.start is not None and self.inputs.has_seen(self.data):
            # No fold could leave out what these towers know already.
            self.say("--start has learnt from these labels: its fusion and cross-scorer are kept")
            return bundle.with_extras(self.inputs.start.extras)
        last = RankingPart(
            self.data, config, corpus, self.folder, self.tracker, self.say, self.analyzer
        )
        done = Done(Progress(phase=len(phases), records=self.tracker.count), towers, resumed)
        extras = last.learn(before, bundle, done, given=given, lessons=self._lessons)
        clock.lap("ranking")
        return bundle.with_extras(extras)

    def _train(
        self, trainer: Trainer, phases: list[Phase], resumed: Checkpoint | None
    ) -> dict[str, FloatArray]:
        """Go through all phases; return the towers' parameters as they were before any label."""
        kept = self.folder.path / BEFORE_LABELS
        free = [phase for phase in phases if phase.name not in (LABELLED, HARD)]
        progress = resumed.progress if resumed else Progress()
        if (progress.phase, progress.epoch) <= (len(free), 0):
            trainer.run(free, resumed)
            write_bytes(kept, save_arrays(trainer.towers.arrays()))
            resumed = Checkpoint(Progress(phase=len(free), records=self.tracker.count), {})
        trainer.run(phases, resumed)
        return load_arrays(kept.read_bytes())

    @cached_property
    def _lessons(self) -> Lessons | None:
        if self.config.teacher.model is None:
            return None
        kept = self.folder.path / TEACHER
        return Lessons(self.data, self.config.teacher, seed=self.config.seed, folder=kept)

    def _lesson(self, corpus: Corpus, tokenizer: AnyTokenizer) -> Lesson:
        if self._lessons is None:
            raise ValueError("there is no teacher")
        return self._lessons.of(corpus, tokenizer, say=self.say)

    def _mine(self, towers: TwoTower, corpus: Corpus) -> HardNegatives:
        def vectors() -> Vectors:
            queries = encode_rows(towers.query, corpus.train_queries)
            passages = encode_rows(towers.passage, corpus.passages)
            return Vectors(queries.cpu().numpy(), passages.cpu().numpy())

        def find() -> Mined:
            self.say("mining hard negatives")
            texts = [passage.content for passage in self.data.passages()]
            mining = self.config.hard.mining
            return find_negatives(
                corpus.train, texts, mining, analyzer=self.analyzer, encode=vectors
            )

        return mined_once(self.folder.path / MINED, find)

    def _evaluate(self, towers: TwoTower, corpus: Corpus) -> DevResult:
        queries = encode_rows(towers.query, corpus.dev_queries)
        passages = encode_rows(towers.passage, corpus.passages)
        metrics = ranking_metrics(queries, passages, relevant=corpus.dev.relevant)
        return DevResult(metrics, mean_pairwise_cosine(passages))

    def _bundle(
        self, towers: TwoTower, tokenizer: AnyTokenizer, *, corpus: Corpus, clock: Clock
    ) -> ModelBundle:
        files = self._tower_files(towers, tokenizer)
        queries, passages = final_vectors(towers, files, corpus=corpus)
        wanted = self.config.pca_dims
        reduction = fit_reduction(passages, wanted, seed=self.config.seed)
        for dim in sorted(set(wanted) - set(reduction.dims), reverse=True):
            self.say(f"pca_{dim} is left out: it needs more than {dim} passages and dims")
        metrics = dev_metrics(queries, passages, reduction=reduction, dev=corpus.dev)
        clock.lap("reduction")
        results = {
            "queries": {"train": len(corpus.train.texts), "dev": len(corpus.dev.texts)},
            "vocabulary": tokenizer.vocab_size,
            "dev": metrics,
            "dev_passages": len(passages),
            "seconds": clock.seconds,
            "device": str(self.device),
            "labels": self.inputs.labels(self.data, epochs=self.config.labelled.epochs),
            **self.inputs.identity(),
        }
        card = make_card(self.data, self.config.to_dict(), results=results)
        config = deciding_config(self.config, tokenizer.config, reduction=reduction)
        return ModelBundle.of_files(config, files, reduction=reduction, card=card)

    def _tower_files(self, towers: TwoTower, tokenizer: AnyTokenizer) -> dict[str, bytes]:
        if isinstance(tokenizer, TransformerTokenizer):
            return transformer_files(towers.query, tokenizer, int8=self.config.transformer.int8)
        return {TOKENIZER: tokenizer.model, TOWERS: save_arrays(towers.arrays())}
