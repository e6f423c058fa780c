"""The folder on disk is the contract: ours works without aipc, and aipc works on those of others."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai
import pytest

import aipc
from aipc.conversion.openvino_ir import MODEL_FILE
from aipc.errors import CheckpointError
from aipc.runtimes.base import ONNXRUNTIME, OPENVINO, RuntimeInfo
from aipc.types import Message, Sampling
from checkpoints import TINY, write_checkpoint
from golden import CASES, load_golden
from tokenizers_for_tests import write_llama_style

# A tiny random model (tests/checkpoints.py, seed 0, F16, 704 tokens, window 128), exported by
# optimum-cli export openvino --task text-generation-with-past --weight-format int4 --group-size 64
# --ratio 1.0 --sym, with optimum-intel 2.2.0, transformers 5.5.4 and nncf 3.4.0.
OPTIMUM_FOLDER = Path(__file__).parent / "data" / "optimum-int4.zip"
OPTIMUM_SHAPE = {"vocab_size": 704, "sliding_window": 128}

FLOAT32 = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama_style(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def by_aipc(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    """The checkpoint behind OPTIMUM_FOLDER, converted here by the same words."""
    folder = tmp_path_factory.mktemp("by-aipc")
    write_checkpoint(folder / "checkpoint", TINY, dtype="F16", tokenizer_from=tokenizer, **OPTIMUM_SHAPE)
    return aipc.convert(folder / "checkpoint", folder / "out", group_size=64, quant_method="rtn")


@pytest.fixture(scope="module")
def by_optimum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("by-optimum")
    with zipfile.ZipFile(OPTIMUM_FOLDER) as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_exact_gives_the_tokens_of_transformers(tmp_path: Path, tokenizer: Path, case: str) -> None:
    golden = load_golden(case)
    golden.write_checkpoint(tmp_path / "checkpoint", tokenizer_from=tokenizer)
    out = aipc.convert(tmp_path / "checkpoint", tmp_path / "out", weight_format="fp16")
    with aipc.load(out, device="CPU", exact=True) as model:
        answer = model.session.generate(golden.prompt, Sampling(max_new_tokens=len(golden.tokens)))
        assert tuple(answer) == golden.tokens


def test_plain_genai_runs_our_folder_with_its_text(by_aipc: Path) -> None:
    """No help from aipc: tokenizer, chat template, model and detokenizer are all in the folder."""
    pipeline = genai.LLMPipeline(str(by_aipc), "CPU", **FLOAT32)
    config = genai.GenerationConfig(max_new_tokens=16, do_sample=False)
    answer = pipeline.generate("What is an NPU?", config)
    with aipc.load(by_aipc, device="CPU", exact=True) as model:
        ours = model.generate("What is an NPU?", max_new_tokens=16)
        assert ours.stats.generated_tokens > 1
        assert ours.text == answer
        assert list(
            pipeline.get_tokenizer().encode("What is an NPU?").input_ids.data[0]
        ) == model.text.encode("What is an NPU?")


def test_a_folder_of_optimum_gives_the_same_answer(by_aipc: Path, by_optimum: Path) -> None:
    answers = []
    for folder in (by_aipc, by_optimum):
        with aipc.load(folder, device="CPU", exact=True) as model:
            answers.append(model.generate([Message("user", "What is an NPU?")], max_new_tokens=24).token_ids)
            assert model.precision == "int4, exact"
    assert answers[0] == answers[1]


def test_the_weights_are_those_of_optimum_bit_for_bit(by_aipc: Path, by_optimum: Path) -> None:
    ours, theirs = stored_weights(by_aipc), stored_weights(by_optimum)
    assert len(ours) == len(theirs) == 2 * 8 + 2 * 3, "codes and scales, and zero points of two matrices"
    assert ours == theirs


def stored_weights(folder: Path) -> list[tuple[str, tuple[int, ...], bytes]]:
    """Type, shape and bytes of every tensor that holds codes, scales or zero points."""
    found = []
    for node in ov.Core().read_model(folder / MODEL_FILE).get_ops():
        if node.get_type_name() != "Constant":
            continue
        kind, shape = node.get_output_element_type(0).get_type_name(), tuple(node.get_output_shape(0))
        if kind in {"i4", "u8", "f16"} and np.prod(shape) >= 64:
            found.append((kind, shape, node.get_tensor_view().data.tobytes()))
    return sorted(found)


def test_a_hub_folder_without_tokenizer_json_says_what_is_missing(by_optimum: Path, tmp_path: Path) -> None:
    for path in by_optimum.iterdir():
        if path.name != "tokenizer.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        aipc.load(tmp_path, device="CPU")


def test_the_config_of_the_checkpoint_travels(by_aipc: Path) -> None:
    assert json.loads((by_aipc / "config.json").read_text(encoding="utf-8"))["vocab_size"] == 704


@pytest.mark.parametrize(
    ("options", "taken", "why"),
    [
        ({"kv_cache": "u8"}, OPENVINO, "CPU with ONNX Runtime is passed over: its KV cache is f32, not u8"),
        ({"kv_cache": "f32"}, ONNXRUNTIME, "ONNX Runtime is taken: on a CPU it decodes faster"),
    ],
)
def test_an_option_that_one_runtime_has_takes_that_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], taken: RuntimeInfo, why: str
) -> None:
    monkeypatch.setenv("AIPC_CACHE_DIR", str(tmp_path))
    with aipc.load("demo", device="CPU", **options) as model:
        assert model.candidate is not None
        assert model.candidate.runtime is taken
        assert any(note.startswith(why) for note in model.notes)
        assert model.generate("What is an NPU?", max_new_tokens=3).finish_reason == "length"
