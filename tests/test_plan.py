"""Which device is taken, and what a wrong word is answered with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aipc import inventory, plan
from aipc.errors import AipcError, DeviceError, MissingExtraError, UsageError
from aipc.runtimes import onnxruntime, openvino
from aipc.runtimes.base import ONNXRUNTIME, OPENVINO, Device

CPU = Device("CPU", "Core Ultra 7", "CPU")
NPU = Device("NPU", "AI Boost", "NPU", "1.2.3")
IGPU = Device("GPU.0", "Arc 140V", "integrated GPU")
DGPU = Device("GPU.1", "Arc B580", "discrete GPU")


CUDA = Device("CUDA:0", "RTX 5070", "discrete GPU")
OV, ORT = OPENVINO.name, ONNXRUNTIME.name


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Device]:
    """What OpenVINO reaches; ONNX Runtime reaches the same CPU, and an NVIDIA GPU."""
    devices = [CPU, IGPU, DGPU, NPU]
    monkeypatch.setattr(openvino, "available_devices", lambda: devices)
    monkeypatch.setattr(onnxruntime, "available_devices", lambda: [CPU, CUDA])
    return devices


@pytest.fixture
def no_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "installed_runtimes", lambda: [OPENVINO])


def words(made: plan.Plan) -> list[tuple[str, str]]:
    return [(item.device.word, item.runtime.name) for item in made.candidates]


@pytest.mark.usefixtures("here", "no_onnxruntime")
def test_auto_follows_the_order_of_the_mission() -> None:
    made = plan.make_plan("auto")
    assert words(made) == [("NPU", OV), ("GPU.1", OV), ("GPU.0", OV), ("CPU", OV)]
    assert not made.named
    assert made.notes == ()


@pytest.mark.usefixtures("here")
def test_with_both_runtimes_each_device_gets_the_one_that_suits_it() -> None:
    expected = [("NPU", OV), ("CUDA:0", ORT), ("GPU.1", OV), ("GPU.0", OV), ("CPU", ORT), ("CPU", OV)]
    assert words(plan.make_plan("auto")) == expected


@pytest.mark.usefixtures("here")
def test_on_a_cpu_the_faster_decoder_is_taken_with_a_sentence_that_says_why() -> None:
    made = plan.make_plan("CPU")
    assert words(made) == [("CPU", ORT), ("CPU", OV)]
    (note,) = made.notes
    assert "ONNX Runtime is taken" in note
    assert "decodes faster" in note
    assert "--runtime openvino" in note


@pytest.mark.usefixtures("here")
def test_a_named_runtime_is_the_only_one() -> None:
    assert words(plan.make_plan("CPU", "openvino")) == [("CPU", OV)]
    assert words(plan.make_plan("auto", "ONNXRUNTIME")) == [("CUDA:0", ORT), ("CPU", ORT)]
    assert plan.make_plan("CPU", "openvino").notes == ()


@pytest.mark.usefixtures("here")
def test_a_folder_is_for_its_runtime() -> None:
    assert words(plan.make_plan("CPU", formats={OV})) == [("CPU", OV)]
    assert words(plan.make_plan("auto", formats={ORT})) == [("CUDA:0", ORT), ("CPU", ORT)]


@pytest.mark.usefixtures("here", "no_onnxruntime")
def test_a_folder_for_a_runtime_that_is_not_installed_names_the_extra() -> None:
    with pytest.raises(MissingExtraError, match="ONNX Runtime") as caught:
        plan.make_plan("auto", formats={ORT})
    assert "aipc[onnx]" in caught.value.hint


def test_a_broken_runtime_is_passed_over_aloud(here: list[Device], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Device]:
        raise MissingExtraError("two packages lie over each other", hint="mend it")

    monkeypatch.setattr(onnxruntime, "available_devices", broken)
    made = plan.make_plan("CPU")
    assert words(made) == [("CPU", OV)]
    assert made.notes == ("ONNX Runtime is passed over: two packages lie over each other",)
    with pytest.raises(MissingExtraError, match="two packages"):
        plan.make_plan("CPU", "onnxruntime")


@pytest.mark.usefixtures("here")
def test_exact_arithmetic_leaves_the_npu_out() -> None:
    made = plan.make_plan("auto", needs=plan.Needs(exact=True))
    assert words(made) == [("GPU.1", OV), ("GPU.0", OV), ("CPU", OV)]
    with pytest.raises(UsageError, match="float32"):
        plan.make_plan("NPU", needs=plan.Needs(exact=True))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("device", "needs", "taken", "note"),
    [
        (
            "CPU",
            plan.Needs(kv_cache="u8"),
            ("CPU", OV),
            "CPU with ONNX Runtime is passed over: its KV cache is f32",
        ),
        ("CPU", plan.Needs(kv_cache="f32"), ("CPU", ORT), "ONNX Runtime is taken"),
        (
            "auto",
            plan.Needs(kv_cache="u8"),
            ("GPU.1", OV),
            "NPU with OpenVINO GenAI is passed over: its KV cache",
        ),
        ("auto", plan.Needs(context_length=9000), ("CUDA:0", ORT), "8192 tokens there, not 9000"),
        ("auto", plan.Needs(context_length=8192), ("NPU", OV), None),
        ("auto", plan.Needs(fast_load=True), ("CPU", ORT), "no weights to prepare"),
        ("CPU", plan.Needs(exact=True), ("CPU", OV), "exact only with weights that are not quantised"),
    ],
)
def test_what_lacks_something_asked_for_is_passed_over(
    device: str, needs: plan.Needs, taken: tuple[str, str], note: str | None
) -> None:
    made = plan.make_plan(device, needs=needs)
    assert words(made)[0] == taken
    assert not any(plan._lack(item, needs, ()) for item in made.candidates)
    assert any(note in line for line in made.notes) if note else made.notes == ()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("device", "runtime", "needs", "found", "hint"),
    [
        ("CPU", ORT, plan.Needs(kv_cache="u8"), "its KV cache is f32, not u8", "leave"),
        (
            "NPU",
            None,
            plan.Needs(kv_cache="u8"),
            "its KV cache is f16, not u8",
            "--device GPU.1 --runtime openvino",
        ),
        ("NPU", None, plan.Needs(context_length=9000), "8192 tokens there, not 9000", "--device CUDA:0"),
        (
            "NPU",
            None,
            plan.Needs(fast_load=True),
            "no weights to prepare",
            "--device CPU --runtime onnxruntime",
        ),
        (
            "CPU",
            None,
            plan.Needs(kv_cache="u4"),
            "CPU with OpenVINO GenAI: its KV cache is u8 or f16",
            "leave",
        ),
        ("CPU", None, plan.Needs(kv_cache="u8", fast_load=True), "no weights to prepare", "leave"),
    ],
)
def test_what_nothing_that_was_named_has_is_refused_with_what_has_it(
    device: str, runtime: str | None, needs: plan.Needs, found: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        plan.make_plan(device, runtime, needs=needs)
    assert found in caught.value.message
    assert caught.value.hint is not None
    assert hint in caught.value.hint


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("NPU", "NPU"),
        ("npu", "NPU"),
        ("gpu", "GPU.0"),
        ("GPU", "GPU.0"),
        ("gpu.1", "GPU.1"),
        ("GPU:1", "GPU.1"),
        ("cuda", "CUDA:0"),
        ("CUDA:0", "CUDA:0"),
        ("igpu", "GPU.0"),
        ("IGPU", "GPU.0"),
    ],
)
def test_a_named_device_is_the_only_one(word: str, found: str) -> None:
    made = plan.make_plan(word)
    assert [item.device.word for item in made.candidates] == [found]
    assert made.named


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("word", "meant"),
    [("NUP", "NPU"), ("cppu", "CPU"), ("autp", "auto"), ("CDUA", "CUDA"), ("igp", "igpu"), ("NPU.x", "NPU")],
)
def test_a_misspelt_device_names_the_possible_ones(word: str, meant: str) -> None:
    with pytest.raises(UsageError, match="auto, NPU, GPU, CPU, CUDA, DML, igpu, dgpu") as caught:
        plan.make_plan(word)
    assert f"did you mean {meant}?" in caught.value.hint


@pytest.mark.usefixtures("here")
def test_an_ambiguous_word_names_the_possible_ones() -> None:
    with pytest.raises(UsageError, match=r"dgpu can be GPU\.1 \(Arc B580\), CUDA:0 \(RTX 5070\)") as caught:
        plan.make_plan("dgpu")
    assert "--device GPU.1" in caught.value.hint
    assert words(plan.make_plan("dgpu", "openvino")) == [("GPU.1", OV)]


def test_one_gpu_that_two_runtimes_reach_is_not_ambiguous(
    here: list[Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    luid = "0x00000000_0x0000C9A5"
    here[:] = [CPU, replace(DGPU, word="GPU.0", address=luid)]
    dml = Device("DML:1", "Arc B580", "discrete GPU", address=luid)
    monkeypatch.setattr(onnxruntime, "available_devices", lambda: [CPU, dml])
    assert words(plan.make_plan("dgpu")) == [("GPU.0", OV), ("DML:1", ORT)]
    with pytest.raises(DeviceError, match="no igpu here"):
        plan.make_plan("igpu")


@pytest.mark.usefixtures("here", "no_onnxruntime")
@pytest.mark.parametrize(("word", "extra"), [("CUDA:0", "cuda"), ("DML", "directml")])
def test_a_device_of_a_runtime_that_is_not_there_names_the_extra(word: str, extra: str) -> None:
    with pytest.raises(UsageError, match="ONNX Runtime") as caught:
        plan.make_plan(word)
    assert f"aipc[{extra}]" in caught.value.hint


def test_an_absent_device_is_an_error_and_no_other_is_taken(here: list[Device]) -> None:
    here.remove(NPU)
    with pytest.raises(DeviceError, match=r"no NPU here.*GPU\.0 \(Arc 140V\)") as caught:
        plan.make_plan("NPU")
    assert "driver" in caught.value.hint
    with pytest.raises(DeviceError, match=r"GPU\.7"):
        plan.make_plan("GPU.7")


@pytest.mark.usefixtures("here")
def test_a_provider_without_its_device_is_an_error() -> None:
    with pytest.raises(AipcError, match="DML") as caught:
        plan.make_plan("DML:0")
    assert "directml" in caught.value.hint


def test_an_unknown_runtime_names_the_possible_ones() -> None:
    with pytest.raises(UsageError, match="possible: openvino, onnxruntime") as caught:
        plan.make_plan(runtime="onnx")
    assert caught.value.hint == "did you mean onnxruntime?"
