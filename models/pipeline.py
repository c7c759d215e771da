"""From a DATA folder to a bundle: vocabulary, token vectors, phases, PCA, card."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save as save_arrays

from models.bundle import ModelBundle
from models.bundle_files import TOKENIZER, TOWERS, check_target
from models.card import make_card
from models.checkpoint import TEACHER, Checkpoint, Progress, RunFolder, parts, run_path
from models.clock import Clock
from models.corpus import (
    Corpus,
    Say,
    dev_corpus,
    read_split,
    tokenise,
    vocabulary_texts,
    warn_of_few_pairs,
)
from models.data import Dataset
from models.distillation import Lessons
from models.errors import TrainingError
from models.evaluation import ranking_metrics
from models.examples import HardNegatives, Labelled, Split
from models.finishing import deciding_config, dev_metrics, final_vectors
from models.losses import mean_pairwise_cosine
from models.mining import Vectors, find_negatives, mined_once
from models.negatives import Mined
from models.negatives_file import file_hash, read_negatives
from models.phases import check_negatives, make_phases
from models.provenance import environment
from models.reduction import fit_reduction
from models.tokenizer import Tokenizer
from models.towers import TwoTower, choose_device, encode_rows, token_idf
from models.tracking import Tracker, WandbOptions
from models.training import DevResult, TrainConfig, Trainer
from models.transformer import Transformer, open_transformer, transformer_files
from models.transformer_encoding import TransformerTokenizer
from models.word2vec import learn_vectors

MINED = "negatives.safetensors"

FloatArray = npt.NDArray[np.float32]
AnyTokenizer = Tokenizer | TransformerTokenizer


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


NO_INPUTS = Inputs()


def train_bundle(
    data: Dataset,
    out: str | Path,
    *,
    config: TrainConfig,
    options: RunOptions = DEFAULT_OPTIONS,
    inputs: Inputs = NO_INPUTS,
    say: Say = lambda line: None,
) -> ModelBundle:
    """Train a bundle and write it to `out`; run again after a kill, it goes on where it was.

    Args:
        data: what to learn from.
        out: the bundle folder to make; checkpoints and metrics go to its sibling `<name>.run`.
        config: everything that decides the bundle.
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
                run = _Run(data, config, folder, tracker, device, say, inputs)
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

    def execute(
        self, split: Split, resumed: Checkpoint | None, given: HardNegatives | None
    ) -> ModelBundle:
        """Run all stages; those that a checkpoint holds are not done again."""
        clock, config = Clock(), self.config
        transformer = self._transformer()
        tokenizer = transformer.tokenizer if transformer else self._tokenizer(split.train)
        clock.lap("vocabulary")
        corpus = tokenise(self.data, tokenizer, split=split, prefixes=config.prefixes)
        ranked = dev_corpus(corpus, size=config.dev_passages, seed=config.seed)
        clock.lap("tokenising")
        if transformer is not None:
            towers = self._transformer_towers(transformer, resumed=resumed).to(self.device)
        else:
            towers = self._towers(corpus, tokenizer, resumed=resumed).to(self.device)
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
            teach=lambda: self._lessons.of(corpus, tokenizer, say=self.say),
        )
        trainer.run(phases, resumed)
        (self.folder.path / MINED).unlink(missing_ok=True)
        clock.lap("phases")
        return self._bundle(towers, tokenizer, corpus=ranked, clock=clock)

    def _transformer(self) -> Transformer | None:
        if self.config.tower.kind != "transformer":
            return None
        return open_transformer(self.config.transformer.model, self.config.tokenizer)

    def _tokenizer(self, train: Labelled) -> Tokenizer:
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

    def _towers(
        self, corpus: Corpus, tokenizer: AnyTokenizer, *, resumed: Checkpoint | None
    ) -> TwoTower:
        config, vocab_size = self.config.tower, tokenizer.vocab_size
        weights = np.ones(vocab_size, dtype=np.float32)
        if config.idf:
            weights = token_idf(corpus.passages, vocab_size=vocab_size)
        seed = self.config.seed
        if resumed is not None or self.inputs.start is not None:
            blank = np.zeros((vocab_size, config.dim), dtype=np.float32)
            towers = TwoTower.start(config, vectors=blank, weights=weights, seed=seed)
            if resumed is not None:
                towers.load_arrays(resumed.part("towers"))
            elif self.inputs.start is not None:
                towers.load_start(self.inputs.start.towers())
            return towers
        vectors = self._token_vectors(corpus, tokenizer)
        towers = TwoTower.start(config, vectors=vectors, weights=weights, seed=seed)
        self.folder.save(Checkpoint(Progress(), parts(towers=towers.arrays())))
        return towers

    def _token_vectors(self, corpus: Corpus, tokenizer: AnyTokenizer) -> FloatArray:
        config, dim, seed = self.config, self.config.tower.dim, self.config.seed
        if config.teacher.model and config.teacher.token_vectors:
            return self._lessons.token_vectors(tokenizer, dim=dim, say=self.say)
        self.say("learning token vectors")
        size = tokenizer.vocab_size
        return learn_vectors(corpus.passages, config.word2vec, vocab_size=size, dim=dim, seed=seed)

    @cached_property
    def _lessons(self) -> Lessons:
        kept = self.folder.path / TEACHER
        return Lessons(self.data, self.config.teacher, seed=self.config.seed, folder=kept)

    def _transformer_towers(
        self, transformer: Transformer, *, resumed: Checkpoint | None
    ) -> TwoTower:
        towers = TwoTower(transformer.tower, transformer.tower)
        if resumed is not None:
            towers.load_arrays(resumed.part("towers"))
        return towers

    def _mine(self, towers: TwoTower, corpus: Corpus) -> HardNegatives:
        def vectors() -> Vectors:
            queries = encode_rows(towers.query, corpus.train_queries)
            passages = encode_rows(towers.passage, corpus.passages)
            return Vectors(queries.cpu().numpy(), passages.cpu().numpy())

        def find() -> Mined:
            self.say("mining hard negatives")
            texts = [passage.content for passage in self.data.passages()]
            return find_negatives(corpus.train, texts, self.config.hard.mining, encode=vectors)

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
            **self.inputs.identity(),
        }
        card = make_card(self.data, self.config.to_dict(), results=results)
        config = deciding_config(self.config, tokenizer.config, reduction=reduction)
        return ModelBundle.of_files(config, files, reduction=reduction, card=card)

    def _tower_files(self, towers: TwoTower, tokenizer: AnyTokenizer) -> dict[str, bytes]:
        if isinstance(tokenizer, TransformerTokenizer):
            return transformer_files(towers.query, tokenizer, int8=self.config.transformer.int8)
        return {TOKENIZER: tokenizer.model, TOWERS: save_arrays(towers.arrays())}
