"""Blobs made on one machine and taken on another: OpenVINO's NPU pipeline, with a CPU in the NPU's place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aipc import npu_compile
from aipc.cache import verify
from aipc.cli import main
from aipc.compiled import Blob, Build, Factors, bucket, builds, find, model_digest
from aipc.conversion.openvino_ir import MODEL_FILE, WEIGHTS_FILE
from aipc.errors import CheckpointError, DeviceError, StorageError, UsageError
from aipc.npu_compile import compile_ahead
from aipc.runtimes import openvino, openvino_compile, openvino_engine
from aipc.runtimes.base import Device
from aipc.runtimes.engine import Request
from aipc.runtimes.openvino import available_devices, compile_for_npu
from aipc.runtimes.openvino_compile import Options as CompilerOptions
from aipc.runtimes.openvino_engine import NPUPipelines, Options, SerialEngine
from aipc.types import Sampling
from checkpoints import GQA, LONGROPE
from sessions import GREEDY, RandomModel, Script, ids

PROPERTIES = {"NPUW_DEVICES": "CPU", "NPUW_ONLINE_PIPELINE": "NONE", "INFERENCE_PRECISION_HINT": "f32"}
BUILD = Build("CPU", 1024, 1024, None)
BORDER = LONGROPE["original_max_position_embeddings"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RandomModel:
    model = RandomModel("openvino", tmp_path_factory.mktemp("ahead"), GQA, weight_format="fp16")
    compile_for_npu(model.folder, BUILD, PROPERTIES)
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
    assert find(folder, BUILD, openvino=here, driver=None)[1] == ""
    damage(folder)
    blob, why_not = find(folder, BUILD, openvino=here, driver=None)
    assert blob is None
    assert words in why_not


@pytest.mark.parametrize("change", [{"platform": "4000"}, {"prompt_tokens": 2048}, {"factors": "short"}])
def test_a_blob_for_another_npu_length_or_factors_is_named(
    model: RandomModel, change: dict[str, Any]
) -> None:
    needed = replace(BUILD, **change)
    blob, why_not = find(model.folder, needed, openvino="", driver=None)
    assert blob is None
    assert why_not == f"this needs {needed.name}, and there is CPU-1024-1024"


def test_nothing_compiled_ahead_is_no_news(tmp_path: Path) -> None:
    assert find(tmp_path, BUILD, openvino="", driver=None) == (None, "")


def test_the_shortest_blob_that_takes_the_prompts_is_found(tmp_path: Path) -> None:
    for name in (MODEL_FILE, WEIGHTS_FILE):
        (tmp_path / name).write_bytes(b"x")
    digest = model_digest(tmp_path)
    (tmp_path / "npu").mkdir()
    for tokens, factors in ((2048, "short"), (4096, "short"), (16384, "short"), (1024, "long")):
        build = Build("4000", tokens, 1024, factors)  # type: ignore[arg-type]
        build.path(tmp_path).write_bytes(b"blob")
        # The one for 2048 was compiled from another model.
        model = "" if tokens == 2048 else digest
        Blob(**asdict(build), openvino="2026", driver=None, model=model, bytes=4).write(tmp_path)
    (tmp_path / "npu" / "4000-01024-1024-short.blob").write_bytes(b"blob")

    def found(tokens: int, factors: Factors | None) -> Blob | None:
        return find(tmp_path, Build("4000", tokens, 1024, factors), openvino="2026", driver=None)[0]

    for tokens in (1024, 2048, 4096):
        blob = found(tokens, "short")
        assert blob is not None
        assert (blob.prompt_tokens, blob.factors) == (4096, "short")
    assert found(2048, "long") is None
    assert found(1024, None) is None


def test_a_blob_for_longer_prompts_gives_the_references_tokens(model: RandomModel, tmp_path: Path) -> None:
    folder = tmp_path / "copied"
    shutil.copytree(model.folder, folder, ignore=shutil.ignore_patterns("npu"))
    compile_for_npu(folder, replace(BUILD, prompt_tokens=2048), PROPERTIES)
    tokens, notes = tokens_and_notes(model, folder)
    assert tokens == list(model.reference.generate(ids(30), GREEDY))
    assert notes == ("CPU-2048-1024.blob is taken, which was compiled ahead",)


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
        compile_for_npu(folder, BUILD, PROPERTIES)
    assert {path.name: path.read_bytes() for path in (folder / "npu").iterdir()} == before


def test_the_digest_is_that_of_the_manifest_or_of_the_files(tmp_path: Path) -> None:
    from aipc import convert

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
        openvino_compile.compile_folder(
            CompilerOptions(str(model.folder), "4000", MODEL_FILE, "x.blob", compiler)
        )


@pytest.mark.skipif(os.name == "nt", reason="OpenVINO for Windows carries the compiler")
@pytest.mark.skipif(len(available_devices()) > 1, reason="has more devices than a CPU")
def test_without_a_compiler_nothing_is_fetched() -> None:
    with pytest.raises(DeviceError, match="no compiler for NPUs") as caught:
        compile_ahead("no/such-model", "4000")
    assert "Windows" in caught.value.hint


def test_the_command_compiles_what_the_cache_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIPC_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(openvino, "npu_compiler", lambda platform: PROPERTIES)
    (blob,) = compile_ahead("demo", "4000", prompt_tokens=1100)
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


@pytest.mark.parametrize(
    ("prompt_tokens", "border", "names"),
    [
        (1024, None, ["4000-1024-1024"]),
        (1024, 4096, ["4000-1024-1024-short"]),
        (3072, 4096, ["4000-4096-1024-short"]),
        (3074, 4096, ["4000-4096-1024-short", "4000-4096-1024-long"]),
        (8000, 4096, ["4000-4096-1024-short", "4000-8192-1024-long"]),
    ],
)
def test_longropes_two_sets_are_compiled_where_prompts_and_answers_need_both(
    prompt_tokens: int, border: int | None, names: list[str]
) -> None:
    assert [build.name for build in builds("4000", prompt_tokens, border)] == names


@pytest.fixture(scope="module")
def longrope(tmp_path_factory: pytest.TempPathFactory) -> RandomModel:
    return RandomModel("openvino", tmp_path_factory.mktemp("longrope"), LONGROPE, weight_format="fp16")


@pytest.fixture(scope="module")
def both_sets(longrope: RandomModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled in one place and copied to another; where the weights are, so is what was compiled."""
    folder = tmp_path_factory.mktemp("made") / "model"
    shutil.copytree(longrope.folder, folder)
    for build in builds("CPU", 1024, longrope.config.rope_border):
        compile_for_npu(folder, build, PROPERTIES)
    names = {path.name for path in (folder / "npu").iterdir()}
    assert names == {f"CPU-1024-1024-{name}" for name in SHORT_AND_LONG}
    return Path(shutil.copytree(folder, tmp_path_factory.mktemp("copied") / "model"))


SHORT_AND_LONG = ("short.blob", "short.json", "long.blob", "long.json")


def chat_across_the_border(longrope: RandomModel, folder: Path) -> list[str]:
    """What the engine noted while its answers to a growing text were those of the reference."""
    engine = openvino_engine.load(Options(str(folder), "NPU", False, PROPERTIES, None, BORDER))
    assert isinstance(engine, SerialEngine)
    sampling = Sampling(max_new_tokens=12)
    texts = [ids(length) for length in (20, 53, 54, 90)] + [ids(9, seed=1)]
    script = Script(*(Request(number, text, sampling) for number, text in enumerate(texts, 1)))
    script.run(engine)
    assert script.errors == {}
    for number, text in enumerate(texts, 1):
        assert script.ids[number] == list(longrope.reference.generate(text, sampling))
    pipelines = engine._pipeline_for
    assert isinstance(pipelines, NPUPipelines)
    return pipelines.notes


def test_each_of_longropes_sets_is_taken_on_its_side_of_the_border(
    longrope: RandomModel, both_sets: Path
) -> None:
    short, long = (
        f"CPU-1024-1024-{word}.blob is taken, which was compiled ahead" for word in ("short", "long")
    )
    assert chat_across_the_border(longrope, both_sets) == [short, long, short]


def test_a_set_that_was_not_compiled_ahead_is_compiled_when_the_border_is_crossed(
    longrope: RandomModel, both_sets: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(both_sets, tmp_path / "model"))
    (folder / "npu" / "CPU-1024-1024-long.blob").unlink()
    _, note, _ = chat_across_the_border(longrope, folder)
    assert "this needs CPU-1024-1024-long, and there is CPU-1024-1024-short; it is compiled now" in note


def test_one_set_is_not_taken_for_the_other(longrope: RandomModel, both_sets: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(both_sets, tmp_path / "model"))
    for kind in ("blob", "json"):
        (folder / "npu" / f"CPU-1024-1024-long.{kind}").replace(
            folder / "npu" / f"CPU-1024-1024-short.{kind}"
        )
    first, *_ = chat_across_the_border(longrope, folder)
    assert "CPU-1024-1024-short.blob was compiled as CPU-1024-1024-long.blob" in first


def compiling(monkeypatch: pytest.MonkeyPatch, folder: Path, border: int) -> list[str]:
    """What `compile_ahead` asks of OpenVINO for a folder, from now on."""
    asked: list[str] = []
    ready = SimpleNamespace(folder=folder, rope_border=border, context_length=131_072)
    monkeypatch.setattr(npu_compile.prepare, "ready_model", lambda *_, **__: ready)
    monkeypatch.setattr(openvino, "npu_compiler", lambda _: PROPERTIES)

    def compile_for_npu(folder: Path, build: Build, _compiler: Mapping[str, str]) -> Path:
        asked.append(build.name)
        return build.path(folder)

    monkeypatch.setattr(openvino, "compile_for_npu", compile_for_npu)
    return asked


def test_two_blobs_are_announced_and_need_twice_the_space(
    longrope: RandomModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = compiling(monkeypatch, longrope.folder, 4096)
    assert [path.name for path in compile_ahead("phi-3.5-mini", "4000")] == ["4000-1024-1024-short.blob"]
    assert caplog.messages == []
    compile_ahead("phi-3.5-mini", "4000", prompt_tokens=6000)
    assert asked[1:] == ["4000-4096-1024-short", "4000-8192-1024-long"]
    assert "beyond 4096 tokens of prompt and answer" in caplog.messages[0]

    room = (longrope.folder / WEIGHTS_FILE).stat().st_size * 3 // 2
    monkeypatch.setattr(npu_compile.shutil, "disk_usage", lambda _: SimpleNamespace(free=room))
    compile_ahead("phi-3.5-mini", "4000")
    with pytest.raises(StorageError, match="free"):
        compile_ahead("phi-3.5-mini", "4000", prompt_tokens=6000)


def test_the_command_names_each_blob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blobs = [build.path(tmp_path / "model") for build in builds("4000", 4096, 4096)]
    blobs[0].parent.mkdir(parents=True)
    for blob in blobs:
        blob.write_bytes(bytes(1000))
    monkeypatch.setattr(npu_compile, "compile_ahead", lambda *_, **__: tuple(blobs))
    assert main(["compile", "phi-3.5-mini", "--npu", "4000", "--prompt-tokens", "4096"]) == 0
    said = capsys.readouterr()
    assert said.out == "".join(f"{blob}\n" for blob in blobs)
    assert "[2 kB" in said.err
    assert f"aipc run {tmp_path / 'model'} --device NPU" in said.err


def test_a_folder_by_others_is_compiled_as_it_is_up_to_the_border(
    longrope: RandomModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(longrope.folder, tmp_path / "foreign"))
    path = folder / MODEL_FILE
    path.write_text(path.read_text(encoding="utf-8").replace("rope/", "other/"), encoding="utf-8")
    asked = compiling(monkeypatch, folder, 4096)
    compile_ahead("foreign", "4000", prompt_tokens=4000)
    assert asked == ["4000-4096-1024"]
    with pytest.raises(UsageError, match="takes 4096 tokens") as caught:
        compile_ahead("foreign", "4000", prompt_tokens=4097)
    assert "convert its checkpoint" in caught.value.hint
