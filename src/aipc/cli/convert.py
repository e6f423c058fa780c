"""aipc convert: a checkpoint becomes a folder, with the options of optimum-cli."""

from __future__ import annotations

import sys
import time
from argparse import SUPPRESS, ArgumentParser, Namespace
from pathlib import Path

import aipc
from aipc.cli import console
from aipc.errors import UsageError

TASK = "text-generation-with-past"


def add_arguments(parser: ArgumentParser) -> None:
    """The words of `aipc convert`."""
    parser.usage = "aipc convert MODEL OUT [options]"
    parser.epilog = (
        "The default is what NPU, GPU and CPU all take: 4 bits, symmetric, groups of 128. The options are "
        "those of optimum-cli export openvino, whose lines work here as they are. One default differs: "
        "without --sym, optimum-cli quantises asymmetrically, which NPUs are not meant for: here --asym."
    )
    parser.add_argument("paths", metavar="MODEL OUT", nargs="*", default=[], help=_PATHS_HELP)
    parser.add_argument("--model", help="the model, in place of the first word")
    parser.add_argument("-m", dest="model", help=SUPPRESS)
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument(
        "--to",
        default="openvino",
        metavar="FORMAT",
        help="openvino, onnx, or both: openvino,onnx (default: openvino)",
    )
    parser.add_argument(
        "--target",
        choices=["cpu", "cuda", "dml"],
        default="cpu",
        help="the device that an ONNX folder is for (default: cpu)",
    )
    group = parser.add_argument_group("weights")
    group.add_argument(
        "--weight-format", choices=["fp16", "int8", "int4"], default="int4", help="default: int4"
    )
    group.add_argument(
        "--group-size",
        type=int,
        metavar="N",
        help="int4 weights that share a scale: 32, 64, 128, 256, or -1 for a row "
        "(default: 128, or the largest below that fits)",
    )
    signs = group.add_mutually_exclusive_group()
    signs.add_argument(
        "--sym", action="store_const", const=True, help="symmetric codes, for every device (default)"
    )
    signs.add_argument(
        "--asym",
        action="store_const",
        const=False,
        dest="sym",
        help="with zero points: closer to the original, but not for NPUs",
    )
    group.add_argument(
        "--ratio",
        type=float,
        default=1.0,
        metavar="R",
        help="share of int4, the rest being int8; NPUs want 1.0 (default: 1.0)",
    )
    group.add_argument(
        "--quant-method",
        choices=["rtn", "mse", "gptq-random", "gptq"],
        default="rtn",
        help="how int4 weights are rounded: rtn, to the nearest by the range of each group, as optimum-cli "
        "does (default); mse, with the scales of the least squared error; gptq, by what the model computes "
        "with them on a text, which is the best and takes minutes; gptq-random, on random tokens, which "
        "is nearer than rtn without any text and takes a part of gptq's time",
    )
    group.add_argument("--gptq", action="store_const", const="gptq", dest="quant_method", help=SUPPRESS)
    group.add_argument(
        "--dataset", metavar="FILE", help="a text for gptq (default: one that comes with aipc)"
    )
    group = parser.add_argument_group("accepted, because lines for optimum-cli have them")
    group.add_argument("--task", choices=[TASK], default=TASK, help="what is converted anyway")
    group.add_argument(
        "--trust-remote-code", action="store_true", help="no effect: no code of a model is ever run"
    )


_PATHS_HELP = "MODEL: alias, hub id or checkpoint folder; OUT: the folder to make, which must be new or empty"


def run(args: Namespace) -> int:
    """Convert, show the folder's path on stdout, and return the exit code."""
    source, out = _source_and_out(args)
    for sentence in _remarks(args):
        console.note(sentence)
    start_s = time.perf_counter()
    with console.progress(f"converting {source}") as progress:
        folder = aipc.convert(
            source,
            out,
            to=args.to,
            target=args.target,
            weight_format=args.weight_format,
            group_size=args.group_size,
            sym=args.sym is not False,
            ratio=args.ratio,
            quant_method=args.quant_method,
            dataset=args.dataset,
            revision=args.revision,
            progress=progress,
        )
    console.note(_summary(folder, time.perf_counter() - start_s))
    console.write_answer(f"{folder}\n")
    return 0


def _source_and_out(args: Namespace) -> tuple[str, Path]:
    given = ([args.model] if args.model else []) + args.paths
    if len(given) != 2:
        found = " ".join(given) or "neither"
        raise UsageError(
            f"a model and a folder are needed; given: {found}",
            hint="aipc convert phi-3-mini ./phi-3-mini-int4",
        )
    source, out = given
    return source, Path(out)


def _remarks(args: Namespace) -> list[str]:
    remarks = []
    if args.trust_remote_code:
        remarks.append("--trust-remote-code has no effect: aipc runs no code of a model")
    if args.model and args.sym is None and args.weight_format != "fp16":
        remarks.append("codes are symmetric, which every device takes; optimum-cli's default is --asym")
    return remarks


def _summary(folder: Path, seconds: float) -> str:
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    parts = [console.size(written), f"{seconds:.1f} s"]
    peak_bytes = _peak_bytes()
    if peak_bytes is not None:
        parts.append(f"peak memory {console.size(peak_bytes)}")
    return f"[{' · '.join(parts)}]"


def _peak_bytes() -> int | None:
    """The most memory this process has held at once, where the system says so."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
