from two_tower.models.data import Passage, Query
from two_tower.models.text.bm25 import Bm25Config, average_length
from two_tower.retriever.collection.bm25_vectors import EngineAnalyzer
from two_tower.retriever.evaluation.systems import Ranker, rank_bm25_ranker, tfidf_ranker

TEXTS = [
    "the cat sat on the mat",
    "dogs run and a dog ran after running cats",
    "a treaty between two kingdoms ended the war of the two kingdoms",
    "quantum mechanics describes nature",
    "mats are woven from straw",
]
PASSAGES = [Passage(str(i), text) for i, text in enumerate(TEXTS)]


def test_baselines_rank_the_passage_that_answers_first() -> None:
    config = Bm25Config(avg_len=average_length(TEXTS, EngineAnalyzer()))
    tfidf, bm25 = tfidf_ranker(PASSAGES), rank_bm25_ranker(PASSAGES, config)

    def ranking(ranker: Ranker, text: str, k: int = 3) -> list[str]:
        (passage_ids,) = ranker.rank([Query("q", text)], k)
        return passage_ids

    assert ranking(tfidf, "treaty of kingdoms") == ["2"]
    assert ranking(bm25, "woven mats", 1) == ["4"]
    assert ranking(tfidf, "zzz") == ranking(bm25, "zzz") == []
