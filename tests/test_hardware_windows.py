"""What a Windows machine has, from the answers of DXCore and DXGI."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import pytest

from aipc.hardware import directx, windows
from aipc.hardware.directx import Display
from directx_for_tests import ARC, BASIC, CORE_COMPUTE, GEFORCE, NPU, NPU_TYPE, Objects

pytestmark = pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="64 bits only")


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


def test_a_card_that_does_not_draw_is_no_npu() -> None:
    (card,) = windows.from_adapters([replace(GEFORCE, graphics=False)])
    assert (card.kind, card.driver) == ("discrete GPU", "MCDM")


def test_an_npu_without_a_driver_is_found_all_the_same() -> None:
    (arc, npu) = windows.from_adapters([ARC], ["8086:64a0", "8086:643e", "8086:643e"])
    assert arc.address == ARC.luid
    assert (npu.kind, npu.name, npu.driver) == ("NPU", "Intel AI Boost (Lunar Lake)", None)
