"""Kills the process that computes, at random moments, and looks at what is left.

    python benchmarks/kill_workers.py [--runtime onnxruntime] [--kills 200] [--seed 0]

Each kill is a SIGKILL (TerminateProcess on Windows) while the demo model is being loaded, reads a long
prompt, or writes its answer. The same session goes on afterwards. What must hold: every stream ends with a
clear error or with its whole answer, within 5 seconds; no process and no file is left. Prints a table, and
ends with 1 if something did not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from aipc import demo
from aipc.conversion.convert import convert_checkpoint
from aipc.errors import AipcError
from aipc.runtimes.base import RUNTIMES
from aipc.types import Sampling
from measuring import markdown_table

HANG_S = 5.0
FORMATS = {"openvino": "openvino", "onnxruntime": "onnx"}
PROMPT = [number % 1000 + 5 for number in range(1500)]
SAMPLING = Sampling(max_new_tokens=100)
MOMENTS = ("load", "prefill", "decode")


@dataclass
class Outcome:
    """What happened to the streams of one kind of moment."""

    errors: int = 0
    whole: int = 0
    wrong: list[str] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)


class Consumer(threading.Thread):
    """Reads one stream to its end."""

    def __init__(self, session: Any) -> None:
        super().__init__(daemon=True)
        self.ids: list[int] = []
        self.error: BaseException | None = None
        self._session = session

    def run(self) -> None:
        try:
            for token in self._session.generate(PROMPT, SAMPLING):
                self.ids.append(token)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is looked at
            self.error = error


@dataclass
class Pace:
    """How long an undisturbed request takes, to choose moments in it."""

    load_s: float
    prefill_s: float
    decode_s: float


def engines() -> list[psutil.Process]:
    """The processes that this one has started and that still run."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def kill_all() -> None:
    for child in engines():
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
            child.wait(HANG_S)


def measure(session: Any) -> Pace:
    """The pace of a session whose process is dead."""
    started = time.perf_counter()
    next(session.generate([5], Sampling(max_new_tokens=1)))
    load_s = time.perf_counter() - started
    started = time.perf_counter()
    stream = session.generate(PROMPT, SAMPLING)
    next(stream)
    prefill_s = time.perf_counter() - started
    list(stream)
    return Pace(load_s, prefill_s, time.perf_counter() - started - prefill_s)


def kill_once(session: Any, moment: str, pace: Pace, dice: random.Random) -> tuple[Consumer, float]:
    """Kill the process in the middle of a request; the request, and how long it took to end."""
    if moment == "load":
        kill_all()
    else:
        # The prompt is computed again: what the process remembers of the last one would hide the prefill.
        next(session.generate([dice.randrange(5, 900)], Sampling(max_new_tokens=1)))
    consumer = Consumer(session)
    consumer.start()
    until = time.monotonic() + 30
    if moment == "load":
        while not engines() and consumer.is_alive() and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(dice.uniform(0, pace.load_s))
    elif moment == "prefill":
        time.sleep(dice.uniform(0, pace.prefill_s))
    else:
        while not consumer.ids and consumer.is_alive() and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(dice.uniform(0, pace.decode_s))
    kill_all()
    killed = time.perf_counter()
    # One killed while it was loading may have been seen before the request began: it then starts another.
    consumer.join(HANG_S + pace.load_s + pace.prefill_s + pace.decode_s)
    return consumer, time.perf_counter() - killed


def judge(outcome: Outcome, consumer: Consumer, wait_s: float) -> None:
    """Without stop ids, a whole answer has as many ids as were allowed."""
    outcome.waits_s.append(wait_s)
    if consumer.is_alive():
        outcome.wrong.append("it hangs")
    elif consumer.error is None and len(consumer.ids) == SAMPLING.max_new_tokens:
        outcome.whole += 1
    elif isinstance(consumer.error, AipcError) and consumer.error.message and consumer.error.hint:
        outcome.errors += 1
    else:
        outcome.wrong.append(repr(consumer.error or f"{len(consumer.ids)} ids, no error"))


def files(folders: Iterable[Path]) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*")}


def run(runtime: str, kills: int, seed: int, folder: Path) -> tuple[dict[str, Outcome], list[str]]:
    """The outcomes by moment, and what was left behind."""
    convert_checkpoint(demo.path(), folder / "model", name="demo", to=(FORMATS[runtime],))
    scratch = folder / "tmp"
    scratch.mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    before = files([folder])
    module = importlib.import_module(RUNTIMES[runtime].module)
    session = module.open_session(folder / "model", "CPU", context_length=2048, precision="int4")
    kill_all()
    pace = measure(session)
    dice = random.Random(seed)
    outcomes = {moment: Outcome() for moment in MOMENTS}
    for _ in range(kills):
        moment = dice.choice(MOMENTS)
        consumer, wait_s = kill_once(session, moment, pace, dice)
        judge(outcomes[moment], consumer, wait_s)
    if len(list(session.generate(PROMPT, SAMPLING))) != SAMPLING.max_new_tokens:
        outcomes["decode"].wrong.append("the last answer, which nobody disturbed, is not whole")
    session.close()
    left = [f"process {child.pid}" for child in engines()]
    left += [f"file {path}" for path in files([folder]) - before]
    return outcomes, left


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill the process that computes, and see what is left.")
    parser.add_argument("--runtime", choices=FORMATS, default="onnxruntime")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes, left = run(args.runtime, args.kills, args.seed, Path(folder))
    rows = [
        (
            moment,
            len(outcome.waits_s),
            outcome.errors,
            outcome.whole,
            f"{max(outcome.waits_s, default=0):.2f}",
            len(outcome.wrong),
        )
        for moment, outcome in outcomes.items()
    ]
    header = ("killed during", "kills", "clear error", "whole answer", "slowest end, s", "wrong")
    print(f"{RUNTIMES[args.runtime].title}, demo model, {args.kills} kills\n")
    print(markdown_table(header, rows))
    print(f"\nleft behind: {', '.join(left) or 'nothing'}")
    wrong = [word for outcome in outcomes.values() for word in outcome.wrong]
    late = [wait for outcome in outcomes.values() for wait in outcome.waits_s if wait > HANG_S]
    for word in wrong:
        print(f"wrong: {word}", file=sys.stderr)
    return 1 if wrong or late or left else 0


if __name__ == "__main__":
    sys.exit(main())
