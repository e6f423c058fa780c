"""The check with Windows' Python, as far as it goes without Wine: what it unpacks, and what it compares."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the check runs Windows programs on Linux")

TOOL = Path(__file__).parents[1] / "tools" / "windows_check"
sys.path.insert(0, str(TOOL))

if os.name != "nt":
    import windows_python

    from windows import NotHereError


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
        windows_python._unpack(made, python)
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


def test_every_package_has_one_version_and_a_hash() -> None:
    lines = windows_python.PACKAGES.read_text(encoding="utf-8").splitlines()
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
