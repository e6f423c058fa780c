"""A Python for Windows that Wine runs, put together from what PyPI has.

PyPI has no Python for Windows. But panda3d's wheel carries one for the programs that are made with it: the
python311.dll of python.org and every extension module of the standard library. The library itself is the same
on every system, and comes from the Python that runs this; python.exe is a few lines of C.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from windows import COMPILER, NotHereError, download, made_once, say  # noqa: E402 - beside this folder

PACKAGES = HERE / "windows-packages.txt"
_SOURCES = (HERE / "python.c", HERE / "bcryptprimitives.c")
_VERSION = (3, 11)

# Of panda3d's wheel: the interpreter and its modules. Microsoft's runtime in it is older than others need.
_INTERPRETER = re.compile(r"deploy_libs/(?!api-ms-|vcruntime)(?P<name>[^/]+\.(dll|pyd))", re.IGNORECASE)
_RUNTIME = re.compile(r"msvc_runtime-[^/]*/data/Scripts/(?P<name>[^/]+\.dll)")
_NO_PACKAGES = ("panda3d", "msvc_runtime")
_NOT_OF_THE_LIBRARY = ("site-packages", "test", "tests", "lib-dynload", "idlelib", "ensurepip", "config-*")
# What of it replaces Wine's own.
NATIVE = ("bcryptprimitives", "msvcp140_codecvt_ids")


def require_this_version() -> None:
    """See to it that this Python's library is that of the interpreter.

    raises   NotHereError
    """
    if sys.version_info[:2] != _VERSION:
        here = ".".join(map(str, sys.version_info[:2]))
        raise NotHereError(f"the library of Python 3.11 is needed, and this is {here}: run it with 3.11")


def made(cache: Path) -> Path:
    """The folder with python.exe, made where it is missing.

    raises   NotHereError
    """
    parts = [PACKAGES.read_bytes(), Path(__file__).read_bytes(), sys.version.encode()]
    key = hashlib.sha256(b"".join([*parts, *(source.read_bytes() for source in _SOURCES)])).hexdigest()[:12]

    def make(python: Path, scratch: Path) -> None:
        skipped = shutil.ignore_patterns(*_NOT_OF_THE_LIBRARY, "__pycache__")
        shutil.copytree(sysconfig.get_path("stdlib"), python / "Lib", ignore=skipped)
        _fit(python / "Lib")
        for wheel in download(PACKAGES, scratch):
            _unpack(wheel, python)
        _build(python)

    return made_once(cache, f"python-{key}", make)


def _fit(library: Path) -> None:
    """Make the library of an older 3.11 fit the interpreter, which is 3.11.9 and calls a class method."""
    path = library / "importlib" / "metadata" / "__init__.py"
    text, method = path.read_text(encoding="utf-8"), "    def invalidate_caches(cls):"
    if f"@classmethod\n{method}" not in text:
        path.write_text(text.replace(method, f"    @classmethod\n{method}"), encoding="utf-8")


def _unpack(wheel: Path, folder: Path) -> None:
    """A wheel's modules to site-packages; the interpreter and Microsoft's runtime beside python.exe."""
    packages = folder / "Lib" / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            interpreter, runtime = _INTERPRETER.fullmatch(name), _RUNTIME.fullmatch(name)
            if interpreter is not None:
                beside = interpreter["name"].startswith("python3")
                target = (folder if beside else folder / "DLLs") / interpreter["name"]
            elif runtime is not None:
                target = folder / runtime["name"]
            elif name.endswith("/") or ".data/" in name or wheel.name.startswith(_NO_PACKAGES):
                continue
            else:
                target = packages / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))


def _build(folder: Path) -> None:
    say("building python.exe")
    interpreter = folder / "python311.dll"
    launcher, random_bytes = map(str, _SOURCES)
    compiler = [COMPILER, "-std=c11", "-O2", "-Wall", "-Wextra"]
    _run([*compiler, "-municode", launcher, str(interpreter), "-o", str(folder / "python.exe")])
    random_dll = str(folder / "bcryptprimitives.dll")
    _run([*compiler, "-shared", random_bytes, "-ladvapi32", "-o", random_dll])
    # python3.dll, which modules for any version of Python ask for, hands every name on.
    names = _exports(interpreter)
    lines = ["LIBRARY python3.dll", "EXPORTS", *(f"  {name}=python311.{name}" for name in names)]
    definition = folder / "python3.def"
    definition.write_text("\n".join(lines) + "\n", encoding="ascii")
    empty = folder / "empty.c"
    empty.write_text("int nothing;\n", encoding="ascii")
    forwarder = [str(definition), str(empty), "-o", str(folder / "python3.dll")]
    _run([*compiler, "-shared", "-nostdlib", "-Wl,-e,0", *forwarder])


def _exports(library: Path) -> list[str]:
    """The names that a DLL exports."""
    listed = _run(["x86_64-w64-mingw32-objdump", "-p", str(library)])
    table = listed.partition("[Ordinal/Name Pointer] Table")[2].partition("\n\n")[0]
    names = re.findall(r"^\s*\[ *\d+\] (\w+)$", table, re.MULTILINE)
    if "Py_Main" not in names:
        raise RuntimeError(f"{library} exports no Py_Main")
    return names


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed:\n{done.stderr}")
    return done.stdout
