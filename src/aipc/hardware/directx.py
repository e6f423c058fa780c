"""What Windows' own interfaces say of its adapters: DXCore lists NPUs and GPUs, DXGI the GPUs in their order.

source   dxcore_interface.h and dxgi.h of the Windows SDK. On 64-bit Windows there is one calling
         convention, so that plain function types fit, and the tests can be the other side on any system.
"""

from __future__ import annotations

import ctypes
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aipc.hardware.processor import luid_word

# Opens a factory: CreateDXGIFactory1 or DXCoreCreateAdapterFactory, (interface id, place for it) -> HRESULT.
CreateFactory = Callable[[Any, Any], int]

# Places in the tables of functions; the first three are IUnknown's.
_RELEASE = 2
_FACTORY_CREATE_LIST = 3
_LIST_GET, _LIST_COUNT = 3, 4
_ADAPTER_HAS_ATTRIBUTE, _ADAPTER_HAS_PROPERTY, _ADAPTER_GET, _ADAPTER_SIZE = 4, 5, 6, 7
_DXGI_GET_DESC1, _DXGI_ENUM_ADAPTERS1 = 10, 12

_IID_DXCORE_FACTORY = "78ee5945-c36e-4b13-a669-005dd11c0f06"
_IID_DXCORE_LIST = "526c7776-40e9-459b-b711-f32ad76dfc28"
_IID_DXCORE_ADAPTER = "f0db4c7f-fe5a-42a2-bd62-f2a6cf6fc83e"
_IID_DXGI_FACTORY1 = "770aae78-f26f-4dba-a829-253c83d1b387"

_D3D11_GRAPHICS = "8c47866b-7583-450d-f0f0-6bada895af4b"
_D3D12_CORE_COMPUTE = "248e2800-a793-4724-abaa-23a6de1be090"
_D3D12_GENERIC_ML = "b71b0d41-1088-422f-a27c-0250b7d3a988"
_TYPE_NPU = "d46140c4-add7-451b-9e56-06fe8c3b58ed"
# Older versions of Windows know only the first.
_LISTS = (_D3D12_CORE_COMPUTE, _D3D12_GENERIC_ML, _TYPE_NPU)

# DXCoreAdapterProperty
_LUID, _DRIVER_VERSION, _DESCRIPTION, _HARDWARE_ID = 0, 1, 2, 3
_DEDICATED_BYTES, _IS_HARDWARE, _IS_INTEGRATED = 7, 11, 12

_DXGI_SOFTWARE = 2


@dataclass(frozen=True, slots=True)
class Adapter:
    """An NPU or GPU of DXCore.

    luid             as performance counters write it, "0x00000000_0x0000C9A5"
    driver_version   as the device manager shows it, "32.0.100.3104"
    graphics         whether it draws; what only computes is an NPU
    """

    luid: str
    description: str
    vendor_id: int
    device_id: int
    driver_version: str
    dedicated_bytes: int
    hardware: bool
    integrated: bool
    graphics: bool


@dataclass(frozen=True, slots=True)
class Display:
    """A GPU of DXGI. `index` is how DirectML counts it."""

    index: int
    luid: str
    description: str
    dedicated_bytes: int
    software: bool


def adapters(create_factory: CreateFactory | None = None) -> list[Adapter]:
    """Every NPU and GPU that DXCore lists; none where Windows is too old for it."""
    create = create_factory or _function("dxcore", "DXCoreCreateAdapterFactory")
    found: dict[str, Adapter] = {}
    if create is None:
        return []
    with _opened(create, _guid(_IID_DXCORE_FACTORY)) as factory:
        for attribute in _LISTS if factory else ():
            for adapter in _listed(factory, attribute):
                found.setdefault(adapter.luid, adapter)
    return list(found.values())


def displays(create_factory: CreateFactory | None = None) -> list[Display]:
    """The GPUs as DXGI counts them, software among them."""
    create = create_factory or _function("dxgi", "CreateDXGIFactory1")
    found: list[Display] = []
    if create is None:
        return found
    with _opened(create, _guid(_IID_DXGI_FACTORY1)) as factory:
        while factory:
            with _opened(_method(factory, _DXGI_ENUM_ADAPTERS1), ctypes.c_uint(len(found))) as adapter:
                if not adapter:
                    break
                about = _DxgiDescription()
                _method(adapter, _DXGI_GET_DESC1)(ctypes.pointer(about))
                found.append(
                    Display(
                        len(found),
                        luid_word(bytes(about.AdapterLuid)),
                        about.Description.strip(),
                        about.DedicatedVideoMemory,
                        bool(about.Flags & _DXGI_SOFTWARE),
                    )
                )
    return found


class _DxgiDescription(ctypes.Structure):
    """DXGI_ADAPTER_DESC1; Windows' wide characters are 16 bits."""

    _fields_ = (
        ("_Description", ctypes.c_uint16 * 128),
        ("VendorId", ctypes.c_uint),
        ("DeviceId", ctypes.c_uint),
        ("SubSysId", ctypes.c_uint),
        ("Revision", ctypes.c_uint),
        ("DedicatedVideoMemory", ctypes.c_size_t),
        ("DedicatedSystemMemory", ctypes.c_size_t),
        ("SharedSystemMemory", ctypes.c_size_t),
        ("AdapterLuid", ctypes.c_uint8 * 8),
        ("Flags", ctypes.c_uint),
    )

    @property
    def Description(self) -> str:  # noqa: N802 - its name in dxgi.h
        """Up to the first zero."""
        return bytes(self._Description).decode("utf-16-le", "replace").partition("\0")[0]


def _listed(factory: Any, attribute: str) -> Iterator[Adapter]:
    """The adapters that DXCore lists under an attribute."""
    create_list = _method(factory, _FACTORY_CREATE_LIST)
    with _opened(create_list, ctypes.c_uint(1), _guid(attribute), _guid(_IID_DXCORE_LIST)) as listed:
        if not listed:
            return
        for number in range(_method(listed, _LIST_COUNT, ctypes.c_uint32)()):
            get = _method(listed, _LIST_GET)
            with _opened(get, ctypes.c_uint(number), _guid(_IID_DXCORE_ADAPTER)) as adapter:
                if adapter:
                    yield _described(adapter)


def _described(adapter: Any) -> Adapter:
    vendor_id, device_id = _numbers(adapter, _HARDWARE_ID, ctypes.c_uint32 * 4)[:2]
    (version,) = _numbers(adapter, _DRIVER_VERSION, ctypes.c_uint64 * 1)
    has_attribute = _method(adapter, _ADAPTER_HAS_ATTRIBUTE, ctypes.c_bool)
    return Adapter(
        luid=luid_word(bytes(_numbers(adapter, _LUID, ctypes.c_uint8 * 8))),
        description=_text(adapter, _DESCRIPTION),
        vendor_id=vendor_id,
        device_id=device_id,
        driver_version=".".join(str(version >> shift & 0xFFFF) for shift in (48, 32, 16, 0)),
        dedicated_bytes=_numbers(adapter, _DEDICATED_BYTES, ctypes.c_uint64 * 1)[0],
        hardware=bool(_numbers(adapter, _IS_HARDWARE, ctypes.c_uint8 * 1)[0]),
        integrated=bool(_numbers(adapter, _IS_INTEGRATED, ctypes.c_uint8 * 1)[0]),
        graphics=has_attribute(_guid(_D3D11_GRAPHICS)),
    )


def _numbers(adapter: Any, what: int, kind: Any) -> list[int]:
    """A property that is an array of numbers; zeros where the adapter does not have it."""
    value = kind()
    if _method(adapter, _ADAPTER_HAS_PROPERTY, ctypes.c_bool)(ctypes.c_uint(what)):
        size = ctypes.c_size_t(ctypes.sizeof(value))
        _method(adapter, _ADAPTER_GET)(ctypes.c_uint(what), size, ctypes.pointer(value))
    return list(value)


def _text(adapter: Any, what: int) -> str:
    """A property that is UTF-8 text."""
    size = ctypes.c_size_t(0)
    if _method(adapter, _ADAPTER_SIZE)(ctypes.c_uint(what), ctypes.pointer(size)) < 0:
        return ""
    value = ctypes.create_string_buffer(size.value + 1)
    _method(adapter, _ADAPTER_GET)(ctypes.c_uint(what), size, ctypes.pointer(value))
    return value.value.decode("utf-8", "replace").strip()


def _guid(word: str) -> Any:
    """A GUID as it lies in memory."""
    return ctypes.create_string_buffer(uuid.UUID(word).bytes_le, 16)


@contextmanager
def _opened(create: Callable[..., int], *arguments: Any) -> Iterator[Any]:
    """The object that a function puts in the place of its last argument, or None; released at the end."""
    thing = ctypes.c_void_p()
    if create(*arguments, ctypes.pointer(thing)) < 0 or not thing:
        yield None
        return
    try:
        yield thing
    finally:
        _method(thing, _RELEASE, ctypes.c_ulong)()


def _method(thing: Any, place: int, result: Any = ctypes.c_int32) -> Callable[..., Any]:
    """The function at a place of a COM object's table, bound to the object."""
    table = ctypes.cast(thing, ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p)))[0]

    def call(*arguments: Any) -> Any:
        kinds = [
            type(a) if isinstance(a, ctypes.c_uint | ctypes.c_size_t) else ctypes.c_void_p for a in arguments
        ]
        return ctypes.CFUNCTYPE(result, ctypes.c_void_p, *kinds)(table[place])(thing, *arguments)

    return call


def _function(library: str, name: str) -> CreateFactory | None:
    """A function of one of Windows' libraries; None where this Windows does not have it."""
    if sys.platform != "win32":
        return None
    try:
        function: CreateFactory = getattr(ctypes.WinDLL(library), name)
    except (OSError, AttributeError):
        return None
    return function
