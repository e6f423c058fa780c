"""Writes a checkpoint of a real model's shape with random weights, for benchmarks.

    python benchmarks/make_checkpoint.py OUT [--config phi-3-mini | CONFIG.json] [--layers 4]

The files are those of a Hugging Face repository: config, tokenizer, and sharded BF16 safetensors
with their index (7.6 GB for phi-3-mini). It holds a few blocks in memory, never a whole tensor.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import aipc
from aipc.phi3 import Phi3Config, Role, WeightSpec

_MINI: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "embd_pdrop": 0.0,
    "eos_token_id": 32000,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "model_type": "phi3",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 32000,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": 2047,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 32064,
}
_MEDIUM = _MINI | {
    "hidden_size": 5120,
    "intermediate_size": 17920,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 10,
}
_PHI_4 = _MEDIUM | {
    "bos_token_id": 100257,
    "eos_token_id": 100265,
    "max_position_embeddings": 16384,
    "original_max_position_embeddings": 16384,
    "pad_token_id": 100349,
    "rope_theta": 250000,
    "sliding_window": None,
    "vocab_size": 100352,
}
_PHI_4_MINI = _MINI | {
    "bos_token_id": 199999,
    "eos_token_id": 199999,
    "max_position_embeddings": 131072,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "pad_token_id": 199999,
    "partial_rotary_factor": 0.75,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [32.0] * 48},
    "sliding_window": 262144,
    "tie_word_embeddings": True,
    "vocab_size": 200064,
}
# The values of each model's published config.json; Phi-4-mini's factors are stand-ins.
CONFIGS = {"phi-3-mini": _MINI, "phi-3-medium": _MEDIUM, "phi-4": _PHI_4, "phi-4-mini": _PHI_4_MINI}

WEIGHT_STD = 0.02
_BLOCK = 2**20  # elements that a thread makes and writes at a time
_SHARD_BYTES = 2 * 10**9


@dataclass(frozen=True, slots=True)
class Tensor:
    """A weight, and its number in the model, from which its own random stream is drawn."""

    number: int
    spec: WeightSpec

    @property
    def size_bytes(self) -> int:
        return 2 * self.spec.elements


def make_checkpoint(out: Path, config: dict[str, Any], tokenizer: Path, seed: int = 0) -> None:
    """Write the checkpoint of `config`; the same seed gives the same bytes.

    raises   FileExistsError if `out` is there
    """
    out.mkdir(parents=True)
    shards = list(_shards(Phi3Config.parse(config)))
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda name, shard: _write_shard(out / name, shard, seed), names, shards))
    index = {
        "metadata": {"total_size": sum(tensor.size_bytes for shard in shards for tensor in shard)},
        "weight_map": {t.spec.name: name for name, shard in zip(names, shards, strict=True) for t in shard},
    }
    _write_json(out / "model.safetensors.index.json", index)
    _write_json(out / "config.json", config)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, out / name)


def _shards(config: Phi3Config) -> Iterator[list[Tensor]]:
    """The model's weights in order, cut where a file would grow beyond the shard size."""
    shard: list[Tensor] = []
    for tensor in (Tensor(number, spec) for number, spec in enumerate(config.weights())):
        if shard and sum(other.size_bytes for other in shard) + tensor.size_bytes > _SHARD_BYTES:
            yield shard
            shard = []
        shard.append(tensor)
    yield shard


def _write_shard(path: Path, shard: list[Tensor], seed: int) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in shard:
        start, end = end, end + tensor.size_bytes
        header[tensor.spec.name] = {
            "dtype": "BF16",
            "shape": list(tensor.spec.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in shard:
            for block in _blocks(tensor, seed):
                file.write(block)


def _blocks(tensor: Tensor, seed: int) -> Iterator[bytes]:
    """Normally distributed bfloat16 numbers: around 0 in a matrix, close to 1 in a norm."""
    random = np.random.Generator(np.random.SFC64([seed, tensor.number]))
    mean = np.float32(1.0 if tensor.spec.role is Role.NORM else 0.0)
    for start in range(0, tensor.spec.elements, _BLOCK):
        block = random.standard_normal(min(_BLOCK, tensor.spec.elements - start), dtype=np.float32)
        block *= np.float32(WEIGHT_STD)
        block += mean
        # The upper half of a float32 is a bfloat16, cut instead of rounded: random is random.
        yield (block.view(np.uint32) >> 16).astype("<u2").tobytes()


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a random checkpoint of a real model's shape.")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument(
        "--config", default="phi-3-mini", help=f"a config.json, or one of {', '.join(CONFIGS)}"
    )
    parser.add_argument("--layers", type=int, help="fewer layers than the real model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--tokenizer",
        type=Path,
        default=Path(aipc.__file__).parent / "demo",
        help="folder with tokenizer files to copy (default: the demo model's)",
    )
    args = parser.parse_args()
    config = CONFIGS.get(args.config) or json.loads(Path(args.config).read_text(encoding="utf-8"))
    if args.layers:
        config = config | {"num_hidden_layers": args.layers}
    make_checkpoint(args.out, config, args.tokenizer, args.seed)


if __name__ == "__main__":
    main()
