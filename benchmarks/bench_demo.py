"""How many of its questions the demo model answers rightly, as a user meets it: converted and run by aipc.

    python benchmarks/bench_demo.py [--weight-format int4 fp16] [--device CPU]

An answer is right where it is the topic's answer to the letter. tools/train_demo.py measures the same with
numpy's arithmetic before the model is quantised by aipc; here nothing is simulated.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aipc
from measuring import markdown_table

TOPICS = Path(__file__).parents[1] / "tools" / "demo_data" / "topics"
STREAMS = 8


def read_cases(kind: str) -> list[tuple[str, str]]:
    """Every (question, answer) of a kind: "questions" were trained on, "held_out" never seen."""
    topics = [
        topic
        for path in sorted(TOPICS.glob("*.json"))
        for topic in json.loads(path.read_text(encoding="utf-8"))
    ]
    return [(question, topic["answer"]) for topic in topics for question in topic[kind]]


def share_right(model: aipc.Model, cases: list[tuple[str, str]]) -> float:
    """The share of questions that get their answer."""

    def right(case: tuple[str, str]) -> bool:
        return model.generate(case[0], max_new_tokens=128).text.strip() == case[1]

    with ThreadPoolExecutor(STREAMS) as streams:
        return sum(streams.map(right, cases)) / len(cases)


def main() -> None:
    """Convert the demo model, ask everything, and print a table."""
    parser = argparse.ArgumentParser(description="Ask the demo model all its questions.")
    parser.add_argument("--weight-format", nargs="+", default=["int4", "fp16"])
    parser.add_argument("--device", default="CPU")
    args = parser.parse_args()
    kinds = ("questions", "held_out")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for weight_format in args.weight_format:
            out = aipc.convert("demo", Path(folder) / weight_format, weight_format=weight_format)
            with aipc.load(out, device=args.device) as model:
                shares = [share_right(model, read_cases(kind)) for kind in kinds]
            rows.append([weight_format, *(f"{share:.1%}" for share in shares)])
    rows.append(["questions", *(str(len(read_cases(kind))) for kind in kinds)])
    print(markdown_table(["weights", "trained", "held out"], rows))


if __name__ == "__main__":
    main()
