"""What int4 costs a checkpoint, by method: aipc's and NNCF's, by the same yardstick and from the same text.

    python benchmarks/bench_int4.py [CHECKPOINT] [--group-size 128] [--text FILE] [--no-nncf]
    python benchmarks/bench_int4.py --no-nncf --tokens 128 512 2048     # how long a text pays for gptq

Each method writes a folder for OpenVINO: aipc by `aipc.convert`, NNCF by `nncf.compress_weights` on aipc's
fp16 folder of the same checkpoint. What needs data has the text that aipc calibrates with. The yardstick is
that of `aipc verify`, at every token of a text that none has seen (the one that verify comes with, unless
--text names another): OpenVINO's CPU plugin with float32 arithmetic, against the original in numpy.
Without CHECKPOINT, the demo model.

One rounding of one model is one throw of the dice: what it costs on one text varies by a quarter. So --draws
measures several models that compute the same and are rounded otherwise, the original with its channels in
another order, and the table has means and their standard errors.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import aipc
from aipc import demo
from aipc.conversion.calibration import Calibration, read_calibration
from aipc.conversion.recipe import QUANT_METHODS
from aipc.conversion.streamed import StreamedWeights
from aipc.decoder import Decoder, forward
from aipc.errors import require
from aipc.phi3 import Role
from aipc.text import Text
from aipc.verification.losses import Loss, Scored, loss_over
from aipc.verification.original import open_checkpoint
from aipc.verification.passages import read_text
from measuring import folder_bytes, markdown_table, versions, write_record

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
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[], help="gptq also with so many tokens of its text"
    )
    parser.add_argument("--no-nncf", action="store_true", help="aipc's methods alone")
    parser.add_argument("--record", type=Path, help="write everything measured as JSON")
    args = parser.parse_args()
    ids = Text.load(args.checkpoint).encode(read_text(args.text))
    sequences = [ids[start : start + SEQUENCE_TOKENS] for start in range(0, len(ids) - 1, SEQUENCE_TOKENS)]
    results: dict[str, list[dict[str, float]]] = {}
    for draw in range(args.draws):
        with tempfile.TemporaryDirectory() as scratch:
            checkpoint = reordered(args.checkpoint, Path(scratch) / "checkpoint", draw)
            for name, record in measure(checkpoint, Path(scratch), args, sequences):
                results.setdefault(name, []).append(record)
                print(f"draw {draw + 1}: {name}: KL {record['kl_mean']:.5f}", file=sys.stderr)
    print(report(results))
    if args.record:
        used = versions(sys.executable, ["aipc", "nncf", "openvino", "numpy"])
        write_record(args.record, "int4", {"arguments": sys.argv[1:], "versions": used, "results": results})


def reordered(checkpoint: Path, out: Path, draw: int) -> Path:
    """A copy that computes the same with its channels in another order; draw 0 keeps theirs."""
    shutil.copytree(checkpoint, out)
    config, opened = open_checkpoint(out)
    random = np.random.default_rng(draw)
    hidden, between = (
        random.permutation(size) if draw else np.arange(size)
        for size in (config.hidden_size, config.intermediate_size)
    )
    gate_up = np.concatenate([between, between + config.intermediate_size])
    rows = {Role.NORM: hidden, Role.ATTENTION_OUTPUT: hidden, Role.GATE_UP: gate_up, Role.DOWN: hidden}
    columns = dict.fromkeys((Role.EMBEDDING, Role.QKV, Role.GATE_UP, Role.HEAD), hidden)
    columns[Role.DOWN] = between
    for spec in config.weights():
        info = opened.tensors[spec.name]
        kind = f"u{info.nbytes // spec.elements}"
        stored = np.memmap(info.path, kind, "r+", info.offset, spec.shape)
        weight = stored[rows[spec.role]] if spec.role in rows else np.array(stored)
        stored[:] = weight[:, columns[spec.role]] if spec.role in columns else weight
        stored.flush()
    return out


def measure(
    checkpoint: Path, scratch: Path, args: argparse.Namespace, sequences: Sequence[Sequence[int]]
) -> Iterator[tuple[str, dict[str, float]]]:
    """Every method's name, what its folder lost, and what it cost."""
    config, opened = open_checkpoint(checkpoint)
    original = original_scores(Decoder(config, StreamedWeights(opened)), sequences)
    calibration = read_calibration(checkpoint, config, None).sequences
    made = chain(
        by_aipc(checkpoint, scratch, args.group_size),
        by_length(checkpoint, scratch, args.group_size, args.tokens),
        () if args.no_nncf else by_nncf(checkpoint, scratch, args.group_size, calibration),
    )
    for name, make in made:
        start = time.perf_counter()
        folder = make()
        wall_s = time.perf_counter() - start
        loss = loss_over(list(scored(sequences, original, folder)))
        yield name, {"wall_s": wall_s, "bytes": folder_bytes(folder)} | record_of(loss)


def by_aipc(checkpoint: Path, scratch: Path, group_size: int) -> Iterator[tuple[str, Callable[[], Path]]]:
    """The name of each of aipc's methods, and what makes its folder."""
    for method in QUANT_METHODS:
        convert = partial(aipc.convert, checkpoint, scratch / method, group_size=group_size)
        yield f"aipc {method}", partial(convert, quant_method=method)


def by_length(
    checkpoint: Path, scratch: Path, group_size: int, lengths: Sequence[int]
) -> Iterator[tuple[str, Callable[[], Path]]]:
    """What makes a folder by gptq from the first tokens of its text, for each length."""
    for tokens in lengths:
        yield (
            f"aipc gptq, {tokens} tokens",
            partial(convert_with, tokens, checkpoint, scratch / f"{tokens}", group_size=group_size),
        )


def convert_with(tokens: int, checkpoint: Path, out: Path, **options: Any) -> Path:
    """`aipc.convert` by gptq, of whose text only the first tokens are read."""

    def read(*given: Any) -> Calibration:
        whole = read_calibration(*given)
        left, sequences = tokens, []
        for ids in whole.sequences:
            sequences.append(ids[:left])
            left -= len(sequences[-1])
        return replace(whole, sequences=tuple(ids for ids in sequences if ids))

    with mock.patch("aipc.conversion.convert.read_calibration", read):
        return aipc.convert(checkpoint, out, quant_method="gptq", **options)


def by_nncf(
    checkpoint: Path, scratch: Path, group_size: int, calibration: Sequence[Sequence[int]]
) -> Iterator[tuple[str, Callable[[], Path]]]:
    """The name of each of NNCF's methods, and what makes its folder."""
    fp16 = aipc.convert(checkpoint, scratch / "fp16", weight_format="fp16")
    for number, (name, options) in enumerate(NNCF_METHODS.items()):
        yield name, partial(compress, fp16, scratch / f"nncf-{number}", group_size, calibration, **options)


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
    nncf, ov = require("nncf", "test"), require("openvino", "openvino")
    nncf.set_log_level(logging.ERROR)
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
    ov = require("openvino", "openvino")
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


def report(results: dict[str, list[dict[str, float]]]) -> str:
    """A row for each method: means over the draws; shares are of plain rounding's."""
    plain = np.array([found["kl_mean"] for found in results["aipc rtn"]])
    rows = []
    for name, found in results.items():
        divergence, agreement, ratio, nbytes, wall_s = (
            np.array([record[key] for record in found])
            for key in ("kl_mean", "top1_agreement", "perplexity_ratio", "bytes", "wall_s")
        )
        error = divergence.std(ddof=1) / np.sqrt(len(found)) if len(found) > 1 else np.nan
        rows.append(
            (
                name,
                f"{divergence.mean():.4f} ± {error:.4f}",
                f"{divergence.mean() / plain.mean():.2f}",
                f"{agreement.mean():.1%}",
                f"{ratio.mean():.3f}",
                f"{nbytes.mean() / 1e6:.2f}",
                f"{wall_s.mean():.1f}",
            )
        )
    return markdown_table(
        ("", "KL, nats", "share", "same top-1", "perplexity ratio", "folder MB", "seconds"), rows
    )


if __name__ == "__main__":
    main()
