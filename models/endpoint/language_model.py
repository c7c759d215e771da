"""Texts that a language model writes, behind a service that answers as OpenAI's does."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import httpx

from two_tower.models.endpoint.service import NO_JSON, Service, one_line
from two_tower.models.errors import EndpointError, PromptTooLong

T = TypeVar("T")
U = TypeVar("U")

COMPLETIONS, CHAT = "completions", "chat/completions"

NO_SUCH_PATH = (404, 405, 501)
BAD_REQUEST = (400, 413, 422)
WAITING = 4  # items in hand for each one that runs, so that a slow one does not stop the others
TOO_LONG = ("context", "too long", "too large", "maximum length")

EXPECTED = (
    'expected OpenAI\'s form: {"choices": [{"text": "…"}]} or {"choices": [{"message": '
    '{"content": "…"}}]}'
)


class Sampling(NamedTuple):
    """How texts are drawn; equal prompts with equal sampling are the same question.

    Attributes:
        n: texts a prompt.
        max_tokens: in one text.
        temperature: 0 always takes the likeliest token.
        top_p: the share of likely tokens that are drawn from.
        stop: ends a text and is no part of it.
        seed: equal seeds give equal texts where the service keeps to them.
    """

    n: int = 1
    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0


class Writer(Protocol):
    """Writes what follows a prompt: `LanguageModel`, or the same behind a cache."""

    def complete(
        self, prompt: str, sampling: Sampling, *, timeout_s: float | None = None
    ) -> list[str]:
        """Return `sampling.n` texts."""
        ...


class LanguageModel:
    """A model behind `/v1/completions`, or `/v1/chat/completions` where there is no such path.

    Hosted models have only the second: the same prompt is then one message of the user.

    Attributes:
        model: its name at the service.
        path: which of the two answers; known once something was asked.
    """

    def __init__(self, url: str, model: str) -> None:
        """Check the URL; nothing is asked yet.

        Args:
            url: `https://host`, `https://host/v1` or the whole `…/completions`.
            model: the model's name there.

        Raises:
            ConfigError: the URL cannot be one, or holds a key.
        """
        self._service = Service(url, model)
        self._client = self._service.client()
        self._texts_per_request: int | None = None
        self.model = model
        self.url = self._service.base
        self.path = CHAT if url.rstrip("/").endswith(CHAT) else COMPLETIONS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def complete(
        self, prompt: str, sampling: Sampling, *, timeout_s: float | None = None
    ) -> list[str]:
        """Return `sampling.n` texts that follow the prompt; a refused one is empty.

        A service that gives fewer in one answer is asked again, with the seeds that follow.
        Threads may call at once.

        Args:
            prompt: as it stands; a chat gets it as one message of the user.
            sampling: how the texts are drawn.
            timeout_s: for each request, waits between tries included; None is patient.

        Raises:
            PromptTooLong: the model reads only shorter prompts.
            EndpointError: no answer in time, a wrong key, an unknown model, another form.
        """
        texts: list[str] = []
        while len(texts) < sampling.n:
            missing = min(sampling.n - len(texts), self._texts_per_request or sampling.n)
            part = sampling._replace(n=missing, seed=sampling.seed + len(texts))
            choices = self._choices(prompt, part, timeout_s=timeout_s)
            if not choices:
                raise EndpointError(f"{self.url}/{self.path} gave an empty list of choices")
            texts += choices[:missing]
        return texts

    def _choices(self, prompt: str, sampling: Sampling, *, timeout_s: float | None) -> list[str]:
        path = self.path
        answer = self._ask(path, prompt, sampling, timeout_s=timeout_s)
        if answer.status_code in NO_SUCH_PATH and path == COMPLETIONS:
            path = CHAT
            answer = self._ask(path, prompt, sampling, timeout_s=timeout_s)
        if answer.status_code in BAD_REQUEST:
            refusal = self._service.refusal(answer)
            if any(words in refusal.lower() for words in TOO_LONG):
                raise PromptTooLong(refusal)
            if sampling.n > 1:  # some services write one text a request
                self._texts_per_request = 1
                return self._choices(prompt, sampling._replace(n=1), timeout_s=timeout_s)
        if answer.status_code != httpx.codes.OK:
            raise EndpointError(self._service.refusal(answer))
        self.path = path
        try:
            choices = sorted(answer.json()["choices"], key=lambda one: one.get("index", 0))
            return [_text(choice) for choice in choices]
        except NO_JSON as error:
            raise EndpointError(
                f"{self.url}/{path} gave no list of texts ({one_line(repr(error))}), {EXPECTED}"
            ) from None

    def _ask(
        self, path: str, prompt: str, sampling: Sampling, *, timeout_s: float | None
    ) -> httpx.Response:
        asked: dict[str, Any] = {"prompt": prompt}
        if path == CHAT:
            asked = {"messages": [{"role": "user", "content": prompt}]}
        body = {**asked, **sampling._asdict()}
        if not sampling.stop:
            del body["stop"]  # some services refuse an empty list
        return self._service.post(self._client, path, body, timeout_s=timeout_s)


def _text(choice: Any) -> str:
    """Return what was written; nothing where the model refused."""
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise TypeError(f"{type(text).__name__} instead of a text")
    return text


def in_parallel(
    function: Callable[[T], U], items: Iterable[T], *, at_once: int
) -> Iterator[tuple[T, U]]:
    """Yield each item with what the function makes of it, in the order of the items.

    At most `at_once` run at the same time. After a failure those that run are waited for and no
    further one begins, so that nothing that was asked and paid for is lost.
    """
    with ThreadPoolExecutor(at_once) as pool:
        running: deque[tuple[T, Future[U]]] = deque()
        try:
            for item in items:
                running.append((item, pool.submit(function, item)))
                if len(running) == WAITING * at_once:
                    first, future = running.popleft()
                    yield first, future.result()
            while running:
                first, future = running.popleft()
                yield first, future.result()
        finally:
            for _, future in running:
                future.cancel()
