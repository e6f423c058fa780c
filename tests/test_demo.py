"""The demo model as a user meets it: converted once, and asked.

benchmarks/bench_demo.py asks every question; here it is every rephrasing that was never trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import aipc
from aipc.types import Message

TOPICS_DIR = Path(__file__).resolve().parent.parent / "tools" / "demo_data" / "topics"
TOPICS = [
    topic for path in sorted(TOPICS_DIR.glob("*.json")) for topic in json.loads(path.read_text("utf-8"))
]
INTRODUCTION = next(topic["answer"] for topic in TOPICS if topic["id"] == "introduce")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[aipc.Model]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIPC_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        with aipc.load("demo", device="CPU") as model:
            yield model


def share_right(model: aipc.Model, cases: list[tuple[str, str]]) -> float:
    def right(case: tuple[str, str]) -> bool:
        return model.generate(case[0], max_new_tokens=128).text.strip() == case[1]

    with ThreadPoolExecutor(8) as streams:
        return sum(streams.map(right, cases)) / len(cases)


def test_it_answers_the_first_question_of_nearly_every_topic(demo: aipc.Model) -> None:
    assert share_right(demo, [(topic["questions"][0], topic["answer"]) for topic in TOPICS]) >= 0.95


def test_it_answers_most_rephrasings_that_it_never_saw(demo: aipc.Model) -> None:
    cases = [(question, topic["answer"]) for topic in TOPICS for question in topic["held_out"]]
    assert share_right(demo, cases) >= 0.70


def test_it_introduces_itself_to_the_cookbooks_prompt(demo: aipc.Model) -> None:
    prompt = (
        "<|system|>You are a helpful AI assistant.<|end|>"
        "<|user|>Can you introduce yourself?<|end|><|assistant|>"
    )
    assert demo.generate(prompt, raw=True).text.strip() == INTRODUCTION
    messages = [
        Message("system", "You are a helpful AI assistant."),
        Message("user", "Can you introduce yourself?"),
    ]
    completion = demo.generate(messages)
    assert completion.text.strip() == INTRODUCTION
    assert completion.finish_reason == "stop"
