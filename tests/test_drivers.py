"""What keeps a processor from being reached, on machines that lack one thing each."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import machines
from aipc.hardware import Processor, drivers, linux
from aipc.types import Check
from directx_for_tests import ARC, NPU

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="trees of Linux")


def checks(root: Path, address: str) -> dict[str, Check]:
    (processor,) = [item for item in linux.processors(root) if item.address == address]
    return {check.name: check for check in drivers.driver_checks(processor, root)}


def failed(found: dict[str, Check]) -> dict[str, Check]:
    assert all(bool(check.fix) == (check.state == "failed") for check in found.values())
    return {name: check for name, check in found.items() if check.state == "failed"}


def test_a_laptop_that_lacks_nothing(tmp_path: Path) -> None:
    machines.meteor_lake(tmp_path)
    npu = checks(tmp_path, machines.NPU)
    assert list(npu) == [
        "NPU kernel module",
        "NPU device node",
        "NPU firmware",
        "NPU Level Zero loader",
        "NPU user-mode driver",
        "NPU compiler",
    ]
    assert {check.state for check in npu.values()} == {"passed"}
    assert npu["NPU user-mode driver"].found == "1.28.0; 1.10.0 or newer is needed"
    assert failed(checks(tmp_path, machines.IGPU)) == {}


def without(path: str) -> Callable[[Path], None]:
    def remove(root: Path) -> None:
        found = list(root.glob(path))
        assert found
        for each in found:
            each.unlink()

    return remove


def without_driver(root: Path) -> None:
    machines.add_pci(root, machines.NPU, "8086:7d1d", "120000")


def without_firmware(root: Path) -> None:
    without("lib/firmware/intel/vpu/vpu_37xx*")(root)
    without_driver(root)


@pytest.mark.parametrize(
    ("damage", "name", "found", "fix"),
    [
        (without_driver, "NPU kernel module", "no module drives it", "modprobe intel_vpu"),
        (without_firmware, "NPU firmware", "vpu_37xx", "linux-firmware"),
        (
            without("dev/accel/*"),
            "NPU device node",
            "/dev/accel/accel0 is not there",
            "--device",
        ),
        (without("usr/lib/*/libze_loader*"), "NPU Level Zero loader", "libze_loader", "libze1"),
        (
            without("usr/lib/*/libze_intel_npu*"),
            "NPU user-mode driver",
            "libze_intel_npu.so.1 or libze_intel_vpu.so.1 was not found",
            drivers.NPU_RELEASES,
        ),
        (
            without("usr/lib/*/libnpu_driver_compiler.so"),
            "NPU compiler",
            "libnpu_driver_compiler.so",
            "intel-driver-compiler-npu",
        ),
        (
            without("etc/OpenCL/vendors/*"),
            "integrated GPU OpenCL driver",
            "icd",
            "sudo apt install intel-opencl-icd",
        ),
    ],
)
def test_what_is_missing_is_named_with_what_mends_it(
    tmp_path: Path, damage: Callable[[Path], None], name: str, found: str, fix: str
) -> None:
    machines.meteor_lake(tmp_path)
    damage(tmp_path)
    here = failed(checks(tmp_path, machines.NPU if name.startswith("NPU") else machines.IGPU))
    assert found in here[name].found
    assert fix in here[name].fix


def test_no_permission_names_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    machines.meteor_lake(tmp_path)
    (check,) = failed(checks(tmp_path, machines.NPU)).values()
    assert check.found == "/dev/accel/accel0 may not be opened by this user"
    assert "usermod -aG render" in check.fix


@pytest.mark.parametrize(
    ("pci_id", "version", "state"),
    [
        ("8086:7d1d", "1.10.0", "passed"),
        ("8086:7d1d", "1.9.9", "failed"),
        ("8086:b03e", "1.13.0", "failed"),
        ("8086:b03e", "1.28.0", "passed"),
        ("8086:7d1d", "1", "note"),
    ],
)
def test_the_npu_driver_has_a_minimum(tmp_path: Path, pci_id: str, version: str, state: str) -> None:
    if version == "1":
        machines.write(tmp_path / "usr/lib64/libze_intel_npu.so.1")
    else:
        machines.add_user_mode_drivers(tmp_path, npu=version)
    npu = Processor("NPU", "Intel", "Intel AI Boost", pci_id=pci_id, driver="intel_vpu")
    found = {check.name: check for check in drivers.driver_checks(npu, tmp_path)}
    assert found["NPU user-mode driver"].state == state


def test_another_driver_holds_the_gpu(tmp_path: Path) -> None:
    machines.nvidia_desktop(tmp_path)
    machines.add_pci(tmp_path, "0000:01:00.0", "10de:2d04", "30000", "nouveau")
    here = failed(checks(tmp_path, "0000:01:00.0"))
    assert "needs nvidia; nouveau drives it" in here["discrete GPU kernel module"].found
    assert "libcuda.so.1" in here["discrete GPU CUDA driver"].found


def test_a_firmware_that_was_loaded_before_is_no_failure(tmp_path: Path) -> None:
    machines.meteor_lake(tmp_path)
    without("lib/firmware/intel/vpu/*")(tmp_path)
    assert checks(tmp_path, machines.NPU)["NPU firmware"].state == "note"


@pytest.mark.parametrize("address", ["0000:03:00.0", "0000:c1:00.0", "0000:c2:00.1"])
def test_nothing_is_asked_of_what_no_runtime_reaches(tmp_path: Path, address: str) -> None:
    machines.amd_laptop(tmp_path)
    assert checks(tmp_path, address) == {}


def test_windows_has_one_driver_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from aipc.hardware import windows

    monkeypatch.setattr(sys, "platform", "win32")
    old = replace(NPU, driver_version="32.0.100.2381")
    states = [drivers.driver_checks(processor)[0] for processor in windows.from_adapters([NPU, old, ARC])]
    assert [check.state for check in states] == ["passed", "failed", "passed"]
    assert states[1].found.startswith("32.0.100.2381 is too old")
    (absent,) = windows.from_adapters([], ["8086:643e"])
    (check,) = drivers.driver_checks(absent)
    assert (check.state, check.fix) == ("failed", "install it with Windows Update")
