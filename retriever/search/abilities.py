"""What a collection can do of what settings ask for."""

from collections.abc import Iterable

from two_tower.models.config import SHORT
from two_tower.models.errors import ConfigError
from two_tower.retriever.collection.options import CollectionOptions
from two_tower.retriever.collection.schema import BM25, DENSE, pca_name
from two_tower.retriever.search.queries import searched_vectors
from two_tower.retriever.search.rewriting import check_rewrite
from two_tower.retriever.search.settings import DEFAULT_LEGS, SearchSettings


def require_possible(
    settings: SearchSettings,
    pca_dims: Iterable[int],
    options: CollectionOptions,
    *,
    has_tower: bool = True,
) -> None:
    """Refuse what a collection cannot do.

    Args:
        settings: how to search.
        pca_dims: widths of its reduced vectors.
        options: how it is stored.
        has_tower: whether it has a bundle's vectors.

    Raises:
        ConfigError: the settings name a vector, or more clusters, than there are, or want to add
            up scores of different kinds; or they are something else.
    """
    if not isinstance(settings, SearchSettings):
        raise ConfigError(
            f"the settings are {SHORT.repr(settings)}; expected SearchSettings(…), or "
            "read_settings(FILE)"
        )
    if not has_tower:
        others = [leg for leg in settings.legs if leg != BM25 and settings.legs != DEFAULT_LEGS]
        others += ["diversity"] * (settings.diversity > 0)
        others += ["rewrite"] * (settings.rewrite is not None)
        if others:
            raise ConfigError(
                f"the settings ask for {others[0]}, and the collection has BM25 alone; leave it "
                "out, or run: ingest load DATA --bundle BUNDLE --collection NAME"
            )
    known = [DENSE, *map(pca_name, pca_dims), BM25]
    for name in sorted(searched_vectors(settings)):
        if has_tower and name not in known:
            raise ConfigError(f"unknown leg {name!r}; this bundle has {', '.join(known)}")
    if settings.rewrite is not None:
        check_rewrite(settings.rewrite)
    ann = settings.ann
    if ann.n_probe is not None and ann.n_probe > options.clusters:
        raise ConfigError(
            f"ann.n_probe is {ann.n_probe}, but the collection has {options.clusters or 'no'} "
            "clusters; a new one has them with clusters in the file of ingest load --options"
        )
    is_binary = options.quantization.kind == "binary" and not ann.ignore_quantized
    if is_binary and not ann.rescore and len(settings.legs) > 1:
        raise ConfigError(
            "ann.rescore is false, but scores of the collection's binary copies are no cosines and "
            "cannot be added to BM25; expected rescore: true"
        )
