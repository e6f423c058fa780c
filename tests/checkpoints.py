"""Small random Phi-3 checkpoints, written with numpy alone, exactly as Hugging Face lays them out.

    weights = write_checkpoint(tmp_path, GQA, dtype="F16", shards=2, sliding_window=8)

writes config.json and safetensors, and returns the numbers that a reader must find in them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aipc.phi3 import Phi3Config, Role, WeightSpec

TINY: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    "model_type": "phi3",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "original_max_position_embeddings": 512,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 320,
}
"""The content of config.json: two layers, four heads of 16 channels, 0.1 M parameters."""

GQA = TINY | {"num_key_value_heads": 2}
TIED = TINY | {"tie_word_embeddings": True}
WINDOW = TINY | {"sliding_window": 8}
PARTIAL = TINY | {"partial_rotary_factor": 0.5}

LONGROPE = TINY | {
    "original_max_position_embeddings": 64,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0, 1.02, 1.05, 1.1, 1.16, 1.3, 1.8, 2.6],
        "long_factor": [1.08, 1.34, 1.6, 3.2, 9.1, 28.6, 57.9, 64.8],
    },
}
"""Two sets of factors, which change after 64 tokens."""

PRESETS = {"tiny": TINY, "gqa": GQA, "tied": TIED, "window": WINDOW, "partial": PARTIAL, "longrope": LONGROPE}

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
)
_TORCH_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def write_checkpoint(
    folder: Path,
    config: Mapping[str, Any] = TINY,
    *,
    dtype: str = "BF16",
    shards: int = 1,
    seed: int = 0,
    tokenizer_from: Path | None = None,
    **overrides: Any,
) -> dict[str, np.ndarray]:
    """Write a random checkpoint and return its weights, float32, exactly as they were written.

    config           the content of config.json, such as a preset of this module
    dtype            "BF16", "F16" or "F32"
    shards           files to spread the weights over; 1 means model.safetensors without an index
    tokenizer_from   a folder whose tokenizer files are copied too
    overrides        keys of config.json that differ from `config`
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = dict(config) | {"torch_dtype": _TORCH_DTYPES[dtype]} | overrides
    (folder / "config.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    weights = random_weights(Phi3Config.parse(content), dtype, seed)
    if shards == 1:
        write_safetensors(folder / SINGLE_FILE, weights, dtype)
    else:
        _write_shards(folder, weights, dtype, shards)
    for name in _TOKENIZER_FILES:
        if tokenizer_from is not None and (tokenizer_from / name).is_file():
            shutil.copyfile(tokenizer_from / name, folder / name)
    return weights


def random_weights(config: Phi3Config, dtype: str = "BF16", seed: int = 0) -> dict[str, np.ndarray]:
    """Float32 weights that `dtype` holds exactly, scaled like those of an initialised model."""
    rng = np.random.default_rng(seed)
    return {spec.name: _rounded(_draw(rng, spec), dtype) for spec in config.weights()}


def _draw(rng: np.random.Generator, spec: WeightSpec) -> np.ndarray:
    mean = 1.0 if spec.role is Role.NORM else 0.0
    return (mean + 0.05 * rng.standard_normal(spec.shape)).astype(np.float32)


def _write_shards(folder: Path, weights: Mapping[str, np.ndarray], dtype: str, shards: int) -> None:
    weight_map = {}
    for number, names in enumerate(np.array_split(np.array(list(weights)), shards), start=1):
        file_name = f"model-{number:05d}-of-{shards:05d}.safetensors"
        write_safetensors(folder / file_name, {str(name): weights[str(name)] for name in names}, dtype)
        weight_map.update({str(name): file_name for name in names})
    write_index(folder, weight_map, sum(len(encode(array, dtype)) for array in weights.values()))


def write_index(folder: Path, weight_map: Mapping[str, Any], total_size: int = 0) -> None:
    """Write the index of a sharded checkpoint: which file holds which tensor."""
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2), encoding="utf-8")


def write_safetensors(path: Path, weights: Mapping[str, np.ndarray], dtype: str) -> None:
    """Write one sound safetensors file."""
    header, data = describe(weights, dtype)
    write_parts(path, header, data)


def describe(weights: Mapping[str, np.ndarray], dtype: str) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, for a test to spoil, and the data that it describes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    end = 0
    for name, array in weights.items():
        parts.append(encode(array, dtype))
        start, end = end, end + len(parts[-1])
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [start, end]}
    return header, b"".join(parts)


def write_parts(path: Path, header: Mapping[str, Any] | bytes, data: bytes) -> None:
    """Write a header (an object, or bytes that need not be JSON) and data, sound together or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def encode(array: np.ndarray, dtype: str) -> bytes:
    """The bytes of float32 numbers in a safetensors dtype, rounded to nearest, ties to even."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return array.astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()


def decode(data: bytes, dtype: str, shape: Sequence[int]) -> np.ndarray:
    """The float32 numbers that `encode` wrote."""
    if dtype == "BF16":
        widened = np.frombuffer(data, "<u2").astype(np.uint32) << 16
        return widened.view(np.float32).reshape(shape)
    return np.frombuffer(data, {"F16": "<f2", "F32": "<f4"}[dtype]).astype(np.float32).reshape(shape)


def _rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    return decode(encode(array, dtype), dtype, array.shape)
