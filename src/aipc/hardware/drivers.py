"""What a processor needs before a runtime can reach it: kernel module, firmware, permission, libraries.

source   OpenVINO's guides for NPU and GPU, github.com/intel/linux-npu-driver, and Linux's drivers
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aipc.hardware.processor import Processor
from aipc.types import Check

NPU_RELEASES = "https://github.com/intel/linux-npu-driver/releases"

# The first driver with which OpenVINO GenAI's NPU pipeline was released, or that knows the NPU at all.
_LINUX_NPU_MINIMUM = (1, 10, 0)
_LINUX_NPU_MINIMA = {"8086:b03e": (1, 28, 0), "8086:fd3e": (1, 32, 0)}
_WINDOWS_NPU_MINIMUM = (32, 0, 100, 3104)
_NPU_DRIVER = "user-mode driver"

_FIRMWARE = {
    "8086:7d1d": "vpu_37xx",
    "8086:ad1d": "vpu_37xx",
    "8086:643e": "vpu_40xx",
    "8086:b03e": "vpu_50xx",
    "8086:fd3e": "vpu_50xx",
    "8086:d71d": "vpu_60xx",
}

_LIBRARY_FOLDERS = (
    "usr/lib/x86_64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "usr/local/lib",
    "usr/local/lib64",
    "opt/intel/libze",
    "run/opengl-driver/lib",
    "usr/lib/wsl/lib",
)
_ICD_FOLDERS = ("etc/OpenCL/vendors", "usr/share/OpenCL/vendors", "run/opengl-driver/etc/OpenCL/vendors")


@dataclass(frozen=True, slots=True)
class _Needs:
    """What a family of processors needs on Linux.

    modules    of the kernel; one of them must drive it
    libraries  name for people, patterns of file names, and the step that installs them
    """

    modules: tuple[str, ...]
    module_fix: str
    libraries: tuple[tuple[str, tuple[str, ...], str], ...]


_NVIDIA_FIX = "install NVIDIA's driver; on Ubuntu: sudo ubuntu-drivers install"
_NPU_FIX = f"install intel-level-zero-npu and intel-driver-compiler-npu: {NPU_RELEASES}"
_NEEDS = {
    ("NPU", "Intel"): _Needs(
        ("intel_vpu",),
        "sudo modprobe intel_vpu; if there is no such module, take Linux 6.6 or newer",
        (
            ("Level Zero loader", ("libze_loader.so.1*",), "sudo apt install libze1"),
            (_NPU_DRIVER, ("libze_intel_npu.so.1*", "libze_intel_vpu.so.1*"), _NPU_FIX),
            ("compiler", ("libnpu_driver_compiler.so*", "libopenvino_intel_npu_compiler.so*"), _NPU_FIX),
        ),
    ),
    ("GPU", "Intel"): _Needs(
        ("i915", "xe"),
        "sudo modprobe xe; for a GPU newer than the kernel, take a newer kernel",
        (
            ("OpenCL loader", ("libOpenCL.so.1*",), "sudo apt install ocl-icd-libopencl1"),
            ("OpenCL driver", ("intel*.icd",), "sudo apt install intel-opencl-icd"),
        ),
    ),
    ("GPU", "NVIDIA"): _Needs(("nvidia",), _NVIDIA_FIX, (("CUDA driver", ("libcuda.so.1*",), _NVIDIA_FIX),)),
}


def driver_checks(processor: Processor, root: Path = Path("/"), *, reached: bool = False) -> list[Check]:
    """What a processor needs, and whether it is there; nothing for a CPU and what no runtime reaches.

    reached   by a runtime: a library that is not where it usually lies is only noted then
    """
    if sys.platform == "win32":
        return list(_windows_checks(processor))
    needs = _NEEDS.get((processor.kind.rpartition(" ")[2], processor.vendor))
    return [] if needs is None else list(_linux_checks(processor, needs, root, reached=reached))


def _windows_checks(processor: Processor) -> Iterator[Check]:
    """On Windows kernel and libraries come as one driver."""
    if processor.kind == "CPU":
        return
    name = f"{processor.kind} driver"
    if processor.driver is None:
        yield Check(name, "failed", f"{processor.name} has no driver", "install it with Windows Update")
        return
    if (processor.kind, processor.vendor) == ("NPU", "Intel"):
        fix = "install the newest one with Windows Update"
        yield _version_check(name, processor, processor.driver_version, _WINDOWS_NPU_MINIMUM, fix)
    else:
        yield Check(name, "passed", f"{processor.name} has driver {processor.driver_version}")


def _linux_checks(processor: Processor, needs: _Needs, root: Path, *, reached: bool) -> Iterator[Check]:
    name = f"{processor.kind} kernel module"
    if processor.driver in needs.modules:
        yield Check(name, "passed", f"{processor.driver} drives {processor.name}")
        yield from _node_checks(processor, root)
    else:
        other = f"{processor.driver} drives it" if processor.driver else "no module drives it"
        yield Check(
            name, "failed", f"{processor.name} needs {' or '.join(needs.modules)}; {other}", needs.module_fix
        )
    if processor.pci_id in _FIRMWARE:
        yield _firmware_check(processor, _FIRMWARE[processor.pci_id], root)
    for title, patterns, fix in needs.libraries:
        name = f"{processor.kind} {title}"
        found = next(_files(patterns, root), None)
        if found is None:
            words = f"{' or '.join(patterns).replace('*', '')} was not found"
            note = Check(name, "note", f"{words} where it usually lies, but the device is reached")
            yield note if reached else Check(name, "failed", words, fix)
        elif title == _NPU_DRIVER:
            yield _npu_version_check(name, processor, found, fix)
        else:
            yield Check(name, "passed", f"{found.name} is installed")


def _node_checks(processor: Processor, root: Path) -> Iterator[Check]:
    """Whether the files in /dev are there and may be opened."""
    name = f"{processor.kind} device node"
    if not processor.nodes:
        yield Check(
            name,
            "failed",
            f"{processor.name} has no file in /dev",
            "in a container: start it with --device /dev/accel --device /dev/dri; else: sudo udevadm trigger",
        )
    for node in processor.nodes:
        shown = f"/{node.path.relative_to(root).as_posix()}"
        if node.openable:
            yield Check(name, "passed", f"{shown} can be opened")
        elif node.path.exists():
            yield Check(
                name,
                "failed",
                f"{shown} may not be opened by this user",
                "sudo usermod -aG render $USER, then log out and in",
            )
        else:
            yield Check(
                name, "failed", f"{shown} is not there", f"in a container: start it with --device {shown}"
            )


def _firmware_check(processor: Processor, stem: str, root: Path) -> Check:
    folders = [root / "lib/firmware" / path for path in ("", "updates", platform.release())]
    found = any(list(folder.glob(f"intel/vpu/{stem}*")) for folder in folders)
    name = f"{processor.kind} firmware"
    if found:
        return Check(name, "passed", f"intel/vpu/{stem}* is installed")
    if processor.driver is not None:
        # The module has loaded it already, perhaps from the first file system of the boot.
        return Check(name, "note", f"intel/vpu/{stem}* is not in /lib/firmware, but the NPU has started")
    return Check(
        name,
        "failed",
        f"{processor.name} needs intel/vpu/{stem}*, which is not in /lib/firmware",
        f"sudo apt install linux-firmware, or install intel-fw-npu from {NPU_RELEASES}; then restart",
    )


def _npu_version_check(name: str, processor: Processor, library: Path, fix: str) -> Check:
    """On Linux the library's whole name ends with the version: libze_intel_npu.so.1.28.0."""
    version = re.search(r"\.so\.(\d+\.\d+\.\d+)$", library.resolve().name)
    minimum = _LINUX_NPU_MINIMA.get(processor.pci_id or "", _LINUX_NPU_MINIMUM)
    return _version_check(name, processor, version[1] if version else None, minimum, fix)


def _version_check(
    name: str, processor: Processor, version: str | None, minimum: tuple[int, ...], fix: str
) -> Check:
    """Whether a driver is new enough."""
    least = ".".join(map(str, minimum))
    if version is None:
        return Check(name, "note", f"installed, in an unknown version; {least} or newer is needed")
    if tuple(map(int, version.split("."))) < minimum:
        return Check(name, "failed", f"{version} is too old for {processor.name}; {least} is needed", fix)
    return Check(name, "passed", f"{version}; {least} or newer is needed")


def _files(patterns: tuple[str, ...], root: Path) -> Iterator[Path]:
    """Files with such names where libraries and lists of OpenCL drivers lie."""
    folders = [root / folder for folder in (*_LIBRARY_FOLDERS, *_ICD_FOLDERS)]
    if root == Path("/"):
        folders += [Path(part) for part in os.environ.get("LD_LIBRARY_PATH", "").split(":") if part]
    for pattern in patterns:
        for folder in folders:
            yield from sorted(folder.glob(pattern))
