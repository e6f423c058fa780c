"""The command line in front of a scripted model: words in, stdout, stderr and an exit code out."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest

import aipc
import stand_in
from aipc import errors
from aipc.cli import COMMANDS, console, main
from aipc.cli.answer import Answer, summary
from aipc.types import Progress, Stats

ROOT = Path(__file__).parents[1]
ANSWER = "".join(stand_in.SENTENCE)


def child(
    words: Sequence[str], stdin: int = subprocess.DEVNULL, encoding: str = ""
) -> subprocess.Popen[bytes]:
    """`aipc` with the scripted model as a process of its own, its output piped."""
    command = [sys.executable, str(ROOT / "tests" / "stand_in.py"), *words]
    environment = stand_in.environment(PYTHONIOENCODING=encoding)
    return subprocess.Popen(
        command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )


def finish(process: subprocess.Popen[bytes], piped: bytes | None = None) -> tuple[int, str, str]:
    out, err = process.communicate(piped, timeout=30)
    return process.returncode, out.decode(), err.decode()


def read_until(stream: IO[bytes] | None, line: bytes) -> None:
    """Read lines up to and with `line`, which is how a process says that it is so far."""
    assert stream is not None
    assert line in iter(stream.readline, b"")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run `aipc` in this process: run("run", "demo", "Hi") -> (code, stdout, stderr)."""
    monkeypatch.setattr(aipc, "load", stand_in.load, raising=False)
    monkeypatch.setattr(aipc, "convert", stand_in.convert, raising=False)

    def call(*words: str, piped: str | None = None) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", None if piped is None else io.StringIO(piped))
        code = main(words)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]) -> list[stand_in.ScriptedModel]:
    """Every model that was loaded."""
    models: list[stand_in.ScriptedModel] = []

    def load(source: str, **options: Any) -> stand_in.ScriptedModel:
        models.append(stand_in.load(source, **options))
        return models[-1]

    monkeypatch.setattr(aipc, "load", load)
    return models


# One answer


def test_the_answer_alone_is_on_stdout_and_the_figures_are_on_stderr(run: Callable[..., Any]) -> None:
    code, out, err = run("run", "demo", "What is an NPU?")
    assert (code, out) == (0, ANSWER + "\n")
    assert err.splitlines() == [
        "loading demo",
        "CPU: the only device here",
        "[CPU · OpenVINO GenAI · int4 · first token 0.12 s · 50.0 tokens/s · 5 tokens]",
    ]


def test_json_is_one_object_with_the_text_the_tokens_and_the_figures(run: Callable[..., Any]) -> None:
    code, out, _ = run("run", "demo", "--json", "What is an NPU?")
    answer = json.loads(out)
    assert code == 0
    assert (answer["text"], answer["token_ids"], answer["finish_reason"]) == (ANSWER, [0, 1, 2, 3, 4], "stop")
    assert answer["stats"]["tokens_per_s"] == pytest.approx(50.0)
    assert answer["stats"]["prompt_tokens"] == 7


def test_the_words_reach_the_model_and_it_is_closed(run: Callable[..., Any], loaded: list[Any]) -> None:
    words = "--device NPU --runtime openvino --exact --revision v1 --system Short. --seed 3 --top-k 5"
    words += " --weight-format int8 --context-length 99 --kv-cache u8 --fast-load"
    more = "--temperature 0.5 --top-p 0.9 --repetition-penalty 1.1 --max-new-tokens 9 --stop one --stop two"
    assert run("run", *words.split(), "demo", *more.split(), "Two", "words")[0] == 0
    (model,) = loaded
    assert model.given == {
        "source": "demo",
        "device": "NPU",
        "runtime": "openvino",
        "exact": True,
        "weight_format": "int8",
        "revision": "v1",
        "context_length": 99,
        "kv_cache": "u8",
        "fast_load": True,
    }
    assert [(m.role, m.content) for m in model.asked[0]] == [("system", "Short."), ("user", "Two words")]
    assert model.options == {
        "raw": False,
        "stop": ("one", "two"),
        "seed": 3,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "repetition_penalty": 1.1,
        "max_new_tokens": 9,
    }
    assert model.closed


@pytest.mark.parametrize(("device", "monitored"), [("NPU", True), ("GPU.0", True), ("CPU", False)])
def test_a_monitor_runs_beside_a_device_that_must_prove_itself(
    run: Callable[..., Any],
    loaded: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    monitored: bool,
) -> None:
    monkeypatch.setattr(stand_in.ScriptedModel, "device", device)
    assert run("run", "demo", "Hello")[0] == 0
    monitor = loaded[0].options.get("monitor")
    assert (monitor is not None) == monitored
    if monitored:
        with pytest.raises(errors.RuntimeFailedError, match="closed"):
            monitor.sample()


def test_raw_hands_the_text_on_as_it_is(run: Callable[..., Any], loaded: list[Any]) -> None:
    assert run("run", "demo", "--raw", "Once upon")[0] == 0
    assert loaded[0].asked == ["Once upon"]
    assert loaded[0].options["raw"] is True


@pytest.mark.parametrize(
    ("words", "piped", "prompt"),
    [
        ((), b"\xef\xbb\xbfHello\r\n", "Hello"),
        (("Sum up:",), b"a text\nof two lines\n", "Sum up:\n\na text\nof two lines"),
        (("Hello",), b"", "Hello"),
        ((), "Größe\n".encode(), "Größe"),
        ((), b"broken \xff\n", "broken \N{REPLACEMENT CHARACTER}"),
    ],
)
def test_what_is_piped_in_is_the_prompt_or_its_end(words: Sequence[str], piped: bytes, prompt: str) -> None:
    code, out, _ = finish(child(["run", "echo", "--json", *words], stdin=subprocess.PIPE), piped)
    assert code == 0
    assert json.loads(out)["text"] == prompt


@pytest.mark.parametrize("piped", ["", " \n", None])
def test_an_empty_prompt_is_an_error(run: Callable[..., Any], piped: str | None) -> None:
    code, out, err = run("run", "demo", piped=piped)
    assert (code, out) == (2, "")
    assert err.startswith("error: the prompt is empty\nhint: ")


def test_an_endless_pipe_is_no_prompt(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aipc.cli.run.MAX_PIPED_CHARACTERS", 10)
    assert run("run", "demo", piped="0123456789\n")[2].startswith("error: what is piped in is longer than 10")


# Convert


def asked(folder: Path) -> dict[str, Any]:
    options: dict[str, Any] = eval((folder / "asked.txt").read_text(encoding="utf-8"))
    return options


def test_convert_says_the_folder_on_stdout(run: Callable[..., Any], tmp_path: Path) -> None:
    code, out, err = run("convert", "demo", str(tmp_path / "out"))
    assert (code, out) == (0, f"{tmp_path / 'out'}\n")
    assert asked(tmp_path / "out") == {
        "source": "demo",
        "to": "openvino",
        "target": "cpu",
        "weight_format": "int4",
        "group_size": None,
        "sym": True,
        "ratio": 1.0,
        "quant_method": "rtn",
        "dataset": None,
        "revision": None,
    }
    first, last = err.splitlines()
    assert first == "converting demo"
    assert last.startswith("[") and " B · " in last


def test_a_line_for_optimum_cli_works_as_it_is(run: Callable[..., Any], tmp_path: Path) -> None:
    line = (
        "convert --model microsoft/Phi-3-mini-4k-instruct --task text-generation-with-past "
        "--weight-format int4 --group-size 128 --ratio 0.6 --sym --trust-remote-code"
    )
    code, _, err = run(*line.split(), str(tmp_path / "out"))
    assert code == 0
    given = asked(tmp_path / "out")
    assert given["source"] == "microsoft/Phi-3-mini-4k-instruct"
    assert (given["weight_format"], given["group_size"], given["ratio"], given["sym"]) == (
        "int4",
        128,
        0.6,
        True,
    )
    assert err.splitlines()[0] == "--trust-remote-code has no effect: aipc runs no code of a model"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--asym"], {"sym": False}),
        (["--group-size", "-1"], {"group_size": -1}),
        (["--weight-format", "int8"], {"weight_format": "int8"}),
        (["--revision", "main"], {"revision": "main"}),
    ],
)
def test_convert_hands_its_options_on(
    run: Callable[..., Any], tmp_path: Path, words: list[str], expected: dict[str, Any]
) -> None:
    assert run("convert", "demo", *words, str(tmp_path / "out"))[0] == 0
    assert expected.items() <= asked(tmp_path / "out").items()


def test_the_other_default_of_optimum_cli_is_said(run: Callable[..., Any], tmp_path: Path) -> None:
    _, _, err = run("convert", "-m", "demo", "--weight-format", "int4", str(tmp_path / "out"))
    assert "optimum-cli's default is --asym" in err
    _, _, err = run("convert", "demo", str(tmp_path / "other"))
    assert "optimum" not in err


@pytest.mark.parametrize("words", [[], ["demo"], ["--model", "demo"], ["demo", "out", "more"]])
def test_convert_needs_a_model_and_a_folder(run: Callable[..., Any], words: list[str]) -> None:
    code, _, err = run("convert", *words)
    assert code == 2
    assert err.startswith("error: a model and a folder are needed; given: ")


# Errors


@pytest.mark.parametrize(
    ("words", "code", "message", "hint"),
    [
        (["rnu", "demo"], 2, "there is no command 'rnu'", "did you mean run? "),
        (["--vresion"], 2, "there is no option '--vresion'", "did you mean --version? "),
        (
            ["run", "demo", "--devcie", "CPU", "Hi"],
            2,
            "there is no option '--devcie'",
            "did you mean --device? ",
        ),
        (
            ["run", "demo", "--devcie=CPU", "Hi"],
            2,
            "there is no option '--devcie=CPU'",
            "did you mean --device? ",
        ),
        (
            ["run", "demo", "Hi", "--seed", "x"],
            2,
            "argument --seed: invalid int value: 'x'",
            "aipc run --help",
        ),
        (["run"], 2, "the following arguments are required: MODEL", "aipc run --help"),
        (["run", "demo", "Hi", "--temperature", "-1"], 2, "temperature is -1.0; it must be between 0", ""),
        (["run", "demo", "Hi", "--raw", "--system", "S"], 2, "--raw is plain text", "leave one of them out"),
        (["run", "missing", "Hi"], 3, "there is no model 'missing'", "possible are demo, phi-3-mini"),
        (["run", "demo", "too long"], 2, "the prompt has 5000 tokens; 4096 fit", "shorten the prompt"),
        (["run", "demo", "fail"], 9, "the device was lost", "restart the computer"),
        (
            ["run", "buggy", "Hi"],
            1,
            "aipc itself has failed, with KeyError: 'a fault of ours'",
            "report what",
        ),
        (
            ["convert", "demo", "out", "--sym", "--asym"],
            2,
            "argument --asym: not allowed with",
            "aipc convert --help",
        ),
    ],
)
def test_errors_are_two_lines_and_an_exit_code(
    run: Callable[..., Any], words: list[str], code: int, message: str, hint: str
) -> None:
    found, _, err = run(*words)
    lines = [line for line in err.splitlines() if line.startswith(("error", "hint"))]
    assert found == code
    assert lines[0].startswith(f"error: {message}")
    assert [line.startswith(f"hint: {hint}") for line in lines[1:]] == ([True] if hint else [])
    assert err.splitlines()[-len(lines) :] == lines
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "words", [["--verbose", "run", "missing", "Hi"], ["run", "missing", "Hi", "--verbose"]]
)
def test_verbose_shows_the_traceback_as_well(run: Callable[..., Any], words: list[str]) -> None:
    code, _, err = run(*words)
    assert code == 3
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-2] == "error: there is no model 'missing'"


def test_what_an_answer_had_stays_on_a_line_of_its_own_when_it_breaks(run: Callable[..., Any]) -> None:
    assert run("run", "demo", "fail")[1] == "Half \n"


def test_an_error_from_outside_cannot_break_the_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    console.report_error(errors.CheckpointError("a name\nwith \x1b[2J lines", hint=""), verbose=False)
    assert capsys.readouterr().err == "error: a name with [2J lines\n"


def test_the_bare_name_shows_the_help_as_an_error(run: Callable[..., Any]) -> None:
    code, out, err = run()
    assert (code, out) == (2, "")
    assert err.startswith("usage: aipc COMMAND")


# Processes, signals and pipes


@pytest.mark.parametrize("word", ["--help", "-h", "--version"])
def test_help_and_version_of_the_module(word: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aipc", word], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stderr == ""
    assert (
        aipc.__version__ in done.stdout
        if word == "--version"
        else all(name in done.stdout for name in COMMANDS)
    )


def test_a_reader_that_goes_ends_the_answer_quietly() -> None:
    process = child(["run", "demo", "endless"])
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().strip() == b"again"
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 0
    assert err.decode().splitlines() == ["loading demo", "CPU: the only device here"]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_pipe_takes_every_character(encoding: str) -> None:
    assert finish(child(["run", "demo", "Hi"], encoding=encoding))[1].rstrip() == ANSWER


class Narrow(io.TextIOWrapper):
    """A terminal that knows cp1252."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="cp1252")

    def isatty(self) -> bool:
        return True


def test_a_terminal_that_lacks_a_character_shows_a_question_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Narrow()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["--version"]) == 0
    console.write_answer("1 → 2, \x1b[2J")
    assert terminal.buffer.getvalue().endswith(b"1 ? 2, ?[2J")  # type: ignore[attr-defined]


posix = pytest.mark.skipif(not hasattr(os, "killpg"), reason="signals between processes are POSIX's")


@posix
@pytest.mark.parametrize("json_too", [False, True])
def test_ctrl_c_keeps_the_partial_answer(json_too: bool) -> None:
    process = child(["run", "demo", "wait", *(["--json"] if json_too else [])])
    read_until(process.stderr, b"waiting\n")
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert code == 130
    if json_too:
        answer = json.loads(out)
        assert (answer["text"], answer["finish_reason"], answer["stats"]) == ("Once upon ", "cancelled", None)
    else:
        assert out == "Once upon \n"
    assert err == "[stopped · 2 tokens]\n"


@posix
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_loading_can_be_ended(number: signal.Signals, expected: int) -> None:
    process = child(["run", "wait", "Hi"])
    read_until(process.stderr, b"waiting\n")
    process.send_signal(number)
    code, out, err = finish(process)
    assert (code, out, err) == (expected, "", "unwound\n")


# What is said


STATS = Stats(7, 1, 1.5, None, None, "NPU", "OpenVINO GenAI", "int4")


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (Answer("x", [1], "stop", STATS), "[NPU · OpenVINO GenAI · int4 · 1 token]"),
        (
            Answer("x", [1], "length", STATS),
            "[NPU · OpenVINO GenAI · int4 · 1 token · cut off at the limit of tokens]",
        ),
        (Answer("x", [1, 2], "cancelled", None), "[stopped · 2 tokens]"),
        (
            Answer(
                "x", [1], "stop", replace(STATS, mean_utilisation=0.874, energy_j=12.34, device_used=True)
            ),
            "[NPU · OpenVINO GenAI · int4 · 1 token · 87 % busy · 12.3 J]",
        ),
        (
            Answer("x", [1], "stop", replace(STATS, mean_utilisation=0.0, device_used=False)),
            "[NPU · OpenVINO GenAI · int4 · 1 token · 0 % busy]\nThe counter of NPU did not rise during this "
            "answer: something else may have computed it. aipc doctor looks closer.",
        ),
    ],
)
def test_the_line_under_an_answer_leaves_out_what_is_unknown(answer: Answer, line: str) -> None:
    assert summary(answer) == line


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_progress_in_a_log_is_a_line_now_and_then() -> None:
    clock, lines = Clock(), list[str]()
    show = console.SparseLines(lines.append, clock)
    for second in range(25):
        clock.now_s = second
        show(Progress(f"tensor {second}", second * 10**8, 4 * 10**9))
    assert lines == [
        "25 % of 4.0 GB · tensor 10 · 100 MB/s · 30 s left",
        "50 % of 4.0 GB · tensor 20 · 100 MB/s · 20 s left",
    ]


def test_progress_that_counts_no_bytes_says_what_it_counts() -> None:
    clock, lines = Clock(), list[str]()
    show = console.SparseLines(lines.append, clock)
    for second in (0, 10, 20):
        clock.now_s = second
        show(Progress("CPU scores 512 tokens", 7 * second, 320, "tokens"))
    assert lines == [
        "21 % of 320 tokens · CPU scores 512 tokens · 7.0 tokens/s · 36 s left",
        "43 % of 320 tokens · CPU scores 512 tokens · 7.0 tokens/s · 26 s left",
    ]


def test_the_pace_is_that_of_the_work_at_hand() -> None:
    clock = Clock()
    pace = console.Pace(clock)
    pace.take(Progress("a download", 0, 1000))
    clock.now_s = 1.0
    pace.take(Progress("a download", 1000, 1000))
    assert pace.bytes_per_s() == 1000
    pace.take(Progress("a tensor", 0, 500))
    assert pace.bytes_per_s() is None
    clock.now_s = 11.0
    pace.take(Progress("a tensor", 100, 500))
    assert (pace.bytes_per_s(), pace.left_s()) == (10, 40)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (7_600_000, "8 MB"), (2_070_000_000, "2.1 GB")]
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert console.size(count) == text


# The documentation


def test_the_documented_help_is_the_help() -> None:
    spec = importlib.util.spec_from_file_location("make_cli_docs", ROOT / "tools" / "make_cli_docs.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    documented = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert documented == tool.document(), "run: python tools/make_cli_docs.py"
