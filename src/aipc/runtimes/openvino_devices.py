"""The devices that OpenVINO sees.

They are listed in a process of their own: importing openvino takes most of a second and a hundred megabytes,
and Core() loads the drivers of GPU and NPU, which have been seen to crash.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from aipc import hardware
from aipc.errors import RuntimeFailedError, require
from aipc.runtimes.base import OPENVINO, Device
from aipc.runtimes.engine import claim_stdout
from aipc.runtimes.orphans import start_child
from aipc.types import DeviceKind

if TYPE_CHECKING:
    import openvino

_LOG = logging.getLogger("aipc")
_TIMEOUT_S = 60.0


def devices() -> list[Device]:
    """The devices that OpenVINO sees here; the CPU alone where its drivers fail, which is said aloud.

    A machine that has neither an NPU nor a GPU of Intel is not asked: OpenVINO has plugins for no others.
    """
    cpu = Device("CPU", hardware.cpu().name, "CPU")
    intel = [item for item in hardware.processors() if item.kind != "CPU" and item.vendor == "Intel"]
    if not intel and not hardware.has_wsl_gpu():
        return [cpu]
    try:
        return _listed()
    except (RuntimeFailedError, OSError, subprocess.TimeoutExpired) as exc:
        _LOG.warning("OpenVINO failed while it looked for NPUs and GPUs: %s; aipc doctor looks closer", exc)
        return [cpu]


def npu_here() -> tuple[str, str | None]:
    """The platform and the driver's version of the NPU in this machine; "unknown" where it does not say.

    It loads the NPU's driver into this process.
    """
    core = require("openvino", OPENVINO.extra).Core()
    names = ("DEVICE_ARCHITECTURE", "NPU_DRIVER_VERSION")
    platform, driver = (_property(core, "NPU", name) for name in names)
    return str(platform or "unknown").removeprefix("NPU"), None if driver is None else str(driver)


def main() -> None:
    """What runs in the other process: one line of JSON."""
    pipe = claim_stdout()
    core = require("openvino", OPENVINO.extra).Core()
    here = [_device(core, name) for name in core.available_devices]
    pipe.write(json.dumps([dataclasses.asdict(device) for device in here if device]).encode())
    pipe.flush()
    # Nothing is left to save, and the farewells of native libraries have crashed before.
    os._exit(0)


def _listed() -> list[Device]:
    """What the other process says.

    raises   RuntimeFailedError, OSError, subprocess.TimeoutExpired
    """
    with tempfile.TemporaryFile() as log:
        process, line = start_child(__name__, log)
        with process:
            try:
                answer, _ = process.communicate(timeout=_TIMEOUT_S)
            finally:
                process.kill()
                line.close()
        if process.returncode:
            log.seek(0)
            words = log.read().decode("utf-8", "replace").strip().splitlines() or ["no words"]
            raise RuntimeFailedError(f"code {process.returncode}, {words[-1][:300]}")
    return [Device(**fields) for fields in json.loads(answer)]


def _device(core: openvino.Core, name: str) -> Device | None:
    """A device, if it is of a kind that aipc uses."""
    first = name.partition(".")[0]
    kinds: dict[str, DeviceKind] = {"CPU": "CPU", "NPU": "NPU", "GPU": "integrated GPU"}
    kind = kinds.get(first)
    if kind is None:
        return None
    if first == "GPU" and "DISCRETE" in str(_property(core, name, "DEVICE_TYPE")).upper():
        kind = "discrete GPU"
    driver = _property(core, name, f"{first}_DRIVER_VERSION")
    total = _property(core, name, "GPU_DEVICE_TOTAL_MEM_SIZE") if kind == "discrete GPU" else None
    return Device(
        word="GPU.0" if name == "GPU" else name,
        name=str(_property(core, name, "FULL_DEVICE_NAME") or name).strip(),
        kind=kind,
        driver=None if driver is None else str(driver),
        address=_address(_property(core, name, "DEVICE_PCI_INFO"), _property(core, name, "DEVICE_LUID")),
        memory_bytes=None if total is None else int(total),
    )


def _address(pci: Any, luid: Any) -> str | None:
    """As `hardware.Processor` has it: the LUID on Windows, PCI's numbers elsewhere."""
    if sys.platform == "win32":
        # OpenVINO writes the eight bytes as hexadecimal digits.
        return hardware.luid_word(bytes.fromhex(luid)) if re.fullmatch("[0-9a-f]{16}", str(luid)) else None
    if pci is None:
        return None
    return f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.{pci.function:x}"


def _property(core: openvino.Core, device: str, name: str) -> Any:
    """A property, or None where the device has no such thing, or Python no such type."""
    try:
        return core.get_property(device, name)
    except (RuntimeError, TypeError):
        return None
