"""The devices for ONNX Runtime GenAI. The drivers are asked: it is never loaded into the caller's process."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from aipc import hardware
from aipc.hardware import directx
from aipc.runtimes.base import Device

# An integrated GPU is given less than this of its own.
_DEDICATED_BYTES = 512 * 2**20


def cpu() -> Device:
    """The processor."""
    return Device("CPU", hardware.cpu().name, "CPU")


def cuda_devices(driver: Any = None) -> list[Device]:
    """NVIDIA's GPUs, as CUDA counts them.

    driver   the library of CUDA's driver, or None for this machine's
    """
    try:
        driver = driver or ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return []
    count, version = ctypes.c_int(0), ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    driver.cuDriverGetVersion(ctypes.byref(version))
    cuda = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    found = (_cuda_device(driver, number, cuda) for number in range(count.value))
    return [device for device in found if device is not None]


def dml_devices() -> list[Device]:
    """The GPUs of Windows, as DirectX counts them."""
    return [
        Device(
            f"DML:{display.index}",
            display.description,
            "discrete GPU" if display.dedicated_bytes > _DEDICATED_BYTES else "integrated GPU",
            address=display.luid,
            memory_bytes=display.dedicated_bytes if display.dedicated_bytes > _DEDICATED_BYTES else None,
        )
        for display in directx.displays()
        if not display.software
    ]


def _cuda_device(driver: Any, number: int, version: str) -> Device | None:
    handle, total = ctypes.c_int(0), ctypes.c_size_t(0)
    if driver.cuDeviceGet(ctypes.byref(handle), number) != 0:
        return None
    name, place = ctypes.create_string_buffer(256), ctypes.create_string_buffer(32)
    driver.cuDeviceGetName(name, len(name), handle)
    driver.cuDeviceTotalMem_v2(ctypes.byref(total), handle)
    if sys.platform == "win32":
        mask = ctypes.c_uint(0)
        known = driver.cuDeviceGetLuid(place, ctypes.byref(mask), handle) == 0
        address = hardware.luid_word(place.raw[:8])
    else:
        known = driver.cuDeviceGetPCIBusId(place, len(place), handle) == 0
        address = place.value.decode("ascii", "replace").lower()
    return Device(
        f"CUDA:{number}",
        name.value.decode("utf-8", "replace"),
        "discrete GPU",
        version,
        address=address if known else None,
        memory_bytes=total.value or None,
    )
