"""One record a device, whoever names it, and what the others lack."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import machines
from aipc import hardware, inventory
from aipc.cli import main
from aipc.errors import MissingExtraError
from aipc.hardware import drivers, linux
from aipc.inventory import Candidate, ListedDevice
from aipc.runtimes.base import ONNXRUNTIME, OPENVINO, Device
from machines import ARC_DEVICE, CPU_DEVICE, GEFORCE_DEVICE, IGPU_DEVICE, NPU_DEVICE

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="trees of Linux")

Listing = Callable[..., list[ListedDevice]]


@pytest.fixture
def listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Listing:
    """Lists a machine of which OpenVINO and ONNX Runtime reach these devices."""

    def listed(
        machine: Callable[[Path], Path], openvino: Sequence[Device], onnx: Sequence[Device] = ()
    ) -> list[ListedDevice]:
        processors = linux.processors(machine(tmp_path))
        found = [Candidate(OPENVINO, device) for device in openvino]
        found += [Candidate(ONNXRUNTIME, device) for device in onnx]
        monkeypatch.setattr(
            inventory, "driver_checks", functools.partial(drivers.driver_checks, root=tmp_path)
        )
        monkeypatch.setattr(hardware, "processors", lambda: processors)
        monkeypatch.setattr(inventory, "candidates", lambda infos: (found, []))
        return inventory.devices()

    return listed


def test_a_laptop_whose_devices_are_all_reached(listing: Listing) -> None:
    npu, igpu, cpu = listing(machines.meteor_lake, [CPU_DEVICE, IGPU_DEVICE, NPU_DEVICE], [CPU_DEVICE])
    assert (npu.name, npu.selectors, npu.kernel_driver, npu.driver_version) == (
        "Intel(R) AI Boost",
        ("NPU",),
        "intel_vpu",
        "1755",
    )
    assert (igpu.selectors, igpu.memory_bytes, igpu.shares_memory) == (("GPU.0", "igpu"), None, True)
    assert [(reach.runtime, reach.word) for reach in cpu.reached_by] == [
        ("openvino", "CPU"),
        ("onnxruntime", "CPU"),
    ]
    assert cpu.name == "Intel(R) Core(TM) Ultra 7 155H"
    assert all(not device.lacks for device in (npu, igpu, cpu))


def test_two_cards_are_told_apart_by_their_address(listing: Listing) -> None:
    geforce, arc, _ = listing(machines.nvidia_desktop, [CPU_DEVICE, ARC_DEVICE], [CPU_DEVICE, GEFORCE_DEVICE])
    assert (geforce.address, geforce.selectors) == ("0000:01:00.0", ("CUDA:0",))
    assert (arc.address, arc.selectors, arc.memory_bytes) == (machines.ARC, ("GPU.0",), 12 * 2**30)
    assert geforce.memory_bytes == 2**34
    assert not arc.shares_memory


def test_a_runtime_that_does_not_say_where_means_the_only_one(listing: Listing) -> None:
    nowhere = Device("GPU.0", "Arc", "discrete GPU")
    geforce, arc, _ = listing(machines.nvidia_desktop, [CPU_DEVICE, nowhere])
    assert arc.selectors == ("GPU.0", "dgpu")
    assert not geforce.reached_by


def test_a_device_that_only_a_runtime_knows_is_listed(listing: Listing) -> None:
    gpu, cpu = listing(
        machines.wsl, [CPU_DEVICE, Device("GPU.0", "Intel(R) Graphics [0x7d55]", "integrated GPU")]
    )
    assert (gpu.name, gpu.address, gpu.selectors) == ("Intel(R) Graphics [0x7d55]", None, ("GPU.0", "igpu"))
    assert cpu.kind == "CPU"


def test_a_gpu_needs_the_runtime_that_reaches_it(listing: Listing) -> None:
    geforce, _, _ = listing(machines.nvidia_desktop, [CPU_DEVICE, ARC_DEVICE], [CPU_DEVICE])
    libcuda, runtime = geforce.lacks
    assert "libcuda.so.1" in libcuda.found
    assert "onnxruntime-genai-cuda" in runtime.found
    assert 'pip install "aipc[cuda]"' in runtime.fix


@pytest.mark.usefixtures("listing")
def test_a_runtime_that_is_not_installed(listing: Listing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "installed_runtimes", list)
    npu, igpu, cpu = listing(machines.lunar_lake, [])
    for device in (npu, igpu, cpu):
        (lack,) = device.lacks
        assert lack.fix == 'pip install "aipc[openvino]"'


def test_a_cpu_without_a_sound_runtime_names_the_one_that_is_there(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mixture(provider: str) -> None:
        raise MissingExtraError("two packages lie over each other", hint="uninstall both")

    monkeypatch.setattr(inventory, "installed_runtimes", lambda: [ONNXRUNTIME])
    monkeypatch.setattr(inventory.packages, "require_provider", mixture)
    *_, cpu = listing(machines.lunar_lake, [])
    (lack,) = cpu.lacks
    assert (lack.found, lack.fix) == ("two packages lie over each other", "uninstall both")


def test_a_device_that_is_passed_over_for_no_reason(listing: Listing) -> None:
    npu, *_ = listing(machines.lunar_lake, [CPU_DEVICE, IGPU_DEVICE])
    (lack,) = npu.lacks
    assert "does not list Intel AI Boost (Lunar Lake)" in lack.found
    assert lack.fix


def test_what_nothing_reaches_is_a_note(listing: Listing) -> None:
    npu, radeon, apu, _ = listing(machines.amd_laptop, [CPU_DEVICE])
    assert [device.lacks[0].state for device in (npu, radeon, apu)] == ["note"] * 3
    assert "no runtime of aipc reaches AMD Ryzen AI (Strix, Krackan) on Linux" in npu.lacks[0].found


def test_a_broken_runtime_is_not_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        @staticmethod
        def available_devices() -> list[Device]:
            raise MissingExtraError("two packages lie over each other")

    class Sound:
        @staticmethod
        def available_devices() -> list[Device]:
            return [CPU_DEVICE]

    monkeypatch.setattr(inventory, "runtime_module", lambda info: Sound if info is OPENVINO else Broken)
    found, broken = inventory.candidates([ONNXRUNTIME, OPENVINO])
    assert found == [Candidate(OPENVINO, CPU_DEVICE)]
    ((info, error),) = broken
    assert info is ONNXRUNTIME
    assert "over each other" in error.message


def test_the_command_shows_a_table_and_what_is_lacking(
    listing: Listing, capsys: pytest.CaptureFixture[str]
) -> None:
    listing(machines.nvidia_desktop, [CPU_DEVICE, ARC_DEVICE], [CPU_DEVICE])
    assert main(["devices"]) == 0
    lines = capsys.readouterr().out.splitlines()
    header, geforce, arc, cpu, empty = lines[:5]
    assert header.split() == ["DEVICE", "KIND", "NAME", "MEMORY", "DRIVER", "RUNTIMES"]
    assert geforce.endswith("  unknown  nvidia 580.82.07  -")
    assert arc.startswith("GPU.0, dgpu  discrete GPU  Intel(R) Arc(TM) B580       12.9 GB  xe 25.13  ")
    assert cpu.endswith("  openvino, onnxruntime")
    assert cpu.index("AMD") == header.index("NAME") == arc.index("Intel")
    assert empty == ""
    assert lines[5] == "NVIDIA GeForce RTX 5060 Ti (discrete GPU) is not reached:"
    assert any(line.startswith("          ") and "aipc[cuda]" in line for line in lines[6:])


def test_the_command_writes_json(listing: Listing, capsys: pytest.CaptureFixture[str]) -> None:
    listing(machines.meteor_lake, [CPU_DEVICE, NPU_DEVICE])
    assert main(["devices", "--json"]) == 0
    npu, igpu, cpu = json.loads(capsys.readouterr().out)
    assert npu["reached_by"] == [{"runtime": "openvino", "word": "NPU"}]
    assert npu["address"] == machines.NPU
    assert igpu["selectors"] == []
    assert igpu["lacks"][0].keys() == {"name", "state", "found", "fix"}
    assert cpu["memory_bytes"] == 32_000_000 * 1024
