"""What a Windows machine has, from the answers of DXCore and DXGI."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import pytest

from aipc.hardware import directx, windows
from aipc.hardware.directx import Adapter, Display
from directx_for_tests import CORE_COMPUTE, NPU_TYPE, Objects

pytestmark = pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="64 bits only")

# As a Core Ultra laptop with a GeForce might answer.
NPU = Adapter(
    luid="0x00000000_0x0001259F",
    description="Intel(R) AI Boost",
    vendor_id=0x8086,
    device_id=0x643E,
    driver_version="32.0.100.3104",
    dedicated_bytes=0,
    hardware=True,
    integrated=True,
    graphics=False,
)
ARC = Adapter(
    luid="0x00000000_0x0000C9A5",
    description="Intel(R) Arc(TM) 140V GPU (16GB)",
    vendor_id=0x8086,
    device_id=0x64A0,
    driver_version="32.0.101.6647",
    dedicated_bytes=128 * 2**20,
    hardware=True,
    integrated=True,
    graphics=True,
)
GEFORCE = Adapter(
    luid="0x00000001_0x0000D02B",
    description="NVIDIA GeForce RTX™ 5060 Laptop GPU",
    vendor_id=0x10DE,
    device_id=0x2D04,
    driver_version="32.0.15.8142",
    dedicated_bytes=8 * 2**30 - 2**28,
    hardware=True,
    integrated=False,
    graphics=True,
)
BASIC = replace(
    ARC,
    luid="0x00000000_0x0000D1E2",
    description="Microsoft Basic Render Driver",
    vendor_id=0x1414,
    hardware=False,
)


def test_dxcore_is_asked_as_its_header_says() -> None:
    objects = Objects()
    create = objects.dxcore({CORE_COMPUTE: [ARC, GEFORCE, BASIC], NPU_TYPE: [NPU]})
    assert directx.adapters(create) == [ARC, GEFORCE, BASIC, NPU]
    assert objects.alive == 0


def test_an_adapter_in_two_lists_is_one() -> None:
    objects = Objects()
    assert directx.adapters(objects.dxcore({CORE_COMPUTE: [ARC, NPU], NPU_TYPE: [NPU]})) == [ARC, NPU]
    assert objects.alive == 0


def test_dxgi_is_asked_as_its_header_says() -> None:
    objects = Objects()
    displays = [
        Display(0, GEFORCE.luid, GEFORCE.description, GEFORCE.dedicated_bytes, software=False),
        Display(1, ARC.luid, "x" * 127, 0, software=False),
        Display(2, BASIC.luid, BASIC.description, 0, software=True),
    ]
    assert directx.displays(objects.dxgi(displays)) == displays
    assert objects.alive == 0


def test_no_directx_is_no_adapter() -> None:
    def missing(interface: object, place: object) -> int:
        return -2147467262

    assert directx.adapters(missing) == []
    assert directx.displays(missing) == []


def test_adapters_become_processors() -> None:
    found = windows.from_adapters([ARC, GEFORCE, BASIC, NPU], ["8086:643e", "8086:7e28"])
    assert [(item.kind, item.vendor, item.address) for item in found] == [
        ("integrated GPU", "Intel", ARC.luid),
        ("discrete GPU", "NVIDIA", GEFORCE.luid),
        ("NPU", "Intel", NPU.luid),
    ]
    assert [item.memory_bytes for item in found] == [None, GEFORCE.dedicated_bytes, None]
    assert [item.driver_version for item in found] == ["32.0.101.6647", "32.0.15.8142", "32.0.100.3104"]


def test_an_npu_without_a_driver_is_found_all_the_same() -> None:
    (arc, npu) = windows.from_adapters([ARC], ["8086:64a0", "8086:643e", "8086:643e"])
    assert arc.address == ARC.luid
    assert (npu.kind, npu.name, npu.driver) == ("NPU", "Intel AI Boost (Lunar Lake)", None)
