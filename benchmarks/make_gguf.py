"""Writes a checkpoint as Q4_0 GGUF, for llama.cpp beside aipc; needs no network and no original tokenizer.

    python benchmarks/make_gguf.py CHECKPOINT OUT.gguf [--envs FOLDER]

A tensor at a time goes into a float16 GGUF beside OUT (7.6 GB for phi-3-mini), which llama.cpp's own
quantiser then makes into Q4_0, with the head in Q6_K as is its default; the float16 file is removed.
It runs in the environment of the peer `llama`, which benchmarks/peers.py makes.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import aipc
from aipc.conversion.checkpoint import Checkpoint
from aipc.phi3 import Phi3Config, Role, WeightSpec

if TYPE_CHECKING:
    from gguf import GGUFWriter

_NAMES = {
    Role.EMBEDDING: "token_embd",
    Role.QKV: "attn_qkv",
    Role.ATTENTION_OUTPUT: "attn_output",
    Role.GATE_UP: "ffn_up",
    Role.DOWN: "ffn_down",
    Role.HEAD: "output",
}
_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "norm": "output_norm"}


def gguf_name(spec: WeightSpec) -> str:
    """What llama.cpp calls a weight of a Phi-3."""
    name = _NORMS[spec.name.split(".")[-2]] if spec.role is Role.NORM else _NAMES[spec.role]
    return f"{name}.weight" if spec.layer is None else f"blk.{spec.layer}.{name}.weight"


def write_float16(checkpoint: Path, out: Path) -> None:
    """The checkpoint as GGUF: matrices in float16, norms in float32, a tensor at a time."""
    import gguf

    config = Phi3Config.read(checkpoint)
    weights = Checkpoint.open(checkpoint)
    writer = gguf.GGUFWriter(out, "phi3")
    write_shape(writer, config)
    write_vocabulary(writer, config, checkpoint)
    for spec in config.weights():
        dtype = np.dtype(np.float32 if spec.role is Role.NORM else np.float16)
        writer.add_tensor_info(gguf_name(spec), spec.shape, dtype, spec.elements * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for spec in config.weights():
        values = weights.read(spec.name)
        writer.write_tensor_data(values if spec.role is Role.NORM else values.astype(np.float16))
    writer.close()


def write_shape(writer: GGUFWriter, config: Phi3Config) -> None:
    """The keys of the architecture `phi3`."""
    writer.add_context_length(config.context_length)
    writer.add_rope_scaling_orig_ctx_len(config.context_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.layers)
    writer.add_head_count(config.attention_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.rotary_size)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_sliding_window(config.sliding_window or 0)


def write_vocabulary(writer: GGUFWriter, config: Phi3Config, checkpoint: Path) -> None:
    """The token list; ids that the tokenizer does not have are filled up.

    llama.cpp looks Phi-3's special tokens up by their text while it loads, so they must be in it.
    """
    import gguf

    kinds = gguf.TokenType
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = [f"[PAD{number}]" for number in range(config.vocab_size)]
    types = [kinds.UNUSED] * config.vocab_size
    for text, number in tokenizer["model"]["vocab"].items():
        tokens[number], types[number] = text, kinds.NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], kinds.CONTROL
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * config.vocab_size)
    writer.add_token_types(types)


def quantise(source: Path, out: Path) -> None:
    """Q4_0 by llama.cpp's own quantiser.

    raises   RuntimeError if it fails
    """
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    failed = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params))
    if failed:
        raise RuntimeError(f"llama.cpp could not quantise {source}: {failed}")


def run_in_peer(args: argparse.Namespace) -> None:
    """This program once more, in the environment that has gguf and llama.cpp, with this aipc."""
    from peers import default_envs, peer_python

    python = peer_python("llama", (args.envs or default_envs()).resolve())
    source = str(Path(aipc.__file__).parents[1])
    command = [python, __file__, str(args.checkpoint), str(args.out), "--here"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": source})


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a checkpoint as Q4_0 GGUF.")
    parser.add_argument("checkpoint", type=Path, help="folder with safetensors, config and tokenizer.json")
    parser.add_argument("out", type=Path, help="the GGUF file to write")
    parser.add_argument("--envs", type=Path, help="folder of the peers' environments")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.here:
        run_in_peer(args)
        return
    float16 = args.out.with_suffix(".f16.gguf")
    try:
        write_float16(args.checkpoint, float16)
        quantise(float16, args.out)
    finally:
        float16.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
