"""The other side of DXCore and DXGI: COM objects in this process, as the headers describe them."""

from __future__ import annotations

import ctypes
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from aipc.hardware.directx import Adapter, CreateFactory, Display

E_NOTIMPL, E_INVALIDARG = -2147467263, -2147024809

D3D11_GRAPHICS = "8c47866b-7583-450d-f0f0-6bada895af4b"
CORE_COMPUTE = "248e2800-a793-4724-abaa-23a6de1be090"
NPU_TYPE = "d46140c4-add7-451b-9e56-06fe8c3b58ed"

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

Function = tuple[Any, Callable[..., int]]


class Objects:
    """Makes COM objects and counts how many have not been released."""

    def __init__(self) -> None:
        self.alive = 0
        self._kept: list[object] = []

    def make(self, functions: Mapping[int, Function]) -> int:
        """An object whose table has these functions at these places; its address."""
        self.alive += 1

        def release(this: int) -> int:
            self.alive -= 1
            return 0

        def refuse(this: int) -> int:
            return E_NOTIMPL

        table = (ctypes.c_void_p * (max(functions) + 1))()
        plain = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)
        for place in range(len(table)):
            kind, function = functions.get(place, (plain, release if place == 2 else refuse))
            callback = kind(function)
            self._kept.append(callback)
            table[place] = ctypes.cast(callback, ctypes.c_void_p).value
        thing = ctypes.c_void_p(ctypes.addressof(table))
        self._kept += [table, thing]
        return ctypes.addressof(thing)

    def dxcore(self, lists: Mapping[str, Sequence[Adapter]]) -> CreateFactory:
        """DXCoreCreateAdapterFactory of a Windows that lists these adapters under these attributes."""
        kind = _kind(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)

        def create_list(this: int, count: int, attribute: int, interface: int, place: int) -> int:
            assert count == 1
            assert _guid(interface) == "526c7776-40e9-459b-b711-f32ad76dfc28"
            if _guid(attribute) not in lists:
                return E_INVALIDARG
            return _give(place, self._list(lists[_guid(attribute)]))

        def create(interface: Any, place: Any) -> int:
            assert _guid(ctypes.addressof(interface)) == "78ee5945-c36e-4b13-a669-005dd11c0f06"
            return _give(ctypes.addressof(place.contents), self.make({3: (kind, create_list)}))

        return create

    def dxgi(self, displays: Sequence[Display]) -> CreateFactory:
        """CreateDXGIFactory1 of a Windows with these GPUs."""

        def enumerate_adapters(this: int, number: int, place: int) -> int:
            if number >= len(displays):
                return -2005270526  # DXGI_ERROR_NOT_FOUND
            return _give(place, self._display(displays[number]))

        def create(interface: Any, place: Any) -> int:
            functions = {12: (_kind(ctypes.c_uint32, ctypes.c_void_p), enumerate_adapters)}
            return _give(ctypes.addressof(place.contents), self.make(functions))

        return create

    def _list(self, adapters: Sequence[Adapter]) -> int:
        def get(this: int, number: int, interface: int, place: int) -> int:
            return _give(place, self._adapter(adapters[number]))

        count = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p)
        getter = _kind(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p)
        return self.make({3: (getter, get), 4: (count, lambda this: len(adapters))})

    def _adapter(self, adapter: Adapter) -> int:
        high, low = (int(half, 16) for half in adapter.luid.split("_"))
        version = 0
        for part in adapter.driver_version.split("."):
            version = version << 16 | int(part)
        values = {
            0: bytes(ctypes.c_uint32(low)) + bytes(ctypes.c_uint32(high)),
            1: version.to_bytes(8, "little"),
            2: adapter.description.encode() + b"\0",
            3: bytes((ctypes.c_uint32 * 4)(adapter.vendor_id, adapter.device_id, 1, 2)),
            7: adapter.dedicated_bytes.to_bytes(8, "little"),
            11: bytes([adapter.hardware]),
            12: bytes([adapter.integrated]),
        }

        def get(this: int, what: int, size: int, place: int) -> int:
            # As Windows does: a number must have its exact size.
            if size != len(values[what]):
                return E_INVALIDARG
            ctypes.memmove(place, values[what], size)
            return 0

        def get_size(this: int, what: int, place: int) -> int:
            ctypes.c_size_t.from_address(place).value = len(values[what])
            return 0

        def has(this: int, attribute: int) -> bool:
            return adapter.graphics and _guid(attribute) == D3D11_GRAPHICS

        boolean = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_void_p)
        known = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_uint32)
        return self.make({
            4: (boolean, has),
            5: (known, lambda this, what: what in values),
            6: (_kind(ctypes.c_uint32, ctypes.c_size_t, ctypes.c_void_p), get),
            7: (_kind(ctypes.c_uint32, ctypes.c_void_p), get_size),
        })  # fmt: skip

    def _display(self, display: Display) -> int:
        high, low = (int(half, 16) for half in display.luid.split("_"))

        def describe(this: int, place: int) -> int:
            name = display.description.encode("utf-16-le").ljust(256, b"\0")
            ids = bytes((ctypes.c_uint32 * 4)(0x8086, 1, 2, 3))
            sizes = bytes((ctypes.c_uint64 * 3)(display.dedicated_bytes, 5, 6))
            rest = bytes((ctypes.c_uint32 * 3)(low, high, 2 if display.software else 0))
            content = name + ids + sizes + rest
            ctypes.memmove(place, content, len(content))
            return 0

        return self.make({10: (_kind(ctypes.c_void_p), describe)})


def _kind(*arguments: Any) -> Any:
    return ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, *arguments)


def _guid(address: int) -> str:
    return str(uuid.UUID(bytes_le=ctypes.string_at(address, 16)))


def _give(place: int, thing: int) -> int:
    ctypes.c_void_p.from_address(place).value = thing
    return 0
