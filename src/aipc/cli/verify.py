"""aipc verify: what a converted folder lost against its original."""

from __future__ import annotations

import json
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import TYPE_CHECKING

import aipc
from aipc.cli import console

if TYPE_CHECKING:
    from aipc.verification.check import Verification
    from aipc.verification.losses import Loss

_HEAD = ("TOKENS", "SCORED", "KL MEAN", "KL P99", "KL MAX", "SAME TOP-1", "PERPLEXITY", "ORIGINAL", "RATIO")


def add_arguments(parser: ArgumentParser) -> None:
    """The words of `aipc verify`."""
    parser.usage = "aipc verify FOLDER [--against CHECKPOINT] [options]"
    parser.epilog = (
        "KL divergences are in nats: how far the folder's distribution of the next token is from the "
        "original's. The original is computed in float32, a layer at a time, once for each text. The exit "
        "code is 1 if the folder is broken. aipc run warns of a model that was found less than good on the "
        "device, driver and runtime that it takes."
    )
    parser.add_argument(
        "folder", metavar="FOLDER", help="a converted folder, whoever made it, or a model's name"
    )
    parser.add_argument(
        "--against",
        metavar="CHECKPOINT",
        help="the original: folder, alias or hub id (default: what the folder's aipc.json names)",
    )
    parser.add_argument("--device", default="auto", help="auto, NPU, GPU, GPU.1, CPU ... (default: auto)")
    parser.add_argument(
        "--runtime", help="what runs the model, such as openvino (default: by device and folder)"
    )
    parser.add_argument(
        "--text", metavar="FILE", help="a text to compare on (default: one that comes with aipc)"
    )
    parser.add_argument(
        "--lengths",
        type=_lengths,
        metavar="N,N",
        help="tokens of the passages (default: 128, 512, 2048, and all that context and text hold)",
    )
    parser.add_argument("--json", action="store_true", help="show everything that was measured as one object")


def run(args: Namespace) -> int:
    """Compare, show the table and the verdict on stdout, and return the exit code."""
    with console.progress(f"verifying {args.folder}") as progress:
        found = aipc.verify(
            args.folder,
            args.against,
            device=args.device,
            runtime=args.runtime,
            text=args.text,
            lengths=args.lengths,
            progress=progress,
        )
    if args.json:
        console.write_answer(json.dumps(found.as_json(), ensure_ascii=False) + "\n")
    else:
        console.write_answer(_report(found))
    for sentence in found.notes:
        console.note(sentence)
    return 1 if found.verdict == "broken" else 0


def _report(found: Verification) -> str:
    where = f"{found.device} with {found.runtime}, {found.precision}"
    rows = [_HEAD, *map(_row, found.losses)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    table = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    verdict = [f"verdict: {found.verdict}", *(f"- {reason}" for reason in found.reasons)]
    return "\n".join([f"{found.folder} against {found.against}, on {where}", "", *table, "", *verdict, ""])


def _row(loss: Loss) -> tuple[str, ...]:
    return (
        str(loss.tokens),
        str(loss.positions),
        f"{loss.kl_mean:.4f}",
        f"{loss.kl_p99:.3f}",
        f"{loss.kl_max:.3f}",
        f"{loss.top1_agreement:.1%}",
        f"{loss.perplexity:.4g}",
        f"{loss.original_perplexity:.4g}",
        f"{loss.perplexity_ratio:.3f}",
    )


def _lengths(word: str) -> list[int]:
    try:
        return [int(part) for part in word.split(",")]
    except ValueError:
        raise ArgumentTypeError(f"{word!r} is not a list of numbers such as 128,2048") from None
