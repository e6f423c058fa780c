"""Who may ask: names, origins, keys and sizes, over a real socket."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator

import httpx
import openai
import pytest

from aipc.serve import guard
from aipc.serve.guard import Policy, is_loopback
from serving import ANSWER, MESSAGES, Served, serving

KEY = "a-key-that-nobody-guesses"
PAGE = "https://chat.example.org"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    policy = Policy(api_key=KEY, hosts=("ai.example.org",), origins=(PAGE,))
    with serving(tmp_path_factory.mktemp("serve"), policy=policy) as served:
        yield served


def get(served: Served, path: str = "/v1/models", key: str = KEY, **headers: str) -> httpx.Response:
    given = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.get(served.url + path, headers=given | headers)


@pytest.mark.parametrize(
    "host", ["localhost:{port}", "127.0.0.1", "[::1]:{port}", "192.168.1.7:80", "AI.example.org"]
)
def test_the_server_answers_to_its_names(served: Served, host: str) -> None:
    assert get(served, Host=host.format(port=served.port)).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[", "a b"]
)
def test_a_name_that_was_made_to_mean_this_machine_is_refused(served: Served, host: str) -> None:
    """DNS rebinding: the page's own name leads here, and its browser sends it along."""
    response = get(served, Host=host)
    assert (response.status_code, response.json()["error"]["code"]) == (403, "wrong_host")


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1"])
def test_a_page_from_elsewhere_is_refused(served: Served, origin: str) -> None:
    response = get(served, Origin=origin)
    assert (response.status_code, response.json()["error"]["code"]) == (403, "wrong_origin")
    assert "access-control-allow-origin" not in response.headers


def test_the_servers_own_page_and_a_named_one_may_ask(served: Served) -> None:
    assert get(served, Origin=f"http://127.0.0.1:{served.port}").status_code == 200
    response = get(served, Origin=PAGE)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == PAGE
    preflight = httpx.options(
        f"{served.url}/v1/chat/completions", headers={"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    )
    assert preflight.status_code == 204
    assert "authorization" in preflight.headers["access-control-allow-headers"]


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/openapi.json", "/nothing"])
def test_all_but_the_open_paths_need_the_key(served: Served, path: str) -> None:
    for key in ("", KEY[:-1], KEY + "x", "none"):
        response = get(served, path, key)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
    assert get(served, path).status_code == (404 if path == "/nothing" else 200)
    assert get(served, "/health", key="").status_code == 200
    with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
        served.client("wrong").models.list()


def test_every_response_tells_browsers_what_they_may(served: Served) -> None:
    for response in (get(served), get(served, key=""), get(served, "/nothing")):
        assert response.headers["x-content-type-options"] == "nosniff"
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "server" not in response.headers


def post(served: Served, content: bytes | Iterator[bytes]) -> httpx.Response:
    headers = {"Authorization": f"Bearer {KEY}"}
    return httpx.post(f"{served.url}/v1/chat/completions", content=content, headers=headers)


def test_large_bodies_are_refused_announced_or_not(served: Served) -> None:
    assert post(served, b" " * (guard.MAX_BODY_BYTES + 1)).status_code == 413
    pieces = (b" " * 2**16 for _ in range(guard.MAX_BODY_BYTES // 2**16 + 1))
    assert post(served, pieces).status_code == 413


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"model": NaN}',
        b'{"a":' * 100_000,
        b'{"model": "scripted", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"model": "scripted", "messages": [{"role": "user", "content": "x"}], "tools": [{"type": '
        b'"function", "function": {"name": "f", "parameters": ' + b'{"a":' * 200 + b"1" + b"}" * 202 + b"]}",
    ],
)
def test_a_body_that_is_no_request_is_said_to_be_none(served: Served, body: bytes) -> None:
    response = post(served, body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert len(response.content) < 1000


def test_a_body_that_does_not_come_is_not_waited_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_BODY_S", 0.1)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(head.encode() + b"Content-Length: 100\r\n\r\n{")
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_the_log_holds_no_words_of_the_conversation(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    secret = "the-words-that-were-asked"

    def broken(*_: object) -> Iterator[int]:
        raise ValueError(f"failed at {secret}")
        yield

    client = served.client(KEY)
    client.chat.completions.create(model="scripted", messages=MESSAGES)  # type: ignore[arg-type]
    caplog.set_level(logging.DEBUG)
    served.sessions["scripted"].play = broken
    for stream in (False, True):
        with pytest.raises(openai.APIError):
            list(client.completions.create(model="scripted", prompt=secret, stream=stream))  # type: ignore[call-overload]
    served.sessions["scripted"].play = served.saying(ANSWER)
    ours = "\n".join(
        r.getMessage() for r in caplog.records if r.name.startswith(("aipc", "uvicorn", "fastapi"))
    )
    assert "ValueError" in ours
    assert secret not in ours
    assert KEY not in ours


def test_which_addresses_only_this_machine_reaches() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.7", "ai.example.org", "")))
