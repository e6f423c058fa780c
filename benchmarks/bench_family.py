"""Compares both writers' folders with transformers on either side of LongRoPE's border, for the whole family.

    python benchmarks/bench_family.py [MEMBER …] [--record family.json]

For a small random model of each member's kind, with its real border at 4,096 tokens, the recorded float32
logits of transformers (tests/data/golden/family.npz) are compared with those of the unquantised folders:
by prefill of the whole text, by decoding across the border, and with the reference. A chat that crosses the
border goes through the sessions themselves: its tokens are compared, turn by turn.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from aipc.errors import require
from aipc.phi3 import Phi3Config
from aipc.runtimes.base import RUNTIMES
from aipc.runtimes.openvino_factors import folder_with_factors
from aipc.runtimes.reference import ReferenceSession
from aipc.types import Sampling
from family import FAMILY, FamilyAnswer, load_family
from measuring import markdown_table, write_record
from sessions import RandomModel

LIMIT = 1e-3
# Pieces that lead a text across the border: a prefill, single tokens, then larger pieces again.
DECODED_FROM = 4090
PIECE = 400
# Prompts of a chat: the first is computed with the short factors, and the others continue it.
TURNS = (4000, 4097, 4200)
TURN_TOKENS = 4
FLOAT32 = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}


@dataclass(frozen=True, slots=True)
class Case:
    """A row of the table: the largest difference from transformers, of the largest logit, by length."""

    member: str
    computed_by: str
    way: str
    errors: Mapping[int, float]


def error(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest logit."""
    return float(np.abs(got - expected).max() / np.abs(expected).max())


class OpenVINOModel:
    """The written IR, computed by the plugin itself."""

    def __init__(self, folder: Path, config: Phi3Config, *, long: bool) -> None:
        ov = require("openvino", "openvino")
        chosen = nullcontext(folder) if config.rope_border is None else folder_with_factors(folder, long=long)
        with chosen as path:
            core = ov.Core()
            model = core.compile_model(core.read_model(path / "openvino_model.xml"), "CPU", FLOAT32)
        self._request = model.create_infer_request()
        self._tokens = 0

    def last_logits(self, ids: Sequence[int]) -> np.ndarray:
        """The scores after these further tokens."""
        start, self._tokens = self._tokens, self._tokens + len(ids)
        inputs = {
            "input_ids": np.array([ids]),
            "attention_mask": np.ones((1, self._tokens), np.int64),
            "position_ids": np.arange(start, self._tokens)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        logits: np.ndarray = self._request.infer(inputs)["logits"][0, -1]
        return logits.copy()


class OnnxModel:
    """The written ONNX graph, computed by ONNX Runtime itself."""

    def __init__(self, folder: Path, config: Phi3Config, *, long: bool) -> None:
        ort = require("onnxruntime", "onnx")
        name = "model.onnx" if config.rope_border is None else "model_long_factors.onnx"
        self._session = ort.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._inputs = {item.name for item in self._session.get_inputs()}
        past = [name for name in self._inputs if name.startswith("past_key_values.")]
        empty = np.zeros((1, config.kv_heads, 0, config.head_size), np.float32)
        self._feed = dict.fromkeys(past, empty)
        if config.rope_border is not None:
            self._feed["long_factors"] = np.array([[int(long)]])
        self._tokens = 0

    def last_logits(self, ids: Sequence[int]) -> np.ndarray:
        """The scores after these further tokens."""
        start, self._tokens = self._tokens, self._tokens + len(ids)
        self._feed |= {"input_ids": np.array([ids]), "attention_mask": np.ones((1, self._tokens), np.int64)}
        if "position_ids" in self._inputs:
            self._feed["position_ids"] = np.arange(start, self._tokens)[None]
        got = dict(zip(self._outputs, self._session.run(None, self._feed), strict=True))
        logits: np.ndarray = got.pop("logits")[0, -1]
        self._feed |= {name.replace("present", "past_key_values"): value for name, value in got.items()}
        return logits


MODELS: Mapping[str, type[OpenVINOModel] | type[OnnxModel]] = {
    "openvino": OpenVINOModel,
    "onnxruntime": OnnxModel,
}


def by_prefill(model: RandomModel, answer: FamilyAnswer) -> dict[int, float]:
    """Each text as one prompt."""
    found = {}
    for length, expected in answer.logits.items():
        long = model.config.rope_border is not None and length > model.config.rope_border
        opened = MODELS[model.runtime](model.folder, model.config, long=long)
        found[length] = error(opened.last_logits(answer.ids(length)), expected)
    return found


def by_decode(model: RandomModel, answer: FamilyAnswer) -> dict[int, float]:
    """The longest text through one cache, token by token across the border."""
    text = answer.ids(max(answer.logits))
    opened = MODELS[model.runtime](model.folder, model.config, long=model.config.rope_border is not None)
    found, start = {}, 0
    for stop in _stops(len(text), answer.logits):
        logits = opened.last_logits(text[start:stop])
        # Up to the border transformers takes the short factors; this text has the long ones from its start.
        if stop in answer.logits and (model.config.rope_border is None or stop > model.config.rope_border):
            found[stop] = error(logits, answer.logits[stop])
        start = stop
    return found


def _stops(tokens: int, lengths: Mapping[int, object]) -> list[int]:
    """Where the pieces of a text end."""
    singles = range(DECODED_FROM, min(4110, tokens) + 1)
    return sorted({*range(PIECE, tokens, PIECE), *singles, *lengths, tokens})


def by_chat(model: RandomModel, answer: FamilyAnswer) -> bool:
    """Whether a chat that crosses the border says what transformers would, and the same as the reference."""
    turns = [turn for turn in TURNS if turn + TURN_TOKENS <= model.config.context_length]
    with closing(model.open(exact=True)) as session:
        for turn in turns:
            prompt, sampling = answer.ids(turn), Sampling(max_new_tokens=TURN_TOKENS)
            tokens = list(session.generate(prompt, sampling))
            if tokens != list(model.reference.generate(prompt, sampling)):
                return False
            if turn in answer.logits and tokens[0] != int(answer.logits[turn].argmax()):
                return False
    return True


def compare(member: str, scratch: Path) -> Iterator[tuple[Case, bool | None]]:
    """All rows of a member; with a chat's outcome where there is one."""
    answer = load_family(member)
    reference = ReferenceSession(Phi3Config.parse(answer.config), answer.weights)
    errors = {
        length: error(reference.logits(answer.ids(length))[-1], expected)
        for length, expected in answer.logits.items()
    }
    yield Case(member, "reference", "prefill", errors), None
    for runtime in RUNTIMES:
        folder = scratch / member / runtime
        folder.mkdir(parents=True)
        context = answer.config["max_position_embeddings"]
        model = RandomModel(
            runtime, folder, answer.config, context=context, weights=answer.weights, weight_format="fp16"
        )
        yield Case(member, runtime, "prefill", by_prefill(model, answer)), None
        yield Case(member, runtime, "decode", by_decode(model, answer)), by_chat(model, answer)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the family's folders with transformers.")
    parser.add_argument("members", nargs="*", metavar="MEMBER", help=f"of {', '.join(FAMILY)}; default: all")
    parser.add_argument("--record", type=Path, help="write everything measured as JSON")
    args = parser.parse_args()
    rows, content = [], []
    lengths = sorted({length for member in FAMILY for length in load_family(member).logits})
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for member in args.members or FAMILY:
            for case, chat in compare(member, scratch):
                values = [f"{case.errors[n]:.1e}" if n in case.errors else "" for n in lengths]
                same = "" if chat is None else "the same" if chat else "OTHER TOKENS"
                rows.append((case.member, case.computed_by, case.way, *values, same))
                content.append(
                    {"member": case.member, "by": case.computed_by, "way": case.way, "chat": chat}
                    | {"errors": {str(length): value for length, value in case.errors.items()}}
                )
                print(*rows[-1], file=sys.stderr)
    print(markdown_table(("", "computed by", "by", *map(str, lengths), "chat across 4,096"), rows))
    worst = max(value for case in content for value in case["errors"].values())
    print(f"\nworst: {worst:.1e}; the limit is {LIMIT:.0e}")
    if args.record:
        write_record(args.record, "family", {"limit": LIMIT, "worst": worst, "cases": content})
    if worst > LIMIT or any(case["chat"] is False for case in content):
        sys.exit(1)


if __name__ == "__main__":
    main()
