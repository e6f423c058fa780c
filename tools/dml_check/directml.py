"""DirectML on a Linux machine without a GPU: what it needs, made ready in a cache, and sessions on it.

DirectML.dll speaks Direct3D 12; vkd3d turns that into Vulkan, Wine hands Vulkan on to Linux, and Mesa's
llvmpipe computes it on the CPU.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Literal, TypeAlias

import numpy as np
import vkd3d

from windows import (
    WINE,
    NotHereError,
    Wine,
    compile_c,
    kill,
    packages,
    require_debian_packages,
    say,
    windows_path,
)

HERE = Path(__file__).parent
WHEELS = HERE / "windows-wheels.txt"
DEBIAN_SOURCES = HERE / "debian-sources.txt"
SESSION = HERE / "session.c"

_VULKAN = "/usr/lib/x86_64-linux-gnu"
NEEDS = {
    **WINE,
    "mingw-w64-tools": "x86_64-w64-mingw32-widl",
    "flex": "flex",
    "bison": "bison",
    "patch": "patch",
    "dpkg": "dpkg-deb",
    "xvfb": "Xvfb",
    "libvulkan-dev": "/usr/include/vulkan/vulkan_core.h",
    "libvulkan1": f"{_VULKAN}/libvulkan.so.1",
    "mesa-vulkan-drivers": f"{_VULKAN}/libvulkan_lvp.so",
}
_ARCHIVE = "http://deb.debian.org/debian/"
_DOWNLOAD_LIMIT_S = 120

Provider: TypeAlias = Literal["dml", "cpu"]
Tensors: TypeAlias = Mapping[str, np.ndarray]

# ONNX's numbers of the types.
_TYPES = {
    1: np.dtype(np.float32),
    2: np.dtype(np.uint8),
    3: np.dtype(np.int8),
    6: np.dtype(np.int32),
    7: np.dtype(np.int64),
    9: np.dtype(np.bool_),
    10: np.dtype(np.float16),
}
_NUMBERS = {dtype: number for number, dtype in _TYPES.items()}


class SessionError(Exception):
    """A session could not be made, or broke; the message has ONNX Runtime's words.

    log   what it and the layers below wrote to stderr
    """

    def __init__(self, words: str, log: str) -> None:
        super().__init__(words)
        self.log = log


class Session:
    """A model in a process of its own under Wine; made by `DirectML.session`."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self._process, self._log = process, log
        self._number()

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Every output, or with a shared cache the logits.

        raises   SessionError
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(packed(inputs))
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed() from None
        return dict(self._tensor() for _ in range(self._number()))

    def log(self) -> str:
        """What was written to stderr so far."""
        # Where the program writes on is where this file stands: it must not move.
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode("utf-8", "replace")

    def _tensor(self) -> tuple[str, np.ndarray]:
        name = self._read(self._number()).decode()
        dtype, rank = _TYPES[self._number()], self._number()
        shape = struct.unpack(f"<{rank}q", self._read(8 * rank))
        count = int(np.prod(shape, dtype=np.int64))
        return name, np.frombuffer(self._read(count * dtype.itemsize), dtype).reshape(shape)

    def _number(self) -> int:
        (number,) = struct.unpack("<I", self._read(4))
        return int(number)

    def _read(self, count: int) -> bytes:
        assert self._process.stdout is not None
        found = self._process.stdout.read(count)
        if len(found) != count:
            raise self._failed()
        return found

    def _failed(self) -> SessionError:
        code = self._process.wait()
        log = self.log()
        return SessionError(failure(log) or f"it ended with code {code} and no word", log)


class DirectML:
    """The provider of ONNX Runtime's package for Windows, made ready in `cache`.

    raises   NotHereError
    """

    def __init__(self, cache: Path, display: str) -> None:
        # `display` is of X: Wine reaches Vulkan through its driver for it alone.
        sources = [SESSION, DEBIAN_SOURCES, HERE / "vkd3d.py", *vkd3d.SOURCES]
        self._folder = packages(cache, WHEELS, sources, lambda folder: _build(cache, folder))
        self._cache = cache
        self._wine = Wine(cache, ["d3d12"], _environment(display), "prefix-directml")

    def up(self) -> AbstractContextManager[None]:
        """Sessions start faster within it, and no other process makes any with this cache."""
        return self._wine.up()

    @contextmanager
    def session(
        self, model: Path, provider: Provider, *, claim_half: bool = False, **settings: str | int
    ) -> Iterator[Session]:
        """A session with a model.

        claim_half   have the device say that it computes in float16, as GPUs do; here it rounds to it only
                     what it writes to memory
        settings     of session.exe: shared, log; "ep.dml..." and other entries of the session's
        raises       SessionError
        """
        claims = {"D3D12_CLAIM_HALF": "1", "VKD3D_DEBUG": "warn"} if claim_half else {}
        words = [windows_path(model), provider, *(f"{key}={value}" for key, value in settings.items())]
        with tempfile.TemporaryFile(dir=self._cache) as log:
            process = self._wine.start(self._folder / "session.exe", words, log, claims)
            try:
                yield Session(process, log)
            finally:
                kill(process)
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        pipe.close()


@contextmanager
def display() -> Iterator[str]:
    """The name of an X display without a screen, for as long as it is needed.

    raises   NotHereError
    """
    require_debian_packages(NEEDS)
    reader, writer = os.pipe()
    words = ["Xvfb", "-displayfd", str(writer), "-screen", "0", "640x480x24", "-nolisten", "tcp"]
    with tempfile.TemporaryFile() as log, os.fdopen(reader, "rb") as answer:
        process = subprocess.Popen(
            words, pass_fds=[writer], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        os.close(writer)
        try:
            number = answer.readline().decode().strip()
            if not number:
                log.seek(0)
                raise NotHereError(f"Xvfb did not start: {log.read().decode('utf-8', 'replace').strip()}")
            yield f":{number}"
        finally:
            kill(process)


def packed(tensors: Tensors) -> bytes:
    """Tensors as session.exe reads them."""
    parts = [struct.pack("<I", len(tensors))]
    for name, tensor in tensors.items():
        array = np.ascontiguousarray(tensor).reshape(np.shape(tensor))
        parts += [struct.pack("<I", len(name.encode())), name.encode()]
        parts += [struct.pack(f"<II{array.ndim}q", _NUMBERS[array.dtype], array.ndim, *array.shape)]
        parts += [array.tobytes()]
    return b"".join(parts)


def failure(log: str) -> str:
    """The words of session.exe about why it ended, or ""."""
    for line in reversed(log.splitlines()):
        if line.startswith(("FAILED ", "CRASHED ")):
            return line
    return ""


def _environment(display: str) -> dict[str, str]:
    """What has DirectML reach Mesa's software driver, and no GPU that this machine may have."""
    driver = next(iter(sorted(Path("/usr/share/vulkan/icd.d").glob("lvp_icd*.json"))), None)
    if driver is None:
        raise NotHereError("Mesa's software driver put no lvp_icd*.json into /usr/share/vulkan/icd.d")
    return {
        "DISPLAY": display,
        "WINE_D3D_CONFIG": "renderer=vulkan",
        "VK_DRIVER_FILES": str(driver),
        "VK_ICD_FILENAMES": str(driver),
        # Direct3D 12 promises zeros in new memory; vkd3d takes what Mesa has, and Mesa what glibc has:
        # here each piece that is larger than a page, new from the kernel.
        "MALLOC_MMAP_THRESHOLD_": "4096",
    }


def _build(cache: Path, folder: Path) -> None:
    archive, header = _debian_files(cache)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".partial-") as scratch:
        say("building vkd3d, a minute or two")
        vkd3d.build(archive, Path(scratch), folder / "d3d12.dll")
        headers = Path(scratch) / "onnxruntime"
        subprocess.run(["dpkg-deb", "-x", str(header), str(headers)], check=True)
        include = headers / "usr" / "include" / "onnxruntime"
        compile_c(
            [
                *["-std=gnu11", "-O2", "-Wall", "-Wextra", "-isystem", include, SESSION],
                *[folder / "onnxruntime.dll", "-o", folder / "session.exe"],
            ]
        )


def _debian_files(cache: Path) -> list[Path]:
    """Each file of `DEBIAN_SOURCES`, downloaded where it is missing."""
    found = []
    for line in DEBIAN_SOURCES.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        name, sha256 = line.split()
        path = cache / Path(name).name
        if not path.is_file():
            _download(_ARCHIVE + name, sha256, path)
        found.append(path)
    return found


def _download(url: str, sha256: str, path: Path) -> None:
    say(f"downloading {url}")
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".partial-", delete=False) as partial:
        try:
            with urllib.request.urlopen(url, timeout=_DOWNLOAD_LIMIT_S) as answer:
                shutil.copyfileobj(answer, partial)
            partial.flush()
            with Path(partial.name).open("rb") as content:
                found = hashlib.file_digest(content, "sha256").hexdigest()
            if found != sha256:
                raise RuntimeError(f"{url} is not what is listed: its SHA-256 is {found}, not {sha256}")
            Path(partial.name).replace(path)
        except (urllib.error.URLError, OSError) as exc:
            raise NotHereError(f"{url} could not be downloaded: {exc}") from exc
        finally:
            Path(partial.name).unlink(missing_ok=True)
