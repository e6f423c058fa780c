"""What aipc tells Windows by ctypes, compared with the headers of the Windows SDK as mingw-w64 has them.

data/windows-layouts.json holds sizes, offsets and numbers. It is held to the headers where the C compiler for
Windows is; what aipc uses is held to it everywhere.
"""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import struct
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from aipc import memory
from aipc.hardware import directx
from aipc.monitor import pdh
from aipc.runtimes import cores, orphans
from aipc.runtimes import memory as runtime_memory

LAYOUTS: dict[str, Any] = json.loads(
    (Path(__file__).parent / "data" / "windows-layouts.json").read_text(encoding="utf-8")
)
COMPILER = "x86_64-w64-mingw32-gcc"


HEADERS = "".join(
    f"#include <{name}>\n" for name in ("windows.h", "initguid.h", "dxgi.h", "pdh.h", "pdhmsg.h")
)

needs_compiler = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"{COMPILER} is not installed")


def compiler(program: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [COMPILER, "-std=gnu11", *options, "-x", "c", "-"]
    return subprocess.run(command, input=program, capture_output=True, text=True, check=False)


def asserted(structures: dict[str, Any], numbers: dict[str, int]) -> str:
    """A C program that does not compile where the headers say otherwise."""
    lines = []
    for name, layout in structures.items():
        lines.append(f'_Static_assert(sizeof({name}) == {layout["size"]}, "size of {name}");')
        for field, offset in layout["offsets"].items():
            lines.append(f'_Static_assert(offsetof({name}, {field}) == {offset}, "{name}.{field}");')
    lines += [f'_Static_assert((DWORD)({name}) == {value}u, "{name}");' for name, value in numbers.items()]
    return HEADERS + "\n".join(lines) + "\n"


@needs_compiler
def test_what_is_written_down_is_what_the_headers_say() -> None:
    done = compiler(asserted(LAYOUTS["structures"], LAYOUTS["numbers"]), "-fsyntax-only")
    assert (done.returncode, done.stderr) == (0, "")


@needs_compiler
def test_a_wrong_layout_would_be_seen() -> None:
    wrong = {"PDH_FMT_COUNTERVALUE_ITEM_W": {"size": 20, "offsets": {"FmtValue": 4}}}
    done = compiler(asserted(wrong, {"PDH_MORE_DATA": 1}), "-fsyntax-only")
    for words in (
        "size of PDH_FMT_COUNTERVALUE_ITEM_W",
        "PDH_FMT_COUNTERVALUE_ITEM_W.FmtValue",
        "PDH_MORE_DATA",
    ):
        assert words in done.stderr


@needs_compiler
def test_identifiers_are_those_of_the_headers() -> None:
    written = compiler(HEADERS, "-E").stdout
    for name, word in LAYOUTS["guids"].items():
        found = re.search(rf"\b{name}\b[^;{{]*= *{{([^;]*)}} *;", written)
        assert found is not None
        first, second, third, *rest = (int(number, 16) for number in re.findall("0x[0-9a-f]+", found[1]))
        assert struct.pack("<IHH8B", first, second, third, *rest) == uuid.UUID(word).bytes_le


def offsets(structure: type[ctypes.Structure]) -> list[int]:
    """Of the fields, in order."""
    return [getattr(structure, field[0]).offset for field in structure._fields_]


def structures() -> dict[str, type[ctypes.Structure]]:
    """Those that are laid out here as on Windows; others have types of Windows, and are compared there."""
    found: dict[str, Any] = {
        "PDH_FMT_COUNTERVALUE_ITEM_W": pdh._Item,
        "DXGI_ADAPTER_DESC1": directx._DxgiDescription,
        "MEMORYSTATUSEX": memory._MemoryStatus,
    }
    if sys.platform == "win32":
        found |= {
            "MEMORYSTATUSEX of the runtimes": runtime_memory._MemoryStatus,
            "JOBOBJECT_BASIC_LIMIT_INFORMATION": orphans._BasicLimits,
            "JOBOBJECT_EXTENDED_LIMIT_INFORMATION": orphans._ExtendedLimits,
            "SYSTEM_LOGICAL_PROCESSOR_INFORMATION": cores._Processor,
        }
    return found


@pytest.mark.parametrize("name", structures())
def test_structures_are_laid_out_as_in_the_headers(name: str) -> None:
    structure, layout = structures()[name], LAYOUTS["structures"][name.partition(" ")[0]]
    assert ctypes.sizeof(structure) == layout["size"]
    assert offsets(structure) == list(layout["offsets"].values())


def test_numbers_are_those_of_the_headers() -> None:
    numbers = LAYOUTS["numbers"]
    assert numbers["PDH_FMT_DOUBLE"] | numbers["PDH_FMT_NOCAP100"] == pdh._FORMAT
    assert numbers["PDH_MORE_DATA"] == pdh._MORE_DATA
    assert list(pdh._VALID) == [numbers["PDH_CSTATUS_VALID_DATA"], numbers["PDH_CSTATUS_NEW_DATA"]]
    reasons = ("NO_OBJECT", "NO_COUNTER")
    assert {numbers[f"PDH_CSTATUS_{name}"] for name in reasons} < pdh._REASONS.keys()
    others = ("PDH_NO_DATA", "PDH_CSTATUS_INVALID_DATA", "PDH_INVALID_DATA")
    assert {numbers[name] for name in others} < pdh._REASONS.keys()
    assert len(pdh._REASONS) == len(reasons) + len(others)
    if sys.platform == "win32":
        assert numbers["JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE"] == orphans._KILL_ON_JOB_CLOSE
        assert numbers["JobObjectExtendedLimitInformation"] == orphans._EXTENDED_LIMITS
        assert numbers["RelationProcessorCore"] == cores._PROCESSOR_CORE


def test_places_in_dxgis_tables_are_those_of_the_headers() -> None:
    factory, adapter = (
        LAYOUTS["structures"][f"IDXGI{name}1Vtbl"]["offsets"] for name in ("Factory", "Adapter")
    )
    assert 8 * directx._RELEASE == factory["Release"] == adapter["Release"]
    assert factory["EnumAdapters1"] == 8 * directx._DXGI_ENUM_ADAPTERS1
    assert adapter["GetDesc1"] == 8 * directx._DXGI_GET_DESC1
    assert LAYOUTS["guids"]["IID_IDXGIFactory1"] == directx._IID_DXGI_FACTORY1
    assert LAYOUTS["numbers"]["DXGI_ADAPTER_FLAG_SOFTWARE"] == directx._DXGI_SOFTWARE
