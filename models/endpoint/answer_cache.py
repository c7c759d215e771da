"""What a language model answered, kept for every later use: by model, prompt and sampling.

A run that was killed asks only for the rest. Where the cache cannot be written, questions are asked
again.
"""

import json
import logging
import sqlite3
from threading import Lock
from typing import Self

from two_tower.models.cache import Cache, cache_folder, cache_key
from two_tower.models.endpoint.language_model import LanguageModel, Sampling

log = logging.getLogger(__name__)


class CachedModel:
    """A language model whose answers are kept as they come.

    The key is the model's name, and no URL: another model of the same name needs another name, or
    another `TWO_TOWER_CACHE`.

    Attributes:
        asked: prompts that the service was asked.
    """

    def __init__(self, model: LanguageModel) -> None:
        """Open the cache in front of a model."""
        self.model = model
        self.asked = 0
        self._lock = Lock()
        self._cache: Cache | None = None
        try:
            self._cache = Cache("answers", "answers")
        except (OSError, sqlite3.Error) as error:
            self._do_without(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the cache and the connections of the model."""
        if self._cache:
            self._cache.close()
        self.model.close()

    def complete(
        self, prompt: str, sampling: Sampling, *, timeout_s: float | None = None
    ) -> list[str]:
        """Return what the model answered before, else ask it; see `LanguageModel.complete`."""
        key = self._key(prompt, sampling)
        if (texts := self._stored(key)) is not None:
            return texts
        texts = self.model.complete(prompt, sampling, timeout_s=timeout_s)
        with self._lock:
            self.asked += 1
            if self._cache:
                try:
                    self._cache.write({key: json.dumps(texts).encode()})
                except (OSError, sqlite3.Error) as error:
                    self._do_without(error)
        return texts

    def holds(self, prompt: str, sampling: Sampling) -> bool:
        """Say whether the cache knows the answer."""
        return self._stored(self._key(prompt, sampling)) is not None

    def _key(self, prompt: str, sampling: Sampling) -> bytes:
        return cache_key(json.dumps([self.model.model, prompt, sampling._asdict()]))

    def _stored(self, key: bytes) -> list[str] | None:
        with self._lock:
            if self._cache is None:
                return None
            try:
                content = self._cache.read([key]).get(key)
            except (OSError, sqlite3.Error) as error:
                self._do_without(error)
                return None
        return None if content is None else [str(text) for text in json.loads(content)]

    def _do_without(self, error: Exception) -> None:
        log.warning("answers are not kept in %s (%s)", cache_folder(), error)
        if self._cache:
            self._cache.close()
        self._cache = None
