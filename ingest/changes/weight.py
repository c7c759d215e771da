"""The weight of a bundle's cosine on a collection of other texts than taught it, at loading."""

import logging
from typing import TYPE_CHECKING

from two_tower.models.data import Dataset
from two_tower.models.errors import ConfigError, DataError
from two_tower.retriever.calibration.calibrate import calibrate, store
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.search.retriever import Retriever
from two_tower.retriever.search.settings import SearchSettings

if TYPE_CHECKING:
    from two_tower.models.bundle.bundle import ModelBundle

log = logging.getLogger(__name__)

QUERIES = 100
"""Cut from the passages; `retriever calibrate` takes four times as many."""


def is_foreign(bundle: "ModelBundle", dataset: Dataset) -> bool:
    """Say whether the weight of a bundle's cosine comes from the labels of other DATA.

    The same source, prepared in another way, is not another.
    """
    data = dict(bundle.card.get("data") or {})
    if bundle.fusion is None or bundle.fusion.hybrid.normalised or "content_hash" not in data:
        return False
    known = {data["content_hash"], *bundle.card.get("labels", ())}
    name = dataset.manifest.get("source", {}).get("name", dataset.path)
    return known.isdisjoint({dataset.content_hash, str(name)})


def weigh(engine: Engine, collection: str, bundle: "ModelBundle", *, name: str) -> str | None:
    """Learn the weight from queries cut out of the passages, keep it, and return what was found.

    A collection that has one keeps it. Where the passages are too few or too short, or a model
    behind a URL would have to read them again, the weight stays as it was, and a warning says so.
    Both return None.

    Args:
        engine: that holds the collection.
        collection: loaded and verified.
        bundle: it was loaded with.
        name: that searches use.
    """
    retriever = Retriever(engine, collection, bundle, settings=SearchSettings())
    if retriever.metadata.fusion:
        return None
    try:
        if bundle.asks_endpoint:
            raise ConfigError("a model behind a URL reads the passages")
        found = calibrate(retriever, most=QUERIES)
    except (ConfigError, DataError) as error:
        log.warning(
            "what a cosine is worth was learnt on other passages; check it on these with judged "
            "queries: retriever calibrate %s DATA (without: %s)",
            name,
            error,
        )
        return None
    store(retriever, found)  # also where it stays, or the next load would ask again
    judged = f"Judged queries say it better: retriever calibrate {name} DATA"
    cut = f"{found.queries} queries cut from these"
    if found.after == found.before:
        return (
            f"a cosine stays worth {found.before:.1f} points of BM25, as was learnt on other "
            f"passages: {cut} ask for no less (MRR of BM25 {found.bm25_mrr:.3f}, with it "
            f"{found.after_mrr:.3f}). {judged}"
        )
    return (
        f"a cosine is worth {found.after:.1f} points of BM25 here; {found.before:.1f} was learnt "
        f"on other passages ({cut}: MRR of BM25 {found.bm25_mrr:.3f}, before "
        f"{found.before_mrr:.3f}, now {found.after_mrr:.3f}). {judged}; back: --forget"
    )
