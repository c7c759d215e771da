"""The cross-encoder: a transformer that reads query and passage as one text and gives one number.

Nogueira and Cho, "Passage Re-ranking with BERT", 2019, https://arxiv.org/abs/1901.04085.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from two_tower.models.errors import ConfigError
from two_tower.models.networks.transformer import (
    export_graph,
    model_source,
    no_bars,
    quiet,
    transformer_autocast,
)
from two_tower.models.text.pair_tokenizer import PairTokenizer
from two_tower.models.text.tokenizer import TokenizerConfig, TokenRows
from two_tower.models.text.transformer_tokenizer import (
    CROSS_GRAPH,
    CROSS_TEXT,
    INPUT,
    MISSING,
    TYPES,
)
from two_tower.models.vectors import FloatArray

PAIRS_AT_ONCE = 16

CONFIG_FILE = "config.json"

SCORES_PAIRS = "ForSequenceClassification"


class CrossEncoder(nn.Module):
    """A sequence classifier with one output; (queries, passages) -> how well each pair fits.

    It stays in evaluation mode, without dropout, as `networks.transformer.TransformerTower` does.
    """

    def __init__(self, model: Any, tokenizer: PairTokenizer) -> None:
        super().__init__()
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.reads_types = getattr(model.config, "type_vocab_size", 0) > 1

    def train(self, mode: bool = True) -> "CrossEncoder":
        """Do nothing, see the class."""
        return self

    def logits(
        self, queries: TokenRows, passages: TokenRows, *, bm25: FloatArray, cosine: FloatArray
    ) -> Tensor:
        """Return (n, m) float32 of n queries and n * m passages, the m of the first query first.

        It reads texts alone: `bm25` and `cosine` (n * m,) are not used.
        """
        count = len(passages.lengths)
        texts = np.split(queries.ids, queries.offsets[1:-1])
        each = count // len(texts)
        pairs = [
            self.tokenizer.join(texts[row // each], ids)
            for row, ids in enumerate(np.split(passages.ids, passages.offsets[1:-1]))
        ]
        lengths = np.array([len(pair.ids) for pair in pairs])
        order = np.argsort(lengths, kind="stable")  # pairs of like length are read together
        device = next(self.parameters()).device
        parts = []
        with transformer_autocast(device):
            for rows in np.split(order, range(PAIRS_AT_ONCE, count, PAIRS_AT_ONCE)):
                shape = len(rows), lengths[rows].max()
                ids, types, mask = (np.zeros(shape, dtype=np.int64) for _ in range(3))
                for place, row in enumerate(rows):
                    size = lengths[row]
                    ids[place, :size], types[place, :size] = pairs[row]
                    mask[place, :size] = 1
                tensors = (torch.from_numpy(array).to(device) for array in (ids, types, mask))
                parts.append(self(*tensors).float().cpu())
        return torch.cat(parts)[torch.from_numpy(np.argsort(order))].view(len(texts), each)

    def forward(self, ids: Tensor, types: Tensor, mask: Tensor) -> Tensor:
        """Return (n,) logits of ids, their segments and the mask, (n, longest) int64 each."""
        inputs = {INPUT: ids, "attention_mask": mask}
        if self.reads_types:
            inputs[TYPES] = types
        logits: Tensor = self.model(**inputs).logits[:, 0]
        return logits


def open_cross_encoder(name: str, limits: TokenizerConfig, *, fresh_head: bool) -> CrossEncoder:
    """Open a cross-encoder of sentence-transformers.

    Args:
        name: its folder, an installed package that brings one, or a hub id.
        limits: how many tokens of queries and passages it reads.
        fresh_head: a model that gives vectors may do too; it gets a new last layer.

    Raises:
        ConfigError: there is no such model, it scores no pairs, or the extra is not installed.
    """
    source, settings = _settings(name)
    kind = _kind(settings)
    if not kind.endswith(SCORES_PAIRS) and not fresh_head:
        raise ConfigError(
            f"the model {name} is no cross-encoder ({kind}, expected …{SCORES_PAIRS}); train one "
            "from it with cross.epochs 1 or more"
        )
    if kind.endswith(SCORES_PAIRS) and settings.num_labels != 1:
        raise ConfigError(
            f"the model {name} gives {settings.num_labels} numbers for a pair, expected 1; choose "
            "a cross-encoder with num_labels 1"
        )
    settings.num_labels = 1
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        with quiet(), no_bars(), torch.random.fork_rng():
            torch.manual_seed(0)  # of a new last layer
            model = AutoModelForSequenceClassification.from_pretrained(source, config=settings)
            backend = getattr(AutoTokenizer.from_pretrained(source), "backend_tokenizer", None)
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from None
    if backend is None:
        raise ConfigError(f"the model {name} has no tokenizer.json; choose one that has")
    return CrossEncoder(model.float(), PairTokenizer(backend.to_str().encode(), limits))


def scores_pairs(name: str) -> bool:
    """Say whether a model is a cross-encoder.

    Raises:
        ConfigError: there is no such model, or the extra is not installed.
    """
    return _kind(_settings(name)[1]).endswith(SCORES_PAIRS)


def _settings(name: str) -> tuple[str, Any]:
    """Return a model's folder or hub id, and its configuration."""
    source = model_source(name, file=CONFIG_FILE)
    try:
        with quiet():
            from transformers import AutoConfig
    except ImportError:
        raise ConfigError(MISSING.format(name="sentence-transformers")) from None
    try:
        with quiet():
            return source, AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from None


def _kind(settings: Any) -> str:
    kinds = getattr(settings, "architectures", None) or ["no architecture"]
    return str(kinds[0])


def _unreadable(name: str, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split())[:200]
    return ConfigError(f"the model {name} cannot be opened ({reason})")


def cross_encoder_files(encoder: CrossEncoder, *, int8: bool) -> dict[str, bytes]:
    """Return the files of a bundle that hold a cross-encoder, name -> content.

    Raises:
        ConfigError: a package of the extra is not installed.
    """
    inputs = [INPUT, TYPES] if encoder.reads_types else [INPUT]
    graph = export_graph(_Graph(encoder), inputs, output="logit", int8=int8)
    return {CROSS_GRAPH: graph, CROSS_TEXT: encoder.tokenizer.model}


class _Graph(nn.Module):
    """The encoder as a function of one pair alone: nothing is padded, so nothing masked."""

    def __init__(self, encoder: CrossEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: Tensor, types: Tensor | None = None) -> Tensor:
        """Return (1,) float32 for ids and segments (1, tokens) int64."""
        types = torch.zeros_like(ids) if types is None else types
        logit: Tensor = self.encoder(ids, types, torch.ones_like(ids))
        return logit
