"""The configuration of a training run."""

from collections.abc import Collection
from dataclasses import asdict, field, replace
from typing import Any

from pydantic import Field

from two_tower.models.bundle.documents import DocumentsConfig
from two_tower.models.bundle.files import BUNDLE_FORMAT, ENDPOINT
from two_tower.models.bundle.fusion import FusionConfig
from two_tower.models.bundle.late import LateConfig
from two_tower.models.bundle.reduction import Reduction
from two_tower.models.config import configuration
from two_tower.models.errors import ConfigError
from two_tower.models.examples.corpus import PrefixConfig
from two_tower.models.networks.cross_config import CrossConfig
from two_tower.models.networks.tower_config import TowerConfig
from two_tower.models.networks.transformer import TransformerConfig
from two_tower.models.networks.word2vec import Word2VecConfig
from two_tower.models.objectives.alignment import AlignConfig
from two_tower.models.objectives.denoising import DenoisingConfig
from two_tower.models.objectives.distillation import TeacherConfig
from two_tower.models.objectives.inverse_cloze import PretrainConfig
from two_tower.models.objectives.labelled import HardConfig, LabelledConfig
from two_tower.models.objectives.tsdae import TsdaeConfig
from two_tower.models.text.tokenizer import TokenizerConfig

PARTS = ("query", "fusion", "cross")
"""What `models train --only` names: the towers (over frozen documents the query's), the weights of
the fusion, and the cross-scorer, which is weighed beside them."""


@configuration()
class TrainConfig:
    """Everything that decides a bundle, beside the data.

    Attributes:
        seed: of every random choice.
        dev_share: queries held out for early stopping where DATA has no dev split.
        dev_passages: rank so many passages for dev (its answers, and others drawn with the seed)
            and fit the PCA to them; 0 for the whole corpus.
        pca_dims: widths of the reduced vectors.
        matryoshka_dims: lengths at which a vector's beginning is trained to do on its own.
    """

    seed: int = Field(default=0, ge=0)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    word2vec: Word2VecConfig = field(default_factory=Word2VecConfig)
    tower: TowerConfig = field(default_factory=TowerConfig)
    documents: DocumentsConfig = field(default_factory=DocumentsConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    denoising: DenoisingConfig = field(default_factory=DenoisingConfig)
    tsdae: TsdaeConfig = field(default_factory=TsdaeConfig)
    labelled: LabelledConfig = field(default_factory=LabelledConfig)
    hard: HardConfig = field(default_factory=HardConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    late: LateConfig = field(default_factory=LateConfig)
    cross: CrossConfig = field(default_factory=CrossConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    prefixes: PrefixConfig = field(default_factory=PrefixConfig)
    dev_share: float = Field(default=0.1, gt=0, lt=1)
    dev_passages: int = Field(default=0, ge=0)
    pca_dims: tuple[int, ...] = (64, 32)
    matryoshka_dims: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.documents.model is not None or self.asks_endpoint:
            self.check_frozen()
        elif self.tower.kind == "transformer" and self._reads_corpus:
            raise ConfigError(
                f"pretrain.epochs is {self.pretrain.epochs} by {self.pretrain.method}, expected 0 "
                "by inverse_cloze: a transformer's tokens cannot be cut; use --config transformer"
            )
        if self.tsdae.epochs and (self.tower.kind != "transformer" or self.transformer.layers):
            raise ConfigError(
                f"tsdae.epochs is {self.tsdae.epochs}, expected 0: it is for towers of kind "
                "transformer with all of their layers; denoising is for the others"
            )
        self._check_late()
        for name, dims in self._all_dims.items():
            if any(d < 1 for d in dims):
                raise ConfigError(f"{name} are {dims}, expected 1 or more each")
        if max(self.matryoshka_dims, default=0) > self.tower.dim:
            raise ConfigError(
                f"matryoshka_dims are {list(self.matryoshka_dims)}, expected at most tower.dim "
                f"({self.tower.dim})"
            )

    def _check_late(self) -> None:
        if not self.late.dim:
            return
        reads = self.tower.kind == "transformer" or self.documents.model is not None
        if not reads or self.documents.url:
            raise ConfigError(
                f"late.dim is {self.late.dim}, but no transformer at hand reads the documents; "
                "expected 0, tower.kind transformer, or documents.model without documents.url"
            )
        if not self.fusion.folds:
            raise ConfigError(
                f"late.dim is {self.late.dim} with fusion.folds 0: late interaction needs a weight "
                "beside BM25, which is learnt with the fusion"
            )

    def check_frozen(self) -> None:
        """Refuse phases that would have to change the documents' vectors, or an endpoint's model.

        Raises:
            ConfigError: there is one.
        """
        learns = self._reads_corpus or self.labelled.epochs or self.hard.epochs
        if self.asks_endpoint and learns:
            raise ConfigError(
                "pretrain.epochs, labelled.epochs or hard.epochs is above 0, but a model behind a "
                "URL stays as it is; use --config endpoint"
            )
        if self._reads_corpus or (self.teacher.model and self.teacher.epochs):
            raise ConfigError(
                "pretrain.epochs or teacher.epochs is above 0, but the documents' vectors are "
                "those of another encoder and stay as they are; use --config light"
            )

    @property
    def asks_endpoint(self) -> bool:
        """Whether what reads the documents behind a URL reads the queries, too."""
        return self.tower.kind == ENDPOINT

    def check_endpoint(self) -> None:
        """Refuse a tower behind a URL that is not given.

        Raises:
            ConfigError: URL or model is missing.
        """
        if self.asks_endpoint and not (self.documents.url and self.documents.model):
            raise ConfigError(
                "tower.kind is endpoint without documents.url and documents.model; name them, or "
                "add --embeddings URL --model NAME"
            )

    def without_model(self) -> "TrainConfig":
        """Return the same for documents whose vectors are there, by a model that is not."""
        return replace(self.with_own_vocabulary(), documents=DocumentsConfig())

    def with_own_vocabulary(self) -> "TrainConfig":
        """Return the same with a vocabulary of its own: that of a model elsewhere is unknown."""
        return replace(self, tokenizer=replace(self.tokenizer, vocabulary="own"))

    @property
    def _reads_corpus(self) -> bool:
        """Whether a phase learns from the passages' tokens."""
        restores = self.pretrain.method != "inverse_cloze" and self.denoising.epochs > 0
        return bool(self.pretrain.epochs or restores)

    def only(self, parts: Collection[str]) -> "TrainConfig":
        """Return the configuration that learns some parts alone; the others are what they start as.

        Args:
            parts: some of `PARTS`.

        Raises:
            ConfigError: one of them is unknown, or there is none.
        """
        if not parts or not set(parts) <= set(PARTS):
            raise ConfigError(f"--only is {','.join(parts)!r}, expected some of {','.join(PARTS)}")
        changes: dict[str, Any] = {}
        if "query" not in parts:
            sections = ("pretrain", "denoising", "tsdae", "teacher", "labelled", "hard")
            changes = {name: replace(getattr(self, name), epochs=0) for name in sections}
            changes["align"] = replace(self.align, epochs=0, query_epochs=0)
        if "fusion" not in parts:
            changes["fusion"] = replace(self.fusion, folds=0)
        if "cross" not in parts:
            changes["cross"] = replace(self.cross, epochs=0, model=None)
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested values."""
        return {**asdict(self), **self._all_dims}

    @property
    def _all_dims(self) -> dict[str, list[int]]:
        return {name: list(getattr(self, name)) for name in ("pca_dims", "matryoshka_dims")}


def deciding_config(
    config: TrainConfig, tower: TowerConfig, tokenizer: TokenizerConfig, *, reduction: Reduction
) -> dict[str, Any]:
    """Return the content of config.json."""
    return {
        "format": BUNDLE_FORMAT,
        "tower": {**tower.deciding(), "dim": len(reduction.mean)},
        "prefixes": asdict(config.prefixes),
        "tokenizer": {
            "max_passage_tokens": tokenizer.max_passage_tokens,
            "max_query_tokens": tokenizer.max_query_tokens,
        },
        "pca_dims": list(reduction.dims),
    }
