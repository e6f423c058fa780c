"""The devices for ONNX Runtime GenAI. The drivers are asked: it is never loaded into the caller's process."""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path
from typing import Any

from aipc.runtimes.base import Device
from aipc.types import DeviceKind

# An integrated GPU is given less than this of its own.
_DEDICATED_BYTES = 512 * 2**20


def cpu() -> Device:
    """The processor."""
    return Device("CPU", _cpu_name(), "CPU")


def cuda_devices() -> list[Device]:
    """NVIDIA's GPUs, as CUDA counts them."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return []
    count, version = ctypes.c_int(0), ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    driver.cuDriverGetVersion(ctypes.byref(version))
    cuda = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    devices = []
    for number in range(count.value):
        handle, words = ctypes.c_int(0), ctypes.create_string_buffer(256)
        if driver.cuDeviceGet(ctypes.byref(handle), number) == 0:
            driver.cuDeviceGetName(words, len(words), handle)
            full_name = words.value.decode("utf-8", "replace")
            devices.append(Device(f"CUDA:{number}", full_name, "discrete GPU", cuda))
    return devices


def dml_devices() -> list[Device]:
    """The GPUs of Windows, as DirectX counts them."""
    if sys.platform == "win32":
        return _adapters()
    return []


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or "CPU"


if sys.platform == "win32":
    # IID_IDXGIFactory1, and the places of what is called in the tables of dxgi.h.
    _FACTORY = bytes.fromhex("78ae0a776ff2ba4da829253c83d1b387")
    _RELEASE, _GET_DESC1, _ENUM_ADAPTERS1 = 2, 10, 12
    _SOFTWARE = 2

    class _AdapterDescription(ctypes.Structure):
        """DXGI_ADAPTER_DESC1 of dxgi.h."""

        _fields_ = (
            ("Description", ctypes.c_wchar * 128),
            ("VendorId", ctypes.c_uint),
            ("DeviceId", ctypes.c_uint),
            ("SubSysId", ctypes.c_uint),
            ("Revision", ctypes.c_uint),
            ("DedicatedVideoMemory", ctypes.c_size_t),
            ("DedicatedSystemMemory", ctypes.c_size_t),
            ("SharedSystemMemory", ctypes.c_size_t),
            ("AdapterLuid", ctypes.c_uint * 2),
            ("Flags", ctypes.c_uint),
        )

    def _call(thing: ctypes.c_void_p, place: int, *arguments: Any) -> int:
        """Call a method of a COM object by its place in the object's table."""
        table = ctypes.cast(thing, ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p)))[0]
        kinds: list[Any] = [type(argument) for argument in arguments]
        method = ctypes.WINFUNCTYPE(ctypes.c_long, ctypes.c_void_p, *kinds)(table[place])
        return int(method(thing, *arguments))

    def _adapters() -> list[Device]:
        factory = ctypes.c_void_p()
        if ctypes.WinDLL("dxgi").CreateDXGIFactory1(_FACTORY, ctypes.byref(factory)) < 0:
            return []
        devices = []
        number, adapter = 0, ctypes.c_void_p()
        while _call(factory, _ENUM_ADAPTERS1, ctypes.c_uint(number), ctypes.pointer(adapter)) == 0:
            found = _AdapterDescription()
            _call(adapter, _GET_DESC1, ctypes.pointer(found))
            _call(adapter, _RELEASE)
            if not found.Flags & _SOFTWARE:
                discrete = found.DedicatedVideoMemory > _DEDICATED_BYTES
                kind: DeviceKind = "discrete GPU" if discrete else "integrated GPU"
                devices.append(Device(f"DML:{number}", found.Description.strip(), kind))
            number += 1
        _call(factory, _RELEASE)
        return devices
