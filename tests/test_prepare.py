"""From a name to a folder: what is converted once is found again, and what cannot be kept is said."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from aipc import cache, prepare
from aipc.errors import CheckpointError, SchemeError, StorageError
from aipc.manifest import Manifest
from aipc.runtimes.base import ONNXRUNTIME, OPENVINO, Device
from checkpoints import TINY, write_checkpoint
from tokenizers_for_tests import write_llama_style

NPU = Device("NPU", "AI Boost", "NPU", "1.2.3")
CPU = Device("CPU", "Core", "CPU")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIPC_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    write_checkpoint(folder, TINY, tokenizer_from=write_llama_style(tmp_path / "tokenizer"), vocab_size=704)
    return folder


def ready(source: Path) -> prepare.ReadyModel:
    return prepare.ready_model(source, OPENVINO, CPU)


def test_a_checkpoint_is_converted_once(checkpoint: Path, own_cache: Path) -> None:
    seen: list[Any] = []
    first = prepare.ready_model(checkpoint, OPENVINO, CPU, seen.append)
    assert seen
    seen.clear()
    second = prepare.ready_model(checkpoint, OPENVINO, CPU, seen.append)
    assert seen == []
    assert first == second
    assert first.folder.is_relative_to(own_cache)
    assert (first.precision, first.context_length) == ("int4", 512)


def test_a_changed_checkpoint_is_converted_anew(checkpoint: Path) -> None:
    first = ready(checkpoint)
    write_checkpoint(checkpoint, TINY, seed=1, vocab_size=704)
    assert ready(checkpoint).folder != first.folder


def test_a_converted_folder_is_taken_as_it_is(checkpoint: Path, tmp_path: Path) -> None:
    out = prepare.convert(checkpoint, tmp_path / "mine", weight_format="fp16")
    mine = ready(out)
    assert (mine.folder, mine.precision) == (out, "fp16")
    assert cache.entries() == []


def test_each_runtime_and_target_has_a_folder_of_its_own(checkpoint: Path) -> None:
    cuda = Device("CUDA:0", "RTX 5070", "discrete GPU")
    openvino = ready(checkpoint)
    onnx = prepare.ready_model(checkpoint, ONNXRUNTIME, CPU)
    onnx_cuda = prepare.ready_model(checkpoint, ONNXRUNTIME, cuda)
    folders = {openvino.folder, onnx.folder, onnx_cuda.folder}
    assert len(folders) == 3
    assert {entry.folder for entry in cache.entries()} == folders
    assert (onnx.precision, onnx.context_length) == ("int4", 512)
    assert Manifest.read(onnx_cuda.folder).recipe["target"] == "cuda"
    assert prepare.ready_model(checkpoint, ONNXRUNTIME, CPU) == onnx


def test_a_weight_format_is_converted_or_must_be_what_is_there(checkpoint: Path, tmp_path: Path) -> None:
    int8 = prepare.ready_model(checkpoint, OPENVINO, CPU, weight_format="int8")
    assert int8.precision == "int8"
    assert int8.folder != ready(checkpoint).folder
    assert prepare.ready_model(int8.folder, OPENVINO, CPU, weight_format="int8").folder == int8.folder
    with pytest.raises(SchemeError, match="holds int8 weights, and fp16 is asked for"):
        prepare.ready_model(int8.folder, OPENVINO, CPU, weight_format="fp16")


def test_a_folder_of_both_formats_serves_both_runtimes(checkpoint: Path, tmp_path: Path) -> None:
    both = prepare.convert(checkpoint, tmp_path / "both", to="openvino,onnx")
    assert prepare.formats_of(both) == {"openvino", "onnxruntime"}
    assert ready(both).folder == both / "openvino"
    assert prepare.ready_model(both, ONNXRUNTIME, CPU).folder == both / "onnx"
    assert prepare.formats_of(both / "onnx") == {"onnxruntime"}
    assert prepare.formats_of(checkpoint) is None
    assert prepare.formats_of("phi-3-mini") is None


def test_a_folder_that_only_shares_its_name_with_an_alias_is_not_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "phi-3-mini").mkdir()
    monkeypatch.chdir(tmp_path)
    assert prepare.formats_of("phi-3-mini") is None


def test_a_folder_of_both_formats_is_found_by_its_bare_name(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare.convert(checkpoint, tmp_path / "both", to="openvino,onnx")
    monkeypatch.chdir(tmp_path)
    assert prepare.formats_of("both") == {"openvino", "onnxruntime"}
    assert prepare.ready_model("both", OPENVINO, CPU).folder == Path("both") / "openvino"


def test_a_folder_for_another_runtime_says_so(checkpoint: Path) -> None:
    with pytest.raises(SchemeError, match="for OpenVINO GenAI, not for ONNX Runtime") as caught:
        prepare.ready_model(ready(checkpoint).folder, ONNXRUNTIME, CPU)
    assert "--runtime openvino" in caught.value.hint


def test_microsofts_repositories_have_a_folder_for_each_device(tmp_path: Path) -> None:
    """As microsoft/Phi-3-mini-4k-instruct-onnx has them."""
    places = {
        "CPU": "cpu_and_mobile/cpu-int4-rtn-block-32-acc-level-4",
        "CUDA:0": "cuda/cuda-int4-rtn-block-32",
        "DML:0": "directml/directml-int4-awq-block-128",
    }
    for place in places.values():
        (tmp_path / "repo" / place).mkdir(parents=True)
        config = {"model": {"context_length": 4096}}
        (tmp_path / "repo" / place / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    for word, place in places.items():
        kind = "CPU" if word == "CPU" else "discrete GPU"
        model = prepare.ready_model(tmp_path / "repo", ONNXRUNTIME, Device(word, "a device", kind))
        assert model.folder == tmp_path / "repo" / place
        assert (model.context_length, model.precision) == (4096, "as converted")
    shutil.rmtree(tmp_path / "repo" / "directml")
    with pytest.raises(SchemeError, match=r"dml.*cpu_and_mobile"):
        prepare.ready_model(tmp_path / "repo", ONNXRUNTIME, Device("DML:0", "a device", "discrete GPU"))


def test_two_that_begin_at_once_share_what_one_finishes(checkpoint: Path) -> None:
    start = threading.Barrier(3)
    found: list[Path] = []

    def work() -> None:
        start.wait()
        found.append(ready(checkpoint).folder)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    assert [entry.folder for entry in cache.entries()] == [found[0]]
    assert cache.verify(found[0]) == []


def test_a_cache_that_cannot_be_written_names_the_way_out(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AIPC_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match="cannot be written") as caught:
        ready(checkpoint)
    assert "AIPC_CACHE_DIR" in caught.value.hint


def test_what_is_compiled_has_a_place_of_its_own(checkpoint: Path, own_cache: Path) -> None:
    model = ready(checkpoint)
    place = model.compiled_dir(NPU, OPENVINO)
    assert place is not None
    assert place.is_relative_to(own_cache)
    newer_driver = Device("NPU", "AI Boost", "NPU", "1.2.4")
    assert model.compiled_dir(newer_driver, OPENVINO) != place
    assert model.compiled_dir(CPU, OPENVINO) is None


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no file is unwritable here in this way")
def test_without_a_place_it_is_compiled_anew_each_time(
    checkpoint: Path, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = ready(checkpoint)
    (own_cache / "compiled").write_text("a file in the way", encoding="utf-8")
    with caplog.at_level(logging.WARNING, logger="aipc"):
        assert model.compiled_dir(NPU, OPENVINO) is None
    assert "compiled anew" in caplog.text


@pytest.mark.parametrize("length", [None, 0, True, "4096"])
def test_a_folder_without_a_context_length_is_refused(checkpoint: Path, length: object) -> None:
    folder = ready(checkpoint).folder
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = length
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match="context length"):
        _ = prepare.ReadyModel("copy", copy).context_length
