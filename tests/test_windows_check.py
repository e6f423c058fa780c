"""The check with Windows' Python, as far as it goes without Wine: what it unpacks, and what it compares."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the check runs Windows programs on Linux")

TOOL = Path(__file__).parents[1] / "tools" / "windows_check"
sys.path.insert(0, str(TOOL))

if os.name != "nt":
    import packed_python
    import windows_python
    from pulse import Patience, Pulse

    from windows import NotHereError, require_debian_packages


@pytest.fixture(scope="module")
def check() -> ModuleType:
    """The tool's __main__."""
    spec = importlib.util.spec_from_file_location("windows_check", TOOL / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wheel(folder: Path, name: str, *files: str) -> Path:
    path = folder / f"{name}-1.0-cp311-cp311-win_amd64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in files:
            archive.writestr(file, file)
    return path


def test_each_wheel_gives_what_belongs_to_a_python(tmp_path: Path) -> None:
    python = tmp_path / "python"
    scripts = "msvc_runtime-1.0.data/data/Scripts"
    for made in (
        wheel(
            tmp_path,
            "panda3d",
            "deploy_libs/python311.dll",
            "deploy_libs/VCRUNTIME140.dll",
            "panda3d/core.pyd",
        ),
        wheel(
            tmp_path, "panda3d_too", "deploy_libs/_ctypes.pyd", "deploy_libs/api-ms-win-crt-heap-l1-1-0.dll"
        ),
        wheel(tmp_path, "msvc_runtime", f"{scripts}/vcruntime140.dll", "msvc_runtime.cp311-win_amd64.pyd"),
        wheel(tmp_path, "numpy", "numpy/__init__.py", "numpy.libs/blas.dll", "numpy-1.0.data/scripts/f2py"),
    ):
        packed_python._unpack(made, python)
    found = sorted(path.relative_to(python).as_posix() for path in python.rglob("*") if path.is_file())
    packages = "Lib/site-packages"
    assert found == [
        "DLLs/_ctypes.pyd",
        f"{packages}/numpy.libs/blas.dll",
        f"{packages}/numpy/__init__.py",
        "python311.dll",
        "vcruntime140.dll",
    ]


def test_another_python_has_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    with pytest.raises(NotHereError, match=r"Python 3\.11 is needed, and this is 3\.13"):
        windows_python.WindowsPython(tmp_path, source=tmp_path, models=tmp_path)


def test_where_apt_fails_its_words_are_told_and_it_was_not_to_try_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apt = tmp_path / "apt-get"
    apt.write_text('#!/bin/sh\necho "$@" >> "$0.said"\necho no network >&2\nexit 100\n', encoding="utf-8")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(NotHereError, match=r"a-program is not installed, and apt-get update .*: no network$"):
        require_debian_packages({"a-package": "a-program"})
    said = (tmp_path / "apt-get.said").read_text(encoding="utf-8")
    assert said.startswith("update ")
    assert "http::Timeout=" in said


def test_every_package_has_one_version_and_a_hash() -> None:
    lines = packed_python.PACKAGES.read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    assert {"panda3d", "msvc-runtime", "numpy", "openvino", "onnxruntime"} <= {
        line.partition("==")[0] for line in pinned
    }
    assert all(len(line.partition(" --hash=sha256:")[2]) == 64 for line in pinned)


def folder(path: Path, *, edges: str = "<a/>\n<b/>\n", created: str = "1", weights: str = "w") -> Path:
    path.mkdir()
    (path / "openvino_model.xml").write_text(edges, encoding="utf-8")
    (path / "openvino_model.bin").write_text(weights, encoding="utf-8")
    record: dict[str, Any] = {"created": created, "runtime": "openvino"}
    (path / "aipc.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    return path


def test_folders_are_the_same_but_for_times_and_the_order_of_edges(check: ModuleType, tmp_path: Path) -> None:
    one = folder(tmp_path / "one")
    other = folder(tmp_path / "other", edges="<b/>\r\n<a/>\r\n", created="2")
    assert check._difference(one, other) == "3 files, as on Linux"


@pytest.mark.parametrize(
    ("change", "name"), [({"weights": "v"}, "openvino_model.bin"), ({"edges": "<a/>"}, ".xml")]
)
def test_a_difference_is_named(check: ModuleType, tmp_path: Path, change: dict[str, str], name: str) -> None:
    said = check._difference(folder(tmp_path / "one"), folder(tmp_path / "other", **change))
    assert said.startswith("!differ")
    assert name in said


def test_a_file_that_is_missing_is_a_difference(check: ModuleType, tmp_path: Path) -> None:
    one, other = folder(tmp_path / "one"), folder(tmp_path / "other")
    (one / "aipc.json").unlink()
    assert check._difference(one, other) == "!differ from those of Linux: aipc.json"


@pytest.mark.parametrize(
    ("code", "last", "passed"),
    [
        (0, "37 passed in 28.02s", True),
        (0, "17 passed, 1 skipped, 1 deselected in 123.67s (0:02:03)", True),
        (5, "1 skipped in 1.99s", True),
        (5, "no tests ran in 0.01s", True),
        (1, "1 failed, 3 passed in 1.00s", False),
        (0, "..........", False),
        # An access violation in a test, and one on the way out.
        (5, "..........", False),
        (5, "37 passed in 28.02s", False),
        (None, "did nothing for 60 s", False),
    ],
)
def test_a_file_has_passed_if_pytest_came_to_its_end(
    check: ModuleType, code: int | None, last: str, passed: bool
) -> None:
    assert check._passed(code, last) == passed


@pytest.mark.parametrize(("errors", "runs"), [(0, 1), (1, 2), (2, 2)])
def test_what_met_an_error_of_wines_own_runs_once_more(check: ModuleType, errors: int, runs: int) -> None:
    broken = windows_python.Ran(1, "E  OSError: [WinError 1359] Internal error\n1 error in 1.00s", "")
    ran = [broken] * errors + [windows_python.Ran(0, "23 passed in 1.00s", "")]

    class Python:
        asked = 0

        def run(self, words: Sequence[str], limit_s: float) -> windows_python.Ran:
            self.asked += 1
            return ran[self.asked - 1]

    python = Python()
    assert check._run(python, ["-m", "pytest"], 60.0) == ran[runs - 1]
    assert python.asked == runs


class HalfWine:
    """In Wine's place: this machine's own Python, and what it was asked to do."""

    def __init__(self, folder: Path) -> None:
        self.prefix = folder
        self.restarts = 0

    def start(
        self, program: Path, arguments: Sequence[str], err: int, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(program), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=err,
            env={**environment, "WINEPREFIX": str(self.prefix)},
            start_new_session=True,
        )

    def restart(self) -> None:
        self.restarts += 1


@pytest.fixture
def half_wine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, HalfWine]:
    """A WindowsPython that starts programs of Linux."""
    monkeypatch.setattr(windows_python, "_ASLEEP_S", 0.5)
    monkeypatch.setattr(windows_python, "_LOOK_S", 0.05)
    monkeypatch.setattr(windows_python, "windows_path", str)
    wine = HalfWine(tmp_path)
    python = windows_python.WindowsPython.__new__(windows_python.WindowsPython)
    python._wine, python._program = wine, Path(sys.executable)
    return python, wine


BEGINS = "import os, sys, time; open(os.environ['AIPC_CHECK_BEGAN'], 'w').close(); "


def test_a_program_is_heard_to_its_end(half_wine: tuple[Any, HalfWine]) -> None:
    python, wine = half_wine
    code = BEGINS + "print('x' * 200_000); print('words', file=sys.stderr); sys.exit(3)"
    ran = python.run(["-c", code], 60)
    assert (ran.code, len(ran.stdout), ran.stderr, ran.why, ran.anew) == (3, 200_001, "words\n", "", 0)
    assert wine.restarts == 0


def test_who_holds_the_pipes_for_longer_is_not_waited_for(half_wine: tuple[Any, HalfWine]) -> None:
    python, _ = half_wine
    started = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]])"
    # Until the file is there, it holds the pipes that it has from its parent.
    let_go = python._wine.prefix / "let-go"
    holds = f"import os\nwhile not os.path.exists({str(let_go)!r}): pass"
    try:
        ran = python.run(["-c", BEGINS + started, holds], 60)
    finally:
        let_go.touch()
    assert ran.code == 0


def test_what_begins_and_sleeps_is_ended_and_not_started_again(half_wine: tuple[Any, HalfWine]) -> None:
    python, wine = half_wine
    ran = python.run(["-c", BEGINS + "print('so far', flush=True); time.sleep(600)"], 60)
    assert ran.code is None
    assert ran.why == "did nothing for 0.5 s"
    assert (ran.stdout, ran.anew, wine.restarts) == ("so far\n", 0, 1)


def test_what_never_begins_is_started_anew_and_then_given_up(half_wine: tuple[Any, HalfWine]) -> None:
    python, wine = half_wine
    ran = python.run(["-c", "import time; time.sleep(600)"], 60)
    assert ran.code is None
    assert ran.why.endswith("before its first line")
    assert (ran.anew, wine.restarts) == (2, 3)


def test_what_begins_at_the_second_try_counts(half_wine: tuple[Any, HalfWine], tmp_path: Path) -> None:
    python, _ = half_wine
    tried = tmp_path / "tried"
    code = (
        f"import os, time; os.path.exists({str(tried)!r}) or (open({str(tried)!r}, 'w'), time.sleep(600)); "
    )
    ran = python.run(["-c", code + BEGINS + "print('done')"], 60)
    assert (ran.code, ran.stdout, ran.anew) == (0, "done\n", 1)


def test_a_failure_that_is_no_hang_is_not_tried_again(half_wine: tuple[Any, HalfWine]) -> None:
    python, wine = half_wine
    ran = python.run(["-c", "import sys; sys.exit(1)"], 60)
    assert (ran.code, ran.anew, wine.restarts) == (1, 0, 0)


def test_what_works_without_end_is_ended_at_its_limit(half_wine: tuple[Any, HalfWine]) -> None:
    python, _ = half_wine
    ran = python.run(["-c", BEGINS + "\nwhile True: pass"], 2)
    assert (ran.code, ran.why) == (None, "took more than 2 s")


def test_sleep_counts_from_the_last_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter(
        [Pulse(True, 1), Pulse(False, 2), Pulse(False, 2), Pulse(False, 3), Pulse(False, 3), Pulse(True, 3)]
    )
    patience = Patience("A=b", tmp_path)
    monkeypatch.setattr(patience, "pulse", lambda: next(seen))
    assert [patience.asleep_s(now) for now in (10, 11, 13, 14, 18, 19)] == [0, 0, 2, 0, 4, 0]


def test_who_waits_in_the_server_is_not_asleep(tmp_path: Path) -> None:
    environment = {"WINEPREFIX": str(tmp_path)}
    words = [sys.executable, "-c", "print('up', flush=True)\nwhile True: pass"]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            server.stdout.readline()
            assert Patience("AIPC=none", tmp_path).pulse() == Pulse(True, 0)
        finally:
            server.kill()
    assert Patience("AIPC=none", tmp_path).pulse() == Pulse(False, 0)
