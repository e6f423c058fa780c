"""What is checked without a folder being named: the demo model, and two layers of Phi-3's shape."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

import aipc
from aipc.phi3 import Phi3Config, Role

PRECISIONS = {
    "demo-fp16": {"weight_format": "fp16"},
    "demo-int8": {"weight_format": "int8"},
    "demo-int4-group-128": {"weight_format": "int4", "group_size": 128},
}
_DEVIATION = 0.02

_PHI3_MINI = {
    "architectures": ["Phi3ForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 32000,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "model_type": "phi3",
    "num_attention_heads": 32,
    "num_hidden_layers": 2,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 32000,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": 2047,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": 32064,
}


def demo(name: str, scratch: Path, target: str = "dml") -> Path:
    """The demo model, converted in one of `PRECISIONS`."""
    folder = scratch / f"{name}-{target}"
    return aipc.convert("demo", folder, to="onnx", target=target, **PRECISIONS[name])  # type: ignore[arg-type]


def two_layers(scratch: Path) -> Path:
    """Phi-3-mini's shape with two layers and random weights, int4 in groups of 128."""
    checkpoint = scratch / "two-layers"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(json.dumps(_PHI3_MINI), encoding="utf-8")
    # Any tokenizer makes it a checkpoint: ids alone are asked and compared.
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(aipc.__file__).parent / "demo" / name, checkpoint)
    _write_weights(checkpoint / "model.safetensors", Phi3Config.parse(_PHI3_MINI))
    return aipc.convert(
        checkpoint, scratch / "phi3-two-layers-int4-dml", to="onnx", target="dml", group_size=128
    )


def _write_weights(path: Path, config: Phi3Config) -> None:
    """Random float16 matrices, and norms of ones, as Hugging Face lays them out."""
    random = np.random.default_rng(0)
    header, end = {}, 0
    specs = list(config.weights())
    for spec in specs:
        size = 2 * int(np.prod(spec.shape))
        header[spec.name] = {"dtype": "F16", "shape": list(spec.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for spec in specs:
            values = (
                np.ones(spec.shape, np.float16)
                if spec.role is Role.NORM
                else (random.standard_normal(spec.shape, np.float32) * _DEVIATION).astype(np.float16)
            )
            file.write(values.tobytes())
