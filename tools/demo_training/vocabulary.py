"""The demo model's tokenizer: a byte-fallback BPE, built exactly as Phi-3's tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

# Phi-3's added tokens in its order; those with True swallow the white space to their right.
FIRST_TOKENS = (("<unk>", False), ("<s>", False), ("</s>", True))
CHAT_TOKENS = (
    ("<|endoftext|>", False),
    ("<|assistant|>", True),
    *((f"<|placeholder{number}|>", True) for number in range(1, 5)),
    ("<|system|>", True),
    ("<|end|>", True),
    ("<|placeholder5|>", True),
    ("<|placeholder6|>", True),
    ("<|user|>", True),
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] + '<|end|>\n' }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '<|end|>\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
_NORMALIZER = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
# Phi-3's merges never cross a space; these do not cross letters, digits and signs either.
_WORD = Regex(r"▁?(\p{L}+|\p{N}|[^\p{L}\p{N}▁]+)")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn merges from the texts; vocab_size counts everything, the special tokens too."""
    learner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    learner.normalizer = _NORMALIZER
    learner.pre_tokenizer = pre_tokenizers.Split(_WORD, behavior="isolated")
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size - len(CHAT_TOKENS),
            special_tokens=[name for name, _ in FIRST_TOKENS] + [f"<0x{byte:02X}>" for byte in range(256)],
            initial_alphabet=["▁", *(chr(code) for code in range(33, 127))],
            show_progress=False,
        ),
    )
    model = json.loads(learner.to_str())["model"]
    return Tokenizer.from_str(json.dumps(_as_phi3(model), ensure_ascii=False))


def _as_phi3(model: dict[str, Any]) -> dict[str, Any]:
    """The description of a tokenizer with Phi-3's structure around a learned vocabulary."""
    first = [(index, *token) for index, token in enumerate(FIRST_TOKENS)]
    chat = [(len(model["vocab"]) + index, *token) for index, token in enumerate(CHAT_TOKENS)]
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, **_added(name, rstrip)} for index, name, rstrip in first + chat],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [sequence],
            "pair": [sequence, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {**model, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True},
    }


def _added(name: str, rstrip: bool) -> dict[str, Any]:
    return {
        "content": name,
        "single_word": False,
        "lstrip": False,
        "rstrip": rstrip,
        "normalized": False,
        "special": True,
    }


def write_tokenizer(tokenizer: Tokenizer, folder: Path, context_length: int) -> None:
    """tokenizer.json and tokenizer_config.json, the latter with Phi-3's chat template."""
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    ids = {name: tokenizer.token_to_id(name) for name, _ in FIRST_TOKENS + CHAT_TOKENS}
    config = {
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(ids[name]): _added(name, rstrip) for name, rstrip in FIRST_TOKENS + CHAT_TOKENS
        },
        "bos_token": "<s>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "legacy": False,
        "model_max_length": context_length,
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
