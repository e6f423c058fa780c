"""Blobs made on one machine and taken on another: OpenVINO's NPU pipeline, with a CPU in the NPU's place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from aipc import npu_compile
from aipc.cache import verify
from aipc.compiled import Blob, bucket, find
from aipc.conversion.openvino_ir import MODEL_FILE, WEIGHTS_FILE
from aipc.errors import CheckpointError, DeviceError, UnsupportedModelError, UsageError
from aipc.npu_compile import compile_ahead
from aipc.runtimes import openvino, openvino_compile
from aipc.runtimes.base import Device
from aipc.runtimes.openvino import available_devices, compile_for_npu
from aipc.runtimes.openvino_compile import Options
from checkpoints import GQA
from sessions import GREEDY, RandomModel, ids

PROPERTIES = {"NPUW_DEVICES": "CPU", "NPUW_ONLINE_PIPELINE": "NONE", "INFERENCE_PRECISION_HINT": "f32"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RandomModel:
    model = RandomModel("openvino", tmp_path_factory.mktemp("ahead"), GQA, weight_format="fp16")
    compile_for_npu(model.folder, "CPU", PROPERTIES, 1024, 1024)
    return model


def tokens_and_notes(model: RandomModel, folder: Path) -> tuple[list[int], tuple[str, ...]]:
    session = model.open("NPU", folder, properties=PROPERTIES)
    answer = list(session.generate(ids(30), GREEDY))
    session.close()
    return answer, session.notes


def test_a_blob_is_taken_and_gives_the_references_tokens(model: RandomModel, tmp_path: Path) -> None:
    # Somewhere else, as on another machine.
    folder = tmp_path / "copied"
    shutil.copytree(model.folder, folder)
    tokens, notes = tokens_and_notes(model, folder)
    assert tokens == list(model.reference.generate(ids(30), GREEDY))
    assert notes == ("CPU-1024-1024.blob is taken, which was compiled ahead",)


def edit(folder: Path, **fields: object) -> None:
    path = folder / "npu" / "CPU-1024-1024.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def change_a_weight(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS_FILE).read_bytes())
    data[100] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(data)


def replace_the_blob(folder: Path) -> None:
    blob = folder / "npu" / "CPU-1024-1024.blob"
    blob.write_bytes(b"\0" * blob.stat().st_size)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: edit(folder, openvino="2026.3.0"), "by OpenVINO 2026.3.0"),
        (lambda folder: edit(folder, driver="3104"), "by the driver 3104, and this is None"),
        (lambda folder: edit(folder, platform="4000"), "was compiled as 4000-1024-1024.blob"),
        (lambda folder: edit(folder, bytes=-1), "instead of -1"),
        (lambda folder: edit(folder, bytes="many"), "bytes is 'many'"),
        (lambda folder: edit(folder, platform="../../x"), "was compiled as x-1024-1024.blob"),
        (lambda folder: halve(folder / "npu" / "CPU-1024-1024.blob"), "bytes instead of"),
        (lambda folder: halve(folder / "npu" / "CPU-1024-1024.json"), "CPU-1024-1024.json"),
        (lambda folder: (folder / "npu" / "CPU-1024-1024.json").unlink(), "is missing"),
        (change_a_weight, "other weights"),
    ],
)
def test_a_blob_that_does_not_fit_is_passed_over(
    model: RandomModel, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    folder = tmp_path / "copied"
    shutil.copytree(model.folder, folder)
    here = Blob.read(folder / "npu" / "CPU-1024-1024.json").openvino
    assert find(folder, "CPU", 1024, 1024, openvino=here, driver=None)[1] == ""
    damage(folder)
    blob, why_not = find(folder, "CPU", 1024, 1024, openvino=here, driver=None)
    assert blob is None
    assert words in why_not


def test_a_blob_for_another_npu_or_length_is_named(model: RandomModel) -> None:
    for platform, prompt_tokens in (("4000", 1024), ("CPU", 2048)):
        blob, why_not = find(model.folder, platform, prompt_tokens, 1024, openvino="", driver=None)
        assert blob is None
        assert why_not == f"this needs {platform}-{prompt_tokens}-1024, and there is CPU-1024-1024"


def test_nothing_compiled_ahead_is_no_news(tmp_path: Path) -> None:
    assert find(tmp_path, "4000", 1024, 1024, openvino="", driver=None) == (None, "")


def test_what_openvino_refuses_to_import_is_compiled(model: RandomModel, tmp_path: Path) -> None:
    folder = tmp_path / "copied"
    shutil.copytree(model.folder, folder)
    replace_the_blob(folder)
    tokens, (note,) = tokens_and_notes(model, folder)
    assert tokens == list(model.reference.generate(ids(30), GREEDY))
    assert "not taken: CPU-1024-1024.blob: " in note
    assert note.endswith("it is compiled now")


def test_a_model_that_cannot_be_compiled_leaves_the_last_blob(model: RandomModel, tmp_path: Path) -> None:
    folder = tmp_path / "copied"
    shutil.copytree(model.folder, folder)
    before = {path.name: path.read_bytes() for path in (folder / "npu").iterdir()}
    halve(folder / WEIGHTS_FILE)
    with pytest.raises(CheckpointError, match="damaged"):
        compile_for_npu(folder, "CPU", PROPERTIES, 1024, 1024)
    assert {path.name: path.read_bytes() for path in (folder / "npu").iterdir()} == before


def test_the_digest_is_that_of_the_manifest_or_of_the_files(tmp_path: Path) -> None:
    from aipc import convert
    from aipc.compiled import model_digest

    folder = convert("demo", tmp_path / "demo")
    with_manifest = model_digest(folder)
    (folder / "npu").mkdir()
    (folder / "npu" / "4000-1024-1024.blob").write_bytes(b"x")
    assert verify(folder) == []
    (folder / "aipc.json").unlink()
    assert model_digest(folder) == with_manifest
    halve(folder / MODEL_FILE)
    assert model_digest(folder) != with_manifest


@pytest.mark.skipif(os.name == "nt", reason="OpenVINO for Windows carries the compiler")
def test_a_drivers_compiler_is_taken_for_its_own_npu_only(
    model: RandomModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "available_devices", lambda: [Device("NPU", "NPU", "NPU")])
    compiler = openvino.npu_compiler("4000")
    assert compiler == {"NPU_COMPILER_TYPE": "DRIVER"}
    monkeypatch.setattr(openvino_compile, "npu_here", lambda: ("3720", "3104"))
    with pytest.raises(DeviceError, match="for the NPU 3720, not for 4000"):
        openvino_compile.compile_folder(Options(str(model.folder), "4000", "x.blob", compiler))


@pytest.mark.skipif(os.name == "nt", reason="OpenVINO for Windows carries the compiler")
@pytest.mark.skipif(len(available_devices()) > 1, reason="has more devices than a CPU")
def test_without_a_compiler_nothing_is_fetched() -> None:
    with pytest.raises(DeviceError, match="no compiler for NPUs") as caught:
        compile_ahead("no/such-model", "4000")
    assert "Windows" in caught.value.hint


def test_the_command_compiles_what_the_cache_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIPC_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(openvino, "npu_compiler", lambda platform: PROPERTIES)
    blob = compile_ahead("demo", "4000", prompt_tokens=1100)
    assert blob.name == "4000-2048-1024.blob"
    record = Blob.read(blob.with_suffix(".json"))
    assert (record.platform, record.prompt_tokens, record.bytes) == ("4000", 2048, blob.stat().st_size)
    assert {path.name for path in blob.parent.iterdir()} == {blob.name, "4000-2048-1024.json"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"platform": "9999"}, "possible are 3720"),
        ({"platform": "4000", "prompt_tokens": 0}, "one token or more"),
        ({"platform": "4000", "prompt_tokens": 5000}, "takes 2048 tokens"),
    ],
)
def test_words_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: dict[str, object], message: str
) -> None:
    monkeypatch.setenv("AIPC_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(openvino, "npu_compiler", lambda platform: PROPERTIES)
    with pytest.raises(UsageError, match=message):
        npu_compile.compile_ahead("demo", **words)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tokens", "compiled_for"), [(1, 1024), (1024, 1024), (1025, 2048), (2048, 2048), (4097, 8192)]
)
def test_buckets(tokens: int, compiled_for: int) -> None:
    assert bucket(tokens) == compiled_for


def test_longrope_is_not_compiled_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "npu_compiler", lambda platform: PROPERTIES)
    ready = SimpleNamespace(folder=tmp_path, rope_border=4096)
    monkeypatch.setattr(npu_compile.prepare, "ready_model", lambda *_, **__: ready)
    with pytest.raises(UnsupportedModelError, match="LongRoPE"):
        compile_ahead("phi-3.5-mini", "4000")
    assert list(tmp_path.iterdir()) == []
