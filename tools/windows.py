"""Windows programs on Linux: Debian's Wine, Windows wheels from PyPI, and programs of ours beside them.

Everything lies in one cache folder: prefix*/ is Wine's own, and packages-*/ holds what was unpacked and
compiled for one list of wheels. tools/npu_check and tools/dml_check have their own lists and share the rest.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias

COMPILER = "x86_64-w64-mingw32-gcc"

# What a check needs of Debian: the package, and the program that shows that it is there.
Needs: TypeAlias = Mapping[str, str]
WINE: Needs = {"wine64": "wine64", "gcc-mingw-w64-x86-64-win32": COMPILER}

# Without a network it gives up after a while; it waits for another that installs something.
_APT_OPTIONS = ("Acquire::Retries=1", "Acquire::http::Timeout=20", "DPkg::Lock::Timeout=120")

# Which of the Windows wheels: the check needs no Python there, so one version is as good as another.
_WHEELS_FOR = ("--platform", "win_amd64", "--python-version", "3.11", "--implementation", "cp")

# Wine has its own C++ runtime, which loses the exceptions of OpenVINO: a refusal would be a crash.
_NATIVE = "concrt140,msvcp140,msvcp140_1,msvcp140_2,msvcp140_atomic_wait,vcruntime140,vcruntime140_1"
_PREFIX_LIMIT_S = 300


class NotHereError(Exception):
    """Something that this machine must have is missing; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A Windows program that ended, or was ended at its limit: then `code` is None."""

    code: int | None
    stdout: str
    stderr: str


class Wine:
    """Runs Windows programs in a prefix of its own, with no display and no network question.

    native        DLLs that lie beside the program and replace Wine's, without ".dll"
    environment   more of it, such as a display
    prefix        the name of the prefix in the cache
    """

    def __init__(
        self,
        cache: Path,
        native: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        prefix: str = "prefix",
    ) -> None:
        loader = _find_loader()
        if loader is None:
            raise NotHereError(f"Wine is not installed; on Debian and Ubuntu: sudo {apt_line(WINE)}")
        self._loader = loader
        self.prefix = cache / prefix
        self._environment = {
            **{name: value for name, value in os.environ.items() if name != "DISPLAY"},
            "WINEPREFIX": str(self.prefix),
            "WINEARCH": "win64",
            "WINEDEBUG": "-all",
            "WINEDLLOVERRIDES": f"mscoree,mshtml,winedbg.exe=;{','.join([_NATIVE, *native])}=n",
            **(environment or {}),
        }
        with locked(cache):
            if not (self.prefix / "system.reg").is_file():
                self._make_prefix()

    def start(
        self, program: Path, arguments: Sequence[str], err: IO[bytes] | int, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start a program that is talked to over pipes; whoever starts it ends it by `kill`."""
        return subprocess.Popen(
            [self._loader, str(program), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=err,
            env=self._environment | dict(environment),
            start_new_session=True,
        )

    def run(self, program: Path, arguments: Sequence[str], limit_s: float) -> Finished:
        """Run a program to its end, or kill it after `limit_s`."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(
                [self._loader, str(program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self._environment,
                start_new_session=True,
            )
            code: int | None = None
            try:
                code = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                pass
            finally:
                kill(process)
            return Finished(code, *(_text(stream) for stream in (out, err)))

    @contextmanager
    def up(self) -> Iterator[None]:
        """Windows is up once for many programs, and this process alone has the prefix.

        Debian's wrapper ends Wine's server with the last program. So each program would start the server and
        the services anew, beside those of the one before, which are on their way out.
        """
        with locked(self.prefix.parent, f".{self.prefix.name}-in-use"):
            self.end_all()
            self._boot()
            try:
                yield
            finally:
                self.end_all()

    def restart(self) -> None:
        """End whatever runs in this prefix, and have Windows up again; within `up`."""
        self.end_all()
        self._boot()

    def end_all(self) -> None:
        """End whatever runs in this prefix: programs that a program which was killed had started."""
        self._server("--kill")
        self._server("--wait")

    def _boot(self) -> None:
        # It returns when the server answers, and wineboot when the services were told to start.
        self._server("--persistent")
        done = self.run(Path("wineboot"), [], _PREFIX_LIMIT_S)
        if done.code != 0:
            raise RuntimeError(f"Wine did not start: wineboot ended with {done.code}: {done.stderr[-500:]}")

    def _server(self, word: str) -> None:
        subprocess.run(
            [_which("wineserver") or "wineserver", word],
            env=self._environment,
            check=False,
            timeout=_PREFIX_LIMIT_S,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _make_prefix(self) -> None:
        say("making a Wine prefix")
        prefix = self.prefix
        shutil.rmtree(prefix, ignore_errors=True)
        done = self.run(Path("wineboot"), ["--init"], _PREFIX_LIMIT_S)
        self._server("--wait")
        if done.code != 0 or not (prefix / "system.reg").is_file():
            shutil.rmtree(prefix, ignore_errors=True)
            raise NotHereError(f"Wine could not make its prefix {prefix}: {done.stderr[-500:]}")


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a program that was started, and what it started; nothing where it has ended."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def apt_line(needs: Needs) -> str:
    """What installs the packages."""
    return f"apt-get install --no-install-recommends {' '.join(needs)}"


def require_debian_packages(needs: Needs = WINE) -> None:
    """See to it that these packages are here; root of a Debian installs them.

    raises   NotHereError
    """
    missing = _missing(needs)
    if not missing:
        return
    line = apt_line(needs)
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NotHereError(f"{missing} is not installed; on Debian and Ubuntu: sudo {line}")
    say(f"{missing} is not installed: {line}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    options = [f"-o{option}" for option in _APT_OPTIONS]
    for command in (["apt-get", "update", "-qq"], [*line.split(), "-y", "-qq"]):
        done = subprocess.run(
            [*command, *options], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise NotHereError(
                f"{missing} is not installed, and {' '.join(command)} failed: {done.stderr.strip()[-500:]}"
            )
    if _missing(needs):
        raise NotHereError(f"{_missing(needs)} is not found, although {line} succeeded")


def _missing(needs: Needs) -> str:
    found = {package: _found(program) for package, program in needs.items()}
    return " and ".join(_said(package, needs[package]) for package, path in found.items() if path is None)


def _said(package: str, program: str) -> str:
    """What people call it."""
    if package == "wine64":
        return "Wine"
    return package if program.startswith("/") else program


def _found(program: str) -> str | None:
    """Where a program is, or a file by its path."""
    if program == "wine64":
        return _find_loader()
    if program.startswith("/"):
        return program if Path(program).exists() else None
    return shutil.which(program)


def packages(cache: Path, wheels: Path, sources: Sequence[Path], build: Callable[[Path], None]) -> Path:
    """The folder with the DLLs of `wheels` and the programs made beside them, made where it is missing.

    wheels    a requirements file with a hash for each wheel
    sources   whatever decides what `build` makes; a change makes the folder anew
    build     puts the programs into the folder that it is given
    raises    NotHereError
    """
    key = hashlib.sha256(b"".join(path.read_bytes() for path in [wheels, *sources])).hexdigest()[:12]

    def make(made: Path, scratch: Path) -> None:
        for wheel in download(wheels, scratch):
            _unpack(wheel, made)
        build(made)

    return made_once(cache, f"packages-{key}", make)


def made_once(cache: Path, name: str, make: Callable[[Path, Path], None]) -> Path:
    """A folder of the cache, made where it is missing: it is there whole or not at all.

    make     puts into its first folder what is to be there; its second is for what it needs meanwhile
    raises   what `make` raises
    """
    folder = cache / name
    with locked(cache):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache, prefix=".partial-") as partial:
                made = Path(partial) / "made"
                made.mkdir()
                make(made, Path(partial))
                made.rename(folder)
    return folder


def say(sentence: str) -> None:
    """A line on stderr, for whoever waits."""
    print(sentence, file=sys.stderr, flush=True)


def windows_path(path: Path) -> str:
    """How a Windows program calls a file of Linux: Wine's drive Z: is the root."""
    return "Z:" + str(path.absolute()).replace("/", "\\")


def download(wheels: Path, folder: Path) -> list[Path]:
    """The wheels that a requirements file with hashes lists, into a folder; gives them by name.

    raises   NotHereError
    """
    say(f"downloading what {wheels.name} lists")
    pip = [sys.executable, "-m", "pip"]
    if importlib.util.find_spec("pip") is None:
        found = shutil.which("pip3") or shutil.which("pip")
        if found is None:
            raise NotHereError("pip is not installed; on Debian and Ubuntu: sudo apt-get install python3-pip")
        pip = [found]
    done = subprocess.run(
        [
            *[*pip, "download", "--quiet", "--disable-pip-version-check", "--dest", str(folder)],
            *["--require-hashes", "--no-deps", "--only-binary=:all:", *_WHEELS_FOR],
            *["--requirement", str(wheels)],
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise RuntimeError(f"pip refused what {wheels} lists: {done.stderr.strip()}")
    if done.returncode != 0:
        raise NotHereError(f"pip could not download what {wheels.name} lists: {done.stderr.strip()[-800:]}")
    return sorted(folder.glob("*.whl"))


def _unpack(wheel: Path, folder: Path) -> None:
    """The DLLs of a wheel side by side, where Windows looks for them; and OpenVINO's headers for C."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            _, is_header, header = name.partition("openvino/include/")
            if name.endswith(".dll"):
                target = folder / Path(name).name
            elif is_header and header.startswith("openvino/c/"):
                target = folder / "include" / header
            else:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))


def compile_c(arguments: Sequence[str | Path]) -> None:
    """Call the C compiler for Windows.

    raises   RuntimeError with its words
    """
    command = [COMPILER, *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{COMPILER} failed:\n{done.stderr}")


@contextmanager
def locked(cache: Path, name: str = ".lock") -> Iterator[None]:
    """One process at a time: for a set-up, or for whatever else has a name."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / name).open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that uses {cache}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _find_loader() -> str | None:
    return _which("wine64") or _which("wine")


def _which(name: str) -> str | None:
    """Where a program is; Debian's wine64 alone puts none of its own on the path."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/lib/wine"]))


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode("utf-8", "replace")
