"""From a DATA folder to a bundle: vocabulary, token vectors, phases, PCA, ranking, card."""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.card import make_card
from two_tower.models.bundle.encoders import OnnxEncoder
from two_tower.models.bundle.files import DOCUMENTS, TOKENIZER, TOWERS, check_target
from two_tower.models.bundle.reduction import fit_reduction
from two_tower.models.cache import cache_folder
from two_tower.models.data import Dataset
from two_tower.models.errors import ConfigError, TrainingError
from two_tower.models.examples.corpus import Corpus, Notify, dev_corpus, read_split, tokenise
from two_tower.models.examples.mining import cached_negatives, find_negatives, read_negatives
from two_tower.models.examples.negatives import Mined
from two_tower.models.examples.pairs import HardNegatives, Labelled, Split
from two_tower.models.files import write_bytes, write_json
from two_tower.models.language import PIECES
from two_tower.models.networks.tower_config import TowerConfig
from two_tower.models.networks.towers import (
    FrozenVectors,
    TwoTower,
    choose_device,
    encode_rows,
    token_idf,
)
from two_tower.models.networks.transformer import (
    Transformer,
    TransformerTower,
    open_transformer,
    transformer_files,
)
from two_tower.models.networks.word2vec import learn_vectors
from two_tower.models.objectives.alignment import (
    Alignment,
    DocumentVectors,
    FrozenDocuments,
    open_documents,
    token_means,
)
from two_tower.models.objectives.distillation import Teacher
from two_tower.models.objectives.losses import mean_pairwise_cosine
from two_tower.models.objectives.tsdae import restore_texts
from two_tower.models.provenance import Clock, environment
from two_tower.models.text.bm25 import Analyzer
from two_tower.models.text.pieces import PieceAnalyzer
from two_tower.models.text.tokenizer import RowTokenizer, Tokenizer
from two_tower.models.text.transformer_tokenizer import GRAPH, TEXT, TransformerTokenizer
from two_tower.models.training.checkpoint import (
    Arrays,
    Checkpoint,
    Progress,
    RunFolder,
    parts,
    run_path,
)
from two_tower.models.training.config import TrainConfig, deciding_config
from two_tower.models.training.dev_metrics import ranking_metrics, reduced_metrics, tower_vectors
from two_tower.models.training.loop import Phase, Trainer
from two_tower.models.training.out_of_fold import RankingTrainer
from two_tower.models.training.phases import (
    HARD,
    LABELLED,
    QUERIES,
    check_negatives,
    make_phases,
)
from two_tower.models.training.rerankers import check_reranker
from two_tower.models.training.tracking import Tracker, WandbOptions
from two_tower.models.vectors import FloatArray, Vectors

FEW_PAIRS = 200


class Inputs(NamedTuple):
    """What a run begins with beside DATA; part of its identity.

    Attributes:
        negatives: file of mined negatives for the labelled phase, from `models mine`.
        start: a trained bundle, whose tokenizer and towers are where the run begins.
        documents: vectors of the documents that somebody else made; only a query tower is learnt.
    """

    negatives: Path | None = None
    start: ModelBundle | None = None
    documents: DocumentVectors | None = None

    def identity(self) -> dict[str, str]:
        """Return a hash for each input that there is."""
        hashes = {}
        if self.negatives:
            hashes["negatives"] = sha256(self.negatives.read_bytes()).hexdigest()
        if self.start:
            hashes["start"] = self.start.fingerprint
        if self.documents:
            hashes["documents"] = self.documents.fingerprint
        return hashes

    def labels(self) -> set[str]:
        """Return what the card of `start` calls the labels that its towers have learnt from."""
        return set(self.start.card.get("labels", [])) if self.start else set()


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


NO_INPUTS = Inputs()
DEFAULT_OPTIONS = RunOptions()


def train_bundle(
    data: Dataset,
    out: str | Path,
    *,
    config: TrainConfig,
    analyzer: Analyzer,
    options: RunOptions = DEFAULT_OPTIONS,
    inputs: Inputs = NO_INPUTS,
    notify: Notify = lambda line: None,
) -> ModelBundle:
    """Train a bundle and write it to `out`; run again after a kill, it goes on where it was.

    Args:
        data: what to learn from.
        out: the bundle folder to make; checkpoints and metrics go to its sibling `<name>.run`.
        config: everything that decides the bundle.
        analyzer: gives BM25 its terms, in mining and in what is learnt of the fusion.
        options: what does not decide the bundle: device, W&B, force.
        inputs: what decides it beside DATA and configuration.
        notify: gets a line of news now and then.

    Raises:
        BundleError: `out` holds something that must not be replaced.
        ConfigError: there is no such device, or the loss and the negatives do not fit.
        DataError: DATA is broken.
        TrainingError: there is nothing to learn from, an unfinished run differs, or a collapse.
    """
    check_target(Path(out), force=options.force)
    device = choose_device(options.device)
    split = read_split(data, dev_share=config.dev_share, seed=config.seed, notify=notify)
    pairs = int(split.train.relevant.nnz)
    if config.labelled.epochs and 0 < pairs < FEW_PAIRS:
        notify(
            f"only {pairs} labelled pairs to learn from: the tower may find less than it adds in "
            "noise; compare it with BM25 alone (retriever evaluate)"
        )
    negatives = read_negatives(inputs.negatives, data, split.train) if inputs.negatives else None
    check_negatives(config, negatives)
    check_reranker(config.cross)
    config.check_endpoint()
    folder = RunFolder(run_path(out))
    with folder.held():
        identity = {"config": config.to_dict(), "data": data.content_hash, **inputs.identity()}
        resumed = folder.load() if folder.claim(identity, force=options.force) else None
        records = resumed.progress.records if resumed else 0
        if resumed:
            notify(f"going on with an unfinished run, {records} epochs of which are done")
        write_json(folder.path / "environment.json", environment(str(device)))
        about, wandb = config.to_dict(), options.wandb
        tracked = Tracker(folder.path, config=about, wandb=wandb, resumed=records, notify=notify)
        with tracked as tracker:
            try:
                run = _TrainingRun(data, config, analyzer, inputs, folder, tracker, device, notify)
                bundle = run.execute(split, negatives=negatives, resumed=resumed)
            except TrainingError:
                folder.end("failed")
                raise
            bundle.save(out, force=options.force)
            folder.end("finished")
            tracker.keep_bundle(Path(out), about=bundle.card)
    return bundle


@dataclass
class _TrainingRun:
    """One execution of a training run, fresh or resumed."""

    data: Dataset
    config: TrainConfig
    analyzer: Analyzer
    inputs: Inputs
    folder: RunFolder
    tracker: Tracker
    device: torch.device
    notify: Notify
    alignment: Alignment | None = None

    def execute(
        self, split: Split, *, negatives: HardNegatives | None, resumed: Checkpoint | None
    ) -> ModelBundle:
        """Run all stages; those that a checkpoint holds are not done again."""
        clock, config, teacher = Clock(), self.config, self._teacher
        frozen, prefixes = self._documents, config.prefixes
        if frozen:
            clock.lap("documents")
            if not self.config.asks_endpoint:
                prefixes = replace(prefixes, query="")  # for their encoder alone
        tokenizer = self._tokenizer(split.train)
        if self.data.language == PIECES:
            self.analyzer = PieceAnalyzer(tokenizer)
        clock.lap("vocabulary")
        corpus = tokenise(
            self.data, tokenizer, split=split, prefixes=prefixes, frozen=frozen is not None
        )
        dev = dev_corpus(corpus, size=config.dev_passages, seed=config.seed)
        clock.lap("tokenising")
        if frozen and not self.config.asks_endpoint:
            total, seed = config.align.spans, config.seed
            self.alignment = Alignment(frozen, tokenizer, self._texts, total, seed)
        towers = self._towers(corpus, tokenizer, resumed=resumed).to(self.device)
        clock.lap("token vectors")
        align = self.alignment.sampler if self.alignment else None
        phases = make_phases(
            config,
            corpus,
            negatives=negatives,
            mine=partial(self._mine, towers, corpus),
            teach=partial(teacher.span_sampler, corpus, tokenizer) if teacher else None,
            align=align,
        )
        evaluate = partial(self._evaluate, towers, dev)
        trainer = Trainer(towers, evaluate, self.folder, self.tracker, config.seed, self.notify)
        before_labels = self._train(trainer, phases, resumed)
        clock.lap("phases")
        start = self.inputs.start
        bundle = self._bundle(towers, tokenizer, corpus=dev, clock=clock)
        has_phase = any(phase.epochs for phase in phases)
        if start is not None and not has_phase and start.config == bundle.config:
            bundle = start  # with its PCA: collections that were loaded with it stay valid
        if not config.fusion.folds:
            return bundle if start is None else bundle.with_extras(start.extras)
        if start is not None and self.inputs.labels() & self._label_names:
            # No fold could leave out what these towers know already.
            self.notify(
                "--start has learnt from these labels: its fusion and cross-scorer are kept"
            )
            return bundle.with_extras(start.extras)
        ranking = RankingTrainer(
            data=self.data,
            config=config,
            corpus=corpus,
            analyzer=self.analyzer,
            negatives=negatives,
            align=align,
            teacher=teacher,
            folder=self.folder,
            tracker=self.tracker,
            notify=self.notify,
        )
        if config.late.dim:
            bundle = ranking.with_late(bundle)
            clock.lap("late interaction")
        extras = ranking.learn(
            bundle, towers, before_labels=before_labels, phase=len(phases), resumed=resumed
        )
        clock.lap("ranking")
        return bundle.with_extras(extras)

    @cached_property
    def _teacher(self) -> Teacher | None:
        config = self.config
        if config.teacher.model is None:
            return None
        return Teacher(self.data, config.teacher, config.seed, self.notify)

    @cached_property
    def _documents(self) -> FrozenDocuments | None:
        """What another encoder makes of the passages, where the towers do not read them."""
        config, stored = self.config.documents, self.inputs.documents
        if config.model is None and stored is None:
            return None
        self.config.check_frozen()
        if config.model is not None:
            self.notify(f"{config.model} reads; its vectors are kept: {cache_folder()}")
        prefixes, asks = self.config.prefixes, self.config.asks_endpoint
        return open_documents(
            config, self._texts, prefixes=prefixes, stored=stored, reads_queries=asks
        )

    @cached_property
    def _texts(self) -> list[str]:
        return [passage.content for passage in self.data.passages()]

    @cached_property
    def _transformer(self) -> Transformer | None:
        if self.config.tower.kind != "transformer":
            return None
        config = self.config.transformer
        return open_transformer(config.model, self.config.tokenizer, layers=config.layers)

    def _tokenizer(self, train: Labelled) -> RowTokenizer:
        """Return the run's tokenizer; a vocabulary is learnt once and kept in the folder."""
        if self._transformer is not None:
            return self._transformer.tokenizer
        config = self.config.tokenizer
        if config.vocabulary == "documents":
            if self._documents is None or self._documents.tokenizer is None:
                raise ConfigError(
                    "tokenizer.vocabulary is documents, but no transformer of that name reads "
                    "them; expected own, or documents.model without documents.url"
                )
            return TransformerTokenizer(
                self._documents.tokenizer.model, config, special_tokens=False
            )
        if self.folder.tokenizer.exists():
            return Tokenizer(self.folder.tokenizer.read_bytes(), config)
        if self.inputs.start is not None:
            return Tokenizer(self.inputs.start.tokenizer.model, config)
        self.notify("learning the vocabulary")
        texts = chain((passage.content for passage in self.data.passages()), train.texts)
        tokenizer = Tokenizer.train(texts, config, seed=self.config.seed)
        write_bytes(self.folder.tokenizer, tokenizer.model)
        return tokenizer

    def _towers(
        self, corpus: Corpus, tokenizer: RowTokenizer, *, resumed: Checkpoint | None
    ) -> TwoTower:
        """Return the towers as they are before the first phase, or as a checkpoint has them."""
        if self._transformer is not None:
            tower = self._transformer.tower
            towers = TwoTower(tower, tower)
            if self._documents is not None:
                towers.passage = FrozenVectors(self._documents.vectors)
            if self.config.tsdae.epochs and resumed is None:
                self._learn_corpus(tower)
                self.folder.save(Checkpoint(Progress(), parts(towers=towers.arrays())))
        elif self.config.asks_endpoint and self._documents is not None:
            table = FrozenVectors(self._documents.vectors)
            return TwoTower(FrozenVectors(self._documents.vectors[:0]), table)  # nothing is learnt
        else:
            towers = self._token_towers(corpus, tokenizer, fresh=resumed is None)
        if resumed is not None:
            towers.load_arrays(resumed.part("towers"))
        return towers

    def _learn_corpus(self, tower: TransformerTower) -> None:
        """Let a transformer restore the passages, before any query."""
        config, seed = self.config.tsdae, self.config.seed
        self.notify("the transformer learns the corpus by TSDAE")
        loss = restore_texts(tower.model.to(self.device), self._texts, config, seed=seed)
        self.notify(f"tsdae {config.epochs}/{config.epochs}: loss {loss:.3f}")

    def _token_towers(self, corpus: Corpus, tokenizer: RowTokenizer, *, fresh: bool) -> TwoTower:
        config, vocab_size, seed = self._tower_config, tokenizer.vocab_size, self.config.seed
        weights = np.ones(vocab_size, dtype=np.float32)
        if config.idf:
            weights = token_idf(corpus.passage_tokens, vocab_size=vocab_size)
        start = self.inputs.start
        if fresh and start is None:
            vectors = self._token_vectors(corpus, tokenizer)
        else:
            vectors = np.zeros((vocab_size, config.dim), dtype=np.float32)
        towers = TwoTower.start(config, vectors=vectors, weights=weights, seed=seed)
        if self._documents is not None:
            towers.passage = FrozenVectors(self._documents.vectors)
        if start is not None:
            towers.load_start(start.towers())
        elif fresh:
            self.folder.save(Checkpoint(Progress(), parts(towers=towers.arrays())))
        return towers

    @property
    def _tower_config(self) -> TowerConfig:
        """What the towers are; a query tower is as wide as the documents' vectors."""
        if self._documents is None:
            return self.config.tower
        return replace(self.config.tower, dim=self._documents.vectors.shape[1], shared=True)

    def _token_vectors(self, corpus: Corpus, tokenizer: RowTokenizer) -> FloatArray:
        config, dim, seed = self.config, self.config.tower.dim, self.config.seed
        if self.alignment is not None:
            spans, documents = self.alignment.spans, self.alignment.documents
            return token_means(spans, documents, tokenizer, seed=seed)
        if self._teacher is not None and config.teacher.token_vectors:
            return self._teacher.token_vectors(tokenizer, dim=dim)
        self.notify("learning token vectors")
        size = tokenizer.vocab_size
        return learn_vectors(corpus.passages, config.word2vec, vocab_size=size, dim=dim, seed=seed)

    def _train(self, trainer: Trainer, phases: list[Phase], resumed: Checkpoint | None) -> Arrays:
        """Go through all phases; return the towers' parameters from before any train query."""
        path = self.folder.before_labels
        label_free = [phase for phase in phases if phase.name not in (QUERIES, LABELLED, HARD)]
        progress = resumed.progress if resumed else Progress()
        if (progress.phase, progress.epoch) <= (len(label_free), 0):
            trainer.run(label_free, resumed)
            write_bytes(path, save_arrays(trainer.towers.arrays()))
            resumed = Checkpoint(Progress(phase=len(label_free), records=self.tracker.count), {})
        trainer.run(phases, resumed)
        return load_arrays(path.read_bytes())

    def _mine(self, towers: TwoTower, corpus: Corpus) -> HardNegatives:
        def find() -> Mined:
            self.notify("mining hard negatives")
            queries, passages = corpus.train_queries, corpus.passages
            return find_negatives(
                corpus.train,
                self._texts,
                self.config.hard.mining,
                analyzer=self.analyzer,
                encode=partial(tower_vectors, towers, queries=queries, passages=passages),
                titles=[passage.title for passage in self.data.passages()],
            )

        return cached_negatives(self.folder.negatives, find)

    def _evaluate(self, towers: TwoTower, corpus: Corpus) -> dict[str, float]:
        queries = encode_rows(towers.query, corpus.dev_queries)
        passages = encode_rows(towers.passage, corpus.passages)
        metrics = ranking_metrics(queries, passages, relevant=corpus.dev.relevant)
        # Documents of another encoder may lie as close together as they like.
        cosine = 0.0 if self._documents is not None else mean_pairwise_cosine(passages)
        return {**metrics, "cosine": cosine}

    def _bundle(
        self, towers: TwoTower, tokenizer: RowTokenizer, *, corpus: Corpus, clock: Clock
    ) -> ModelBundle:
        """Return the bundle without what is learnt after the towers."""
        config, frozen = self.config, self._documents
        if isinstance(tokenizer, TransformerTokenizer) and self._transformer is not None:
            int8 = self.config.transformer.int8
            files = transformer_files(towers.query, tokenizer, int8=int8)
            rows = OnnxEncoder(files[GRAPH])
            passages = corpus.passages
            vectors = Vectors(
                rows.encode(corpus.dev_queries),
                rows.encode(passages) if frozen is None else frozen.vectors[passages.ids],
            )
        elif self.config.asks_endpoint and frozen is not None:
            files = {TOKENIZER: tokenizer.model}
            vectors = frozen.vectors_with(corpus.dev.texts, rows=corpus.passages.ids)
        else:
            file = TEXT if isinstance(tokenizer, TransformerTokenizer) else TOKENIZER
            files = {file: tokenizer.model, TOWERS: save_arrays(towers.arrays())}
            vectors = tower_vectors(towers, queries=corpus.dev_queries, passages=corpus.passages)
        dims = self.config.pca_dims
        reduction = fit_reduction(vectors.passages, dims, seed=self.config.seed)
        for dim in sorted(set(dims) - set(reduction.dims), reverse=True):
            self.notify(f"pca_{dim} is left out: it needs more than {dim} passages and dims")
        metrics = reduced_metrics(vectors, reduction, relevant=corpus.dev.relevant)
        clock.lap("reduction")
        learns = config.labelled.epochs or (frozen is not None and config.align.query_epochs)
        new_labels = self._label_names if learns and corpus.train.texts else set()
        results = {
            "queries": {"train": len(corpus.train.texts), "dev": len(corpus.dev.texts)},
            "vocabulary": tokenizer.vocab_size,
            "dev": metrics,
            "dev_passages": len(vectors.passages),
            "seconds": clock.seconds,
            "device": str(self.device),
            "labels": sorted(self.inputs.labels() | new_labels),
            **self.inputs.identity(),
        }
        card = make_card(self.data, config.to_dict(), results=results)
        deciding = deciding_config(
            config, self._tower_config, tokenizer.config, reduction=reduction
        )
        if frozen is not None:
            deciding["tower"]["shared"] = False
            deciding["documents"] = dict(frozen.about)
            if self.config.asks_endpoint:
                deciding["documents"]["url"] = None  # it may move; the card has it
            else:
                deciding["prefixes"]["query"] = ""
            files[DOCUMENTS] = save_arrays({"probes": frozen.probes})
            if TEXT in files and GRAPH not in files:
                deciding["tokenizer"]["vocabulary"] = "documents"
        return ModelBundle.of_files(deciding, files, reduction=reduction, card=card)

    @property
    def _label_names(self) -> set[str]:
        """What the card calls the labels of DATA."""
        name = self.data.manifest.get("source", {}).get("name", self.data.path)
        return {self.data.content_hash, str(name)}
