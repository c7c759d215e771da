"""A small judged collection: words of each query, and which passages hold most of them."""

from pathlib import Path

import numpy as np
from conftest import WORDS, make_passages

from two_tower.ingest.dataset.writer import DatasetWriter
from two_tower.ingest.loading import loader
from two_tower.ingest.versions import versions as collections
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.data import Dataset, Passage, Qrel, Query
from two_tower.retriever.engine.connect import connect

NAME = "pages"


def write_judged(path: Path, *, more: tuple[Passage, ...] = (), words: str = "") -> Dataset:
    """Write 120 passages, those in `more`, and 30 queries of three words, graded 0 to 2.

    Args:
        path: of DATA.
        more: passages beside the usual ones; each answers one query.
        words: what every query has beside its own.
    """
    random = np.random.default_rng(4)
    passages = make_passages(120)
    with DatasetWriter(path, source="judged") as writer:
        for passage in [*passages, *more]:
            writer.add_passage(passage)
        for number in range(30):
            wanted = random.choice(WORDS, 3, replace=False).tolist()
            writer.add_query(Query(f"q{number}", " ".join([*wanted, words]).strip()))
            held = [len(set(wanted) & set(p.text.split())) for p in passages]
            order = np.argsort(-np.array(held), kind="stable")
            for place, row in enumerate(order[:4].tolist()):
                grade = (2, 1, 1, 0)[place]
                writer.add_qrel(Qrel(f"q{number}", f"p{row}", grade, "dev"))
        for number, passage in enumerate(more):
            writer.add_qrel(Qrel(f"q{number}", passage.passage_id, 2, "dev"))
    return Dataset.open(path)


def load_judged(data: Dataset, bundle: Path, engine_path: Path, *, name: str = NAME) -> None:
    """Load DATA into the embedded engine at `engine_path`."""
    engine = connect(path=engine_path)
    report = loader.load(engine, data, ModelBundle.load(bundle), name=name)
    collections.promote(engine, name, report.collection)
    engine.close()
