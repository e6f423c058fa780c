"""A runtime in a process of its own: what reaches it, what comes back, and what happens when it ends."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice

import psutil
import pytest

import stand_in
from aipc.errors import EngineLostError, RuntimeFailedError, SchemeError
from aipc.runtimes.process import EngineProcess, Worker
from aipc.types import Guidance, Sampling
from engine_for_tests import COUNT, CRASH, HOLD, RAISE

OPTIONS = {"device": "CPU", "fail": False}


@pytest.fixture
def process() -> Iterator[EngineProcess]:
    process = EngineProcess("engine_for_tests", OPTIONS)
    yield process
    process.close()


def test_what_the_engine_prints_is_no_answer(
    process: EngineProcess, capfd: pytest.CaptureFixture[str]
) -> None:
    assert process.ready == {"device": "CPU"}
    assert list(process.stream([1, 2], Sampling(stop_ids=frozenset({9, 8})))) == [1, 2, 8, 9]
    assert capfd.readouterr().out == ""


def test_streams_run_side_by_side_and_one_closed_leaves_the_others(process: EngineProcess) -> None:
    first, second = process.stream([COUNT], Sampling()), process.stream([COUNT], Sampling())
    assert list(islice(first, 5)) == [1, 2, 3, 4, 5]
    assert list(islice(second, 3)) == [1, 2, 3]
    first.close()
    assert list(islice(second, 3)) == [4, 5, 6]
    assert list(process.stream([7], Sampling())) == [7]


def test_the_end_of_an_idle_process_is_noticed_and_the_next_request_starts_another() -> None:
    worker = Worker("engine_for_tests", OPTIONS)
    ended = threading.Semaphore(0)
    worker.when_ended(ended.release)
    try:
        psutil.Process(worker.pid).kill()
        assert ended.acquire(timeout=20)
        assert not worker.alive
        assert list(worker.stream([7], Sampling())) == [7]
        assert worker.alive
        psutil.Process(worker.pid).kill()
        assert ended.acquire(timeout=20)
    finally:
        worker.close()


def test_who_waits_for_its_end_does_not_keep_a_worker_alive() -> None:
    worker = Worker("engine_for_tests", OPTIONS)
    ended = threading.Event()
    worker.when_ended(ended.set)
    del worker
    gc.collect()
    assert ended.wait(20)


def test_a_forgotten_stream_is_withdrawn(process: EngineProcess) -> None:
    stream = process.stream([COUNT], Sampling())
    next(stream)
    del stream
    gc.collect()
    # The engine waits for requests only when it has none to work on; here it must have none at the end.
    assert list(process.stream([7], Sampling())) == [7]
    assert process._router._waiting.keys() == {0}


def test_an_error_of_loading_arrives_as_itself() -> None:
    with pytest.raises(SchemeError, match="do not fit") as caught:
        EngineProcess("engine_for_tests", OPTIONS | {"fail": True})
    assert caught.value.hint == "convert them"
    assert "engine_for_tests.py" in caught.value.__notes__[-1]


def test_an_engine_that_cannot_start_says_its_last_words() -> None:
    with pytest.raises(RuntimeFailedError, match="No module named 'no_such_engine'"):
        EngineProcess("no_such_engine", OPTIONS)


def test_a_crash_ends_every_stream_and_is_not_forgotten(process: EngineProcess) -> None:
    other = process.stream([COUNT], Sampling())
    next(other)
    with pytest.raises(RuntimeFailedError, match=r"code 3: a native library fell over"):
        list(process.stream([CRASH], Sampling()))
    with pytest.raises(RuntimeFailedError, match="code 3"):
        list(other)
    with pytest.raises(RuntimeFailedError, match="code 3"):
        list(process.stream([7], Sampling()))


def test_an_engine_that_breaks_says_why(process: EngineProcess) -> None:
    with pytest.raises(RuntimeFailedError, match="code 1: RuntimeError: a pipeline broke") as caught:
        list(process.stream([RAISE], Sampling()))
    assert "in _start" in caught.value.__notes__[-1]


def test_close_ends_streams_and_the_process(process: EngineProcess) -> None:
    stream = process.stream([COUNT], Sampling())
    next(stream)
    process.close()
    process.close()
    with pytest.raises(RuntimeFailedError, match="closed"):
        list(stream)
    with pytest.raises(RuntimeFailedError, match="closed"):
        list(process.stream([7], Sampling()))
    assert process._process.returncode == 0


def test_a_process_that_nobody_holds_ends() -> None:
    process = EngineProcess("engine_for_tests", OPTIONS)
    child = process._process
    del process
    gc.collect()
    assert child.returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send to one process")
def test_ctrl_c_is_the_callers_affair(process: EngineProcess) -> None:
    process._process.send_signal(signal.SIGINT)
    assert list(process.stream([7], Sampling())) == [7]


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("engine_for_tests", OPTIONS)
    yield worker
    worker.close()


def test_after_a_death_the_next_request_has_a_fresh_process(worker: Worker) -> None:
    other = worker.stream([COUNT], Sampling())
    next(other)
    first = worker._process
    with pytest.raises(RuntimeFailedError, match="code 3"):
        list(worker.stream([CRASH], Sampling()))
    with pytest.raises(RuntimeFailedError, match="code 3"):
        list(other)
    assert list(worker.stream([7], Sampling())) == [7]
    assert worker._process is not first
    assert first._process.returncode == 3


def test_a_stream_that_hears_late_of_a_death_hears_why(worker: Worker) -> None:
    """Another one has found the process dead before it, and has begun anew."""
    early, late = worker.stream([COUNT], Sampling()), worker.stream([COUNT], Sampling())
    assert next(early) == next(late) == 1
    psutil.Process(worker.pid).kill()
    with pytest.raises(EngineLostError, match="the runtime's process"):
        list(early)
    assert list(worker.stream([7], Sampling())) == [7]
    with pytest.raises(EngineLostError, match="the runtime's process"):
        list(late)


def test_a_killed_process_says_so(worker: Worker) -> None:
    stream = worker.stream([COUNT], Sampling())
    next(stream)
    worker._process._process.kill()
    with pytest.raises(RuntimeFailedError, match="code 1" if sys.platform == "win32" else "ended by SIGKILL"):
        list(stream)
    assert list(worker.stream([7], Sampling())) == [7]


def test_many_that_ask_after_a_death_share_one_fresh_process(worker: Worker) -> None:
    worker._process._process.kill()
    worker._process._process.wait()
    answers: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda n=n: answers.append(list(worker.stream([n], Sampling()))))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [[0], [1], [2], [3]]
    assert worker._process._router._last == 4


def test_a_process_that_hangs_is_ended_and_replaced() -> None:
    worker = Worker("engine_for_tests", OPTIONS, silence_s=0.5)
    other, stream = worker.stream([COUNT], Sampling()), worker.stream([HOLD], Sampling())
    next(other)
    pid = next(stream)
    for lost in (stream, other):
        with pytest.raises(EngineLostError, match="no sign of life"):
            list(lost)
    assert list(worker.stream([7], Sampling())) == [7]
    assert worker.pid != pid
    worker.close()


def test_an_engine_that_says_so_may_be_silent_for_long(process: EngineProcess) -> None:
    process._router._deliver({"id": 0, "busy": True})
    assert process._patience_s() > 1000
    process._router._deliver({"id": 0, "busy": False})
    assert process._patience_s() < 100


def test_a_stream_is_cancelled_while_its_reader_waits(worker: Worker) -> None:
    stream = worker.stream([HOLD], Sampling())
    next(stream)
    threading.Timer(0.1, stream.cancel).start()
    started = time.monotonic()
    assert list(stream) == []
    assert time.monotonic() - started < 30, "the engine computes for a minute"


def test_a_closed_worker_starts_nothing(worker: Worker) -> None:
    worker.close()
    with pytest.raises(RuntimeFailedError, match="closed"):
        list(worker.stream([7], Sampling()))


def test_half_a_line_is_no_answer() -> None:
    """What a killed process leaves in the pipe."""
    script = (
        'import os, sys; sys.stdin.readline(); os.write(1, b\'{"id":0,"ready":{}}\\n\'); '
        'sys.stdin.readline(); os.write(1, b\'{"id":1,"ids":[1\'); os._exit(0)'
    )
    process = EngineProcess("engine_for_tests", OPTIONS)
    process.close()
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    from aipc.runtimes.process import _Router

    router = _Router(child.stdout)
    _, opening = router.open()
    _, answers = router.open()
    child.stdin.write(b"{}\n{}\n")
    child.stdin.close()
    assert opening.get(timeout=20) == {"id": 0, "ready": {}}
    assert answers.get(timeout=20) == {"ended": True}
    child.wait()
    child.stdout.close()


def test_guidance_reaches_the_engine(process: EngineProcess) -> None:
    guided = Sampling(guidance=Guidance("regex", "a|ü"))
    assert list(process.stream([7], guided)) == [7, *"a|ü".encode()]


# Its stdout is the test's pipe: whatever the engine inherited of it would hold the pipe open.
PARENT = """
import sys
from aipc.runtimes.process import EngineProcess
from aipc.types import Sampling
from engine_for_tests import {word}
process = EngineProcess("engine_for_tests", {{"device": "CPU", "fail": False}})
stream = process.stream([{word}], Sampling(max_new_tokens=10**6))
next(stream)
print(process._process.pid, flush=True)
next(stream) if {word} == 103 else list(stream)
"""


@pytest.mark.parametrize("word", ["COUNT", "HOLD"])
def test_no_orphan_is_left_by_a_parent_that_is_killed(word: str) -> None:
    """Also in the middle of native code that keeps Python's lock: no thread of Python could end it then."""
    environment = stand_in.environment(PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(word=word)], stdout=subprocess.PIPE, env=environment
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert running(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 10
    while running(child) and time.monotonic() < until:
        time.sleep(0.02)
    assert not running(child)


def running(pid: int) -> bool:
    """Whether a process computes: one that has ended may wait for someone to ask how."""
    try:
        return psutil.Process(pid).status() not in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
    except psutil.NoSuchProcess:
        return False
