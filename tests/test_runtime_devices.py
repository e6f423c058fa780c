# ruff: noqa: N802 - the names of CUDA's driver
"""What the runtimes say they reach, with drivers and an OpenVINO of our own."""

from __future__ import annotations

import ctypes
import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from aipc import hardware
from aipc.hardware import Processor
from aipc.runtimes import onnxruntime_devices, openvino_devices
from aipc.runtimes.base import Device

NPU = Processor("NPU", "Intel", "Intel AI Boost", address="0000:00:0b.0")

# Stands where the package would: one NPU, two GPUs, and a device that aipc has no use for.
OPENVINO = """
print("a plugin talks")

class Info:
    def __init__(self, bus, device):
        self.domain, self.bus, self.device, self.function = 0, bus, device, 0

PROPERTIES = {
    "CPU": {"FULL_DEVICE_NAME": "Core Ultra "},
    "NPU": {"FULL_DEVICE_NAME": "AI Boost", "NPU_DRIVER_VERSION": 1755, "DEVICE_PCI_INFO": Info(0, 11),
            "DEVICE_LUID": "9f25010000000000"},
    "GPU.0": {"FULL_DEVICE_NAME": "Arc 140V (iGPU)", "DEVICE_TYPE": "Type.INTEGRATED",
              "GPU_DEVICE_TOTAL_MEM_SIZE": 2**34},
    "GPU.1": {"FULL_DEVICE_NAME": "Arc B580 (dGPU)", "DEVICE_TYPE": "Type.DISCRETE", "DEVICE_LUID": "?",
              "GPU_DRIVER_VERSION": "25.1", "GPU_DEVICE_TOTAL_MEM_SIZE": 2**33,
              "DEVICE_PCI_INFO": Info(3, 0)},
    "GNA": {},
}

class Core:
    available_devices = list(PROPERTIES)

    def get_property(self, device, name):
        if name not in PROPERTIES[device]:
            raise RuntimeError("unsupported property")
        return PROPERTIES[device][name]
"""


@pytest.fixture
def intel_npu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "processors", lambda: [NPU, hardware.cpu()])


def put_openvino(monkeypatch: pytest.MonkeyPatch, folder: Path, source: str) -> None:
    (folder / "openvino.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)


@pytest.mark.usefixtures("intel_npu")
def test_openvino_is_asked_in_another_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put_openvino(monkeypatch, tmp_path, OPENVINO)
    windows = sys.platform == "win32"
    assert openvino_devices.devices() == [
        Device("CPU", "Core Ultra", "CPU"),
        Device("NPU", "AI Boost", "NPU", "1755", "0x00000000_0x0001259F" if windows else "0000:00:0b.0"),
        Device("GPU.0", "Arc 140V (iGPU)", "integrated GPU"),
        Device(
            "GPU.1", "Arc B580 (dGPU)", "discrete GPU", "25.1", None if windows else "0000:03:00.0", 2**33
        ),
    ]


@pytest.mark.usefixtures("intel_npu")
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import os; os.abort()", "code -?[0-9]+"),
        ("raise RuntimeError('the driver is from another century')", "another century"),
        ("import os; os._exit(3)", "code 3, no words"),
    ],
)
def test_a_driver_that_fails_leaves_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    source: str,
    said: str,
) -> None:
    put_openvino(monkeypatch, tmp_path, source)
    with caplog.at_level(logging.WARNING, "aipc"):
        (cpu,) = openvino_devices.devices()
    assert cpu.word == "CPU"
    (record,) = caplog.records
    assert re.search(said, record.getMessage())


@pytest.mark.usefixtures("intel_npu")
def test_a_driver_that_hangs_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put_openvino(monkeypatch, tmp_path, "import threading; threading.Event().wait()")
    monkeypatch.setattr(openvino_devices, "_TIMEOUT_S", 0.2)
    assert [device.word for device in openvino_devices.devices()] == ["CPU"]
    assert "timed out" in caplog.text


@pytest.mark.usefixtures("intel_npu")
def test_the_real_openvino_answers() -> None:
    assert "CPU" in [device.word for device in openvino_devices.devices()]


def test_a_machine_without_intel_is_not_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put_openvino(monkeypatch, tmp_path, OPENVINO)
    geforce = Processor("discrete GPU", "NVIDIA", "GeForce", address="0000:01:00.0")
    monkeypatch.setattr(hardware, "processors", lambda: [geforce, hardware.cpu()])
    monkeypatch.setattr(hardware, "has_wsl_gpu", lambda: False)
    assert openvino_devices.devices() == [Device("CPU", hardware.cpu().name, "CPU")]


class CudaDriver:
    """nvcuda with two GPUs, the second of which does not answer."""

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13020
        return 0

    def cuDeviceGet(self, handle: Any, number: int) -> int:
        handle._obj.value = 7
        return 0 if number == 0 else 101

    def cuDeviceGetName(self, name: Any, size: int, handle: ctypes.c_int) -> int:
        assert (size, handle.value) == (256, 7)
        name.value = b"NVIDIA GeForce RTX 5060"
        return 0

    def cuDeviceTotalMem_v2(self, total: Any, handle: ctypes.c_int) -> int:
        total._obj.value = 8 * 2**30
        return 0

    def cuDeviceGetPCIBusId(self, place: Any, size: int, handle: ctypes.c_int) -> int:
        place.value = b"0000:C1:00.0"
        return 0

    def cuDeviceGetLuid(self, place: Any, mask: Any, handle: ctypes.c_int) -> int:
        place.raw = bytes([0x2B, 0xD0, 0, 0, 1, 0, 0, 0]).ljust(len(place))
        return 0


def test_cuda_says_where_a_gpu_is() -> None:
    (found,) = onnxruntime_devices.cuda_devices(CudaDriver())
    address = "0x00000001_0x0000D02B" if sys.platform == "win32" else "0000:c1:00.0"
    assert found == Device(
        "CUDA:0", "NVIDIA GeForce RTX 5060", "discrete GPU", "CUDA 13.2", address, 8 * 2**30
    )


def test_a_cuda_driver_without_a_gpu() -> None:
    driver = CudaDriver()
    driver.cuInit = lambda flags: 100  # type: ignore[method-assign]
    assert onnxruntime_devices.cuda_devices(driver) == []
