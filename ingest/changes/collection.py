"""`Collection`: passages are added to a collection that `ingest load` made, replaced, deleted.

A change is made under the lease of a load, and is searchable when the call returns. The metadata
says how many points there must be. A process that ends in the middle of a change leaves a note
there (`LACKING`), by which the next change puts the number right.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from two_tower.ingest.adoption.adopt import require_documents_model
from two_tower.ingest.changes.weight import is_foreign, weigh
from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.loading import loader
from two_tower.ingest.loading.declared import require_found
from two_tower.ingest.loading.diff import StoredHashes, find_changes
from two_tower.ingest.loading.lease import Lease
from two_tower.ingest.loading.loader import LoadReport, LoadSettings
from two_tower.ingest.loading.points import PassageEncoder, PointMaker, chunks
from two_tower.ingest.loading.verify import verify
from two_tower.ingest.versions import versions
from two_tower.models.bundle.no_tower import NoTower
from two_tower.models.config import SHORT
from two_tower.models.data import MOST_FIELDS, Dataset, Passage
from two_tower.models.errors import DataError
from two_tower.models.threads import one_blas_thread
from two_tower.retriever.collection.options import CollectionOptions, indexable_fields
from two_tower.retriever.collection.schema import (
    CONTENT_HASH,
    CollectionMetadata,
    point_id,
    read_metadata,
)
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine, Kind, agreement
from two_tower.retriever.engine.wire import batches
from two_tower.retriever.errors import CollectionMismatch
from two_tower.retriever.search.bundles import find_bundle, load_bundle

if TYPE_CHECKING:
    from two_tower.models.bundle.bundle import ModelBundle

AT_ONCE = 1024

LACKING = "lacking"  # in the metadata's `data` during a change: points that a load left out


class Collection:
    """A collection of ours, open for changes; a context manager.

    Attributes:
        engine: that holds it.
        name: its versioned name.
        bundle: that it was loaded with; encodes the passages.
    """

    def __init__(self, engine: Engine, name: str, bundle: PassageEncoder) -> None:
        """Take the collection that `name`, an alias or a versioned name, stands for.

        Raises:
            CollectionNotFound: there is none.
            CollectionMismatch: it was loaded with another bundle, by something else, or its vectors
                are another collection's.
        """
        self.engine = engine
        self.name = engine.resolve(name)
        self.bundle = bundle
        metadata = read_metadata(engine, self.name)
        if metadata.bundle_fingerprint != bundle.fingerprint:
            raise CollectionMismatch(
                f"collection {self.name!r} was loaded with bundle "
                f"{metadata.bundle_fingerprint[:12]}, this is bundle {bundle.fingerprint[:12]}; "
                "name the other bundle"
            )
        if metadata.data.get("source", {}).get("adopted"):
            raise CollectionMismatch(
                f"collection {self.name!r} has the vectors of another collection; change that one "
                "and run ingest adopt again"
            )

    @classmethod
    def open(
        cls,
        name: str,
        *,
        bundle: "str | Path | ModelBundle | None" = None,
        url: str | None = None,
        path: str | Path | None = None,
        api_key: str | None = None,
    ) -> "Collection":
        """Connect; the arguments are those of `Retriever.open`.

        Raises:
            BundleError: no complete bundle there.
            ConfigError: no bundle is named, or both `url` and `path`.
            EngineError: no engine, or what the constructor refuses.
        """
        given = load_bundle(bundle)
        engine = connect(url=url, path=path, api_key=api_key, create=False)
        try:
            return cls(engine, name, given or find_bundle(engine, name))
        except BaseException:
            engine.close()
            raise

    @classmethod
    def load(
        cls,
        name: str,
        data: str | Path | Dataset,
        *,
        bundle: "str | Path | ModelBundle | None" = None,
        url: str | None = None,
        path: str | Path | None = None,
        api_key: str | None = None,
        options: CollectionOptions | None = None,
        settings: LoadSettings | None = None,
        promote: bool = True,
        device: str = "auto",
        notify: Callable[[str], None] = lambda line: None,
    ) -> "Collection":
        """Make the collection of `name` and this bundle equal to DATA, as `ingest load` does.

        It is loaded, verified, and then what `name` stands for; the same call goes on after a stop.
        Where the bundle learnt what a cosine is worth from other data, that is weighed anew.

        Args:
            name: that searches will use.
            data: what `prepare` made.
            bundle: what `train` made; None for BM25 alone.
            url: a Qdrant server.
            path: folder of the embedded engine, made where it is missing.
            api_key: for the server.
            options: how to store it; as it is stored, or the default.
            settings: how to load.
            promote: whether the name is pointed to it.
            device: where a transformer reads: auto, cpu, cuda or cuda:1.
            notify: is told what was done, a line each.

        Raises:
            BundleError: no complete bundle there, or one that encodes no passages.
            DataError: DATA is missing, broken or empty.
            VerificationFailed: what is there is not what DATA says.
            EngineError: the engine fails, or something else has the name.
        """
        trained, dataset = load_bundle(bundle, device=device), _opened(data)
        if trained:
            require_documents_model(trained, trained.folder or Path("BUNDLE"))
        encoder, settings = trained or NoTower(), settings or LoadSettings()
        engine = connect(url=url, path=path, api_key=api_key)
        try:
            report = loader.load(
                engine, dataset, encoder, name=name, options=options, settings=settings
            )
            notify(str(report))
            patient = engine.with_retry(settings.retry_for_s)
            notify(str(verify(patient, report.collection, dataset, encoder)))
            if trained and is_foreign(trained, dataset):
                finding = weigh(engine, report.collection, trained, name=name)
                if finding:
                    notify(finding)
            if promote:
                versions.promote(patient, name, report.collection)
                notify(f"{name} -> {report.collection}")
            return cls(engine, report.collection, encoder)
        except BaseException:
            engine.close()
            raise

    def __len__(self) -> int:
        return self.engine.count(self.name, exact=True).count

    @property
    def text_fields(self) -> frozenset[str]:
        """Fields whose index is one of texts or dates: a number among them would not be found."""
        fields = self.engine.overview(self.name).fields
        numbers = {Kind.INTEGER, Kind.FLOAT, Kind.BOOL}
        return frozenset(name for name, kind in fields.items() if kind not in numbers)

    def __repr__(self) -> str:
        return f"<Collection {self.name!r} at {self.engine.where}>"

    def add(self, passages: Iterable[Passage]) -> LoadReport:
        """Add passages; one whose id is there already takes the place of the old one.

        Args:
            passages: with ids that differ.

        Returns:
            What was added, replaced and unchanged.

        Raises:
            DataError: a passage that cannot be stored, or none; nothing is written then.
            EngineLocked: another process loads the collection.
            EngineError: the engine fails; make the same call again to go on.
        """
        with TemporaryDirectory() as folder:
            return self.add_data(_written(passages, Path(folder, "DATA")))

    @one_blas_thread()
    def add_data(self, data: str | Path | Dataset) -> LoadReport:
        """Add the passages of DATA as `add` does; what DATA lacks stays as it is."""
        dataset = _opened(data)
        indexed = self.engine.overview(self.name).fields
        require_found(dataset, {field: kind.value for field, kind in indexed.items()})
        report, start = LoadReport(self.name), time.perf_counter()
        with self._change() as metadata:
            self._index(dataset)
            maker = PointMaker(self.bundle, metadata)
            for passages in chunks(dataset.passages(), AT_ONCE):
                stored = self._stored([passage.passage_id for passage in passages])
                is_expanded = bool(metadata.data.get("expansion"))
                for changes in find_changes(
                    self.engine, self.name, passages, stored, is_expanded=is_expanded
                ):
                    report = report.plus(changes)
                    for batch in batches(maker.make([*changes.added, *changes.replaced])):
                        self.engine.upsert(self.name, batch, wait=True)
                    if changes.payloads:
                        self.engine.batch_update_points(self.name, changes.payloads, wait=True)
        report = report.ended(dataset.passage_count, beside=0, prune=False)
        return replace(report, seconds=time.perf_counter() - start)

    def delete(self, passage_ids: Iterable[str]) -> int:
        """Delete passages; an id that is not there is passed over.

        Returns:
            How many were there and are deleted.

        Raises:
            DataError: the ids are no collection of texts.
            EngineLocked: another process loads the collection.
            EngineError: the engine fails; make the same call again to go on.
        """
        points = _points(passage_ids)
        deleted = 0
        with self._change():
            for part in chunks(points, AT_ONCE):
                found = self.engine.retrieve(self.name, part, with_payload=False)
                self.engine.delete(self.name, [*part], wait=True)
                deleted += len(found)
        return deleted

    def close(self) -> None:
        """Release the engine."""
        self.engine.close()

    def __enter__(self) -> "Collection":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @contextmanager
    def _change(self) -> Iterator[CollectionMetadata]:
        """Hold the lease, and keep the number of expected points true, whenever this ends."""
        with Lease(self.engine, self.name):
            metadata = read_metadata(self.engine, self.name)
            data = dict(metadata.data)
            lacking = data.pop(LACKING, None)
            if lacking is None:  # no change was cut short
                lacking = metadata.expected_points - len(self)
            self.engine.update_collection(
                self.name, metadata={"data": data | {LACKING: int(lacking)}}
            )
            yield metadata
            data["kept"] = len(self) + int(lacking) - int(data["counts"]["passages"])
            data["changed_at"] = datetime.now(UTC).isoformat(timespec="seconds")
            self.engine.update_collection(self.name, metadata={"data": data})

    def _stored(self, passage_ids: list[str]) -> StoredHashes:
        hashes = StoredHashes()
        for record in self.engine.retrieve(
            self.name,
            [point_id(passage_id) for passage_id in passage_ids],
            with_payload=[CONTENT_HASH],
            consistency=agreement(self.engine, self.name),
        ):
            hashes.add(record)
        return hashes

    def _index(self, dataset: Dataset) -> None:
        """Make indexes for fields that the collection has not met, as a load does.

        A collection gets no more than DATA describes, however many changes bring fields of their
        own: each index costs time at every write.
        """
        known = self.engine.overview(self.name).fields
        described = indexable_fields(dataset.manifest.get("fields", {}))
        new = [field for field in described if field not in known]
        for field in new[: max(0, MOST_FIELDS - len(known))]:
            self.engine.create_payload_index(self.name, field, described[field])


def _opened(data: str | Path | Dataset) -> Dataset:
    return data if isinstance(data, Dataset) else Dataset.open(data)


def _written(passages: Iterable[Passage], folder: Path) -> Dataset:
    """Make DATA of passages, by the rules that `ingest prepare` has for them.

    Raises:
        DataError: one is refused, two have one id, or there is none.
    """
    if isinstance(passages, str | bytes) or not isinstance(passages, Iterable):
        raise DataError(f"the passages are {SHORT.repr(passages)}; expected a list of Passage(…)")
    ids: set[str] = set()
    with DatasetWriter(folder, source="passages", merge=False) as writer:
        for number, passage in enumerate(passages, 1):
            if not isinstance(passage, Passage):
                raise DataError(
                    f"passage {number} is {SHORT.repr(passage)}; expected Passage(passage_id, text)"
                )
            stored_id = writer.add_passage(passage, where=f"passage {number}")
            if stored_id is None:
                raise DataError(_refusal(writer, passage, number))
            if stored_id in ids:
                raise DataError(f"two passages have the id {SHORT.repr(stored_id)}; expected one")
            ids.add(stored_id)
    return Dataset.open(folder)


def _refusal(writer: DatasetWriter, passage: Passage, number: int) -> str:
    reason = writer.reasons[-1].removeprefix("passage: ")
    return f"passage {number} ({SHORT.repr(passage.passage_id)}): {reason}; nothing was written"


def _points(passage_ids: Iterable[str]) -> list[str]:
    if isinstance(passage_ids, str) or not isinstance(passage_ids, Iterable):
        raise DataError(f"the ids are {SHORT.repr(passage_ids)}; expected a list of passage ids")
    ids = list(passage_ids)
    for passage_id in ids:
        if not isinstance(passage_id, str):
            raise DataError(f"a passage id is {SHORT.repr(passage_id)}; expected text")
    try:
        return list(dict.fromkeys(map(point_id, ids)))
    except UnicodeEncodeError:
        raise DataError(
            "a passage id is not text; expected ids as the collection has them"
        ) from None
