"""A runtime in a process of its own: what reaches it, what comes back, and what happens when it ends."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from itertools import islice

import pytest

from aipc.errors import RuntimeFailedError, SchemeError
from aipc.runtimes.process import EngineProcess
from aipc.types import Sampling
from engine_for_tests import COUNT, CRASH, RAISE

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
    assert "engine_for_tests.py" in caught.value.__notes__[0]


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
    assert "in _start" in caught.value.__notes__[0]


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
    import signal

    process._process.send_signal(signal.SIGINT)
    assert list(process.stream([7], Sampling())) == [7]
