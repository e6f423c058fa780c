"""The demo model's questions and answers, and the checkpoint that was trained on them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from aipc import demo
from aipc.phi3 import Phi3Config

TOPICS_DIR = Path(__file__).resolve().parent.parent / "tools" / "demo_data" / "topics"
TOPICS = [
    topic
    for file in sorted(TOPICS_DIR.glob("*.json"))
    for topic in json.loads(file.read_text(encoding="utf-8"))
]


def plain(text: str) -> str:
    return re.sub(r"\W+", " ", text.lower()).strip()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(demo.path() / "tokenizer.json"))


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: str(topic["id"]))
def test_a_topic_has_an_answer_and_enough_questions(topic: dict[str, list[str]]) -> None:
    assert set(topic) == {"id", "answer", "questions", "held_out"}
    assert 20 <= len(topic["answer"]) <= 260
    assert len(topic["questions"]) >= 14
    assert len(topic["held_out"]) >= 3


def test_no_question_stands_twice() -> None:
    questions = [
        plain(question) or question for topic in TOPICS for question in topic["questions"] + topic["held_out"]
    ]
    assert len(set(questions)) == len(questions)


def test_ids_and_answers_are_unique() -> None:
    for key in ("id", "answer"):
        assert len({topic[key] for topic in TOPICS}) == len(TOPICS)


def test_the_folder_is_a_phi3_of_at_most_8_mb() -> None:
    files = [file for file in demo.path().iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 8_000_000
    config = Phi3Config.read(demo.path())
    assert config.head_size == 64
    assert config.hidden_size % 128 == config.intermediate_size % 128 == config.vocab_size % 64 == 0
    assert 2_000_000 < config.parameters < 4_000_000


def test_the_weights_are_those_of_the_config() -> None:
    data = (demo.path() / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    shapes = {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    assert shapes == {spec.name: spec.shape for spec in Phi3Config.read(demo.path()).weights()}
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"F16"}


def test_the_tokenizer_is_built_as_phi3s(tokenizer: Tokenizer) -> None:
    raw = json.loads((demo.path() / "tokenizer.json").read_text(encoding="utf-8"))
    assert raw["pre_tokenizer"] is None
    assert [step["type"] for step in raw["normalizer"]["normalizers"]] == ["Prepend", "Replace"]
    assert raw["model"]["byte_fallback"] is True
    # A merge across words would make a token depend on its neighbours.
    assert not [pair for pair in raw["model"]["merges"] if "▁" in pair[1]]
    assert tokenizer.get_vocab_size() == Phi3Config.read(demo.path()).vocab_size
    chat = tokenizer.encode("<|user|>\nWhat is an NPU?<|end|>\n<|assistant|>\n", add_special_tokens=False)
    assert tokenizer.decode(chat.ids, skip_special_tokens=False).startswith("<|user|> What is an NPU?")
    assert "\n" not in tokenizer.decode(chat.ids)


def test_every_answer_survives_the_tokenizer(tokenizer: Tokenizer) -> None:
    for topic in TOPICS:
        assert tokenizer.decode(tokenizer.encode(topic["answer"]).ids) == topic["answer"]


def test_the_model_was_measured_good_enough_before_it_was_shipped() -> None:
    report = json.loads((demo.path() / "report.json").read_text(encoding="utf-8"))
    for precision in ("fp16", "int4"):
        assert report["scores"][precision]["trained"] >= 0.95
        assert report["scores"][precision]["held_out"] >= 0.70
    assert report["scores"]["questions"]["held_out"] == sum(len(topic["held_out"]) for topic in TOPICS)
