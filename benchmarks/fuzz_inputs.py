"""Thousands of spoiled checkpoints, configs and templates: does aipc refuse each of them in good order?

    python benchmarks/fuzz_inputs.py --cases 10000 --seed 0 --convert

A case spoils one file of a sound model and runs the real entry points on the folder. It fails if
anything but an AipcError comes out, if the message cannot be shown, if it takes too long or too much
memory, if the process dies, or if a file is left behind. Cases run in a process of their own, which
is ended and replaced when it hangs. `--case N` repeats one case here, with its traceback.

The files behind this come from tests/: aipc and its test requirements must be installed.
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from fuzz_mutations import (
    Spoiler,
    spoil_json_file,
    spoil_safetensors,
    spoil_template,
)

LIMIT_S = 15.0
"""Most a case may take: a chat template alone is given 5 s, and is rendered twice."""
LIMIT_BYTES = 2**30
"""Most memory a worker may take, libraries and all."""

TEMPLATE_FILE = "chat_template.jinja"
_TESTS = Path(__file__).resolve().parents[1] / "tests"


@dataclass(frozen=True, slots=True)
class Target:
    """A file to spoil, and what to run on the folder then.

    weight   how often it comes up, relative to the others
    sharded  whether the weights are in two files, with an index
    """

    file: str
    spoil: Spoiler
    run: Callable[[Path, Path], None]
    weight: int = 1
    sharded: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """How a case ended.

    outcome   "accepted", the name of an AipcError, or FAILED
    detail    what is wrong with a case that failed
    """

    number: int
    target: str
    outcome: str
    detail: str = ""
    seconds: float = 0.0
    peak_bytes: int = 0


FAILED = "FAILED"


def read_checkpoint(folder: Path, _: Path) -> None:
    """What a conversion does with the config and the weights."""
    from aipc.conversion.checkpoint import Checkpoint
    from aipc.phi3 import Phi3Config

    config = Phi3Config.read(folder)
    checkpoint = Checkpoint.open(folder)
    checkpoint.require(config.weights())
    config.inverse_frequencies()
    for spec in config.weights():
        assert checkpoint.read(spec.name).shape == spec.shape
        checkpoint.read(spec.name, slice(1, 3))


def read_texts(folder: Path, _: Path) -> None:
    """What a running model does with tokenizer, template and stop ids."""
    from aipc.text import Text
    from aipc.types import Message

    text = Text.load(folder)
    messages = [Message("system", "Be brief."), Message("user", "What is <|end|> an NPU?")]
    ids = [*text.encode("Hello é 日本"), *text.encode_chat(messages)]
    decoder = text.decoder()
    "".join([*map(decoder.push, ids), decoder.finish()]).encode("utf-8")


def convert(folder: Path, out: Path) -> None:
    """The whole way, in the smallest format to compute."""
    from aipc.conversion.convert import convert_checkpoint

    convert_checkpoint(folder, out / "model", name="fuzz", weight_format="int8")


TARGETS = {
    "safetensors": Target("model.safetensors", spoil_safetensors, read_checkpoint, weight=4),
    "shard": Target("model-00001-of-00002.safetensors", spoil_safetensors, read_checkpoint, 1, sharded=True),
    "index": Target("model.safetensors.index.json", spoil_json_file, read_checkpoint, 2, sharded=True),
    "config": Target("config.json", spoil_json_file, read_checkpoint, weight=3),
    "template": Target(TEMPLATE_FILE, spoil_template, read_texts, weight=3),
    "tokenizer config": Target("tokenizer_config.json", spoil_json_file, read_texts, weight=2),
    "generation config": Target("generation_config.json", spoil_json_file, read_texts),
    "tokenizer": Target("tokenizer.json", spoil_json_file, read_texts, weight=2),
}
CONVERT_TARGETS = {
    "convert: safetensors": Target("model.safetensors", spoil_safetensors, convert),
    "convert: config": Target("config.json", spoil_json_file, convert),
    "convert: tokenizer": Target("tokenizer.json", spoil_json_file, convert),
    "convert: texts": Target("tokenizer_config.json", spoil_json_file, convert),
    "convert: template": Target(TEMPLATE_FILE, spoil_template, convert),
}


class Bench:
    """Runs cases in this process, in a folder of its own."""

    def __init__(self, root: Path, seed: int, targets: dict[str, Target]) -> None:
        self._root = root
        self._seed = seed
        self._targets = targets
        self._sound = {sharded: _sound_model(root / f"sound-{sharded}", sharded) for sharded in (False, True)}
        for target in targets.values():
            # Else a refusal would prove nothing.
            self._fill(target)
            target.run(root / "case", root / "out")

    def run(self, number: int) -> Result:
        """Run the case of this number, which is the same in every run with this seed."""
        name, folder, out = self._prepare(number)
        before = sorted(path.name for path in folder.iterdir())
        start = time.perf_counter()
        outcome, detail = _outcome(lambda: self._targets[name].run(folder, out))
        seconds = time.perf_counter() - start
        if sorted(path.name for path in folder.iterdir()) != before:
            outcome, detail = FAILED, "the folder of the checkpoint was changed"
        if outcome != "accepted" and any(out.iterdir()):
            outcome, detail = FAILED, f"left behind: {sorted(path.name for path in out.iterdir())}"
        return Result(number, name, outcome, detail, seconds, _peak_bytes())

    def _prepare(self, number: int) -> tuple[str, Path, Path]:
        chance = random.Random(f"{self._seed} {number}")
        name = chance.choices(list(self._targets), [target.weight for target in self._targets.values()])[0]
        target = self._targets[name]
        folder, out = self._fill(target)
        (folder / target.file).write_bytes(target.spoil(chance, self._sound[target.sharded][target.file]))
        return name, folder, out

    def _fill(self, target: Target) -> tuple[Path, Path]:
        folder, out = self._root / "case", self._root / "out"
        _copy(self._sound[target.sharded], folder)
        if target.file != TEMPLATE_FILE:
            # It would hide the template that stands in tokenizer_config.json.
            (folder / TEMPLATE_FILE).unlink()
        _copy({}, out)
        return folder, out


def _sound_model(folder: Path, sharded: bool) -> dict[str, bytes]:
    """The files of a small model on which every entry point succeeds."""
    sys.path.insert(0, str(_TESTS))
    from checkpoints import TINY, write_checkpoint
    from tokenizers_for_tests import PHI3_TEMPLATE, write_llama_style

    write_llama_style(folder)
    size = len(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]) + 16
    small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    write_checkpoint(folder, TINY, shards=2 if sharded else 1, vocab_size=size, **small)
    (folder / TEMPLATE_FILE).write_text(PHI3_TEMPLATE, encoding="utf-8")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 3], "pad_token_id": 2}', "utf-8")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _copy(files: dict[str, bytes], folder: Path) -> None:
    """Make the folder hold these files and no other."""
    if folder.exists():
        _remove(folder)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            _remove(path)
        else:
            path.unlink()
    folder.rmdir()


def _outcome(work: Callable[[], None]) -> tuple[str, str]:
    from aipc.errors import AipcError

    try:
        work()
    except AipcError as exc:
        return _check_words(exc)
    # A panic of a Rust library is no Exception.
    except BaseException:  # noqa: BLE001
        return FAILED, traceback.format_exc()
    return "accepted", ""


def _check_words(exc: Any) -> tuple[str, str]:
    """An error must be two short lines that any terminal or JSON can carry."""
    words = f"{exc.message}\n{exc.hint}"
    if len(words) > 2000:
        return FAILED, f"a message of {len(words)} characters: {words[:300]}"
    try:
        words.encode("utf-8")
    except UnicodeEncodeError:
        return FAILED, f"a message that is not Unicode: {words!r}"
    return type(exc).__name__, ""


def _peak_bytes() -> int:
    """The most memory this process has held so far."""
    try:
        import resource
    except ImportError:
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def work(args: argparse.Namespace) -> None:
    """The worker: numbers of cases come in, results go out, a line each."""
    _limit_memory()
    bench = Bench(Path(tempfile.mkdtemp(dir=args.worker)), args.seed, _targets(args))
    for line in sys.stdin:
        print(json.dumps(asdict(bench.run(int(line)))), flush=True)


def _limit_memory() -> None:
    """Let a case that asks for far too much fail by itself, before the machine does."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, resource.RLIM_INFINITY))


class Worker:
    """A process that runs cases, one at a time, and is replaced when it hangs or dies."""

    def __init__(self, args: argparse.Namespace, root: str) -> None:
        self._args = args
        self._root = root
        self._start()

    def run(self, number: int) -> Result:
        """The result of a case, whatever becomes of the process."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        try:
            line = self._lines.get(timeout=self._args.limit_s)
        except queue.Empty:
            line = None
        if line:
            return self._judged(Result(**json.loads(line)))
        what = f"no answer in {self._args.limit_s:.0f} s" if line is None else "the process died"
        self.close()
        self._start()
        return Result(number, "?", FAILED, what, self._args.limit_s)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _judged(self, result: Result) -> Result:
        if result.peak_bytes < LIMIT_BYTES:
            return result
        # The peak of a process never falls: the next case must not answer for this one.
        self.close()
        self._start()
        what = f"{result.peak_bytes / 2**20:.0f} MiB of memory"
        return Result(result.number, result.target, FAILED, what, result.seconds, result.peak_bytes)

    def _start(self) -> None:
        flags = ["--seed", str(self._args.seed), *(["--convert"] if self._args.convert else [])]
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", self._root, *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )
        assert self._process.stdout is not None
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_pump, args=(self._process.stdout, self._lines), daemon=True).start()


def _pump(stream: IO[str], lines: queue.Queue[str]) -> None:
    """Lines as they come, and an empty one at the end."""
    for line in stream:
        lines.put(line)
    lines.put("")


def run_cases(args: argparse.Namespace, root: str) -> Iterator[Result]:
    """The results of all cases, as they come, from a few workers, which keep their files in `root`."""
    numbers = iter(range(args.cases))
    results: queue.Queue[Result] = queue.Queue()

    def drain() -> None:
        worker = Worker(args, root)
        while (number := _next(numbers, lock)) is not None:
            results.put(worker.run(number))
        worker.close()

    lock = threading.Lock()
    threads = [threading.Thread(target=drain, daemon=True) for _ in range(args.workers)]
    for thread in threads:
        thread.start()
    for _ in range(args.cases):
        yield results.get()
    for thread in threads:
        thread.join()


def _next(numbers: Iterator[int], lock: threading.Lock) -> int | None:
    with lock:
        return next(numbers, None)


def report(results: list[Result], seconds: float) -> str:
    """A table in Markdown: what came of the cases of each target."""
    failures = [result for result in results if result.outcome == FAILED]
    lines = [
        "| spoiled | cases | accepted | refused, by error | failed | slowest, s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in sorted({result.target for result in results}):
        here = [result for result in results if result.target == name]
        counts = Counter(result.outcome for result in here)
        accepted, failed = counts.pop("accepted", 0), counts.pop(FAILED, 0)
        refused = ", ".join(f"{error} {count}" for error, count in counts.most_common())
        slowest = max(result.seconds for result in here)
        lines.append(f"| {name} | {len(here)} | {accepted} | {refused} | {failed} | {slowest:.2f} |")
    peak = max(result.peak_bytes for result in results)
    lines += ["", f"{len(results)} cases in {seconds:.0f} s, {len(failures)} failed; "]
    lines[-1] += f"most memory of a worker {peak / 2**20:.0f} MiB"
    for result in failures[:20]:
        lines += ["", f"case {result.number}, {result.target}: {result.detail.strip()}"]
    return "\n".join(lines)


def _targets(args: argparse.Namespace) -> dict[str, Target]:
    return TARGETS | (CONVERT_TARGETS if args.convert else {})


def main() -> int:
    """Run the cases and print the table; 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit-s", type=float, default=LIMIT_S)
    parser.add_argument("--convert", action="store_true", help="run whole conversions too")
    parser.add_argument("--case", type=int, help="run this case alone, here")
    parser.add_argument("--worker", metavar="ROOT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return 0
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="aipc-fuzz-") as root:
        if args.case is not None:
            results = [Bench(Path(root), args.seed, _targets(args)).run(args.case)]
        else:
            results = list(run_cases(args, root))
    print(report(results, time.perf_counter() - start))
    return int(any(result.outcome == FAILED for result in results))


if __name__ == "__main__":
    sys.exit(main())
