"""The tokenizer graphs against the tokenizers library, and as OpenVINO GenAI uses them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from aipc.conversion import openvino_tokenizer
from aipc.conversion.openvino_tokenizer import write_openvino_tokenizer
from aipc.errors import CheckpointError, UnsupportedModelError
from aipc.text import Text
from aipc.types import Message
from tokenizers_for_tests import (
    CL100K,
    HARD_TEXTS,
    gpt_style_json,
    write_gpt_style,
    write_llama_style,
)

STYLES: dict[str, Callable[[Path], Path]] = {
    "llama": write_llama_style,
    "gpt, o200k": write_gpt_style,
    "gpt, cl100k": lambda folder: write_gpt_style(folder, gpt_style_json(CL100K, "removed", True)),
}


class Converted:
    """A tokenizer folder, its graphs in GenAI's hands, and the original."""

    def __init__(self, folder: Path) -> None:
        import openvino_genai

        write_openvino_tokenizer(folder, folder)
        self.folder = folder
        self.genai = openvino_genai.Tokenizer(str(folder))
        self.original = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def encode(self, text: str, **options: Any) -> list[int]:
        ids: list[int] = self.genai.encode(text, **options).input_ids.data[0].tolist()
        return ids


@pytest.fixture(scope="module", params=STYLES)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return Converted(STYLES[request.param](tmp_path_factory.mktemp("tokenizer")))


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_ids_and_texts_are_those_of_the_library(converted: Converted, text: str) -> None:
    expected = converted.original.encode(text).ids
    assert converted.encode(text) == expected
    if expected:
        assert converted.genai.decode(expected) == converted.original.decode(expected)


def test_random_texts_are_read_alike(converted: Converted) -> None:
    rng = random.Random(0)
    special = [token.content for token in converted.original.get_added_tokens_decoder().values()]
    spaces = [" ", "  ", "\n", " \n", "\u00a0", "\u3000", "\r\n", "\x0b", "\x85", "\u2028", "\u200b"]
    letters = [
        chr(code)
        for start in (0x20, 0xC0, 0x300, 0x400, 0x5D0, 0x3040, 0x1F600)
        for code in range(start, start + 64)
    ]
    for _ in range(300):
        words = rng.choices(
            [special, spaces, letters, HARD_TEXTS], weights=(2, 4, 12, 1), k=rng.randint(1, 30)
        )
        text = "".join(map(rng.choice, words))
        expected = converted.original.encode(text).ids
        assert converted.encode(text) == expected
        if expected:
            assert converted.genai.decode(expected) == converted.original.decode(expected)


@pytest.mark.parametrize(
    "chat",
    [
        [("user", "Hi  there\n")],
        [("user", "Hi"), ("assistant", " yes \n"), ("user", "\n\nso? 日本")],
        [("system", " Be brief"), ("user", "a\u00a0b")],
    ],
)
def test_genai_reads_a_conversation_as_we_do(converted: Converted, chat: list[tuple[str, str]]) -> None:
    history = [{"role": role, "content": content} for role, content in chat]
    text = converted.genai.apply_chat_template(history, add_generation_prompt=True)
    ids = Text.load(converted.folder).encode_chat([Message(role, content) for role, content in chat])
    assert converted.encode(text, add_special_tokens=False) == ids


def test_genai_knows_the_special_ids(converted: Converted) -> None:
    end = converted.original.token_to_id("<|endoftext|>")
    assert converted.genai.get_eos_token_id() == converted.genai.get_pad_token_id() == end


def test_special_tokens_can_be_kept(converted: Converted) -> None:
    ids = converted.original.encode("a<|endoftext|>b").ids
    assert converted.genai.decode(ids, skip_special_tokens=False) == converted.original.decode(
        ids, skip_special_tokens=False
    )


def test_a_padded_model_may_give_any_of_its_ids(tmp_path: Path) -> None:
    folder = write_llama_style(tmp_path)
    (folder / "config.json").write_text('{"vocab_size": 800}', encoding="utf-8")
    converted = Converted(folder)
    ids = [*converted.original.encode("one").ids, 799]
    assert converted.genai.decode(ids) == "one"


def test_a_batch_is_padded_on_the_side_the_model_says(tmp_path: Path) -> None:
    converted = Converted(write_gpt_style(tmp_path, padding_side="left"))
    ids = converted.genai.encode(["a", "b c"])
    assert ids.attention_mask.data[0].tolist() == [0, 0, 1]


def test_what_surrounds_a_text_is_added_once(tmp_path: Path) -> None:
    folder = write_llama_style(tmp_path)
    change(
        folder,
        ("post_processor", "single"),
        [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    )
    change(
        folder, ("post_processor", "special_tokens"), {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    )
    converted = Converted(folder)
    assert converted.encode("one") == converted.original.encode("one").ids
    assert converted.encode("one", add_special_tokens=False) == converted.original.encode("one").ids[1:]


def change(folder: Path, path: tuple[str | int, ...], value: object) -> None:
    file = folder / "tokenizer.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    place = raw
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(json.dumps(raw), encoding="utf-8")


SPLIT = ("pre_tokenizer", "pretokenizers", 0)


@pytest.mark.parametrize(
    ("write", "path", "value", "named"),
    [
        (write_llama_style, ("model", "dropout"), 0.1, "dropout"),
        (write_llama_style, ("model", "ignore_merges"), True, "ignore_merges"),
        (write_llama_style, ("model", "byte_fallback"), False, "byte_fallback"),
        (write_llama_style, ("added_tokens", 0, "single_word"), True, "single_word"),
        (write_llama_style, ("added_tokens", 0, "normalized"), True, "normalized"),
        (write_llama_style, ("normalizer",), {"type": "NFKC"}, "NFKC"),
        (
            write_llama_style,
            ("normalizer", "normalizers", 1, "pattern"),
            {"Regex": " "},
            "regular expression",
        ),
        (write_llama_style, ("normalizer", "normalizers", 1, "content"), "$1", r"\$1"),
        (write_llama_style, ("pre_tokenizer",), {"type": "Whitespace"}, "Whitespace"),
        (write_gpt_style, (*SPLIT, "behavior"), "MergedWithNext", "MergedWithNext"),
        (write_gpt_style, (*SPLIT, "invert"), True, "invert"),
        (write_gpt_style, (*SPLIT, "pattern"), {"Regex": r"\h+"}, "regular expression"),
        (write_gpt_style, (*SPLIT, "pattern"), {"String": " "}, "fixed string"),
        (
            write_gpt_style,
            ("pre_tokenizer", "pretokenizers", 1, "add_prefix_space"),
            True,
            "add_prefix_space",
        ),
        (
            write_gpt_style,
            ("post_processor",),
            {"type": "BertProcessing", "sep": ["a", 1], "cls": ["a", 1]},
            "Bert",
        ),
        (write_gpt_style, ("decoder",), None, "decoder"),
    ],
)
def test_what_is_not_covered_is_named(
    tmp_path: Path, write: Callable[[Path], Path], path: tuple[str | int, ...], value: object, named: str
) -> None:
    folder = write(tmp_path)
    change(folder, path, value)
    with pytest.raises(UnsupportedModelError, match=named):
        write_openvino_tokenizer(folder, tmp_path)
    assert not list(tmp_path.glob("*.xml"))


def test_a_vocabulary_that_lacks_a_byte_is_refused(tmp_path: Path) -> None:
    folder = write_llama_style(tmp_path)
    raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    raw["model"]["vocab"]["<0xZZ>"] = raw["model"]["vocab"].pop("<0xE2>")
    (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match="<0xE2>"):
        write_openvino_tokenizer(folder, tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        write_openvino_tokenizer(tmp_path, tmp_path)


def test_graphs_that_read_otherwise_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_tokenizer, "_quoted", lambda _: "~")
    with pytest.raises(UnsupportedModelError, match="instead of"):
        write_openvino_tokenizer(write_llama_style(tmp_path), tmp_path)
    assert not list(tmp_path.glob("*.xml"))
