"""Small tokenizers in the two styles of the Phi family, trained here in a fraction of a second."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import ByteLevel, TemplateProcessing

PHI3_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI4_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
# What GPT-4's tokenizer, and with it Phi-4's, splits text by before it merges bytes.
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# The same for GPT-4o and Phi-4-mini.
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = (
    "The neural processing unit runs the model while the graphics processor draws the picture.",
    "What is an NPU? It's a processor for neural networks, and it doesn't need much power.",
    "def add(first, second):\n    return first + second\n",
    "Größe, naïve, café, 日本語のテキスト, 数字 123456, привет мир",
    "  spaces   in\tthe\n\n middle  ",
)
HARD_TEXTS = (
    "",
    " ",
    "a",
    "   three   spaces   ",
    "\n\n\n",
    "\r\n\ttabs\tand\r\nlines\n",
    "It's she'll WE'RE I'd",
    "12345678 3.14159 1e-9",
    "café naïve Größe e\u0301",
    "日本語のテキストと中文，한국어",
    "👩‍👩‍👧‍👦 🇳🇴 😀 𝔘𝔫𝔦",
    "def f(x):\n    return {'a': [x ** 2, x // 3]}  # ok\n",
    "no\u00a0break\u3000wide\u2003em \u200bzero",
    "▁lower▁one▁eighth",
    "<0x41><0xE2>",
    "Ω≈ç√∫˜µ≤≥÷ مرحبا שלום ไทย हिन्दी",
    "\x00\x01\x7f",
    "$1 \\1 $& \\n ^$.*+?()[]{}|",
    "https://example.org/a?b=c&d=%20#e",
)


@cache
def llama_style_json() -> str:
    """As Phi-3's: text with ▁ for spaces, bytes as `<0xE2>`, special tokens that strip what follows."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    # The bytes are ordinary tokens of the vocabulary: special ones would be read from text.
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=first, show_progress=False)
    tokenizer.train_from_iterator([text.replace(" ", "▁") for text in CORPUS], trainer)
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["id"] < 3]
    tokenizer = Tokenizer.from_str(json.dumps(raw))
    names = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
    tokenizer.add_special_tokens(
        [AddedToken(name, rstrip=name != "<|endoftext|>", normalized=False) for name in names]
    )
    tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    return tokenizer.to_str()


@cache
def gpt_style_json(pattern: str = O200K, behaviour: str = "isolated", invert: bool = False) -> str:
    """As Phi-4's: bytes as characters, split by a regular expression."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behaviour, invert=invert),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(n, normalized=False, lstrip=n == "<|im_sep|>") for n in names])
    tokenizer.add_tokens([AddedToken("<|tool_call|>", normalized=False, rstrip=True)])
    return tokenizer.to_str()


def write_llama_style(folder: Path, **config: object) -> Path:
    """A folder with a Llama-style tokenizer and Phi-3's template; `config` adds to tokenizer_config."""
    config = {"chat_template": PHI3_TEMPLATE, "bos_token": "<s>", "unk_token": "<unk>"} | config
    return _write(folder, llama_style_json(), config, "<|endoftext|>")


def write_gpt_style(folder: Path, tokenizer: str = "", **config: object) -> Path:
    """A folder with a GPT-style tokenizer and Phi-4's template; `config` adds to tokenizer_config."""
    config = {"chat_template": PHI4_TEMPLATE} | config
    return _write(folder, tokenizer or gpt_style_json(), config, "<|endoftext|>")


def _write(folder: Path, tokenizer: str, config: dict[str, object], end: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"eos_token": end, "pad_token": end} | config
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
