from two_tower.models.data import Passage
from two_tower.models.text.bm25 import Bm25Config, average_length
from two_tower.retriever.collection.bm25_vectors import EngineAnalyzer
from two_tower.retriever.evaluation.systems import RankBm25Index, TfidfIndex

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
    tfidf, bm25 = TfidfIndex(PASSAGES), RankBm25Index(PASSAGES, config)
    assert tfidf.rank("treaty of kingdoms", k=3) == ["2"]
    assert bm25.rank("woven mats", k=1) == ["4"]
    assert tfidf.rank("zzz", k=3) == bm25.rank("zzz", k=3) == []
