"""The folder that ships: weights, config, tokenizer, report and model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from demo_training.chat import Formatter
from demo_training.measure import Case, generate, prompt_ids
from demo_training.network import Shape, TinyPhi3
from demo_training.topics import Topic
from demo_training.vocabulary import write_tokenizer

EXAMPLES = (
    "Can you introduce yourself?",
    "What is an NPU?",
    "Is the NPU faster than the GPU?",
    "how do i convert phi-3 to int4",
    "What is the capital of France?",
)
_CARD = Path(__file__).with_name("card.md")


def write_model(out: Path, network: TinyPhi3, tokenizer: Tokenizer) -> None:
    """Everything that a Phi-3 checkpoint consists of; weights are rounded to float16."""
    out.mkdir(parents=True, exist_ok=True)
    shape = network.shape
    write_tokenizer(tokenizer, out, shape.context_length)
    ids = {name: tokenizer.token_to_id(name) for name in ("<s>", "<|endoftext|>", "<|assistant|>", "<|end|>")}
    _write_json(out / "config.json", _config(shape, ids))
    generation = {
        "_from_model_config": True,
        "bos_token_id": ids["<s>"],
        "eos_token_id": [ids["<|endoftext|>"], ids["<|assistant|>"], ids["<|end|>"]],
        "pad_token_id": ids["<|endoftext|>"],
    }
    _write_json(out / "generation_config.json", generation)
    weights = {name: w.detach().numpy().astype("<f2") for name, w in network.named_parameters()}
    _write_safetensors(out / "model.safetensors", weights)


def read_network(folder: Path) -> TinyPhi3:
    """The network as the folder has it, computing in float32."""
    data = (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    network = TinyPhi3(Shape()).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            begin, end = header[name]["data_offsets"]
            values = np.frombuffer(data[start + begin : start + end], "<f2").reshape(header[name]["shape"])
            weight.copy_(torch.from_numpy(values.astype(np.float32)))
    return network


def write_report(out: Path, network: TinyPhi3, tokenizer: Tokenizer, measured: dict[str, Any]) -> None:
    """report.json with what was measured, and the model card that quotes it.

    measured   topics: their number; training_s: seconds; scores: as measure.score gives them
    """
    parameters = sum(weight.numel() for weight in network.parameters())
    report = {"parameters": parameters, **measured, "examples": _examples(network, tokenizer)}
    _write_json(out / "report.json", report)
    (out / "README.md").write_text(_card(report), encoding="utf-8")


def _config(shape: Shape, ids: dict[str, int]) -> dict[str, Any]:
    return {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": ids["<s>"],
        "embd_pdrop": 0.0,
        "eos_token_id": ids["<|endoftext|>"],
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.context_length,
        "model_type": "phi3",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.heads,
        "original_max_position_embeddings": shape.context_length,
        "pad_token_id": ids["<|endoftext|>"],
        "resid_pdrop": 0.0,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "use_cache": True,
        "vocab_size": shape.vocab_size,
    }


def _write_safetensors(path: Path, weights: dict[str, np.ndarray]) -> None:
    """A header of names, types, shapes and offsets, then the numbers; the header padded to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, weight in weights.items():
        header[name] = {
            "dtype": "F16",
            "shape": list(weight.shape),
            "data_offsets": [offset, offset + weight.nbytes],
        }
        offset += weight.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for weight in weights.values():
            file.write(weight.tobytes())


def _examples(network: TinyPhi3, tokenizer: Tokenizer) -> dict[str, str]:
    formatter = Formatter(tokenizer)
    nobody = Topic("", "", (), (), "")
    return {
        question: generate(network, tokenizer, prompt_ids(formatter, Case(question, nobody)))
        for question in EXAMPLES
    }


def _card(report: dict[str, Any]) -> str:
    """card.md with the figures filled in."""
    labels = {"fp16": "fp16", "int4": "int4, group 128", "int4-channel": "int4, channel-wise"}
    rows = [
        f"| {label} | " + " | ".join(f"{share:.1%}" for share in report["scores"][name].values()) + " |"
        for name, label in labels.items()
    ]
    counts = report["scores"]["questions"]
    rows.append("| questions | " + " | ".join(str(count) for count in counts.values()) + " |")
    transcript = "\n\n".join(f"> {question}\n\n{answer}" for question, answer in report["examples"].items())
    return (
        _CARD.read_text(encoding="utf-8")
        .replace("{parameters}", f"{report['parameters'] / 1e6:.2f}")
        .replace("{topics}", str(report["topics"]))
        .replace("{minutes}", str(round(report["training_s"] / 60)))
        .replace("{rows}", "\n".join(rows))
        .replace("{transcript}", transcript)
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
