import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import make_passages

from two_tower.ingest.loading import loader
from two_tower.ingest.versions import versions as collections
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.data import Dataset
from two_tower.retriever import Retriever
from two_tower.retriever.engine.connect import connect

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
PASSAGES = make_passages(60)
QUERY = "storm on the river bank"


@pytest.fixture
def folder(tmp_path: Path, tiny_bundle: Path, make_data: Callable[..., Dataset]) -> Path:
    engine = connect(path=tmp_path / "edge")
    bundle = ModelBundle.load(tiny_bundle)
    report = loader.load(engine, make_data(PASSAGES), bundle, name="pages")
    collections.promote(engine, "pages", report.collection)
    engine.close()
    return tmp_path / "edge"


@pytest.fixture
def retriever(folder: Path, tiny_bundle: Path) -> Iterator[Retriever]:
    with Retriever.open("pages", bundle=tiny_bundle, path=folder) as opened:
        yield opened


def test_langchain_gives_the_hits_as_documents(retriever: Retriever) -> None:
    from langchain_core.retrievers import BaseRetriever

    from two_tower.retriever.langchain import TwoTowerRetriever

    adapter = TwoTowerRetriever(retriever=retriever, k=4, filter={"kind": "note"})
    assert isinstance(adapter, BaseRetriever)
    documents = adapter.invoke(QUERY)
    hits = retriever.search(QUERY, k=4, filter={"kind": "note"})
    assert [d.id for d in documents] == [h.passage_id for h in hits]
    assert [d.page_content for d in documents] == [h.text for h in hits]
    assert [d.metadata["score"] for d in documents] == pytest.approx([h.score for h in hits])
    assert {d.metadata["kind"] for d in documents} == {"note"}
    assert documents[0].metadata["title"] == hits[0].title
    assert "text" not in documents[0].metadata


def test_langchain_takes_k_and_filter_of_a_call_and_refuses_what_it_does_not_know(
    retriever: Retriever,
) -> None:
    from pydantic import ValidationError

    from two_tower.retriever.langchain import TwoTowerRetriever

    adapter = TwoTowerRetriever(retriever=retriever, k=4)
    found = adapter.invoke(QUERY, k=2, filter={"kind": ["note"]})
    hits = retriever.search(QUERY, k=2, filter={"kind": "note"})
    assert [d.id for d in found] == [h.passage_id for h in hits]
    assert len(adapter.batch([QUERY], k=3)[0]) == 3
    for unknown in ({"search_kwargs": {"k": 2}}, {"top_k": 2}):
        with pytest.raises(ValidationError, match="not permitted"):
            TwoTowerRetriever(retriever=retriever, **unknown)
        with pytest.raises(TypeError, match="unexpected keyword"):
            adapter.invoke(QUERY, **unknown)


def test_a_field_called_score_stays_what_it_is(
    tmp_path: Path, tiny_bundle: Path, make_data: Callable[..., Dataset]
) -> None:
    from two_tower.retriever.haystack import TwoTowerRetriever as Component
    from two_tower.retriever.langchain import TwoTowerRetriever

    rated = [p._replace(fields={"score": n}) for n, p in enumerate(PASSAGES)]
    engine = connect(path=tmp_path / "rated")
    report = loader.load(engine, make_data(rated), ModelBundle.load(tiny_bundle), name="pages")
    engine.close()
    with Retriever.open(report.collection, bundle=tiny_bundle, path=tmp_path / "rated") as opened:
        hits = opened.search(QUERY, k=3)
        documents = TwoTowerRetriever(retriever=opened, k=3).invoke(QUERY)
        component = Component(report.collection, path=str(tmp_path / "rated"), top_k=3)
        others = component.run(QUERY)["documents"]
        component.close()
    assert [d.metadata["score"] for d in documents] == [h.payload["score"] for h in hits]
    assert [d.metadata["search_score"] for d in documents] == [h.score for h in hits]
    assert [d.meta["score"] for d in others] == [h.payload["score"] for h in hits]
    assert [d.score for d in others] == [h.score for h in hits]


def test_langchain_composes_and_batches(retriever: Retriever) -> None:
    from langchain_core.runnables import RunnableLambda

    from two_tower.retriever.langchain import TwoTowerRetriever

    chain = TwoTowerRetriever(retriever=retriever, k=2) | RunnableLambda(lambda found: found[0].id)
    queries = [p.content for p in PASSAGES[:8]]
    assert chain.batch(queries) == [p.passage_id for p in PASSAGES[:8]]


def test_haystack_runs_in_a_pipeline_that_was_written_and_read(
    folder: Path, tiny_bundle: Path
) -> None:
    from haystack import Pipeline

    from two_tower.retriever.haystack import TwoTowerRetriever

    pipeline = Pipeline()
    component = TwoTowerRetriever("pages", bundle=str(tiny_bundle), path=str(folder), top_k=3)
    pipeline.add_component("retriever", component)
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=["two_tower.retriever.haystack"])
    inputs = {"query": QUERY, "filters": {"year": {"gte": 2010}}}
    documents = again.run({"retriever": inputs})["retriever"]["documents"]
    again.get_component("retriever").close()
    with Retriever.open("pages", bundle=tiny_bundle, path=folder) as retriever:
        hits = retriever.search(QUERY, k=3, filter={"year": {"gte": 2010}})
    assert [d.id for d in documents] == [h.passage_id for h in hits]
    assert [d.content for d in documents] == [h.text for h in hits]
    assert [d.score for d in documents] == pytest.approx([h.score for h in hits])
    assert all(d.meta["year"] >= 2010 and d.meta["title"] for d in documents)


def test_haystack_opens_when_first_run_and_closes(folder: Path, tiny_bundle: Path) -> None:
    from two_tower.retriever.haystack import TwoTowerRetriever

    component = TwoTowerRetriever("pages", bundle=str(tiny_bundle), path=str(folder))
    component.close()
    assert len(component.run(QUERY)["documents"]) == 10
    assert len(component.run(QUERY, top_k=2)["documents"]) == 2
    component.close()
    connect(path=folder).close()


@pytest.mark.parametrize(
    ("library", "module"), [("langchain_core", "langchain"), ("haystack", "haystack")]
)
def test_without_the_library_the_error_names_the_extra(library: str, module: str) -> None:
    program = f"import sys; sys.modules['{library}'] = None; import retriever.{module}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert f"pip install 'two-tower-search[{module}]'" in done.stderr.strip().splitlines()[-1]
