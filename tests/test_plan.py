"""Which device is taken, and what a wrong word is answered with."""

from __future__ import annotations

import pytest

from aipc import plan
from aipc.errors import DeviceError, UsageError
from aipc.runtimes import openvino
from aipc.runtimes.base import Device

CPU = Device("CPU", "Core Ultra 7", "CPU")
NPU = Device("NPU", "AI Boost", "NPU", "1.2.3")
IGPU = Device("GPU.0", "Arc 140V", "integrated GPU")
DGPU = Device("GPU.1", "Arc B580", "discrete GPU")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Device]:
    devices = [CPU, IGPU, DGPU, NPU]
    monkeypatch.setattr(openvino, "available_devices", lambda: devices)
    return devices


def words(made: plan.Plan) -> list[str]:
    return [device.word for device in made.devices]


@pytest.mark.usefixtures("here")
def test_auto_follows_the_order_of_the_mission() -> None:
    made = plan.make_plan("auto")
    assert words(made) == ["NPU", "GPU.1", "GPU.0", "CPU"]
    assert not made.named


@pytest.mark.usefixtures("here")
def test_exact_arithmetic_leaves_the_npu_out() -> None:
    assert words(plan.make_plan("auto", exact=True)) == ["GPU.1", "GPU.0", "CPU"]
    with pytest.raises(UsageError, match="float32"):
        plan.make_plan("NPU", exact=True)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("word", "found"),
    [("cpu", "CPU"), ("NPU", "NPU"), ("gpu", "GPU.0"), ("GPU", "GPU.0"), ("gpu.1", "GPU.1")],
)
def test_a_named_device_is_the_only_one(word: str, found: str) -> None:
    made = plan.make_plan(word)
    assert words(made) == [found]
    assert made.named


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("word", "meant"), [("NUP", "NPU"), ("cppu", "CPU"), ("autp", "auto")])
def test_a_misspelt_device_names_the_possible_ones(word: str, meant: str) -> None:
    with pytest.raises(UsageError, match="auto, NPU, GPU, CPU") as caught:
        plan.make_plan(word)
    assert f"did you mean {meant}?" in caught.value.hint.replace("AUTO", "auto")


def test_an_absent_device_is_an_error_and_no_other_is_taken(here: list[Device]) -> None:
    here.remove(NPU)
    with pytest.raises(DeviceError, match=r"no NPU here.*CPU \(Core Ultra 7\)") as caught:
        plan.make_plan("NPU")
    assert "driver" in caught.value.hint
    with pytest.raises(DeviceError, match=r"GPU\.7"):
        plan.make_plan("GPU.7")


def test_an_unknown_runtime_names_the_possible_ones() -> None:
    with pytest.raises(UsageError, match="possible: openvino"):
        plan.make_plan(runtime="tensorflow")
