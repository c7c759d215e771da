"""Passages imagined for a query (HyDE), by a language model or any function.

The tower's stages search with the mean of their vectors and the query's; BM25 keeps to the query.
A query whose passages do not come in time, or not at all, is searched without them.

Gao, Ma, Lin and Callan, "Precise Zero-Shot Dense Retrieval without Relevance Labels", 2022.
"""

import logging
import math
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from two_tower.models.errors import ConfigError, EndpointError
from two_tower.models.files import read_prompt_text
from two_tower.retriever.errors import QueryError
from two_tower.retriever.search.settings import RewriteSettings

log = logging.getLogger(__name__)

Rewriter = Callable[[str], Sequence[str]]
"""query -> hypothetical passages that answer it."""

Answers = tuple[str, ...]
"""The passages imagined for one query; there may be none."""

QUERY = "{query}"

PROMPT = """\
Question: why does bread rise
Passage: Yeast feeds on the sugar in the dough and gives off carbon dioxide. The gas is caught in
the stretchy gluten as bubbles, so the dough swells, and the heat of the oven sets it.

Question: sort a list of dictionaries by a key in Python
Passage: The built-in function sorted takes a key function, so sorted(rows, key=itemgetter("name"))
returns a new list of the dictionaries in the order of that key; list.sort does it in place.

Question: {query}
Passage:"""

STOP = ("\nQuestion:", "\n\n")

MAX_TOKENS = 96

TEMPERATURE = 0.7  # of several passages; a single one is the likeliest

REMEMBERED = 512  # queries

AT_ONCE = 4  # requests of one batch of queries

THREADS = 16

LATE_FACTOR = 2.0  # how long a late answer is still waited for, to be remembered


class AnswerWriter:
    """A language model as a `Rewriter`; its answers are kept in the cache folder."""

    def __init__(self, settings: RewriteSettings) -> None:
        """Read the prompt and check the URL; nothing is asked.

        Raises:
            ConfigError: the URL cannot be one, or the prompt is missing or has no {query}.
        """
        from two_tower.models.endpoint.answer_cache import CachedModel
        from two_tower.models.endpoint.language_model import LanguageModel, Sampling

        self._given = 0  # answers
        self._prompt = read_prompt(settings.prompt)
        self._model = CachedModel(LanguageModel(settings.llm, settings.model))
        weakref.finalize(self, self._model.close)  # of retrievers that are dropped, not closed
        self._timeout_s = LATE_FACTOR * settings.within_s
        self._sampling = Sampling(
            n=settings.passages,
            max_tokens=MAX_TOKENS,
            temperature=TEMPERATURE if settings.passages > 1 else 0.0,
            stop=STOP,
        )

    def __call__(self, query: str) -> list[str]:
        """Return passages that could answer the query.

        Raises:
            EndpointError: no answer, a wrong key, an unknown model, another form.
        """
        prompt = self._prompt.replace(QUERY, " ".join(query.split()))
        texts = self._model.complete(prompt, self._sampling, timeout_s=self._timeout_s)
        self._given += 1
        return [text.strip() for text in texts]

    def check(self) -> None:
        """Ask for one word.

        Raises:
            EndpointError: no answer, a wrong key, an unknown model.
        """
        from two_tower.models.endpoint.language_model import Sampling

        self._model.model.complete("Bread", Sampling(max_tokens=1), timeout_s=self._timeout_s)

    @property
    def remembered(self) -> int:
        """How many answers came from the cache folder."""
        return max(0, self._given - self._model.asked)

    def close(self) -> None:
        """Close cache and connections."""
        self._model.close()


def check_rewrite(settings: RewriteSettings) -> None:
    """Refuse a URL that cannot be one, and a prompt that cannot be used.

    Raises:
        ConfigError: as it says.
    """
    from two_tower.models.endpoint.service import base_url

    base_url(settings.llm)
    read_prompt(settings.prompt)


def read_prompt(file: str | None) -> str:
    """Return the text in which {query} stands for the query; the one that ships for None.

    Raises:
        ConfigError: the file cannot be read, or has no {query}.
    """
    if file is None:
        return PROMPT
    try:
        prompt = read_prompt_text(Path(file))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the prompt {file} cannot be read ({error})") from None
    if QUERY not in prompt:
        raise ConfigError(f"the prompt {file} has no {QUERY}, which stands for the query")
    return prompt


class Rewriting:
    """A rewriter, asked within a time limit; remembers the latest answers. Threads may share one.

    Attributes:
        times_ms: what each new answer took.
        missed: queries that were searched without an answer, because it was late or failed.
    """

    def __init__(self, rewriter: Rewriter, *, within_s: float | None = None) -> None:
        """Ask nothing yet; without a limit the rewriter is called in the caller's thread."""
        self._rewriter = rewriter
        self._within_s = within_s
        self._pool = ThreadPoolExecutor(THREADS, "rewrite") if within_s else None
        self._recent: OrderedDict[str, Answers] = OrderedDict()  # used last comes last
        self._lock = Lock()
        self._told = ""
        self.times_ms: list[float] = []
        self.missed = 0

    def answers(
        self, queries: Sequence[str], *, most_s: float | None = None
    ) -> list[Answers | None]:
        """Return the passages of each query, None where they are late or the service fails.

        The limit is for each query; many at once are asked `AT_ONCE` at a time.

        Args:
            queries: what to imagine passages for.
            most_s: a shorter limit for all of them together.

        Raises:
            QueryError: the rewriter gives something else than passages.
        """
        known: dict[str, Answers] = {}
        with self._lock:
            for query in queries:
                if (answers := self._recent.get(query)) is not None:
                    self._recent.move_to_end(query)
                    known[query] = answers
        missing = [query for query in dict.fromkeys(queries) if query not in known]
        if self._pool is None or self._within_s is None:
            known |= {query: self._ask(query) for query in missing}
            return [known[query] for query in queries]
        limit_s = self._within_s * math.ceil(len(missing) / AT_ONCE)
        deadline = time.monotonic() + min(limit_s, most_s or math.inf)
        futures = {query: self._pool.submit(self._ask, query) for query in missing}
        for query, future in futures.items():
            if (answers := self._wait(future, deadline)) is not None:
                known[query] = answers
        return [known.get(query) for query in queries]

    def check(self) -> None:
        """Ask the language model once, before anything is measured that it has no part in.

        Raises:
            EndpointError: no answer, a wrong key, an unknown model.
        """
        if isinstance(self._rewriter, AnswerWriter):
            self._rewriter.check()

    def remark(self) -> str:
        """Return what is to be known about measured times and hits; empty for nothing."""
        remarks = []
        if self.missed:
            remarks.append(f"{self.missed:,} searches went without it: no answer in time")
        if isinstance(self._rewriter, AnswerWriter) and self._rewriter.remembered:
            count = self._rewriter.remembered
            remarks.append(f"{count:,} answers came from the cache, so their times are too short")
        return "; ".join(remarks)

    def close(self) -> None:
        """Close the connections; what is under way is not waited for."""
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(self._rewriter, AnswerWriter):
            self._rewriter.close()

    def _ask(self, query: str) -> Answers:
        """Ask and remember, even if nobody waits any more."""
        start = time.perf_counter()
        answers = _passages(self._rewriter(query))
        with self._lock:
            self.times_ms.append((time.perf_counter() - start) * 1000.0)
            self._recent[query] = answers
            while len(self._recent) > REMEMBERED:
                self._recent.popitem(last=False)
        return answers

    def _wait(self, future: "Future[Answers]", deadline: float) -> Answers | None:
        try:
            return future.result(timeout=max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            future.cancel()
            reason = f"no answer within {self._within_s:g} s"
        except EndpointError as error:
            reason = str(error)
        with self._lock:
            self.missed += 1
            is_new, self._told = reason != self._told, reason
        if is_new:
            log.warning("searching without imagined passages: %s", reason)
        return None


def _passages(texts: Sequence[str]) -> Answers:
    """Return what a rewriter gives without blank texts."""
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise QueryError(
            f"the rewriter returned {type(texts).__name__}; expected a list of passages"
        )
    return tuple(text for text in texts if text.strip())
