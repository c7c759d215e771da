"""A bundle as a model of sentence-transformers."""

from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.files import CARD
from two_tower.models.endpoint.probes import PROBES, lowest_cosine
from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.export.sides import TRANSFORMER, Side, documents_model, own_side
from two_tower.models.export.weights import restore_weights
from two_tower.models.networks.transformer import open_transformer
from two_tower.models.text.tokenizer import TokenizerConfig
from two_tower.models.text.transformer_tokenizer import GRAPH, MISSING

MODULES = ("sentence_transformers.sentence_transformer.modules", "sentence_transformers.models")
"""Where the parts of a model are: of version 6, and before."""

LOWEST_COSINE, LOWEST_COSINE_INT8 = 0.9999, 0.95  # 8-bit graphs round what they compute too

BLANK = (
    "A blank text has a vector of zeros where a table reads it; in the bundle it has that of the "
    "vocabulary's first token."
)


class Route(NamedTuple):
    """What reads one side's texts.

    Attributes:
        modules: of sentence-transformers, the first takes texts.
        is_int8: whether the bundle computes the same with 8-bit integers.
    """

    modules: list[Any]
    is_int8: bool = False


def write_sentence_transformer(bundle: ModelBundle, folder: Path) -> list[str]:
    """Write a bundle's towers as the files of a `SentenceTransformer`.

    Returns:
        what its users should know.

    Raises:
        BundleError: the towers are recurrent, or of another model than the bundle names.
        ConfigError: the extra is not installed, or the model is not there.
    """
    kind = bundle.config["tower"]["kind"]
    if kind in ("gru", "lstm"):
        raise BundleError(
            f"sentence-transformers has no tower of kind {kind}; export it with --as onnx"
        )
    library, remarks = _library(), []
    routes = _routes(bundle, library)
    if len(routes) == 1:
        ((modules, _),) = routes.values()
    else:
        parts = {name: route.modules for name, route in routes.items()}
        modules = [library.Router(parts, default_route="document")]
    if type(modules[-1]).__name__ != "Normalize":
        modules = [*modules, library.Normalize()]
    from sentence_transformers import SentenceTransformer

    prefixes = {"query": "", "passage": "", **bundle.config.get("prefixes", {})}
    prompts = {"query": prefixes["query"], "document": prefixes["passage"]}
    exported = SentenceTransformer(modules=modules, prompts=prompts, device="cpu")
    for name, route in routes.items():
        lowest = _agreement(exported, bundle, name)
        if lowest < (LOWEST_COSINE_INT8 if route.is_int8 else LOWEST_COSINE):
            raise BundleError(
                f"the exported model gives other {name} vectors (lowest cosine of ten probe texts "
                f"{lowest:.4f}); install the model that the bundle names, or use --as onnx"
            )
        if route.is_int8:
            remarks.append(
                f"The bundle computes {name} vectors with 8-bit integers, which are floats here. "
                f"The lowest cosine of both over ten texts is {lowest:.4f}."
            )
    if kind == "mean":
        remarks.append(BLANK)
    elif "query" not in routes:
        query, passage = own_side(bundle, "query"), own_side(bundle, "passage")
        remarks.append(
            f"A text is cut after {passage.limit} tokens; the bundle cuts queries after "
            f"{query.limit}."
        )
    if any(prompts.values()):
        remarks.append("`encode_query` and `encode_document` put the bundle's prefixes in place.")
    exported.save(str(folder), create_model_card=False)
    return remarks


def _routes(bundle: ModelBundle, library: Any) -> dict[str, Route]:
    """Return the routes `query` and `document`; one of them where it serves both, or is alone."""
    query = own_side(bundle, "query")
    if "documents" not in bundle.config:
        passage = own_side(bundle, "passage")
        if query.kind == TRANSFORMER:
            return {"document": _restored(bundle, limit=passage.limit)}
        # Two routes where the towers are shared too: each side has its own limit of tokens.
        return {"query": _table(library, query), "document": _table(library, passage)}
    is_table = query.kind != TRANSFORMER
    routes = {"query": _table(library, query) if is_table else _restored(bundle, limit=query.limit)}
    if model := documents_model(bundle):
        routes["document"] = _named(model)
    return routes


def _table(library: Any, side: Side) -> Route:
    vectors = side.weighted_vectors()
    return Route([library.StaticEmbedding(side.tokenizer(), embedding_weights=vectors)])


def _restored(bundle: ModelBundle, *, limit: int) -> Route:
    """Return the transformer that the bundle holds, in the architecture that its card names."""
    name = bundle.card.get("config", {}).get("transformer", {}).get("model")
    if not name:
        raise BundleError("the card does not say which model was trained; export with --as onnx")
    model: Any = open_transformer(name, TokenizerConfig()).tower.model
    is_int8 = restore_weights(model, bundle.files[GRAPH])
    model.max_seq_length = limit
    return Route([*model.children()], is_int8)


def _named(name: str) -> Route:
    """Return the transformer that reads the documents, as `documents.reader_files` opens it."""
    if (Path(name) / CARD).is_file():
        bundle = ModelBundle.load(name)
        return _restored(bundle, limit=own_side(bundle, "passage").limit)
    tower, tokenizer = open_transformer(name, TokenizerConfig())
    model: Any = tower.model
    model.max_seq_length = tokenizer.config.max_passage_tokens
    return Route([*model.children()], is_int8=True)


def _library() -> Any:
    """Return the module of sentence-transformers that holds the parts of a model."""
    for name in MODULES:
        try:
            return import_module(name)
        except ImportError:
            continue
    raise ConfigError(MISSING.format(name="sentence-transformers"))


def _agreement(exported: Any, bundle: ModelBundle, route: str) -> float:
    """Return the lowest cosine of the exported vectors with the bundle's, over the probes."""
    if route == "query":
        ours, theirs = bundle.encode_queries(PROBES), exported.encode_query(list(PROBES))
    else:
        ours, theirs = bundle.encode_passages(PROBES), exported.encode_document(list(PROBES))
    return lowest_cosine(ours, theirs) if ours.shape == theirs.shape else 0.0
