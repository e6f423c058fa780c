"""`aipc serve` as its users start it: a process, the demo model, and what may happen to both."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

from aipc.cli import main
from aipc.errors import UsageError
from aipc.serve import server
from aipc.serve.server import listen
from aipc.serve.times import parse_seconds
from served_program import QUESTION, environment_with, program
from serving import serving
from test_no_network import Watched


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return environment_with(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_demo_answers_and_outlives_its_worker(environment: dict[str, str], runtime: str) -> None:
    with program(environment, "demo", "--runtime", runtime) as served:
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=60)
        with client:
            answer = served.ask(client)
            assert answer.startswith("An NPU (neural processing unit)")
            (worker,) = served.workers()
            worker.kill()
            # Health does not wait for the new worker, and neither request notices.
            assert httpx.get(f"{served.url}/health").status_code == 200
            assert 'aipc_device_utilisation_ratio{device="CPU"' in httpx.get(f"{served.url}/metrics").text
            assert served.ask(client) == answer
            (fresh,) = served.workers()
            assert fresh.pid != worker.pid
            stream = client.chat.completions.create(  # type: ignore[call-overload]
                model="demo", messages=QUESTION, stream=True, extra_body={"repetition_penalty": 1.0}
            )
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == answer
    assert not psutil.pid_exists(fresh.pid)


def test_a_worker_that_ends_while_it_is_idle_is_missed(environment: dict[str, str]) -> None:
    with program(environment, "demo") as served:
        (worker,) = served.workers()
        assert len(httpx.get(f"{served.url}/api/ps").json()["models"]) == 1
        worker.kill()
        # The server itself takes leave of it, and no zombie is left; nobody asks for anything meanwhile.
        worker.wait(20)
        assert httpx.get(f"{served.url}/api/ps").json() == {"models": []}
        assert httpx.get(f"{served.url}/monitor").json()["models"] == []
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=60)
        with client:
            assert served.ask(client).startswith("An NPU (neural processing unit)")
        assert len(httpx.get(f"{served.url}/api/ps").json()["models"]) == 1
    assert sum("has ended; the next request starts another" in line for line in served.said) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send to one process")
def test_ctrl_c_ends_it_well(environment: dict[str, str]) -> None:
    with program(environment, "demo") as served:
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(30) == 0
    assert served.said[-1] == "the server has ended\n"
    assert not any("Traceback" in line for line in served.said)


def test_it_opens_no_connection(environment: dict[str, str], tmp_path: Path) -> None:
    """From its start over a load on demand to an answer: every Python process reports its sockets."""
    watched = Watched(tmp_path)
    with program(watched.environment) as served:
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=60)
        with client:
            assert served.ask(client, max_tokens=4)
    events = watched.seen("socket.")
    assert any(line.startswith("socket.bind") for line in events), "the watch saw the server listen"
    # On Windows asyncio wakes itself up over a pair of sockets, which it makes by connecting to itself.
    itself = "127.0.0.1" if sys.platform == "win32" else "nowhere"
    sent = [line for line in events if line.startswith(("socket.connect", "socket.sendto"))]
    assert [line for line in sent if itself not in line] == []
    # It asks the resolver for nothing but the address to listen on, which is a number.
    asked = [line for line in events if line.startswith(("socket.getaddrinfo", "socket.gethostby"))]
    assert all("127.0.0.1" in line for line in asked)


def test_other_addresses_get_a_key(environment: dict[str, str]) -> None:
    with program(environment, "demo", "--host", "0.0.0.0") as served:
        assert httpx.get(f"{served.url}/v1/models").status_code == 401
        key = next(line for line in served.said if line.startswith("API key: ")).split()[-1]
        headers = {"Authorization": f"Bearer {key}"}
        assert len(key) > 40
        assert httpx.get(f"{served.url}/v1/models", headers=headers).json()["data"][0]["id"] == "demo"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["dmeo"], 3, "did you mean demo?"),
        (["./nowhere"], 3, "there is no folder"),
        (["demo", "--keep-alive", "soon"], 2, "--keep-alive is 'soon', which is no time"),
        (["demo", "--parallel", "0"], 2, "--parallel is 0"),
        (["demo", "--memory", "-1"], 2, "--memory is -1"),
        (["demo", "--port", "70000"], 2, "there is no port 70000"),
        (["demo", "--host", "203.0.113.1"], 2, "cannot listen on 203.0.113.1"),
    ],
)
def test_wrong_words_are_said_before_anything_is_loaded(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *words]) == code
    assert said in capsys.readouterr().err


class WindowsSockets:
    """Stands where the module `socket` would: what Windows has, over this system's own sockets."""

    SO_EXCLUSIVEADDRUSE = -5

    def __init__(self) -> None:
        self.options = options = dict[int, int]()

        class Recorded(socket.socket):
            def setsockopt(self, level: int, option: int, value: int) -> None:  # type: ignore[override]
                if level == socket.SOL_SOCKET:
                    options[option] = value

        self.socket = Recorded

    def __getattr__(self, name: str) -> object:
        return getattr(socket, name)


def test_on_windows_nobody_else_listens_on_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets = WindowsSockets()
    monkeypatch.setattr(server, "socket", sockets)
    monkeypatch.setattr(sys, "platform", "win32")
    with listen("127.0.0.1", 0) as listening:
        assert sockets.options == {WindowsSockets.SO_EXCLUSIVEADDRUSE: 1}
        with pytest.raises(UsageError, match="take another port"):
            listen(*listening.getsockname())


def test_a_port_in_use_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert main(["serve", "demo", "--port", str(other.getsockname()[1])]) == 2
    assert "take another port with --port" in capsys.readouterr().err


def test_a_key_that_can_be_guessed_does_not_open_the_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AIPC_API_KEY", "secret")
    assert main(["serve", "demo", "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "16 are needed" in capsys.readouterr().err


def test_times_for_people() -> None:
    times = {"90": 90, "90s": 90, "1.5m": 90, "1h30m": 5400, "-1": -1, "0": 0, "500ms": 0.5, "-5m": -300}
    assert {word: parse_seconds(word, "x") for word in times} == times
    for word in ("", "m", "5d", "inf", "nan", "1e9", "9" * 400):
        with pytest.raises(UsageError, match="which is no time"):
            parse_seconds(word, "x")


def test_small_pieces_are_sent_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the system waits for the client's delayed acknowledgement before it sends the second."""
    found: list[int] = []

    def begun(self: H11Protocol, transport: asyncio.Transport) -> None:
        connection = transport.get_extra_info("socket")
        found.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        begin(self, transport)

    begin = H11Protocol.connection_made
    monkeypatch.setattr(H11Protocol, "connection_made", begun)
    with serving(tmp_path) as served:
        assert httpx.get(f"{served.url}/health").status_code == 200
    assert found and all(found)
