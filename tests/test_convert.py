"""A conversion ends with a whole folder or with nothing, and says what it decided."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections import namedtuple
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import aipc
from aipc.conversion import convert as conversion
from aipc.conversion.blob import Blob
from aipc.conversion.folder import STAGING_PREFIX, staged_folder
from aipc.conversion.openvino_ir import WEIGHTS_FILE
from aipc.errors import (
    AipcError,
    CheckpointError,
    SchemeError,
    StorageError,
    UnsupportedModelError,
    UsageError,
)
from aipc.manifest import Manifest
from aipc.text import Text
from aipc.types import Progress
from checkpoints import TINY, write_checkpoint, write_safetensors
from tokenizers_for_tests import write_llama_style

# Room for every id of the small tokenizer.
VOCAB = {"vocab_size": 704, "hidden_size": 128, "intermediate_size": 256}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    write_checkpoint(folder, TINY, tokenizer_from=write_llama_style(tmp_path / "tokenizer"), **VOCAB)
    return folder


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in {"checkpoint", "tokenizer"})


def test_the_folder_holds_all_that_a_runtime_needs(checkpoint: Path, tmp_path: Path) -> None:
    out = aipc.convert(checkpoint, tmp_path / "deep" / "out")
    assert out == tmp_path / "deep" / "out"
    assert {path.name for path in out.iterdir()} == {
        "aipc.json",
        "config.json",
        "generation_config.json",
        "openvino_detokenizer.bin",
        "openvino_detokenizer.xml",
        "openvino_model.bin",
        "openvino_model.xml",
        "openvino_tokenizer.bin",
        "openvino_tokenizer.xml",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    manifest = Manifest.read(out)
    assert manifest.recipe["weight_format"] == "int4"
    assert manifest.recipe["group_size"] == 128
    assert manifest.files[WEIGHTS_FILE].bytes == (out / WEIGHTS_FILE).stat().st_size


def test_every_stop_id_is_where_runtimes_look(checkpoint: Path, tmp_path: Path) -> None:
    """The checkpoint has no generation_config.json, and its template ends turns with another token."""
    out = aipc.convert(checkpoint, tmp_path / "out")
    written = json.loads((out / "generation_config.json").read_text(encoding="utf-8"))
    end_of_turn = Tokenizer.from_file(str(out / "tokenizer.json")).token_to_id("<|end|>")
    assert {2, end_of_turn} < set(written["eos_token_id"])
    assert set(written["eos_token_id"]) == Text.load(checkpoint).stop_ids


def test_progress_reaches_the_end_in_the_order_of_the_weights(checkpoint: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    aipc.convert(checkpoint, tmp_path / "out", progress=seen.append)
    assert [item.done_bytes for item in seen] == sorted(item.done_bytes for item in seen)
    assert (
        seen[-1].done_bytes
        == seen[-1].total_bytes
        == sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
        - header_bytes(checkpoint / "model.safetensors")
    )
    assert (seen[0].tensor, seen[-1].tensor) == ("model.embed_tokens.weight", "lm_head.weight")


def header_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def test_blocks_and_threads_give_the_same_bytes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: dict[str, Any] = {"sym": False, "group_size": 32, "ratio": 0.5}
    aipc.convert(checkpoint, tmp_path / "whole", **words)
    monkeypatch.setattr(conversion, "BLOCK_ELEMENTS", 1_000)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    aipc.convert(checkpoint, tmp_path / "blocks", **words)
    whole, blocks = ((tmp_path / name / WEIGHTS_FILE).read_bytes() for name in ("whole", "blocks"))
    assert whole == blocks


def test_a_ratio_mixes_int4_and_int8(checkpoint: Path, tmp_path: Path) -> None:
    out = aipc.convert(checkpoint, tmp_path / "out", ratio=0.6)
    int8_weights = Manifest.read(out).recipe["int8_weights"]
    assert 0 < len(int8_weights) < 8
    assert not {"model.embed_tokens.weight", "lm_head.weight"} & set(int8_weights)


def test_a_smaller_group_is_taken_and_said_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "checkpoint"
    write_checkpoint(folder, TINY, tokenizer_from=write_llama_style(tmp_path / "tokenizer"), vocab_size=704)
    with caplog.at_level(logging.WARNING, logger="aipc"):
        out = aipc.convert(folder, tmp_path / "out")
    (note,) = Manifest.read(out).recipe["notes"]
    assert "group size is 64" in note
    assert note in caplog.text


def test_a_group_that_was_asked_for_exactly_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    write_checkpoint(folder, TINY, tokenizer_from=write_llama_style(tmp_path / "tokenizer"))
    with pytest.raises(SchemeError, match="128"):
        aipc.convert(folder, tmp_path / "out", group_size=128)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"weight_format": "int3"}, "int4, int8, fp16"),
        ({"ratio": 1.5}, "at most 1"),
        ({"to": "coreml"}, "openvino"),
        ({"quant_method": "magic"}, "rtn, mse, gptq-random, gptq"),
    ],
)
def test_impossible_words_name_the_possible_ones(
    checkpoint: Path, tmp_path: Path, words: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UsageError, match=expected):
        aipc.convert(checkpoint, tmp_path / "out", **words)
    assert left_in(tmp_path) == []


def test_another_architecture_is_refused_by_name(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = ["LlamaForCausalLM"]
    (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match=r"LlamaForCausalLM.*Phi3ForCausalLM"):
        aipc.convert(checkpoint, tmp_path / "out")
    assert left_in(tmp_path) == []


def test_a_taken_folder_keeps_what_it_holds(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years", encoding="utf-8")
    with pytest.raises(StorageError, match="exists already"):
        aipc.convert(checkpoint, tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text(encoding="utf-8") == "years"


def test_an_empty_folder_is_filled(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert (aipc.convert(checkpoint, tmp_path / "out") / WEIGHTS_FILE).is_file()


def test_a_converted_folder_is_not_converted_again(checkpoint: Path, tmp_path: Path) -> None:
    out = aipc.convert(checkpoint, tmp_path / "out")
    with pytest.raises(UsageError, match="converted already"):
        aipc.convert(out, tmp_path / "again")


def test_too_full_a_disk_is_found_before_anything_is_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(StorageError, match="GB free"):
        aipc.convert(checkpoint, tmp_path / "out")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit, OSError(28, "No space left on device")])
def test_an_interrupted_conversion_leaves_nothing(
    checkpoint: Path, tmp_path: Path, exception: BaseException | type[BaseException]
) -> None:
    def interrupt(progress: Progress) -> None:
        assert any(path.name.startswith(STAGING_PREFIX) for path in tmp_path.iterdir())
        raise exception

    before = threading.active_count()
    with pytest.raises((KeyboardInterrupt, SystemExit, StorageError)):
        aipc.convert(checkpoint, tmp_path / "out", progress=interrupt)
    assert left_in(tmp_path) == []
    assert threading.active_count() == before


def test_damage_found_in_the_middle_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-2:] = b"\xc0\x7f"  # the last weight becomes a bfloat16 NaN
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        aipc.convert(checkpoint, tmp_path / "out")
    assert left_in(tmp_path) == []


def test_what_float16_cannot_hold_names_the_weight(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    weights = write_checkpoint(folder, TINY, tokenizer_from=write_llama_style(tmp_path / "tokenizer"))
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = 7e4
    write_safetensors(folder / "model.safetensors", weights, "BF16")
    with pytest.raises(SchemeError, match=r"model\.layers\.1\.mlp\.down_proj\.weight.*float16"):
        aipc.convert(folder, tmp_path / "out", weight_format="fp16")
    assert left_in(tmp_path) == []


def test_the_second_of_two_conversions_into_one_folder_loses_without_harm(tmp_path: Path) -> None:
    with pytest.raises(StorageError), staged_folder(tmp_path / "out", 0) as slow:
        (slow / "late").touch()
        with staged_folder(tmp_path / "out", 0) as quick:
            (quick / "early").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["early"]
    assert left_in(tmp_path) == ["out"]


def test_a_parent_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AipcError, match="file"), staged_folder(tmp_path / "file" / "out", 0):
        pass


def test_a_blob_refuses_what_was_not_reserved(tmp_path: Path) -> None:
    with closing(Blob(tmp_path / "blob")) as blob:
        first, second = blob.reserve(3), blob.reserve(4)
        assert (first, second) == (0, 64)
        blob.write(second, np.array([7], np.uint32))
        with pytest.raises(ValueError, match="reserved"):
            blob.write(second, np.zeros(2, np.uint32))
    assert (tmp_path / "blob").read_bytes() == bytes(64) + b"\x07\0\0\0"
