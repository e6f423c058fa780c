"""genai_config.json: what ONNX Runtime's generate() must know of a model besides its graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aipc.conversion.onnx_weights import Target
from aipc.phi3 import Phi3Config, read_json_object, token_ids

CONFIG_FILE = "genai_config.json"

# A provider's options, as strings. The CPU is used without being named.
_PROVIDERS: dict[str, list[dict[str, dict[str, str]]]] = {
    "cpu": [],
    "cuda": [{"cuda": {"enable_skip_layer_norm_strict_mode": "1"}}],
    "dml": [{"dml": {}}],
}


def write_genai_config(folder: Path, config: Phi3Config, target: Target, model_file: str) -> None:
    """Write genai_config.json for the model in `folder`, whose generation_config.json names its stop ids.

    model_file   name of the graph's file
    raises       CheckpointError for a damaged config.json or generation_config.json
    """
    content = {
        "model": _special_tokens(folder)
        | {
            "type": "phi3",
            "context_length": _context_length(config, target),
            "vocab_size": config.vocab_size,
            "decoder": _decoder(config, target, model_file),
        },
        "search": {
            "do_sample": False,
            "max_length": _context_length(config, target),
            "past_present_share_buffer": True,
        },
    }
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")


def _context_length(config: Phi3Config, target: Target) -> int:
    """Where the sliding window is not heeded, the answer is right as long as it covers everything."""
    if config.sliding_window is None or target.sliding_window:
        return config.context_length
    return min(config.context_length, config.sliding_window)


def _special_tokens(folder: Path) -> dict[str, Any]:
    """The ids that begin, end and pad a sequence."""
    raw = read_json_object(folder / "config.json") | read_json_object(folder / "generation_config.json")
    eos = token_ids(raw.get("eos_token_id"), f"{folder}: eos_token_id")
    tokens: dict[str, Any] = {"eos_token_id": list(eos)}
    for key in ("bos_token_id", "pad_token_id"):
        found = token_ids(raw.get(key), f"{folder}: {key}")
        if found:
            tokens[key] = found[0]
    tokens.setdefault("pad_token_id", min(eos, default=0))
    return tokens


def _decoder(config: Phi3Config, target: Target, model_file: str) -> dict[str, Any]:
    inputs = {"input_ids": "input_ids", "attention_mask": "attention_mask"}
    if target.needs_positions(config):
        inputs["position_ids"] = "position_ids"
    inputs |= {f"past_{part}_names": f"past_key_values.%d.{part}" for part in ("key", "value")}
    outputs = {"logits": "logits"} | {
        f"present_{part}_names": f"present.%d.{part}" for part in ("key", "value")
    }
    return {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": _PROVIDERS[target.name]},
        "filename": model_file,
        "hidden_size": config.hidden_size,
        "head_size": config.head_size,
        "num_attention_heads": config.attention_heads,
        "num_key_value_heads": config.kv_heads,
        "num_hidden_layers": config.layers,
        "inputs": inputs,
        "outputs": outputs,
    }
