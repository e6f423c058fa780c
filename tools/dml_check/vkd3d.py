"""Direct3D 12 on Vulkan, as a d3d12.dll for Wine: vkd3d out of Debian's source of Wine, built here.

Debian's Wine 8 has vkd3d 1.5, which knows no DXIL, and DirectML's shaders are DXIL. vkd3d 1.14 reads it,
when built with VKD3D_SHADER_UNSUPPORTED_DXIL. It refuses buffers of 16-bit numbers. With half.patch their
views are R16_UINT, what is loaded is unpacked and what is stored is packed; in between it computes with 32
bits, as it does with numbers of minimum precision. The patch also binds arrays of buffers that are indexed
by constants.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from windows import compile_c

HERE = Path(__file__).parent
PATCH = HERE / "half.patch"
SOURCES = (HERE / "d3d12.c", HERE / "d3d12.def", PATCH)

_DEFINES = (
    "-DWINE_NO_NAMELESS_EXTENSION",
    "-DLIBVKD3D_SOURCE",
    "-DLIBVKD3D_SHADER_SOURCE",
    "-DLIBVKD3D_UTILS_SOURCE",
    "-DVKD3D_SHADER_UNSUPPORTED_DXIL",
    "-D_WIN32_WINNT=0x0A00",
    "-DCONST_VTABLE",
)
_INTERFACES = (
    *("d3dcommon", "dxgicommon", "dxgitype", "dxgiformat", "dxgi", "dxgi1_2", "dxgi1_3", "dxgi1_4"),
    *("dxgi1_5", "dxgi1_6", "d3d12", "d3d12sdklayers", "d3d12shader"),
)
# The rest of Direct3D 9's effects would drag in headers that do not fit with Debian's.
_D3DX9_ENUMS = ("D3DXREGISTER_SET", "D3DXPARAMETER_CLASS", "D3DXPARAMETER_TYPE")
_PARTS = re.compile(r"wine-[^/]+/(libs/vkd3d|include)/")


def build(archive: Path, scratch: Path, target: Path) -> None:
    """Make `target`, a d3d12.dll, of Wine's source.

    raises   RuntimeError with the words of the tool that failed
    """
    wine = _unpack(archive, scratch)
    headers = _headers(wine, scratch / "headers")
    sources = [*_written(wine), *_generated(wine, scratch), HERE / "d3d12.c"]
    libraries = wine / "libs" / "vkd3d" / "libs"
    includes = [
        headers,
        wine / "libs/vkd3d",
        wine / "libs/vkd3d/include",
        wine / "libs/vkd3d/include/private",
    ]
    includes += [libraries / "vkd3d", libraries / "vkd3d-shader", scratch]
    flags = ["-std=gnu11", "-O2", "-w", *_DEFINES, *(f"-I{folder}" for folder in includes)]
    objects = [scratch / f"{number}-{path.stem}.o" for number, path in enumerate(sources)]

    def compiled(source: Path, made: Path) -> None:
        compile_c([*flags, "-c", source, "-o", made])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compiled, sources, objects))
    compile_c(
        ["-shared", "-static-libgcc", "-s", *objects, HERE / "d3d12.def", "-ldxguid", "-luuid", "-o", target]
    )


def _unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as packed:
        packed.extractall(folder, (part for part in packed if _PARTS.match(part.name)), filter="data")
    (wine,) = folder.glob("wine-*")
    _call("patch", "--batch", "--strip=1", f"--directory={wine}", f"--input={PATCH}")
    return wine


def _headers(wine: Path, folder: Path) -> Path:
    """What vkd3d includes beside its own, in the form in which Wine's build has it."""
    (folder / "wine").mkdir(parents=True)
    for name in ("list.h", "rbtree.h"):
        shutil.copy(wine / "include" / "wine" / name, folder / "wine")
    # Debian's own: Wine's is generated from a registry that its source does not carry.
    shutil.copytree("/usr/include/vulkan", folder / "vulkan")
    shutil.copytree("/usr/include/vk_video", folder / "vk_video")
    _write(folder / "wine" / "vulkan.h", "#define VK_NO_PROTOTYPES\n#include <vulkan/vulkan_core.h>\n")
    for name in _INTERFACES:
        source, header = wine / "include" / f"{name}.idl", folder / f"{name}.h"
        _call("x86_64-w64-mingw32-widl", f"-I{wine / 'include'}", "-D__WINESRC__", "-h", "-o", header, source)
        # Wine names the unions within its structures.
        text = re.sub(
            r"__C89_NAMELESS(UNION|STRUCT)NAME",
            lambda found: found[1][0].lower(),
            header.read_text(encoding="utf-8"),
        )
        _write(header, text)
    text = (wine / "include" / "d3dx9shader.h").read_text(encoding="utf-8")
    found = [re.search(rf"typedef enum _?{name}\s.*?\}}.*?;", text, re.DOTALL) for name in _D3DX9_ENUMS]
    _write(folder / "d3dx9shader.h", "\n".join(match[0] for match in found if match) + "\n")
    return folder


def _written(wine: Path) -> Iterator[Path]:
    for part in ("vkd3d-common", "vkd3d-shader", "vkd3d"):
        yield from sorted((wine / "libs/vkd3d/libs" / part).glob("*.c"))


def _generated(wine: Path, scratch: Path) -> Iterator[Path]:
    for name in ("hlsl", "preproc"):
        source = wine / "libs/vkd3d/libs/vkd3d-shader" / name
        lexer, parser = scratch / f"{name}.yy.c", scratch / f"{name}.tab.c"
        _call("flex", "-o", lexer, source.with_suffix(".l"))
        _call("bison", "-d", "-o", parser, source.with_suffix(".y"))
        yield from (lexer, parser)


def _call(*words: str | Path) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{words[0]} failed:\n{done.stderr}")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
