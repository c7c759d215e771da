"""A bundle as a model of sentence-transformers."""

from importlib import import_module
from pathlib import Path
from typing import Any

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.probes import PROBES
from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.export.sides import Side, passage_side, query_side, weighted_vectors
from two_tower.models.export.tokenizer import fast_tokenizer
from two_tower.models.export.weights import restore_weights
from two_tower.models.networks.transformer import open_transformer
from two_tower.models.text.tokenizer import TokenizerConfig
from two_tower.models.text.transformer_tokenizer import GRAPH, MISSING

MODULES = ("sentence_transformers.sentence_transformer.modules", "sentence_transformers.models")
"""Where the parts of a model are: of version 6, and before."""

LOWEST_COSINE, LOWEST_COSINE_INT8 = 0.9999, 0.95  # 8-bit graphs round what they compute too

BLANK = "A blank text has a vector of zeros; in the bundle it has the unknown token's."


def write_sentence_transformer(bundle: ModelBundle, folder: Path) -> list[str]:
    """Write a bundle's towers as the files of a `SentenceTransformer`.

    Returns:
        what its users should know.

    Raises:
        BundleError: the towers are recurrent, or of another model than the bundle names.
        ConfigError: the extra is not installed, or the model is not there.
    """
    query, passage = query_side(bundle), passage_side(bundle)
    if query.kind in ("gru", "lstm"):
        raise BundleError(
            f"sentence-transformers has no tower of kind {query.kind}; export it with --as onnx"
        )
    library = _library()
    is_int8, remarks = False, [BLANK]
    if query.kind == "transformer":
        model = _named_model(bundle)
        is_int8 = restore_weights(model, bundle.files[GRAPH])
        model.max_seq_length = passage.limit
        modules = [*model.children()]
        remarks = [
            f"A text is cut after {passage.limit} tokens; the bundle cuts queries after "
            f"{query.limit}."
        ]
    else:
        # Two routes where the towers are shared too: each side has its own limit of tokens.
        tables = ([_table(library, bundle, side)] for side in (query, passage))
        modules = [library.Router.for_query_document(*tables, default_route="document")]
    if type(modules[-1]).__name__ != "Normalize":
        modules.append(library.Normalize())
    from sentence_transformers import SentenceTransformer

    prompts = {"query": query.prefix, "document": passage.prefix}
    exported = SentenceTransformer(modules=modules, prompts=prompts, device="cpu")
    lowest = _lowest_cosine(exported, bundle)
    if lowest < (LOWEST_COSINE_INT8 if is_int8 else LOWEST_COSINE):
        raise BundleError(
            "the exported model gives other vectors (lowest cosine of ten probe texts "
            f"{lowest:.4f}); install the model that the bundle was trained from, or use --as onnx"
        )
    if is_int8:
        remarks.append(
            "The bundle computes with 8-bit integers, which are floats again here. The lowest "
            f"cosine of both over ten texts is {lowest:.4f}."
        )
    exported.save(str(folder), create_model_card=False)
    return remarks


def _library() -> Any:
    """Return the module of sentence-transformers that holds the parts of a model."""
    for name in MODULES:
        try:
            return import_module(name)
        except ImportError:
            continue
    raise ConfigError(MISSING.format(name="sentence-transformers"))


def _table(library: Any, bundle: ModelBundle, side: Side) -> Any:
    tokenizer = fast_tokenizer(bundle.tokenizer.model, limit=side.limit)
    vectors = weighted_vectors(bundle, side)
    return library.StaticEmbedding(tokenizer, embedding_weights=vectors)


def _named_model(bundle: ModelBundle) -> Any:
    """Open the model that a transformer bundle was trained from."""
    name = bundle.card.get("config", {}).get("transformer", {}).get("model")
    if not name:
        raise BundleError("the card does not say which model was trained; export with --as onnx")
    return open_transformer(name, TokenizerConfig()).tower.model


def _lowest_cosine(exported: Any, bundle: ModelBundle) -> float:
    ours, theirs = bundle.encode_passages(PROBES), exported.encode_document(list(PROBES))
    return float((ours * theirs).sum(axis=1).min()) if ours.shape == theirs.shape else 0.0
