"""aipc bench: what is asked, in which order, and what becomes of cells that fail."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self
from xml.etree import ElementTree

import pytest

import aipc
from aipc import bench, inventory
from aipc.bench import chart, machine, report
from aipc.bench.verdict import verdict
from aipc.cli import main
from aipc.errors import DeviceError, PromptTooLongError, RuntimeFailedError, UsageError
from aipc.inventory import Candidate
from aipc.measurements.figures import figures, start_figures, step_s
from aipc.measurements.record import CellRecord, Failure, Load, Options, Record, Request
from aipc.prepare import ReadyModel
from aipc.runtimes.base import ONNXRUNTIME, OPENVINO, Device
from aipc.types import Chunk

CPU = Device("CPU", "Core Ultra 7", "CPU")
NPU = Device("NPU", "AI Boost", "NPU", "1.2.3")
OPTIONS = Options(prompt_tokens=(4, 8), new_tokens=3, rounds=2, concurrency=1)


class FakeModel:
    """Answers with one id after the other."""

    device, address, load_s = "CPU", None, 1.5

    class text:  # noqa: N801 - stands where Model's Text would
        vocab_size = 100

    def __init__(self, tokens: int | None = None, fails: Exception | None = None, longest: int = 99) -> None:
        self.tokens, self.fails, self.longest = tokens, fails, longest
        self.prompts: list[list[int]] = []

    def stream(self, prompt: Sequence[int], *, max_new_tokens: int, **options: Any) -> Iterator[Chunk]:
        assert options.pop("ignore_eos") is True
        if len(prompt) > self.longest:
            raise PromptTooLongError(f"the prompt has {len(prompt)} tokens", hint="shorten it")
        self.prompts.append(list(prompt))
        return self._answer(min(max_new_tokens, self.tokens or max_new_tokens))

    def _answer(self, count: int) -> Iterator[Chunk]:
        for token in range(count):
            yield Chunk("x", (token,))
            if self.fails is not None and len(self.prompts) > 2:
                raise self.fails
        yield Chunk("", (), "length")

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def cell(name: str, tmp_path: Path) -> bench.Cell:
    found = bench.Cell(name, "openvino", Candidate(OPENVINO, CPU), "int4")
    found.ready = ReadyModel("demo", tmp_path)
    return found


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What loading a device gives, and in "loaded" which devices were."""
    made: dict[str, Any] = {"loaded": []}

    def load(source: object, device: str, runtime: str) -> FakeModel:
        made["loaded"].append(device)
        if isinstance(made[device], Exception):
            raise made[device]
        model: FakeModel = made[device]
        return model

    monkeypatch.setattr(aipc, "load", load)
    monkeypatch.setattr(machine, "memory_bandwidth", lambda: 1e10)
    return made


def test_cells_take_turns_and_no_prompt_is_asked_twice(models: dict[str, Any], tmp_path: Path) -> None:
    models |= {"A": FakeModel(), "B": FakeModel()}
    steps: list[bench.Step] = []
    cells = [cell("A", tmp_path), cell("B", tmp_path)]
    record = bench.Benchmark("demo", cells, OPTIONS).run(["bench", "demo"], steps.append)
    assert models["loaded"] == ["A", "B", "B", "A"]
    prompts = models["A"].prompts + models["B"].prompts
    # Of each round a first one of the shortest length, then one of each.
    assert [len(prompt) for prompt in models["A"].prompts] == [4, 4, 8, 4, 4, 8]
    assert len({tuple(prompt) for prompt in prompts}) == len(prompts)
    for found in record.cells:
        assert [(each.round, each.prompt_tokens) for each in found.requests] == [
            (0, 4),
            (0, 8),
            (1, 4),
            (1, 8),
        ]
        assert all(each.generated_tokens == 3 and len(each.steps_s) == 2 for each in found.requests)
        assert [load.round for load in found.loads] == [0, 1]
    assert [step.done for step in steps] == [*range(1, 13)]
    assert {step.total for step in steps} == {12}
    assert steps[-1].left_s == 0


def test_a_cell_that_fails_is_a_row_and_the_rest_goes_on(models: dict[str, Any], tmp_path: Path) -> None:
    models |= {
        "refuses": DeviceError("the driver is too old", hint="update it"),
        "crashes": FakeModel(fails=RuntimeFailedError("the runtime's process was ended by SIGKILL")),
        "short": FakeModel(longest=5),
        "ends": FakeModel(tokens=2),
        "works": FakeModel(),
    }
    names = ("refuses", "crashes", "short", "ends", "works")
    steps: list[bench.Step] = []
    cells = [cell(name, tmp_path) for name in names]
    absent = bench.Cell("GPU", "", None, None)
    absent.fail(DeviceError("there is no GPU here"))
    record = bench.Benchmark("demo", [*cells, absent], OPTIONS).run([], steps.append)
    *measured_cells, _ = record.cells
    found = dict(zip(names, measured_cells, strict=True))
    assert found["refuses"].failures == (Failure("the driver is too old", "update it"),)
    # What it did before its end is kept, and it is not loaded again.
    assert [each.prompt_tokens for each in found["crashes"].requests] == [4]
    assert models["loaded"].count("crashes") == models["loaded"].count("refuses") == 1
    assert found["short"].failures == (Failure("the prompt has 8 tokens", "shorten it", 8),)
    assert [each.prompt_tokens for each in found["short"].requests] == [4, 4]
    assert all(each.stopped_early for each in found["ends"].requests)
    assert len(found["works"].requests) == 4
    assert steps[-1].done == steps[-1].total == len(names) * 3 * OPTIONS.rounds
    shown = {row[0] for row in report.table(record)[1:]}
    assert shown == {"crashes", "short", "works"}
    remarks = "\n".join(report.remarks(record))
    assert "GPU: there is no GPU here" in remarks
    assert "refuses · openvino · int4: the driver is too old (update it)" in remarks
    assert "short · openvino · int4, prompt of 8" in remarks
    assert "prompt of 8: 2 answers stopped early and are left out" in remarks


def test_streams_at_once_begin_together(models: dict[str, Any], tmp_path: Path) -> None:
    models["A"] = FakeModel()
    options = replace(OPTIONS, concurrency=3, rounds=1)
    record = bench.Benchmark("demo", [cell("A", tmp_path)], options).run([])
    requests = record.cells[0].requests
    assert [(each.prompt_tokens, each.stream) for each in requests] == [
        (length, stream) for length in (4, 8) for stream in range(3)
    ]
    assert report.table(record)[0][-1] == "ALL t/s"


def test_ctrl_c_keeps_what_was_measured(models: dict[str, Any], tmp_path: Path) -> None:
    models["A"] = FakeModel()

    def stop(step: bench.Step) -> None:
        if step.done == 2:
            raise KeyboardInterrupt

    record = bench.Benchmark("demo", [cell("A", tmp_path)], OPTIONS).run([], stop)
    assert record.interrupted
    assert [each.prompt_tokens for each in record.cells[0].requests] == [4]
    assert "stopped before its end" in report.remarks(record)[-1]


def measured(*requests: Request, **given: Any) -> Record:
    """A record of one cell."""
    fields = {"kind": "CPU", "bytes_per_token": 10**9, "failures": (), "loads": ()} | given
    one = CellRecord("CPU", device_name="", driver=None, runtime="openvino", weight_format="int4",
                     requests=requests, **fields)  # fmt: skip
    return Record("demo", "", (), {}, {"cpu": "x"}, None, OPTIONS, 1e10, False, (one,))


def request(ttft_s: float, steps_s: tuple[float, ...], **given: Any) -> Request:
    fields = {"round": 0, "stream": 0, "prompt_tokens": 100, "stopped_early": False} | given
    return Request(ttft_s=ttft_s, steps_s=steps_s, generated_tokens=len(steps_s) + 1, **fields)


def test_figures_hold_where_tokens_arrive_in_bursts() -> None:
    bursts = (0.4, 0.0, 0.0, 0.0) * 10
    (own,) = figures(record := measured(request(0.5, bursts)), record.cells[0])
    assert own.tpot_s == pytest.approx(0.1)
    assert own.decode_tokens_per_s == pytest.approx(10.0)
    assert own.tpot_p95_s == 0.4
    assert own.prefill_tokens_per_s == pytest.approx(200.0)
    # 10 GB/s over 1 GB a token.
    assert own.ceiling_share == pytest.approx(1.0)


def test_what_stopped_early_is_left_out_and_what_is_not_known_is_none() -> None:
    record = measured(
        request(1.0, (0.1, 0.1), energy_j=9.0),
        request(3.0, (0.3, 0.3), energy_j=3.0),
        request(99.0, (9.0,), stopped_early=True),
        bytes_per_token=None,
        loads=(Load(0, 40.0, True, 3.0, None), Load(1, 2.0, False, None, 5), Load(2, 4.0, False, 2.0, 7)),
    )
    (own,) = figures(record, record.cells[0])
    assert (own.requests, own.stopped_early, own.ttft_s) == (2, 1, 2.0)
    assert own.tpot_s == pytest.approx(0.2)
    assert own.energy_j_per_token == pytest.approx(2.0)
    assert own.ceiling_tokens_per_s is own.mean_utilisation is None
    start = start_figures(record.cells[0])
    assert (start.load_s, start.compile_s, start.first_inference_s, start.peak_bytes) == (3.0, 37.0, 2.5, 7)


def test_all_streams_together_are_timed_by_the_slowest() -> None:
    streams = [request(0.5, (0.1,) * 5, stream=0), request(1.5, (0.1,) * 5, stream=1)]
    (own,) = figures(record := measured(*streams), record.cells[0])
    assert own.tokens_per_s == pytest.approx(12 / 2.0)


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    record = measured(request(0.5, (0.1, 0.2), energy_j=1.0), failures=(Failure("no", "yes", 5),))
    record.write(tmp_path / "a.json")
    assert Record.read(tmp_path / "a.json") == record


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        (("aipc_bench",), 2, "no record of aipc bench"),
        (("cells",), {}, "record.cells is {}"),
        (("cells", 0, "kind"), "TPU", "record.cells[0].kind is 'TPU'"),
        (("cells", 0, "requests", 0, "steps_s", 1), "fast", "steps_s[1] is 'fast'"),
        (("cells", 0, "requests", 0, "ttft_s"), float("nan"), "ttft_s is nan"),
        (("options", "rounds"), True, "record.options.rounds is True"),
        (("model",), None, "record.model is None"),
    ],
)
def test_a_damaged_record_is_refused(
    tmp_path: Path, path: tuple[Any, ...], value: object, where: str
) -> None:
    raw = json.loads(measured(request(0.5, (0.1, 0.2))).as_json())
    inner = raw
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    (tmp_path / "a.json").write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(UsageError, match=r"a\.json") as caught:
        Record.read(tmp_path / "a.json")
    assert where in caught.value.message


@pytest.mark.parametrize("content", ["", "[]", "nonsense", "[" * 100_000])
def test_what_is_no_record_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError):
        Record.read(tmp_path / "a.json")


def test_every_combination_is_a_cell_and_an_absent_device_too(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {OPENVINO.name: [CPU, NPU], ONNXRUNTIME.name: [CPU]}
    monkeypatch.setattr(
        inventory, "candidates", lambda infos: ([Candidate(i, d) for i in infos for d in here[i.name]], [])
    )
    found = [(each.device, each.runtime) for each in bench.cells_for("demo")]
    assert found == [("NPU", "openvino"), ("CPU", "onnxruntime"), ("CPU", "openvino")]
    cells = bench.cells_for("demo", ["cpu", "GPU"], ["openvino"], ["int4", "int8"])
    assert [(each.device, each.weight_format, each.failed) for each in cells] == [
        ("CPU", "int4", False),
        ("CPU", "int8", False),
        ("GPU", None, True),
    ]
    with pytest.raises(UsageError, match="no device 'NUP'"):
        bench.cells_for("demo", ["NUP"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt-tokens", "32,many"], "not a list of whole numbers"),
        (["--prompt-tokens", "0"], "at least 1 token"),
        (["--new-tokens", "1"], "at least 2"),
        (["--rounds", "0"], "at least 1"),
        (["--precisions", "int3"], "no precision 'int3'"),
        (["--record", "nowhere/a.json"], "there is no folder"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_measured(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "demo", *words]) == 2
    assert said in capsys.readouterr().err


def test_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = measured(request(1.0, (0.1, 0.1)), request(2.0, (0.2,), prompt_tokens=200))
    after = replace(measured(request(1.5, (0.05, 0.05))), versions={"openvino": "2027.1"}, on_mains=True)
    for name, record in (("a", before), ("b", after)):
        record.write(tmp_path / f"{name}.json")
    assert main(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    out = capsys.readouterr().out
    assert "1000 → 1500  +50 %" in out
    assert "100 → 50.0  -50 %" in out
    assert "version: openvino - → 2027.1" in out
    assert "power: unknown → mains" in out
    assert "only before: CPU · openvino · int4, prompt of 200" in out
    assert main(["bench", "compare", str(tmp_path / "a.json")]) == 2


def test_the_verdict_rests_on_the_figures() -> None:
    quick = Load(0, 1.0, False, 0.5, None)
    answers = request(0.5, (0.02,) * 10, prompt_tokens=1024, energy_j=22.0)
    record = measured(answers, loads=(quick,))
    slow_start = replace(
        record.cells[0], device="NPU", kind="NPU", weight_format="int8", loads=(replace(quick, load_s=30.0),),
        requests=(request(0.1, (0.01,) * 10, prompt_tokens=1024, energy_j=1.1),),
    )  # fmt: skip
    text = verdict(replace(record, cells=(record.cells[0], slow_start)))
    fast, rest = text.split("Fastest long chat: ")
    assert fast.startswith("Fastest answer: CPU · openvino · int4")
    assert rest.startswith("NPU · openvino · int8, 2.65 s (prefill 0.10, decode 2.55)")
    assert "Least energy: NPU · openvino · int8, 12.8 J" in rest
    assert "aipc run demo --device NPU --runtime openvino --weight-format int8" in rest
    # A chat of 1024 tokens is too far from a prompt of 100.
    short = verdict(measured(request(0.5, (0.02,)), loads=(quick,)))
    assert "not known, no prompt of 1024 tokens was answered, nor one half as long" in short
    assert "Least energy: not known" in short


def test_tokens_that_waited_for_their_reader_are_no_decode_steps() -> None:
    late = request(0.5, (0.00002, 0.00003, 0.3, 0.00002, 0.3))
    assert step_s(late) == pytest.approx(0.60002 / 3)
    assert step_s(request(0.5, (0.00002,) * 3)) is None
    record = measured(request(0.5, (0.00002,) * 3))
    (own,) = figures(record, record.cells[0])
    assert own.tpot_s is own.decode_tokens_per_s is None


def hostile_record() -> Record:
    record = measured(request(0.5, (0.1, 0.2)), request(1.5, (0.4,), prompt_tokens=8))
    failures = (Failure("out of <memory> " * 20, ""), Failure("it is too long", "", 100))
    failed = replace(record.cells[0], device="GPU.0", requests=(), failures=failures)
    options = replace(OPTIONS, prompt_tokens=(8, 100))
    return replace(record, model="</svg><script>", cells=(*record.cells, failed), options=options)


@pytest.mark.parametrize("suffix", chart.SUFFIXES)
def test_a_chart_is_drawn_and_holds_no_words_of_others_as_markup(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"latency{suffix}"
    chart.write(hostile_record(), path)
    content = path.read_bytes()
    if suffix == ".png":
        assert content.startswith(b"\x89PNG")
        return
    assert b"<script>" not in content
    start, end = content.index(b"<svg"), content.index(b"</svg>") + 6
    picture = ElementTree.fromstring(content[start:end])
    texts = ["".join(each.itertext()) for each in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"Prompt of 8 tokens", "Prompt of 100 tokens", "CPU · openvino · int4", "1500", "400", "150"} <= {
        *texts
    }
    assert any(
        text.startswith("GPU.0 · openvino · int4: out of <memory>") and len(text) <= 120 for text in texts
    )
    assert "GPU.0 · openvino · int4, prompt of 100: it is too long" in texts
    bars = picture.findall(".//{http://www.w3.org/2000/svg}rect[@height='16']")
    assert len(bars) == 4
    assert all(float(bar.get("width", "0")) <= 300 for bar in bars)


@pytest.mark.parametrize("suffix", [".svg", ".html"])
def test_a_chart_names_a_folder_and_not_where_it_lies(tmp_path: Path, suffix: str) -> None:
    for model, title in {str(tmp_path / "secret" / "phi3-int4"): "phi3-int4", "a/b": "a/b"}.items():
        path = tmp_path / f"latency{suffix}"
        chart.write(replace(hostile_record(), model=model), path)
        content = path.read_text(encoding="utf-8")
        assert f"{title}: latency by device" in content
        assert "secret" not in content


def test_a_chart_that_cannot_be_drawn_is_refused_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "demo", "--chart", "latency.jpg"]) == 2
    assert ".svg, .html, .png" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    assert main(["bench", "demo", "--chart", "latency.png"]) == 8
    assert 'pip install "aipc[chart]"' in capsys.readouterr().err


def test_a_model_that_does_not_exist_is_no_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "nope"]) == 3
    assert "there is no model 'nope'" in capsys.readouterr().err


def test_the_demo_on_both_runtimes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIPC_CACHE_DIR", str(tmp_path / "cache"))
    out = tmp_path / "demo.json"
    words = ["--prompt-tokens", "5,40,3000", "--new-tokens", "6", "--rounds", "1", "--record", str(out)]
    assert main(["bench", "demo", *words]) == 0
    record = Record.read(out)
    assert {each.runtime for each in record.cells} == {"openvino", "onnxruntime"}
    for found in record.cells:
        assert [(each.prompt_tokens, each.generated_tokens) for each in found.requests] == [(5, 6), (40, 6)]
        assert [failure.prompt_tokens for failure in found.failures] == [3000]
        # 3.7 million parameters: half a byte each, and those of the tied head a whole one.
        assert found.bytes_per_token is not None
        assert 1.5e6 < found.bytes_per_token < 3.0e6
        start = start_figures(found)
        assert start.peak_bytes is None or start.peak_bytes > 20e6
        assert all(own.ttft_s and own.requests == 1 for own in figures(record, found))
    assert record.versions["openvino-genai"]
    shown = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("CPU ") and " int4 " in line for line in shown) >= 4
