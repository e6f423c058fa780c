"""aipc compile: a model is compiled for an NPU ahead, on any machine that has the compiler."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace

from aipc.cli import console
from aipc.compiled import PLATFORMS, SMALLEST_BUCKET


def add_arguments(parser: ArgumentParser) -> None:
    """The words of `aipc compile`."""
    parser.usage = "aipc compile MODEL --npu PLATFORM [options]"
    parser.epilog = (
        "The first run on an NPU compiles for minutes. Here one machine does it for many, and needs no NPU: "
        "the blob goes into the model's folder. Copied to a machine with that NPU and the same version of "
        "OpenVINO, aipc run FOLDER --device NPU takes it. A model with LongRoPE (such as Phi-3.5-mini) "
        "computes texts of more than 4096 tokens otherwise: where the longest prompt and an answer of 1024 "
        "come to more, a second blob is made for them. The compiler comes with OpenVINO for Windows; on "
        "Linux the NPU's driver has one, for its own NPU."
    )
    parser.add_argument("model", metavar="MODEL", help="alias (demo, phi-3-mini, ...), hub id or folder")
    parser.add_argument(
        "--npu",
        metavar="PLATFORM",
        required=True,
        help=", ".join(f"{word} ({name})" for word, name in PLATFORMS.items()),
    )
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        default=SMALLEST_BUCKET,
        metavar="N",
        help=f"longest prompt; becomes 1024, 2048, 4096 ... (default: {SMALLEST_BUCKET})",
    )
    parser.add_argument(
        "--weight-format", choices=["fp16", "int8", "int4"], help="of a checkpoint (default: int4)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")


def run(args: Namespace) -> int:
    """Compile, show the path of each blob on stdout, and return the exit code."""
    from aipc.npu_compile import compile_ahead

    start_s = time.perf_counter()
    with console.progress(f"compiling {args.model} for NPU {args.npu}") as progress:
        blobs = compile_ahead(
            args.model,
            args.npu,
            prompt_tokens=args.prompt_tokens,
            weight_format=args.weight_format,
            revision=args.revision,
            progress=progress,
        )
    size = sum(blob.stat().st_size for blob in blobs)
    console.note(f"[{console.size(size)} · {time.perf_counter() - start_s:.1f} s]")
    console.note(f"on each machine with that NPU: aipc run {blobs[0].parent.parent} --device NPU")
    console.write_answer("".join(f"{blob}\n" for blob in blobs))
    return 0
