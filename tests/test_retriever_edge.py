"""What only the embedded engine has: its folder after a crash, optimize, honest refusals."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import HashEncoder, make_passages, write_data
from qdrant_client import models as qm

from two_tower.ingest.loading import loader
from two_tower.retriever.engine.connect import connect
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.errors import EngineError

DENSE = {"dense": qm.VectorParams(size=2, distance=qm.Distance.COSINE)}
NEAREST = qm.NearestQuery(nearest=[1.0, 0.0])


@pytest.fixture
def ready(edge_engine: Engine) -> Engine:
    edge_engine.create_collection("c", vectors_config=DENSE)
    points = [
        qm.PointStruct(id=n, vector={"dense": [float(n), 1.0]}, payload={"n": n})
        for n in range(1, 9)
    ]
    edge_engine.upsert("c", points)
    return edge_engine


def request(**fields: Any) -> qm.QueryRequest:
    return qm.QueryRequest(**({"query": [1.0, 0.0], "using": "dense", "limit": 3} | fields))


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (request(query=qm.SampleQuery(sample=qm.Sample.RANDOM)), "SampleQuery"),
        (request(query=qm.OrderByQuery(order_by="n")), "OrderByQuery"),
        (request(query=qm.FormulaQuery(formula="$score")), "FormulaQuery"),
        (request(query=qm.RecommendQuery(recommend=qm.RecommendInput())), "RecommendQuery"),
        (request(query=qm.ContextQuery(context=[])), "ContextQuery"),
        (request(query=qm.RrfQuery(rrf=qm.Rrf(k=2, weights=[1.0, 2.0]))), "Rrf.weights"),
        (request(query=qm.NearestQuery(nearest=[1.0], mmr=qm.Mmr())), "NearestQuery.mmr"),
        (request(lookup_from=qm.LookupLocation(collection="x")), "QueryRequest.lookup_from"),
        (request(shard_key="a"), "QueryRequest.shard_key"),
        (request(params=qm.SearchParams(acorn=qm.AcornSearchParams())), "SearchParams.acorn"),
        (request(with_payload=qm.PayloadSelectorExclude(exclude=["n"])), "PayloadSelectorExclude"),
        (
            request(
                filter=qm.Filter(
                    must=[qm.FieldCondition(key="n", values_count=qm.ValuesCount(gt=1))]
                )
            ),
            "FieldCondition.values_count",
        ),
    ],
)
def test_what_is_not_supported_is_named_never_ignored(
    ready: Engine, asked: qm.QueryRequest, named: str
) -> None:
    with pytest.raises(EngineError, match=f"does not support {named};"):
        ready.query_scores("c", [asked])
    nested = request(
        prefetch=[
            qm.Prefetch(
                **{
                    key: value
                    for key, value in asked.model_dump(exclude_none=True).items()
                    if key in qm.Prefetch.model_fields and key not in ("query", "filter", "params")
                },
                query=asked.query,
                filter=asked.filter,
                params=asked.params,
            )
        ]
    )
    if not named.startswith(("QueryRequest", "PayloadSelector")):
        with pytest.raises(EngineError, match=f"does not support {named};"):
            ready.query_scores("c", [nested])


def test_unsupported_collections_and_writes(edge_engine: Engine) -> None:
    scalar = qm.ScalarQuantization(scalar=qm.ScalarQuantizationConfig(type=qm.ScalarType.INT8))
    own = qm.VectorParams(size=2, distance=qm.Distance.DOT, quantization_config=scalar)
    with pytest.raises(EngineError, match=r"VectorParams\.quantization_config"):
        edge_engine.create_collection("c", vectors_config={"v": own})
    assert not edge_engine.collection_exists("c")
    edge_engine.create_collection("c", vectors_config=DENSE)
    with pytest.raises(EngineError, match="unnamed vector"):
        edge_engine.upsert("c", [qm.PointStruct(id=1, vector=[1.0, 2.0])])
    with pytest.raises(EngineError, match=r"PayloadSchemaType\.GEO"):
        edge_engine.create_payload_index("c", "n", qm.PayloadSchemaType.GEO)
    index = qm.KeywordIndexParams(type=qm.KeywordIndexType.KEYWORD)
    with pytest.raises(EngineError, match="KeywordIndexParams"):
        edge_engine.create_payload_index("c", "n", index)  # type: ignore[arg-type]
    rename = qm.RenameAlias(old_alias_name="a", new_alias_name="b")
    with pytest.raises(EngineError, match="RenameAliasOperation"):
        edge_engine.update_collection_aliases([qm.RenameAliasOperation(rename_alias=rename)])


def test_several_vectors_under_one_name(edge_engine: Engine) -> None:
    many = qm.MultiVectorConfig(comparator=qm.MultiVectorComparator.MAX_SIM)
    multi = qm.VectorParams(size=2, distance=qm.Distance.DOT, multivector_config=many)
    edge_engine.create_collection("c", vectors_config={**DENSE, "many": multi})
    edge_engine.upsert("c", [qm.PointStruct(id=1, vector={"many": [[1.0, 2.0], [3.0, 0.5]]})])
    (hit,) = edge_engine.query_points("c", [[1.0, 0.0], [0.0, 1.0]], using="many").points
    assert hit.score == 3.0 + 2.0
    for vector in ([[1.0, 2.0], [3.0]], [], [1.0, 2.0, 3.0]):
        with pytest.raises(EngineError, match="dimensions"):
            edge_engine.upsert("c", [qm.PointStruct(id=2, vector={"many": vector})])
    name = next(iter(DENSE))
    with pytest.raises(EngineError, match="multi vectors"):
        edge_engine.query_points("c", [[1.0, 0.0]], using=name)


def test_what_a_crash_leaves_is_swept(tmp_path: Path) -> None:
    engine = connect(path=tmp_path)
    engine.create_collection("kept", vectors_config=DENSE)
    engine.close()
    for leftover in (".new-half", ".old-gone"):
        (tmp_path / "collections" / leftover / "shard").mkdir(parents=True)
    (tmp_path / "aliases.json").write_text('{"dangling": "gone", "good": "kept"}')
    (tmp_path / "aliases.json.new").write_text('{"half')

    engine = connect(path=tmp_path)
    assert [found.name for found in engine.get_collections().collections] == ["kept"]
    assert [alias.alias_name for alias in engine.get_aliases().aliases] == ["good"]
    assert {entry.name for entry in (tmp_path / "collections").iterdir()} == {"kept"}
    engine.create_collection("half", vectors_config=DENSE)
    engine.close()


def test_optimize_changes_no_answer(tmp_path: Path) -> None:
    encoder = HashEncoder(dim=64, pca_dims=())
    data = write_data(tmp_path / "DATA", make_passages(3000))
    engine = connect(path=tmp_path / "edge")
    collection = loader.load(engine, data, encoder, name="c").collection
    vector = encoder.encode_queries(["river boat"])[0].tolist()
    exact = qm.SearchParams(exact=True)
    before = engine.query_points(collection, vector, using="dense", search_params=exact).points
    assert engine.optimize(collection)
    after = engine.query_points(collection, vector, using="dense", search_params=exact).points
    assert [hit.id for hit in after] == [hit.id for hit in before]
    np.testing.assert_allclose([h.score for h in after], [h.score for h in before], atol=1e-6)
    assert engine.count(collection).count == 3000
    engine.close()


def test_many_threads_share_an_engine(ready: Engine) -> None:
    found: list[list[Any]] = []

    def search() -> None:
        for _ in range(20):
            found.append([h.id for h in ready.query_points("c", NEAREST, using="dense").points])

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[8, 7, 6, 5, 4, 3, 2, 1]] * 80


def test_broken_aliases_are_told_in_one_line(tmp_path: Path) -> None:
    engine = connect(path=tmp_path)
    (tmp_path / "aliases.json").write_text("{")
    for call in (engine.get_aliases, lambda: engine.resolve("c"), lambda: engine.count("c")):
        with pytest.raises(EngineError, match=str(tmp_path)) as failure:
            call()
        assert "\n" not in str(failure.value)
    engine.close()


def test_a_broken_shard_is_told_in_one_line(tmp_path: Path) -> None:
    engine = connect(path=tmp_path)
    engine.create_collection("c", vectors_config=DENSE)
    engine.close()
    (tmp_path / "collections" / "c" / "shard" / "edge_config.json").write_text("{")
    engine = connect(path=tmp_path)
    with pytest.raises(EngineError, match=str(tmp_path)) as failure:
        engine.count("c")
    assert "\n" not in str(failure.value)
    engine.close()
