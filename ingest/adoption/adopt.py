"""A foreign collection to DATA, and to a copy of it that can be searched.

No Qdrant from 1.16 on adds a vector to a collection that has points, renames one or lets an alias
take the name of a collection; so what is missing (BM25, reduced vectors, our payload) stands in a
copy. The copy is a load whose dense vectors are read instead of encoded: it is resumed, verified
and promoted as every load.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from two_tower.ingest.adoption.foreign import ForeignCollection
from two_tower.ingest.adoption.payloads import leaves
from two_tower.ingest.dataset.fields import FieldCensus
from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.loading.loader import LoadReport, LoadSettings, load
from two_tower.ingest.sources.tables import write_judgements
from two_tower.models.data import Dataset, Passage
from two_tower.models.errors import BundleError
from two_tower.models.language import ENGLISH
from two_tower.models.vectors import FloatArray
from two_tower.retriever.collection.bm25_vectors import check_language
from two_tower.retriever.collection.options import PLAIN_KINDS, payload_index
from two_tower.retriever.collection.schema import (
    CollectionMetadata,
    base_name,
    check_name,
    collection_name,
)
from two_tower.retriever.engine.protocol import Engine, PayloadIndex, collection_names
from two_tower.retriever.errors import CollectionMismatch

if TYPE_CHECKING:
    from two_tower.models.bundle.bundle import ModelBundle

ADOPTED = "adopted"  # in the source of a collection whose dense vectors were copied
DEV_FRACTION = 0.1
ASKED = 256  # passages that are looked for by their own first words
FEWEST_ASKED = 50  # fewer say nothing
ASKED_WORDS = 16
BEST_SHARE = 0.1  # of them; that is how many are found among the best tenth by chance
LEAST_FOUND = 0.3


class AdoptedEncoder:
    """A bundle whose passage vectors are those of a foreign collection: a `PassageEncoder`."""

    late_dim = 0  # the collection keeps no token vectors

    def __init__(self, bundle: "ModelBundle", foreign: ForeignCollection) -> None:
        self._bundle = bundle
        self._foreign = foreign

    @property
    def fingerprint(self) -> str:
        """The bundle's."""
        return self._bundle.fingerprint

    @property
    def dim(self) -> int:
        """The bundle's, and the collection's."""
        return self._bundle.dim

    @property
    def pca_dims(self) -> tuple[int, ...]:
        """The bundle's."""
        return self._bundle.pca_dims

    def passage_vectors(self, passages: Sequence[Passage]) -> FloatArray:
        """Return (n, dim) float32, L2-normalised, as the collection has them."""
        return self._foreign.vectors([passage.passage_id for passage in passages])

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        """Return the bundle's own vectors."""
        return self._bundle.encode_passages(texts)

    def reduce(self, vectors: FloatArray) -> dict[int, FloatArray]:
        """Return what the bundle's PCA makes of them."""
        return self._bundle.reduce(vectors)


def encoder_for(
    engine: Engine, metadata: CollectionMetadata, bundle: "ModelBundle"
) -> "ModelBundle | AdoptedEncoder":
    """Return what made the dense vectors of a collection of ours: its bundle, or an adoption.

    Raises:
        EngineError: what was adopted is not there any more, or cannot be read.
    """
    source = metadata.data["source"]
    if not source.get(ADOPTED):
        return bundle
    return AdoptedEncoder(bundle, ForeignCollection.reopen(engine, source))


def require_documents_model(bundle: "ModelBundle", folder: Path) -> None:
    """Refuse a bundle that cannot encode passages, before anything is made for them.

    Raises:
        BundleError: it was learnt on the vectors of a collection.
    """
    documents = bundle.config.get("documents")
    if documents and not documents["model"]:
        raise BundleError(
            f"{folder} was learnt on the vectors of {documents['source']} and encodes no passages; "
            f"run: ingest adopt {documents['source']} --bundle {folder}"
        )


def write_data(
    foreign: ForeignCollection,
    out: Path,
    *,
    queries: Path | None = None,
    language: str = ENGLISH,
    overwrite: bool = False,
) -> Dataset:
    """Make DATA of a collection's passages; points without text are set aside in rejected.jsonl.

    Points with equal texts stay apart: they may belong to different users of the collection.

    Args:
        foreign: the collection.
        out: the folder to make.
        queries: table of judged queries that go in as well; without splits of its own a tenth of
            them becomes dev.
        language: of the texts, as `prepare` takes it.
        overwrite: replace a DATA folder.

    Raises:
        ConfigError: BM25 does not know the language.
        DataError: `out` must not be written, no point has a text, or the table cannot be used.
    """
    with DatasetWriter(
        out,
        language=check_language(language),
        source=foreign.collection,
        details=foreign.about,
        dev_fraction=DEV_FRACTION if queries else 0.0,
        overwrite=overwrite,
        merge=False,
    ) as writer:
        for passage in foreign.passages():
            writer.add_passage(passage, where=f"point {passage.passage_id}")
        if queries:
            write_judgements(queries, writer)
    return Dataset.open(out)


def require_possible(engine: Engine, foreign: ForeignCollection, *, name: str, dim: int) -> None:
    """Refuse a bundle of another width, and a name that something else has.

    Raises:
        BundleError: the widths differ.
        CollectionMismatch: the name is a collection's, or an alias of something else.
        ConfigError: it cannot be an alias.
    """
    check_name(name)
    if dim != foreign.vector.dim:
        raise BundleError(
            f"the bundle's vectors have {dim} dims, those of {foreign.address} "
            f"{foreign.vector.dim}; train one for it with: models train DATA --documents "
            f"{foreign.address} --out BUNDLE"
        )
    aliases = {alias.alias_name: alias.collection_name for alias in engine.get_aliases().aliases}
    what = "a collection" if name in collection_names(engine) else ""
    if name in aliases and base_name(aliases[name]) != name:
        what = f"an alias of {aliases[name]!r}"
    if what:
        raise CollectionMismatch(f"{name!r} is {what} already; choose another with --name")


def require_meeting(foreign: ForeignCollection, data: Dataset, bundle: "ModelBundle") -> None:
    """Check that the bundle's query vectors are of the space that the collection's are of.

    Passages are looked for by their own first words among `ASKED` of them, spread evenly.

    Raises:
        BundleError: too few are found.
    """
    step = max(1, data.passage_count // ASKED)
    sample = list(islice(data.passages(), 0, step * ASKED, step))
    if len(sample) < FEWEST_ASKED:
        return
    queries = bundle.encode_queries(
        [" ".join(passage.text.split()[:ASKED_WORDS]) for passage in sample]
    )
    scores = queries @ foreign.vectors([passage.passage_id for passage in sample]).T  # (n, n)
    ranks = (scores > np.diag(scores)[:, None]).sum(axis=1)
    share = float(np.mean(ranks < BEST_SHARE * len(sample)))
    if share < LEAST_FOUND:
        raise BundleError(
            f"the bundle's query vectors do not meet the vectors of {foreign.address}: by their "
            f"own first words {share:.0%} of {len(sample)} passages are among the best tenth, "
            f"{BEST_SHARE:.0%} would be by chance; train one for it with: models train DATA "
            f"--documents {foreign.address} --out BUNDLE"
        )


def adopt(
    engine: Engine,
    foreign: ForeignCollection,
    data: Dataset,
    bundle: "ModelBundle",
    *,
    name: str,
    settings: LoadSettings | None = None,
) -> LoadReport:
    """Make the copy of `name` and this bundle equal to the foreign collection.

    What the collection has no more is deleted from the copy. The alias does not move here.

    Args:
        engine: that holds the collection, and will hold the copy.
        foreign: what is copied.
        data: what `write_data` made of it.
        bundle: encodes queries.
        name: alias that the copy is for.
        settings: of the load.

    Raises:
        BundleError: the bundle's vectors have another width or do not meet the collection's.
        CollectionMismatch: something else has that name.
        EngineError: the engine fails; run the same again to go on.
    """
    require_possible(engine, foreign, name=name, dim=bundle.dim)
    require_meeting(foreign, data, bundle)
    # What later tells that vectors are read, and where: see `encoder_for`.
    source = {**data.manifest["source"], ADOPTED: True}
    data = Dataset(data.path, {**data.manifest, "source": source})
    is_new = not engine.collection_exists(collection_name(name, bundle.fingerprint))
    report = load(
        engine,
        data,
        AdoptedEncoder(bundle, foreign),
        name=name,
        options=foreign.options if is_new else None,
        settings=settings or LoadSettings(prune=True),
    )
    indexed = engine.overview(report.collection).fields
    for field, index in _indexes(foreign, data).items():
        if field not in indexed:
            engine.create_payload_index(report.collection, field, index)
    return report


def _indexes(foreign: ForeignCollection, data: Dataset) -> Mapping[str, PayloadIndex]:
    """Return indexes on fields within mappings, and on what the original has indexes on."""
    census = FieldCensus()
    ours = {path: part for part, path in foreign.fields._asdict().items() if path}
    for passage in data.passages():
        inner = {path: value for path, value in leaves(passage.fields) if "." in path}
        census.add({path: value for path, value in inner.items() if path not in ours})
    indexes: dict[str, PayloadIndex] = {
        path: payload_index(values["type"])
        for path, values in census.report().items()
        if values["type"] in PLAIN_KINDS
        and not (values["type"] == "keyword" and values.get("more"))
    }
    theirs = foreign.engine.overview(foreign.collection).fields
    for path, kind in theirs.items():
        indexes[path if "." in path else ours.get(path, path)] = payload_index(kind)
    return indexes
