import json
import resource
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import free_ports
from endpoints import HOSTILE, Asked, Reply, running_endpoint

from two_tower.models.endpoint import service
from two_tower.models.endpoint.answer_cache import CachedModel
from two_tower.models.endpoint.language_model import (
    CHAT,
    COMPLETIONS,
    LanguageModel,
    Sampling,
    in_parallel,
)
from two_tower.models.errors import ConfigError, EndpointError, PromptTooLong

SECRET = "sk-very-secret-0123456789"

PROMPT = """Passage: Copper melts at 1,085 degrees, which potters' kilns reach.
Query: melting point of copper

Passage: The swift sleeps in the air and lands only to breed.
Query: do swifts sleep while flying

Passage: {passage}
Query:"""
SAMPLING = Sampling(n=5, max_tokens=24, temperature=0.8, top_p=0.9, stop=("\n",), seed=3)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TWO_TOWER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(service.KEY_VARIABLE, raising=False)
    monkeypatch.setattr(service, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(service, "PATIENCE_S", 0.5)


def written(*texts: str) -> dict[str, Any]:
    return {"choices": [{"index": i, "text": text} for i, text in enumerate(texts)]}


def said(*texts: str | None) -> dict[str, Any]:
    return {"choices": [{"index": i, "message": {"content": t}} for i, t in enumerate(texts)]}


def ask(url: str, prompt: str = "p", sampling: Sampling = SAMPLING) -> list[str]:
    with LanguageModel(url, "m") as model:
        return model.complete(prompt, sampling)


def test_a_real_model_continues_a_prompt(gemma_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "PATIENCE_S", 60.0)
    passage = "A beaver's teeth are orange because their enamel holds iron."
    with LanguageModel(gemma_url, "gemma-3-270m") as model:
        first = model.complete(PROMPT.format(passage=passage), SAMPLING)
        assert model.path == COMPLETIONS
    assert len(first) == 5
    assert all(text.strip() and "\n" not in text for text in first)
    words = " ".join(first).lower()
    assert sum(word in words for word in ("beaver", "teeth", "orange", "iron", "enamel")) >= 2
    with pytest.raises(PromptTooLong, match="context"):
        ask(gemma_url, "word " * 6000)


def test_texts_keep_their_order_and_what_was_asked_is_sent() -> None:
    def reply(asked: Asked) -> Reply:
        assert asked.body == {"model": "m", "prompt": "p", **SAMPLING._asdict(), "stop": ["\n"]}
        return 200, {"choices": written("a", "b", "c", "d", "e")["choices"][::-1]}

    with running_endpoint(reply) as url:
        assert ask(url) == ["a", "b", "c", "d", "e"]


def test_a_service_without_completions_is_asked_by_chat() -> None:
    def reply(asked: Asked) -> Reply:
        if "prompt" in asked.body:
            return 404, {"error": {"message": "this is a chat model"}}
        assert asked.body["messages"] == [{"role": "user", "content": "p"}]
        return 200, said("a", None)

    with running_endpoint(reply) as url, LanguageModel(url, "m") as model:
        assert model.complete("p", Sampling(n=2)) == ["a", ""]
        assert model.path == CHAT
        assert model.complete("p", Sampling(n=2)) == ["a", ""]
    with running_endpoint(lambda a: (500, {}) if "prompt" in a.body else (200, said("a"))) as url:
        assert ask(f"{url}/v1/chat/completions", sampling=Sampling()) == ["a"]


@pytest.mark.parametrize("refuses", [False, True])
def test_a_service_that_writes_one_text_a_request(refuses: bool) -> None:
    seeds = []

    def reply(asked: Asked) -> Reply:
        if refuses and asked.body["n"] > 1:
            return 400, {"error": {"message": "n must be 1"}}
        seeds.append(asked.body["seed"])
        return 200, written(f"text {asked.body['seed']}")

    with running_endpoint(reply) as url:
        assert ask(url) == [f"text {seed}" for seed in range(3, 8)]
    assert seeds == [3, 4, 5, 6, 7]


BAD_ANSWERS: dict[str, tuple[int, Any, str]] = {
    "not JSON": (200, b"<html>", "gave no list of texts"),
    "no choices": (200, {"data": []}, "gave no list of texts"),
    "no text": (200, {"choices": [{"index": 0}]}, "gave no list of texts"),
    "a number": (200, {"choices": [{"text": 3}]}, "gave no list of texts"),
    "a word": (200, {"choices": "word"}, "gave no list of texts"),
    "nothing": (200, {"choices": []}, "empty list of choices"),
    "unknown model": (404, {"error": "no m"}, r"no such path or no model 'm' \(HTTP 404: no m\)"),
    "no key": (401, {"error": "no"}, r"wants a key \(HTTP 401\); set TWO_TOWER_API_KEY"),
    "refused": (400, {"error": {"message": "bad\n word"}}, r"refuses with HTTP 400 \(bad word\)"),
    "too long": (400, {"error": "maximum context length is 8"}, "maximum context length is 8"),
    "rate": (429, {"error": "quota"}, r"limits the rate \(quota\), and so for"),
    "broken": (500, b"", r"refuses with HTTP 500 \(no reason\), and so for"),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_an_answer_of_another_form(name: str) -> None:
    status, content, reason = BAD_ANSWERS[name]
    with (
        running_endpoint(lambda _: (status, content)) as url,
        pytest.raises(EndpointError, match=reason) as failure,
    ):
        ask(url)
    assert "\n" not in str(failure.value)
    assert isinstance(failure.value, PromptTooLong) == (name == "too long")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_is_one_line_in_bounded_memory(name: str) -> None:
    content, headers, reason = HOSTILE[name]()
    with running_endpoint(lambda _: (200, content, headers)) as url:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(EndpointError, match=reason) as failure:
            ask(url)
    assert "\n" not in str(failure.value)
    assert len(str(failure.value)) < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB


def test_no_server_no_url_and_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    with pytest.raises(EndpointError, match=r"does not answer .* start the server or correct"):
        ask(f"http://127.0.0.1:{port}")
    with pytest.raises(ConfigError, match="expected neither") as failure:
        LanguageModel(f"http://me:{SECRET}@host", "m")
    assert SECRET not in str(failure.value)
    monkeypatch.setenv(service.KEY_VARIABLE, SECRET)

    def reply(asked: Asked) -> Reply:
        return 401, {"error": asked.headers["Authorization"]}

    with running_endpoint(reply) as url, pytest.raises(EndpointError, match="another key") as told:
        ask(url)
    assert SECRET not in str(told.value)


def test_a_time_limit_ends_the_wait() -> None:
    def reply(asked: Asked) -> Reply:
        if asked.number:
            time.sleep(1)
        return 200, written("a")

    with running_endpoint(reply) as url, LanguageModel(url, "m") as model:
        model.complete("p", Sampling())
        start = time.monotonic()
        with pytest.raises(EndpointError, match="timed out"):
            model.complete("p", Sampling(), timeout_s=0.1)
        assert time.monotonic() - start < 0.5


def test_nothing_is_asked_twice() -> None:
    asked = []

    def reply(one: Asked) -> Reply:
        asked.append(one.body["prompt"])
        return 200, written(f"to {one.body['prompt']}")

    one_text = Sampling()
    with running_endpoint(reply) as url:
        for _ in range(2):
            with CachedModel(LanguageModel(url, "m")) as model:
                answers = [model.complete(prompt, one_text) for prompt in "aba"]
                assert answers == [["to a"], ["to b"], ["to a"]]
        assert model.asked == 0
        assert asked == ["a", "b"]
        with CachedModel(LanguageModel(f"{url}/v1", "m")) as model:
            assert model.holds("a", one_text)
            assert not model.holds("a", Sampling(seed=1))
            assert not model.holds("c", one_text)
            model.complete("a", Sampling(seed=1))
        with CachedModel(LanguageModel(url, "another")) as model:
            model.complete("a", one_text)
    assert asked == ["a", "b", "a", "a"]


@pytest.mark.parametrize("obstacle", ["file", "garbage"])
def test_a_cache_that_cannot_be_used_costs_time_alone(obstacle: str, tmp_path: Path) -> None:
    if obstacle == "file":
        (tmp_path / "cache").write_text("in the way")
    else:
        (tmp_path / "cache" / "answers").mkdir(parents=True)
        (tmp_path / "cache" / "answers" / "answers.sqlite").write_bytes(b"no database" * 1000)
    with (
        running_endpoint(lambda _: (200, written("a"))) as url,
        CachedModel(LanguageModel(url, "m")) as model,
    ):
        assert model.complete("p", Sampling()) == ["a"]
        assert not model.holds("p", Sampling())


def test_an_answer_that_fails_is_not_kept(tmp_path: Path) -> None:
    def reply(one: Asked) -> Reply:
        return (200, written("a")) if one.number else (400, {"error": "no"})

    with running_endpoint(reply) as url, CachedModel(LanguageModel(url, "m")) as model:
        with pytest.raises(EndpointError):
            model.complete("p", Sampling())
        assert model.complete("p", Sampling()) == ["a"]
    with sqlite3.connect(tmp_path / "cache" / "answers" / "answers.sqlite") as file:
        contents = [json.loads(content) for _, content in file.execute("SELECT * FROM answers")]
    file.close()
    assert contents == [["a"]]


def test_in_parallel_keeps_order_and_bounds() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def work(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002 * (number % 3))
        with lock:
            running -= 1
        return number * number

    pairs = list(in_parallel(work, iter(range(50)), at_once=4))
    assert pairs == [(n, n * n) for n in range(50)]
    assert most == 4


def test_in_parallel_begins_nothing_after_a_failure() -> None:
    begun = []

    def work(number: int) -> None:
        begun.append(number)
        time.sleep(0.02)
        if number == 5:
            raise EndpointError("broken")

    with pytest.raises(EndpointError, match="broken"):
        list(in_parallel(work, range(100), at_once=2))
    assert len(begun) <= 9
