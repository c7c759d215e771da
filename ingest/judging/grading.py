"""Grades of 0 to 3 that a language model gives; what is none is counted, and never guessed.

The scale is that of TREC's Deep Learning track. Faggioli et al., "Perspectives on Large Language
Models for Relevance Judgment", ICTIR 2023, arXiv:2304.09161, on what such grades can and cannot do.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from two_tower.ingest.judging.prompt import GradePrompt
from two_tower.models.endpoint.answer_cache import CachedModel
from two_tower.models.endpoint.language_model import Sampling, in_parallel
from two_tower.models.errors import ConfigError, EndpointError, PromptTooLong
from two_tower.models.progress import progress

SAMPLING = Sampling(max_tokens=8, stop=("\n",))

LONGEST_WORDS = 300  # of a passage
SHORTEST_CUT = 8  # words below which a passage is cut no further
CHARS_PER_TOKEN = 4  # of English, roughly

GRADE = re.compile(r"(?:grade\s*[:=]?\s*)?\**([0-3])\**\.?", re.IGNORECASE)

Pair = tuple[str, str]
"""query_id, passage_id."""


def read_grade(answer: str) -> int | None:
    """Return the grade that an answer consists of; None where it is anything else."""
    found = GRADE.fullmatch(answer.strip())
    return int(found[1]) if found else None


@dataclass
class Grades:
    """What a model made of some pairs.

    Attributes:
        by_pair: the grades; a pair whose answer was none is not there.
        malformed: answers that were no grade.
        example: one of them.
        cut: passages of which the model read the beginning alone.
        asked: calls.
    """

    by_pair: dict[Pair, int] = field(default_factory=dict)
    malformed: int = 0
    example: str = ""
    cut: int = 0
    asked: int = 0


class Grader:
    """Asks for grades, one pair at a time: what a passage says can change no grade but its own."""

    def __init__(
        self,
        model: CachedModel,
        prompt: GradePrompt,
        *,
        queries: Mapping[str, str],
        passages: Mapping[str, str],
    ) -> None:
        """Take the texts by their ids."""
        self._model = model
        self._prompt = prompt
        self._queries = queries
        self._passages = passages

    def grade(self, pairs: Iterable[Pair], *, total: int, at_once: int) -> Grades:
        """Return the grades of pairs, `at_once` of them asked for at the same time.

        Raises:
            ConfigError: the prompt leaves no room for a passage.
            EndpointError: the model does not answer; what it answered is kept.
        """
        grades, before = Grades(), self._model.asked
        answers = in_parallel(self._ask, pairs, at_once=at_once)
        done = 0
        try:
            for pair, (answer, is_cut) in progress(answers, label="judging", total=total):
                done += 1
                grades.cut += is_cut
                if (grade := read_grade(answer)) is None:
                    grades.malformed += 1
                    grades.example = answer
                else:
                    grades.by_pair[pair] = grade
        except EndpointError as error:
            raise type(error)(
                f"{error} ({done:,} of {total:,} pairs are answered; their answers are kept)"
            ) from None
        grades.asked = self._model.asked - before
        return grades

    def estimate(self, pairs: Iterable[Pair]) -> tuple[int, int]:
        """Return how many calls `grade` would make, and about how many tokens they hold."""
        prompts = (self._filled(pair, LONGEST_WORDS) for pair in pairs)
        new = [len(prompt) for prompt in prompts if not self._model.holds(prompt, SAMPLING)]
        return len(new), sum(new) // CHARS_PER_TOKEN

    def _filled(self, pair: Pair, words: int) -> str:
        query_id, passage_id = pair
        passage = " ".join(self._passages[passage_id].split()[:words])
        return self._prompt.fill(self._queries[query_id], passage)

    def _ask(self, pair: Pair) -> tuple[str, bool]:
        """Return the answer, and whether the passage had to be cut."""
        length = len(self._passages[pair[1]].split())
        for words in _lengths(min(LONGEST_WORDS, length)):
            try:
                (answer,) = self._model.complete(self._filled(pair, words), SAMPLING)
            except PromptTooLong as error:
                refusal = error
            else:
                return answer, words < length
        raise ConfigError(
            f"the prompt {self._prompt.name} leaves no room for a passage ({refusal}); shorten it, "
            "or give the server a larger context"
        )


def _lengths(words: int) -> Iterator[int]:
    """Yield a length and its halves, down to the shortest cut."""
    yield words
    while (words := words // 2) >= SHORTEST_CUT:
        yield words
