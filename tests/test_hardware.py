"""What a machine has, read from trees as the kernel lays them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import machines
from aipc.hardware import Processor, linux, processors

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sysfs has colons in its names")

Machine = Callable[[Path], Path]


def found(root: Path) -> dict[str | None, Processor]:
    return {item.address: item for item in linux.processors(root)}


def test_a_meteor_lake_laptop(tmp_path: Path) -> None:
    here = found(machines.meteor_lake(tmp_path))
    assert list(here) == [machines.IGPU, machines.NPU, None]
    npu, igpu, cpu = here[machines.NPU], here[machines.IGPU], here[None]
    assert (npu.kind, npu.vendor, npu.name) == ("NPU", "Intel", "Intel AI Boost (Meteor Lake)")
    assert (npu.driver, npu.pci_id) == ("intel_vpu", "8086:7d1d")
    assert npu.directory == tmp_path / "sys/bus/pci/devices" / machines.NPU
    assert [(node.path, node.openable) for node in npu.nodes] == [(tmp_path / "dev/accel/accel0", True)]
    assert (igpu.kind, igpu.name, igpu.memory_bytes) == ("integrated GPU", "Intel device 8086:7d55", None)
    assert [node.path for node in igpu.nodes] == [tmp_path / "dev/dri/renderD128"]
    assert (cpu.kind, cpu.vendor, cpu.memory_bytes) == ("CPU", "Intel", 32_000_000 * 1024)
    assert cpu.name == "Intel(R) Core(TM) Ultra 7 155H"
    assert npu.shares_memory
    assert igpu.shares_memory


def test_the_list_of_pci_devices_names_a_gpu(tmp_path: Path) -> None:
    igpu = found(machines.lunar_lake(tmp_path))[machines.IGPU]
    assert igpu.name == "Intel Lunar Lake [Intel Arc Graphics 130V / 140V]"
    assert igpu.driver == "xe"


def test_amd_gpus_are_told_apart_by_their_metrics(tmp_path: Path) -> None:
    here = found(machines.amd_laptop(tmp_path))
    kinds = {address: item.kind for address, item in here.items()}
    assert kinds == {
        "0000:03:00.0": "discrete GPU",
        "0000:c1:00.0": "integrated GPU",
        "0000:c2:00.1": "NPU",
        None: "CPU",
    }
    assert here["0000:03:00.0"].memory_bytes == 8_573_157_376
    assert here["0000:c1:00.0"].memory_bytes is None
    assert here["0000:c2:00.1"].driver == "amdxdna"


def test_a_desktop_with_two_cards(tmp_path: Path) -> None:
    here = found(machines.nvidia_desktop(tmp_path))
    geforce, arc = here["0000:01:00.0"], here[machines.ARC]
    assert (geforce.name, geforce.driver_version) == ("NVIDIA GeForce RTX 5060 Ti", "580.82.07")
    names = [node.path.name for node in geforce.nodes]
    assert names == ["nvidia0", "nvidiactl"]
    assert (arc.kind, arc.memory_bytes, arc.driver_version) == ("discrete GPU", 12 * 2**30, None)


def test_a_gpu_without_a_maker_is_none(tmp_path: Path) -> None:
    assert list(found(machines.wsl(tmp_path))) == [None]


def test_no_driver_and_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machines.meteor_lake(tmp_path)
    machines.add_pci(tmp_path, machines.NPU, "8086:7d1d", "120000")
    monkeypatch.setattr(os, "access", lambda path, mode: "renderD" not in str(path))
    here = found(tmp_path)
    assert here[machines.NPU].driver is None
    assert [node.openable for node in here[machines.IGPU].nodes] == [False]


@pytest.mark.parametrize("machine", machines.MACHINES)
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"no number\n" * 3, None])
def test_files_that_make_no_sense(tmp_path: Path, machine: Machine, content: bytes | None) -> None:
    """Each file in turn holds nothing, rubbish, or is a folder: there is still a list, with the CPU last."""
    files = [path for path in sorted(machine(tmp_path).rglob("*")) if path.is_file()]
    for path in files:
        before = path.read_bytes()
        path.unlink()
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)
        assert linux.processors(tmp_path)[-1].kind == "CPU"
        path.rmdir() if content is None else path.unlink()
        path.write_bytes(before)


def test_an_empty_root_has_a_cpu(tmp_path: Path) -> None:
    (cpu,) = linux.processors(tmp_path)
    assert cpu.kind == "CPU"
    assert cpu.name
    assert cpu.memory_bytes is None


def test_this_machine_has_a_cpu() -> None:
    cpu = processors()[-1]
    assert cpu.kind == "CPU"
    assert cpu.memory_bytes is not None
    assert cpu.memory_bytes > 2**28
