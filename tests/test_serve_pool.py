"""Who waits how long, and which models are loaded."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from aipc.errors import DeviceError
from aipc.inventory import Candidate
from aipc.model import Model
from aipc.serve import pool as pool_module
from aipc.serve.answers import Desk, Question
from aipc.serve.failures import RefusedError
from aipc.serve.metrics import Metrics
from aipc.serve.places import Wish
from aipc.serve.pool import Limits
from aipc.serve.slots import Slots
from aipc.serve.watch import Watch
from serving import ANSWER, MESSAGES, ScriptedPlaces, ScriptedSession, Served, serving


def test_clients_take_turns_and_leave_the_queue_when_they_go() -> None:
    async def run() -> None:
        slots = Slots(at_once=1, most=5)
        (running,) = slots.enter("greedy", 1)
        greedy = slots.enter("greedy", 3)
        modest = slots.enter("modest", 1)
        shy = slots.enter("shy", 1)
        assert running.granted.done()
        assert (slots.running, slots.waiting) == (1, 5)
        with pytest.raises(RefusedError, match="5 wait; 5 may") as caught:
            slots.enter("late", 1)
        assert (caught.value.status, caught.value.retry_after_s) == (429, 6)
        shy[0].leave()
        shy[0].leave()
        names = {id(ticket): name for name, ticket in zip("abcm", [*greedy, *modest], strict=True)}
        order = ""
        running.leave()
        while slots.running:
            now = next(t for t in [*greedy, *modest] if t.granted.done() and id(t) in names)
            order += names.pop(id(now))
            now.leave()
        assert order == "amb" + "c"
        assert (slots.running, slots.waiting) == (0, 0)

    asyncio.run(run())


def test_a_request_that_needs_more_room_than_there_is_takes_none() -> None:
    async def run() -> None:
        slots = Slots(at_once=1, most=1)
        with pytest.raises(RefusedError):
            slots.enter("a", 3)
        assert (slots.running, slots.waiting) == (0, 0)
        assert len(slots.enter("a", 2)) == 2

    asyncio.run(run())


def test_a_request_that_is_given_up_at_once_leaves_its_place() -> None:
    async def run() -> None:
        places: Any = ScriptedPlaces()
        pool = pool_module.Pool(
            ["a"], places, lambda name, place: pytest.fail(), lambda name: 0, Limits(2**40)
        )
        desk = Desk(pool, Metrics(pool, Watch()))
        answers = await desk.ask(Wish("a"), [Question("x", {})], "client", live=True)
        (entry,) = pool.entries.values()
        assert entry.slots.running == 1
        answers.cancel()
        await asyncio.sleep(0)
        assert entry.slots.running == 0

    asyncio.run(run())


def ask(served: Served, model: str, **options: Any) -> str | None:
    completion = served.client().chat.completions.create(model=model, messages=MESSAGES, **options)  # type: ignore[call-overload]
    content: str | None = completion.choices[0].message.content
    return content


def until(condition: Any) -> None:
    """Wait for what other threads do; a test that waits in vain fails."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_full_queue_says_when_to_come_again(tmp_path: Path) -> None:
    with serving(tmp_path, limits=Limits(2**40, at_once=1, waiting=1)) as served:
        session, hold = served.session, threading.Event()

        def wait(*_: object) -> Iterator[int]:
            hold.wait(20)
            yield min(served.text.stop_ids)

        session.play = wait
        threads = [threading.Thread(target=ask, args=(served, "scripted")) for _ in range(2)]
        for thread in threads:
            thread.start()
        slots = served.entry().slots
        until(lambda: slots.running + slots.waiting == 2)
        with pytest.raises(openai.RateLimitError, match="1 requests are worked on and 1 wait") as caught:
            ask(served, "scripted")
        assert int(caught.value.response.headers["retry-after"]) >= 1
        # Nothing else waits for those who wait.
        assert httpx.get(f"{served.url}/health").json()["status"] == "ok"
        waiting = 'aipc_requests_waiting{device="CPU",model="scripted",runtime="onnxruntime"} 1.0'
        assert waiting in httpx.get(f"{served.url}/metrics").text
        hold.set()
        for thread in threads:
            thread.join(20)
        until(lambda: slots.running == slots.waiting == 0)


def test_a_model_is_loaded_once_for_all_who_ask_and_another_answers_meanwhile(tmp_path: Path) -> None:
    with serving(tmp_path, ("slow", "quick")) as served:
        hold = threading.Event()
        served.before_load = lambda name: hold.wait(20) if name == "slow" else None  # type: ignore[assignment, return-value]
        assert ask(served, "quick") == ANSWER
        answers: list[Any] = []
        threads = [threading.Thread(target=lambda: answers.append(ask(served, "slow"))) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: served.loads == ["quick", "slow"])
        assert ask(served, "quick") == ANSWER
        hold.set()
        for thread in threads:
            thread.join(20)
        assert answers == [ANSWER] * 3
        assert served.loads == ["quick", "slow"]


def test_a_load_that_fails_fails_its_requests_and_may_be_tried_again(tmp_path: Path) -> None:
    def fail(name: str) -> None:
        raise DeviceError("the NPU is in use", hint="close the other program")

    with serving(tmp_path) as served:
        served.before_load = fail
        with pytest.raises(openai.InternalServerError, match="in use; close the other"):
            ask(served, "scripted")
        with pytest.raises(openai.InternalServerError, match="in use"):
            ask(served, "scripted", stream=True)
        served.before_load = lambda name: None
        assert ask(served, "scripted") == ANSWER


def test_an_idle_model_is_unloaded_and_comes_back(tmp_path: Path) -> None:
    with serving(tmp_path, limits=Limits(2**40, keep_alive_s=0.05)) as served:
        first = served.session
        until(lambda: first.closed)
        assert ask(served, "scripted") == ANSWER
        assert served.loads == ["scripted"] * 2


class Mortal(ScriptedSession):
    """A session whose process may end, and then says so."""

    alive = True
    at_end: Callable[[], None]

    def when_ended(self, call: Callable[[], None]) -> None:
        self.at_end = call


def mortal(served: Served) -> Mortal:
    """The session of the only model, loaded now."""
    load = served.pool._load

    def load_mortal(name: str, place: Candidate) -> Model:
        model = load(name, place)
        session = Mortal(served.saying(ANSWER))
        model.session, served.sessions[name] = session, session
        return model

    served.pool._load = load_mortal
    ask(served, "scripted")
    session = served.sessions["scripted"]
    assert isinstance(session, Mortal)
    return session


def test_an_idle_model_whose_process_has_ended_is_loaded_no_more(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        session = mortal(served)
        assert len(httpx.get(f"{served.url}/api/ps").json()["models"]) == 1
        session.alive = False
        session.at_end()
        until(lambda: session.closed)
        assert httpx.get(f"{served.url}/api/ps").json() == {"models": []}
        assert httpx.get(f"{served.url}/monitor").json()["models"] == []
        assert "aipc_model_memory_bytes{" not in httpx.get(f"{served.url}/metrics").text
        assert ask(served, "scripted") == ANSWER
        # The first one's end is told once more, when it is closed: it is not the second's.
        session.at_end()
        assert len(httpx.get(f"{served.url}/api/ps").json()["models"]) == 1
    # The server has ended, and its loop with it.
    session.at_end()


def test_a_model_that_is_lost_in_use_is_left_to_its_requests(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        session, hold = mortal(served), threading.Event()

        def wait(*_: object) -> Iterator[int]:
            hold.wait(20)
            yield from served.saying(ANSWER)([], None)  # type: ignore[arg-type]

        session.play = wait
        answers: list[str | None] = []
        user = threading.Thread(target=lambda: answers.append(ask(served, "scripted")))
        user.start()
        until(lambda: served.entry().users == 1)
        session.alive = False
        session.at_end()
        assert len(httpx.get(f"{served.url}/api/ps").json()["models"]) == 1
        assert not session.closed
        hold.set()
        user.join(20)
        assert answers == [ANSWER]
        # Nothing has started another process, so it goes with the last request.
        until(lambda: session.closed)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What the process of each model seems to hold."""
    sizes = {"a": 4, "b": 4, "c": 4}
    monkeypatch.setattr(pool_module, "_memory_bytes", lambda model: sizes[model.name])
    return sizes


def test_the_longest_unused_model_makes_room(tmp_path: Path, sizes: dict[str, int]) -> None:
    with serving(tmp_path, ("a", "b", "c"), limits=Limits(memory_bytes=9)) as served:
        for name in ("a", "b", "a", "c"):
            assert ask(served, name) == ANSWER
        loaded = [entry.name for entry in served.pool.entries.values() if entry.model is not None]
        assert loaded == ["a", "c"]
        assert served.sessions["b"].closed


def test_room_is_made_for_what_a_model_may_need_before_it_is_loaded(
    tmp_path: Path, sizes: dict[str, int]
) -> None:
    with serving(tmp_path, ("a", "b"), limits=Limits(memory_bytes=9)) as served:
        ask(served, "a")
        served.expected["b"] = 8
        served.before_load = lambda name: until(lambda: served.sessions["a"].closed)
        assert ask(served, "b") == ANSWER


def test_a_model_in_use_is_not_unloaded_for_another(tmp_path: Path, sizes: dict[str, int]) -> None:
    with serving(tmp_path, ("a", "b"), limits=Limits(memory_bytes=5)) as served:
        ask(served, "b")
        ask(served, "a")
        assert served.sessions["b"].closed
        hold = threading.Event()

        def wait(*_: object) -> Iterator[int]:
            hold.wait(20)
            yield min(served.text.stop_ids)

        served.sessions["a"].play = wait
        user = threading.Thread(target=ask, args=(served, "a"))
        user.start()
        until(lambda: served.entry("a").users == 1)
        with pytest.raises(
            openai.InternalServerError, match=r"no memory for b on CPU .* beside a on CPU"
        ) as caught:
            ask(served, "b")
        assert caught.value.status_code == 503
        assert int(caught.value.response.headers["retry-after"]) >= 1
        hold.set()
        user.join(20)
        assert ask(served, "b") == ANSWER


def test_a_shutdown_finishes_what_it_can_and_ends_the_rest_with_an_error(tmp_path: Path) -> None:
    answers: list[Any] = []
    hold = threading.Event()

    def collect(model: str) -> None:
        try:
            answers.append(ask(served, model))
        except openai.APIError as exc:
            answers.append(type(exc).__name__)

    with serving(tmp_path, ("brief", "long"), drain_s=1.0) as served:
        for model in ("brief", "long"):
            ask(served, model)

        def brief(*_: object) -> Iterator[int]:
            hold.wait(0.3)
            yield from served.saying(ANSWER)([], None)  # type: ignore[arg-type]

        def long(*_: object) -> Iterator[int]:
            while not served.sessions["long"].closed:
                time.sleep(0.01)
                yield 300
            raise pool_module.RefusedError(503, "closed", "the model was closed")

        served.sessions["brief"].play, served.sessions["long"].play = brief, long
        threads = [threading.Thread(target=collect, args=(model,)) for model in ("brief", "long")]
        for thread in threads:
            thread.start()
        until(lambda: all(entry.users == 1 for entry in served.pool.entries.values()))
    for thread in threads:
        thread.join(20)
    assert sorted(answers) == ["InternalServerError", ANSWER]
    assert all(session.closed for session in served.sessions.values())
