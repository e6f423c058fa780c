"""What int4 costs a checkpoint, by method: aipc's and NNCF's, by the same yardstick and from the same text.

    python benchmarks/bench_int4.py [CHECKPOINT] [--group-size 128] [--text FILE] [--record int4.json]

Each method writes a folder for OpenVINO: aipc by `aipc.convert`, NNCF by `nncf.compress_weights` on aipc's
fp16 folder of the same checkpoint. What needs data has the text that aipc calibrates with. The yardstick is
that of `aipc verify`, at every token of a text that none has seen (the one that verify comes with, unless
--text names another): OpenVINO's CPU plugin with float32 arithmetic, against the original in numpy.
Without CHECKPOINT, the demo model.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import folder_bytes, markdown_table, versions, write_record

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
import nncf
import openvino as ov

import aipc
from aipc import demo
from aipc.conversion.calibration import read_calibration
from aipc.conversion.streamed import StreamedWeights
from aipc.decoder import Decoder, forward
from aipc.text import Text
from aipc.verification.losses import Loss, Scored, loss_over
from aipc.verification.original import open_checkpoint
from aipc.verification.passages import read_text

SEQUENCE_TOKENS = 512
EXACT = {
    "EXECUTION_MODE_HINT": "ACCURACY",
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    "KV_CACHE_PRECISION": "f32",
}
NNCF_METHODS: dict[str, dict[str, Any]] = {
    "NNCF": {},
    "NNCF, AWQ without data": {"awq": True, "without_data": True},
    "NNCF, scale estimation": {"scale_estimation": True},
    "NNCF, AWQ": {"awq": True},
    "NNCF, AWQ and scale estimation": {"awq": True, "scale_estimation": True},
    "NNCF, GPTQ": {"gptq": True},
    "NNCF, GPTQ and scale estimation": {"gptq": True, "scale_estimation": True},
}


def main() -> None:
    """Convert by every method, measure each, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, nargs="?", default=demo.path())
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--text", type=Path, help="to measure on")
    parser.add_argument("--record", type=Path, help="write everything measured as JSON")
    args = parser.parse_args()
    nncf.set_log_level(logging.ERROR)
    config, checkpoint = open_checkpoint(args.checkpoint)
    ids = Text.load(args.checkpoint).encode(read_text(args.text))
    sequences = [ids[start : start + SEQUENCE_TOKENS] for start in range(0, len(ids) - 1, SEQUENCE_TOKENS)]
    original = original_scores(Decoder(config, StreamedWeights(checkpoint)), sequences)
    calibration = read_calibration(args.checkpoint, config, None).sequences

    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, make in methods(args.checkpoint, Path(scratch), args.group_size, calibration):
            start = time.perf_counter()
            folder = make()
            wall_s = time.perf_counter() - start
            loss = loss_over(list(scored(sequences, original, folder)))
            results[name] = {"wall_s": wall_s, "bytes": folder_bytes(folder)} | record_of(loss)
            print(f"{name}: KL {loss.kl_mean:.5f}", file=sys.stderr)
    print(report(results))
    if args.record:
        used = versions(sys.executable, ["aipc", "nncf", "openvino", "numpy"])
        write_record(args.record, "int4", {"arguments": sys.argv[1:], "versions": used, "results": results})


def methods(
    checkpoint: Path, scratch: Path, group_size: int, calibration: Sequence[Sequence[int]]
) -> Iterator[tuple[str, Callable[[], Path]]]:
    """Every method's name, and what makes its folder."""
    for method in ("rtn", "mse", "gptq"):

        def by_aipc(method: str = method) -> Path:
            return aipc.convert(checkpoint, scratch / method, group_size=group_size, quant_method=method)

        yield f"aipc {method}", by_aipc
    fp16 = aipc.convert(checkpoint, scratch / "fp16", weight_format="fp16")
    for number, (name, options) in enumerate(NNCF_METHODS.items()):

        def by_nncf(number: int = number, options: dict[str, Any] = options) -> Path:
            return compress(fp16, scratch / f"nncf-{number}", group_size, calibration, **options)

        yield name, by_nncf


def compress(
    fp16: Path,
    out: Path,
    group_size: int,
    calibration: Sequence[Sequence[int]],
    *,
    without_data: bool = False,
    **options: Any,
) -> Path:
    """A copy of a folder whose weights NNCF has quantised."""
    needs_data = bool(options) and not without_data
    model = nncf.compress_weights(
        ov.Core().read_model(fp16 / "openvino_model.xml"),
        mode=nncf.CompressWeightsMode.INT4_SYM,
        group_size=group_size,
        ratio=1.0,
        dataset=nncf.Dataset([inputs_of(ids) for ids in calibration]) if needs_data else None,
        subset_size=len(calibration),
        **options,
    )
    shutil.copytree(fp16, out, ignore=shutil.ignore_patterns("openvino_model.*", "aipc.json"))
    ov.save_model(model, out / "openvino_model.xml", compress_to_fp16=False)
    return out


def inputs_of(ids: Sequence[int]) -> dict[str, np.ndarray]:
    """What the graph takes for one sequence."""
    tokens = np.array([ids], np.int64)
    return {
        "input_ids": tokens,
        "attention_mask": np.ones_like(tokens),
        "position_ids": np.arange(tokens.size)[None],
        "beam_idx": np.zeros(1, np.int32),
    }


def original_scores(decoder: Decoder, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Of every token that could follow each token, [tokens, vocab_size] for each sequence."""
    *_, (_, x) = forward(decoder, sequences)
    scores = decoder.head(decoder.last_norm(x))
    return np.split(scores, np.cumsum([len(ids) for ids in sequences])[:-1])


def scored(
    sequences: Sequence[Sequence[int]], original: Sequence[np.ndarray], folder: Path
) -> Iterator[Scored]:
    """Every sequence as the original and a folder have scored it."""
    request = ov.Core().compile_model(folder / "openvino_model.xml", "CPU", EXACT).create_infer_request()
    for ids, expected in zip(sequences, original, strict=True):
        request.reset_state()
        scores = request.infer(inputs_of(ids))["logits"][0]
        yield Scored(len(ids), ids[1:], expected[:-1], scores[:-1])


def record_of(loss: Loss) -> dict[str, float]:
    """What is kept of a loss."""
    return {
        "kl_mean": loss.kl_mean,
        "kl_p99": loss.kl_p99,
        "top1_agreement": loss.top1_agreement,
        "perplexity_ratio": loss.perplexity_ratio,
    }


def report(results: dict[str, dict[str, float]]) -> str:
    """A row for each method; shares are of plain rounding's."""
    plain = results["aipc rtn"]["kl_mean"]
    rows = [
        (
            name,
            f"{found['kl_mean']:.5f}",
            f"{found['kl_mean'] / plain:.2f}",
            f"{found['top1_agreement']:.1%}",
            f"{found['perplexity_ratio']:.4f}",
            f"{found['bytes'] / 1e6:.2f}",
            f"{found['wall_s']:.1f}",
        )
        for name, found in results.items()
    ]
    return markdown_table(
        ("", "KL, nats", "share", "same top-1", "perplexity ratio", "folder MB", "seconds"), rows
    )


if __name__ == "__main__":
    main()
