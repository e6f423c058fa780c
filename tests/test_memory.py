"""How long a context memory holds, and what is said where it is too short."""

from __future__ import annotations

from pathlib import Path

import pytest

from aipc import memory, prepare
from aipc.errors import DeviceError, UsageError
from aipc.memory import fitting_context
from aipc.runtimes.base import ONNXRUNTIME, OPENVINO, Device
from checkpoints import TINY, write_checkpoint
from tokenizers_for_tests import write_llama_style

CPU = Device("CPU", "a processor", "CPU")
# Phi-3.5-mini: 32 layers of 32 heads of 96 channels, keys and values.
NUMBERS = 2 * 32 * 32 * 96


def fit(context_length: int, *, asked: bool, kv_cache: str = "f16") -> int:
    return fitting_context(
        context_length, asked=asked, weights_bytes=2 * 10**9, kv_numbers=NUMBERS, kv_cache=kv_cache
    )


def test_a_context_too_long_is_refused_with_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: 10 * 10**9)
    with pytest.raises(DeviceError) as caught:
        fit(131_072, asked=True)
    for words in ("131072 tokens", "2.00 GB", "393 KB", "f16", "10.00 GB are free", "fits is 20345"):
        assert words in caught.value.message
    assert caught.value.hint == "--context-length 20345"
    assert fit(20_345, asked=True) == 20_345
    with pytest.raises(DeviceError):
        fit(20_346, asked=True)


def test_smaller_numbers_hold_a_longer_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: 10 * 10**9)
    lengths = [fit(131_072, asked=False, kv_cache=kind) for kind in ("f32", "f16", "bf16", "u8")]
    assert lengths == [10_172, 20_345, 20_345, 36_168]


def test_a_context_that_nobody_asked_for_is_made_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: 10 * 10**9)
    assert fit(131_072, asked=False) == 20_345
    assert fit(4096, asked=False) == 4096
    monkeypatch.setattr(memory, "free_bytes", lambda: 10**9)
    assert fit(131_072, asked=False) == 4096, "a program that swaps still answers"
    assert fit(512, asked=False) == 512
    with pytest.raises(DeviceError, match="fits is 0") as caught:
        fit(1, asked=True)
    assert "smaller model" in caught.value.hint


def test_where_nothing_says_how_much_is_free_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: None)
    assert fit(131_072, asked=True) == 131_072


def test_this_machine_has_memory() -> None:
    free = memory.free_bytes()
    assert free is None or 10**7 < free < 10**15


def test_a_models_own_limit_its_files_and_its_cache_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = write_llama_style(tmp_path / "tokenizer")
    write_checkpoint(tmp_path / "checkpoint", TINY, vocab_size=704, tokenizer_from=tokenizer)
    out = prepare.convert(tmp_path / "checkpoint", tmp_path / "out", to="openvino,onnx")
    ready = prepare.ready_model(out, OPENVINO, CPU)
    assert ready.fitting_context(CPU, OPENVINO, None, None) == 512
    for asked in (0, 513):
        with pytest.raises(UsageError, match="1 to 512"):
            ready.fitting_context(CPU, OPENVINO, asked, None)
    weights = sum(path.stat().st_size for path in ready.folder.rglob("*") if path.is_file())
    # Two layers of four heads of 16 channels, keys and values, in float16.
    monkeypatch.setattr(memory, "free_bytes", lambda: weights + 100 * 2 * 2 * 64 * 2)
    assert ready.fitting_context(CPU, OPENVINO, 100, "f16") == 100
    with pytest.raises(DeviceError, match="fits is 100"):
        ready.fitting_context(CPU, OPENVINO, 101, "f16")
    with pytest.raises(DeviceError, match="fits is 177"):
        ready.fitting_context(CPU, OPENVINO, 200, None)
    other = Device("CUDA:0", "a card", "discrete GPU")
    assert ready.fitting_context(other, ONNXRUNTIME, 500, None) == 500
