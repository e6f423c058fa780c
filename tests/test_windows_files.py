"""What Windows does with files that other systems do not: simulated here, and as it is under Windows."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

import aipc
from aipc import cache, demo, hub_download, windows_files
from aipc.conversion.checkpoint import Checkpoint
from aipc.conversion.folder import staged_folder
from aipc.errors import CheckpointError, StorageError
from aipc.manifest import FileRecord, Manifest, SourceRecord
from aipc.phi3 import read_json_object
from aipc.runtimes.openvino_factors import _link
from aipc.verification.onnx_matrices import _Tensor
from aipc.windows_files import is_device_name, move

DEVICES = [
    "NUL",
    "con",
    "aux.json",
    "nul.int4.bin",
    "CON .txt",
    "com1",
    "LPT9.safetensors",
    "conout$",
    "COM¹",
]
NAMES = ["null", "console.json", "com", "com10", "config.json", "a.nul", "auxiliary", "lpt", ".nul", ""]


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_is_known_by_its_name(name: str) -> None:
    assert is_device_name(name)


@pytest.mark.parametrize("name", NAMES)
def test_what_only_reminds_of_a_device_is_a_name(name: str) -> None:
    assert not is_device_name(name)


class Scanner:
    """Stands before Path.replace: another program has the file open at the first so many tries."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.times = times
        self.waits_s: list[float] = []
        self._replace = Path.replace
        monkeypatch.setattr(sys, "platform", "win32")
        monkeypatch.setattr(windows_files.time, "sleep", self.waits_s.append)
        # A bound method would not be given the path.
        monkeypatch.setattr(Path, "replace", lambda *paths: self.rename(*paths))  # noqa: PLW0108

    def rename(self, source: Path, target: Path) -> Path:
        self.times -= 1
        if self.times >= 0:
            raise PermissionError(13, "Access is denied", str(source))
        return self._replace(source, target)


def test_a_scanner_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").write_text("it", encoding="utf-8")
    scanner = Scanner(monkeypatch, times=3)
    move(tmp_path / "new", tmp_path / "file")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "it"
    assert scanner.waits_s == list(windows_files._WAITS_S[:3])


def test_a_program_that_keeps_a_file_open_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanner = Scanner(monkeypatch, times=1000)
    with (
        pytest.raises(StorageError, match=r"out cannot be written: Access is denied"),
        staged_folder(tmp_path / "out", 0),
    ):
        pass
    assert scanner.waits_s == list(windows_files._WAITS_S)
    assert not list(tmp_path.iterdir())


def test_elsewhere_nothing_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanner = Scanner(monkeypatch, times=1)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(PermissionError):
        move(tmp_path / "new", tmp_path / "file")
    assert scanner.waits_s == []


def test_a_path_that_is_too_long_for_windows_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    name = "openvino_tokenizer.xml".rjust(260, "x")
    with (
        pytest.raises(StorageError, match=rf"{name} would have a path of \d+ characters") as caught,
        staged_folder(tmp_path / "out", 0) as staging,
    ):
        raise FileNotFoundError(2, "The system cannot find the path specified", str(staging / name))
    assert "shorter path" in caught.value.hint


@pytest.mark.parametrize("name", ["con", "NUL", "aux.v2"])
def test_no_folder_of_the_cache_is_a_device(name: str) -> None:
    assert cache.file_word(name) == f"model-{name}"


def test_a_word_that_is_cut_ends_in_no_dot() -> None:
    assert cache.file_word("a" * 63 + ".b") == "a" * 63


def test_an_entry_is_found_by_the_path_that_windows_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIPC_CACHE_DIR", str(tmp_path))
    (tmp_path / "models" / "phi-3-mini" / "openvino-int4").mkdir(parents=True)
    assert [entry.name for entry in cache.select("phi-3-mini\\openvino-int4")] == ["phi-3-mini/openvino-int4"]


@pytest.mark.parametrize("name", ["con.safetensors", "NUL.safetensors"])
def test_no_shard_is_a_device(tmp_path: Path, name: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(f'{{"weight_map": {{"lm_head.weight": "{name}"}}}}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="not the plain name of a safetensors file"):
        Checkpoint.open(tmp_path)


def test_no_listed_file_is_a_device(tmp_path: Path) -> None:
    manifest = Manifest(
        SourceRecord("demo", None, "0" * 64), {}, "openvino", {"sub/nul.bin": FileRecord(1, "0" * 64)}, "1"
    )
    manifest.write(tmp_path)
    with pytest.raises(CheckpointError, match="no path inside the folder"):
        Manifest.read(tmp_path)


def test_no_tensor_lies_in_a_device(tmp_path: Path) -> None:
    tensor = onnx.TensorProto(name="w", data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="con.data")
    with pytest.raises(CheckpointError, match="outside of the folder"):
        _Tensor.of(tensor, tmp_path)


@pytest.mark.parametrize(
    ("name", "plain"), [("onnx/con.json", False), ("aux/a.json", False), ("a.json", True)]
)
def test_no_device_is_downloaded(name: str, *, plain: bool) -> None:
    assert hub_download._is_plain(SimpleNamespace(rfilename=name)) is plain


def refuse_link(self: Path, *_: Any) -> None:
    raise OSError(1314, "a required privilege is not held by the client")


def pretend_link(self: Path, *_: Any) -> None:
    """As Wine does with symbolic links."""


@pytest.mark.parametrize("symbolic", [refuse_link, pretend_link])
@pytest.mark.parametrize("hard", [refuse_link, Path.hardlink_to])
def test_a_file_gets_its_second_name_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, symbolic: Any, hard: Any
) -> None:
    monkeypatch.setattr(Path, "symlink_to", symbolic)
    monkeypatch.setattr(Path, "hardlink_to", hard)
    (tmp_path / "weights.bin").write_bytes(b"weights")
    _link(tmp_path / "weights.bin", tmp_path / "second.bin")
    assert (tmp_path / "second.bin").read_bytes() == b"weights"


def test_a_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"hidden_size": 64}')
    assert read_json_object(tmp_path / "config.json") == {"hidden_size": 64}


def test_lines_of_a_converted_folder_end_alike_on_every_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_open = io.open

    def open_as_windows(  # noqa: PLR0917 - io.open's own
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        **others: Any,
    ) -> Any:
        if newline is None and "w" in mode and "b" not in mode:
            newline = "\r\n"
        return plain_open(file, mode, buffering, encoding, errors, newline, **others)

    monkeypatch.setattr(io, "open", open_as_windows)
    (tmp_path / "control").write_text("\n", encoding="utf-8")
    assert (tmp_path / "control").read_bytes() == b"\r\n"
    for word in ("openvino", "onnx"):
        folder = aipc.convert(demo.path(), tmp_path / word, to=word)
        # OpenVINO's own serialiser writes the lines of its descriptions.
        texts = [path for path in folder.iterdir() if path.suffix in {".json", ".jinja"}]
        assert len(texts) >= 5
        assert [path.name for path in texts if b"\r" in path.read_bytes()] == []
