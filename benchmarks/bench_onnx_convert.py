"""Converts one checkpoint to ONNX, to OpenVINO and to both at once, and with onnxruntime-genai's builder.

    python benchmarks/make_checkpoint.py CHECKPOINT
    python benchmarks/bench_onnx_convert.py CHECKPOINT SCRATCH --no-builder --record both.json
    python benchmarks/make_checkpoint.py SMALL --layers 4
    python benchmarks/bench_onnx_convert.py SMALL SCRATCH --record onnx.json

Measured as in bench_convert.py. The builder holds the whole model several times over, 24 GB for the
full shape: where that does not fit, compare with it on fewer layers.
"""

from __future__ import annotations

from typing import Any

from bench_convert import SCHEME, Tool, compare, conversion_parser, median_of, shares
from measuring import markdown_table, write_record

ONNX, OPENVINO, BOTH, BUILDER = "aipc onnx", "aipc openvino", "aipc both", "model builder"
TOOLS = (
    *(
        Tool(name, ("convert", "{checkpoint}", "--to", formats, *SCHEME, "{out}"))
        for name, formats in ((ONNX, "onnx"), (OPENVINO, "openvino"), (BOTH, "openvino,onnx"))
    ),
    Tool(
        BUILDER,
        (
            *("-i", "{checkpoint}", "-o", "{out}", "-c", "{out}.cache", "-p", "int4", "-e", "cpu"),
            *("--extra_options", "block_size=128", "accuracy_level=4"),
        ),
        "genai",
        ("python", "-m", "onnxruntime_genai.models.builder"),
    ),
)


def figures(runs: dict[str, list[dict[str, Any]]]) -> list[tuple[str, float, float]]:
    """What aipc is to reach, at most: name, limit, measured."""
    slower = max(median_of(runs, name, "wall_s") for name in (ONNX, OPENVINO))
    found = [
        ("both formats, time of the slower one alone", 1.4, median_of(runs, BOTH, "wall_s") / slower),
        ("both formats, peak GB", 0.4, median_of(runs, BOTH, "peak_tree_bytes") / 1e9),
    ]
    if BUILDER in runs:
        share = shares(runs, ONNX, BUILDER)
        found.append(("ONNX alone, of the builder's time", 1 / 5, share["wall_time"]))
        found.append(("ONNX alone, of the builder's memory", 1 / 50, share["peak_memory"]))
    return found


def main() -> None:
    parser = conversion_parser("Convert one checkpoint to ONNX and OpenVINO with aipc, and with the builder.")
    parser.add_argument("--no-builder", action="store_true", help="leave onnxruntime-genai's builder out")
    args = parser.parse_args()
    tools = [tool for tool in TOOLS if not (args.no_builder and tool.name == BUILDER)]
    content = compare(tools, args)
    asked = figures(content["runs"])
    rows = [(name, limit, f"{value:.3f}", "yes" if value <= limit else "no") for name, limit, value in asked]
    print("\n" + markdown_table(("", "at most", "measured", "met"), rows))
    if args.record:
        write_record(args.record, "onnx-convert", content | {"asked": asked})


if __name__ == "__main__":
    main()
