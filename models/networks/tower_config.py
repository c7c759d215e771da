"""What the towers are, and the network of recurrent ones; no torch."""

from dataclasses import asdict, field
from typing import Any, Literal

from pydantic import Field

from two_tower.models.config import configuration
from two_tower.models.errors import ConfigError

Pooling = Literal["last", "mean", "max"]


@configuration("tower.rnn")
class RnnConfig:
    """The network of a recurrent tower.

    Attributes:
        hidden: width of one direction's state.
        bidirectional: also read each row from its end, with a network of its own.
        pooling: what becomes of a row's states: the `last` one, their `mean` or `max`.
        projection: learn a linear map from states to vectors; without it their widths must agree.
        skip: add the states to the mean tower's vector, from a projection that starts at zero: an
            untrained network then does no harm.
        pretrain: let the network learn in the pretrain phase too, not only its skip path.
    """

    hidden: int = Field(default=128, ge=1)
    bidirectional: bool = False
    pooling: Pooling = "mean"
    projection: bool = True
    skip: bool = True
    pretrain: bool = False

    def __post_init__(self) -> None:
        if self.skip and not self.projection:
            raise ConfigError(
                "tower.rnn.projection is false, expected true with tower.rnn.skip: "
                "the states are added through a projection that starts at zero"
            )
        if not self.skip and not self.pretrain:
            raise ConfigError(
                "tower.rnn.pretrain is false, expected true without tower.rnn.skip: "
                "there is nothing else to pretrain"
            )

    @property
    def width(self) -> int:
        """Width of the pooled states."""
        return self.hidden * (2 if self.bidirectional else 1)


@configuration("tower")
class TowerConfig:
    """What the towers are.

    Attributes:
        kind: how tokens become one vector; the query tower's where another encoder reads documents.
            `endpoint` has no tower: what reads the documents at `documents.url` reads queries too.
        dim: width of that vector.
        shared: whether queries and passages are read by the same tower.
        rnn: the network of kind `gru` or `lstm`.
        idf: whether token weights start as their IDF, or all as 1.
    """

    kind: Literal["mean", "gru", "lstm", "transformer", "endpoint"] = "mean"
    dim: int = Field(default=256, ge=1)
    shared: bool = True
    rnn: RnnConfig = field(default_factory=RnnConfig)
    idf: bool = True

    def __post_init__(self) -> None:
        if self.kind == "transformer" and not self.shared:
            raise ConfigError("tower.shared is off, but a transformer reads both sides")
        if self.is_rnn and not self.rnn.projection and self.rnn.width != self.dim:
            raise ConfigError(
                f"tower.dim is {self.dim}, expected {self.rnn.width} (the width of the states) "
                "without tower.rnn.projection"
            )

    @property
    def is_rnn(self) -> bool:
        """Whether the towers are recurrent."""
        return self.kind in ("gru", "lstm")

    def deciding(self) -> dict[str, Any]:
        """Return plain values of what matters for this kind."""
        left_out = {"idf"} if self.is_rnn else {"idf", "rnn"}
        return {key: value for key, value in asdict(self).items() if key not in left_out}
