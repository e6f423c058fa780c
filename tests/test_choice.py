"""What a model is run with: pinned, measured or by the mission's order; and what an answer will take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from aipc import choice, hardware, inventory
from aipc.cli import main
from aipc.errors import DeviceError
from aipc.measurements import kept
from aipc.measurements.kept import Pin
from aipc.measurements.prediction import Workload, predict
from aipc.measurements.record import CellRecord, Failure, Load, Options, Record, Request
from aipc.plan import Needs
from aipc.runtimes import onnxruntime, openvino
from aipc.runtimes.base import ONNXRUNTIME, OPENVINO, Device
from aipc.types import DeviceKind

CPU = Device("CPU", "Core Ultra 7", "CPU")
NPU = Device("NPU", "AI Boost", "NPU", "1.2.3")
DGPU = Device("GPU.1", "Arc A310", "discrete GPU", memory_bytes=400_000_000)
OV, ORT = OPENVINO.name, ONNXRUNTIME.name


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Device]:
    """What OpenVINO reaches; ONNX Runtime reaches the CPU."""
    devices = [CPU, NPU]
    monkeypatch.setenv("AIPC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(openvino, "available_devices", lambda: devices)
    monkeypatch.setattr(onnxruntime, "available_devices", lambda: [CPU])
    monkeypatch.setattr(inventory, "installed_runtimes", lambda: [OPENVINO, ONNXRUNTIME])
    return devices


def cell(
    device: str,
    runtime: str,
    *,
    load_s: float = 1.0,
    prefill_s_per_token: float = 0.01,
    tpot_s: float = 0.1,
    energy_j: float | None = None,
    failures: tuple[Failure, ...] = (),
) -> CellRecord:
    """One that reads a prompt in half a second and its tokens' time, and slows down by 0.1 ms a token."""
    kind: DeviceKind = "NPU" if device == "NPU" else "CPU"
    requests = tuple(
        Request(0, 0, length, 11, False, 0.5 + prefill_s_per_token * length,
                (tpot_s + 1e-4 * length,) * 10, None, energy_j)
        for length in (32, 256, 1024)
    )  # fmt: skip
    loads = (Load(0, load_s, False, 2.0, None),)
    return CellRecord(device, kind, "", None, runtime, "int4", None, failures, loads, requests)


def record(*cells: CellRecord) -> Record:
    machine = {"cpu": hardware.cpu().name}
    options = Options((32, 256, 1024), 11, 1, 1)
    return Record("demo", "2026-11-22T10:00:00", (), {}, machine, None, options, 1e10, False, cells)


def taken(made: choice.Choice) -> list[tuple[str, str]]:
    return [(item.device.word, item.runtime.name) for item in made.plan.candidates]


def test_a_prediction_is_the_sum_of_its_parts() -> None:
    known = record(one := cell("CPU", OV))
    cold = predict(known, one, Workload(256, 11, warm=False))
    assert cold is not None
    # The first inference took 2 s; later ones with the same prompt 0.82 s.
    assert (cold.load_s, cold.first_inference_s) == (1.0, pytest.approx(1.18))
    assert cold.prefill_s == pytest.approx(3.06)
    assert cold.decode_s == pytest.approx(10 * 0.1256)
    assert cold.total_s == pytest.approx(1.0 + 1.18 + 3.06 + 1.256)
    warm = predict(known, one, Workload(256, 11, warm=True))
    assert warm is not None
    assert warm.total_s == pytest.approx(3.06 + 1.256)


@pytest.mark.parametrize(
    ("prompt", "new", "prefill_s", "step_s"),
    [(640, 11, 6.9, 0.164), (2048, 11, 20.98, 0.3048), (256, 111, 3.06, 0.1306), (1, 11, 0.51, 0.1032)],
)
def test_between_and_beyond_what_was_measured(prompt: int, new: int, prefill_s: float, step_s: float) -> None:
    known = record(one := cell("CPU", OV))
    found = predict(known, one, Workload(prompt, new, warm=True))
    assert found is not None
    assert found.prefill_s == pytest.approx(prefill_s)
    assert found.decode_s == pytest.approx((new - 1) * step_s)


def test_of_one_length_the_time_a_token_is_known() -> None:
    one = cell("CPU", OV)
    one = replace(one, requests=one.requests[1:2])
    found = predict(record(one), one, Workload(512, 11, warm=False))
    assert found is not None
    assert found.prefill_s == pytest.approx(2 * 3.06)
    assert found.decode_s == pytest.approx(10 * 0.1256)
    assert found.first_inference_s == 0


def test_no_prediction_for_what_was_refused_or_never_answered() -> None:
    refuses = cell("NPU", OV, failures=(Failure("too long", "", 1024),))
    known = record(refuses)
    assert predict(known, refuses, Workload(1023, 5, warm=True)) is not None
    assert predict(known, refuses, Workload(1024, 5, warm=True)) is None
    broken = cell("NPU", OV, failures=(Failure("gone", ""),))
    assert predict(record(broken), broken, Workload(1, 5, warm=True)) is None
    assert predict(known, cell("CPU", OV), Workload(2049, 5, warm=True)) is None
    unloaded = replace(refuses, loads=())
    assert predict(record(unloaded), unloaded, Workload(8, 5, warm=False)) is None
    assert predict(record(unloaded), unloaded, Workload(8, 5, warm=True)) is not None
    silent = replace(refuses, requests=())
    assert predict(record(silent), silent, Workload(1, 5, warm=True)) is None


def test_without_a_record_the_mission_decides_and_says_how_to_measure() -> None:
    made = choice.choose("demo")
    assert taken(made) == [("NPU", OV), ("CPU", ORT), ("CPU", OV)]
    assert made.predictions == (None, None, None)
    assert "aipc bench demo" in made.why
    assert not made.plan.notes


def test_a_record_decides_by_the_goal() -> None:
    slow_start = cell("NPU", OV, load_s=60.0, tpot_s=0.01, energy_j=3.0)
    quick = cell("CPU", ORT, energy_j=30.0)
    kept.keep("demo", record(slow_start, quick, cell("CPU", OV, prefill_s_per_token=0.02)))
    assert taken(choice.choose("demo")) == [("CPU", ORT), ("CPU", OV), ("NPU", OV)]
    assert taken(choice.choose("demo", goal="long"))[0] == ("NPU", OV)
    # What used no energy that could be read is not known to use the least.
    assert taken(choice.choose("demo", goal="efficient")) == [("NPU", OV), ("CPU", ORT), ("CPU", OV)]
    assert taken(choice.choose("demo", "CPU")) == [("CPU", ORT), ("CPU", OV)]
    made = choice.choose("demo")
    assert "measured here on 2026-11-22" in made.why
    (note,) = made.plan.notes
    assert note.startswith("CPU with ONNX Runtime is taken: measured here")
    total_s = [prediction.total_s for prediction in made.predictions if prediction]
    assert total_s == sorted(total_s)
    assert len(total_s) == 3


def test_what_fails_is_taken_last_and_other_arithmetic_was_not_measured() -> None:
    broken = cell("NPU", OV, tpot_s=0.001, failures=(Failure("the driver crashed", ""),))
    kept.keep("demo", record(broken, cell("CPU", ORT), cell("CPU", OV)))
    assert taken(choice.choose("demo"))[-1] == ("NPU", OV)
    assert "nothing was measured" in choice.choose("demo", needs=Needs(exact=True)).why
    assert "lacks NPU" in choice.choose("demo", weight_format="int8").why


@pytest.mark.parametrize("case", ["another machine", "a new device", "damaged", "another model"])
def test_a_record_that_does_not_fit_is_not_used(case: str, tmp_path: Path) -> None:
    cells = [cell("NPU", OV, load_s=99.0), cell("CPU", ORT), cell("CPU", OV)]
    made = record(*cells)
    if case == "another machine":
        made = replace(made, machine={"cpu": "Another"})
    if case == "a new device":
        made = record(*cells[1:])
    kept.keep("phi-4" if case == "another model" else "demo", made)
    if case == "damaged":
        (file,) = (tmp_path / "cache/measurements").iterdir()
        file.write_text(file.read_text(encoding="utf-8")[:100], encoding="utf-8")
    chosen = choice.choose("demo")
    assert taken(chosen)[0] == ("NPU", OV)
    assert "the order is NPU" in chosen.why


def test_a_record_is_kept_for_an_alias_and_its_hub_id_and_for_each_folder(tmp_path: Path) -> None:
    kept.keep("phi-3-mini", record())
    assert kept.record_of("microsoft/Phi-3-mini-4k-instruct") is not None
    folders = [tmp_path / name / "int4" for name in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}", encoding="utf-8")
    kept.keep(folders[0], record())
    assert kept.record_of(str(folders[0])) is not None
    assert kept.record_of(folders[1]) is None


def test_a_gpu_that_is_too_small_for_the_model_comes_last(here: list[Device]) -> None:
    here.append(DGPU)
    assert taken(choice.choose("phi-3-mini"))[-1] == ("GPU.1", OV)
    assert "more than its memory" in choice.choose("phi-3-mini").plan.notes[0]
    here[-1] = replace(DGPU, memory_bytes=8 * 10**9)
    assert taken(choice.choose("phi-3-mini"))[1] == ("GPU.1", OV)


def test_a_pin_holds_until_it_is_taken_out(capsys: pytest.CaptureFixture[str], here: list[Device]) -> None:
    assert main(["plan", "demo", "--pin", "cpu,openvino"]) == 0
    assert "it is pinned to CPU with openvino" in capsys.readouterr().out
    assert taken(choice.choose("demo")) == [("CPU", OV)]
    assert choice.choose("demo").plan.named
    # Words on the line win, and float32 is not what was pinned.
    assert taken(choice.choose("demo", "NPU")) == [("NPU", OV)]
    assert taken(choice.choose("demo", runtime=ORT)) == [("CPU", ORT)]
    kept.pin("demo", Pin("NPU"))
    here.remove(NPU)
    with pytest.raises(DeviceError, match="demo is pinned to NPU, and there is no NPU here") as caught:
        choice.choose("demo")
    assert caught.value.hint == "aipc plan demo --unpin"
    assert main(["plan", "demo", "--unpin"]) == 0
    assert taken(choice.choose("demo"))[0] == ("CPU", ORT)
    assert main(["plan", "demo", "--unpin"]) == 0
    assert "nothing was pinned" in capsys.readouterr().err


def test_only_what_is_here_can_be_pinned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "demo", "--pin", "GPU"]) == 6
    assert main(["plan", "demo", "--pin", "NPU,onnxruntime"]) == 2
    assert kept.pin_of("demo") is None
    capsys.readouterr()


def test_the_plan_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    kept.keep("demo", record(cell("NPU", OV, load_s=60.0), cell("CPU", ORT), cell("CPU", OV, tpot_s=0.2)))
    words = ["plan", "demo", "--goal", "long", "--prompt-tokens", "512", "--new-tokens", "21", "--cold"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "DEVICE"
    assert lines[1].split()[:2] == ["CPU", ORT]
    assert lines[3].split()[:3] == ["NPU", OV, "60.00"]
    assert "a prompt of 512 tokens and 21 new ones, with the start of the model: CPU with" in lines[5]
    assert lines[-1] == "aipc run demo --device CPU --runtime onnxruntime"
    assert main([*words, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [item["device"] for item in shown["candidates"]] == ["CPU", "CPU", "NPU"]
    assert shown["candidates"][0]["prediction"]["total_s"] == pytest.approx(1.0 + 1.18 + 5.62 + 20 * 0.1517)
    assert main(["plan", "demo", "--new-tokens", "0"]) == 2


def test_a_prompt_beyond_the_context_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "demo", "--prompt-tokens", "100000", "--pin", "CPU"]) == 2
    error = capsys.readouterr().err
    assert "a prompt of 100000 tokens and 128 new ones are 100128; the context of demo is 2048" in error
    assert "--prompt-tokens 1920" in error
    assert kept.pin_of("demo") is None
    assert main(["plan", "demo", "--prompt-tokens", "1920"]) == 0
    assert main(["plan", "demo", "--new-tokens", "2048"]) == 2
    assert "--new-tokens of at most 2047" in capsys.readouterr().err
