"""What `aipc verify` rests on: its forward beside transformers, its cost, and what its limits tell apart.

    PYTHONPATH=tests python benchmarks/bench_verify.py agreement [--python PYTHON]
    PYTHONPATH=tests python benchmarks/bench_verify.py cost CHECKPOINT [--tokens 512]
    PYTHONPATH=tests python benchmarks/bench_verify.py whole CHECKPOINT --folder FOLDER --lengths 128 512
    PYTHONPATH=tests python benchmarks/bench_verify.py limits

agreement   logits of small random checkpoints of each family member's form, against transformers in
            float32, computed by a Python that has it: PYTHON, or the one that peers.py makes
cost        time and memory of the forward over a checkpoint, in a process of its own
whole       time and memory of all that `aipc verify` does on the CPU, with an empty cache
limits      KL divergence of the demo model's folders, sound and damaged on purpose, on both runtimes
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import aipc
from aipc.conversion.streamed import StreamedWeights
from aipc.decoder import Decoder
from aipc.types import Progress
from aipc.verification.original import computed_scores, open_checkpoint
from aipc.verification.passages import Passage
from damage import change_scales
from make_checkpoint import CONFIGS, make_checkpoint
from measuring import watch, write_record
from peers import default_envs, peer_python

DEMO = Path(aipc.__file__).parent / "demo"

# The form of a family member stays, everything is smaller: heads of 48, and a window that is felt.
SMALL = {"hidden_size": 384, "intermediate_size": 768, "num_hidden_layers": 6, "vocab_size": 2000}
SMALL_WINDOW = 100
AGREEMENT_TOKENS = 300

TRANSFORMERS = """
import sys
import numpy, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, attn_implementation="eager")
with torch.no_grad():
    numpy.save(sys.argv[3], model(torch.from_numpy(numpy.load(sys.argv[2]))[None]).logits[0].numpy())
"""

RECIPES: dict[str, dict[str, Any]] = {
    "fp16": {"weight_format": "fp16"},
    "int8": {"weight_format": "int8"},
    "int4, group 32": {"group_size": 32},
    "int4, group 128": {},
    "int4, a scale for each row": {"group_size": -1},
}
DAMAGES = {
    "scales of layer 3 doubled": (r"layers\.3\.", lambda scales: scales * 2),
    "signs of layer 1 turned": (r"layers\.1\.", lambda scales: -scales),
    "scales of layer 1 one group off": (r"layers\.1\.", lambda scales: np.roll(scales, 1)),
    "one qkv_proj doubled": (r"layers\.3\.self_attn\.qkv", lambda scales: scales * 2),
    "one o_proj doubled": (r"layers\.3\.self_attn\.o_", lambda scales: scales * 2),
    "one down_proj doubled": (r"layers\.3\.mlp\.down", lambda scales: scales * 2),
    "all scales of layers 10 % too large": ("layers", lambda scales: scales * 1.1),
}


def small_config(name: str) -> dict[str, Any]:
    """The published config of a family member, made small."""
    config = CONFIGS[name]
    share = config["num_attention_heads"] // config["num_key_value_heads"]
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8 // share}
    window = SMALL_WINDOW if config["sliding_window"] else None
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    return config | SMALL | heads | ids | {"sliding_window": window}


def forward(folder: Path, ids: list[int]) -> np.ndarray:
    """Logits behind every token but the last, as `aipc verify` computes the original's."""
    config, checkpoint = open_checkpoint(folder)
    passage = Passage(tuple(ids[:1]), tuple(ids[1:]))
    decoder = Decoder(config, StreamedWeights(checkpoint))
    (scores,) = computed_scores(decoder, [passage], folder.name, lambda now: None)
    return scores


def measure_agreement(python: Path) -> list[dict[str, Any]]:
    rows = []
    for name in CONFIGS:
        with tempfile.TemporaryDirectory() as scratch:
            folder, ids_file, theirs_file = (
                Path(scratch) / part for part in ("model", "ids.npy", "logits.npy")
            )
            config = small_config(name)
            make_checkpoint(folder, config, DEMO)
            ids = np.random.default_rng(0).integers(3, config["vocab_size"], AGREEMENT_TOKENS)
            np.save(ids_file, ids)
            subprocess.run([python, "-c", TRANSFORMERS, folder, ids_file, theirs_file], check=True)
            theirs, ours = np.load(theirs_file)[:-1], forward(folder, ids.tolist())
        error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        rows.append({"model": name, "tokens": AGREEMENT_TOKENS, "largest_relative_error": error})
        print(f"{name:14} largest error of a logit, relative to the largest logit: {error:.1e}", flush=True)
    return rows


def measure_cost(checkpoint: Path, tokens: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        seen = watch([sys.executable, __file__, "forward", checkpoint, str(tokens)], Path(scratch) / "log")
    print(
        f"{tokens} tokens: {seen.wall_s:.1f} s, peak memory {seen.peak_tree_bytes / 1e9:.2f} GB", flush=True
    )
    return {"tokens": tokens, "wall_s": seen.wall_s, "peak_bytes": seen.peak_tree_bytes}


def measure_whole(folder: Path, checkpoint: Path, lengths: list[int]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        told = Path(scratch) / "told.txt"
        command = [sys.executable, __file__, "verify", checkpoint, "--folder", folder, "--lengths"]
        seen = watch([*command, *map(str, lengths)], told, {"AIPC_CACHE_DIR": f"{scratch}/cache"})
        stages = told.read_text(encoding="utf-8")
    print(f"{stages}all: {seen.wall_s:.0f} s, peak memory {seen.peak_tree_bytes / 1e9:.2f} GB", flush=True)
    return {"lengths": lengths, "stages": stages.splitlines(), "wall_s": seen.wall_s} | {
        "peak_bytes": seen.peak_tree_bytes
    }


def tell_stages(folder: Path, checkpoint: Path, lengths: list[int]) -> None:
    """Verify, and print how long each stage took: from its first report to the next stage's."""
    begins = {"start and load": time.perf_counter()}

    def take(now: Progress) -> None:
        stage = "comparing matrices" if now.tensor.endswith(".weight") else now.tensor
        begins.setdefault(re.sub(r"[:\d].*", "", stage).strip(), time.perf_counter())

    found = aipc.verify(folder, checkpoint, device="CPU", lengths=lengths, progress=take)
    for (stage, begin), end in zip(
        begins.items(), [*list(begins.values())[1:], time.perf_counter()], strict=True
    ):
        print(f"{stage}: {end - begin:.0f} s")
    print(f"{found.verdict}: {found.reasons}")


def measure_limits() -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, recipe in RECIPES.items():
            out = aipc.convert("demo", Path(scratch) / name, to="openvino,onnx", **recipe)
            rows += [verified(name, out / kind) for kind in ("openvino", "onnx")]
        sound = Path(scratch) / "int4, group 128"
        for name, (matrices, change) in DAMAGES.items():
            for kind in ("openvino", "onnx"):
                damaged = shutil.copytree(sound / kind, Path(scratch) / name / kind)
                assert change_scales(damaged, matrices, change)
                rows.append(verified(name, damaged))
    return rows


def verified(name: str, folder: Path) -> dict[str, Any]:
    found = aipc.verify(folder, "demo", device="CPU")
    divergences = " ".join(f"{loss.kl_mean:8.4f}" for loss in found.losses)
    print(f"{name:36} {folder.name:9} {found.verdict:10} {divergences}", flush=True)
    return {"case": name} | found.as_json()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["agreement", "cost", "whole", "limits", "forward", "verify"])
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("count", type=int, nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--folder", type=Path, help="what was converted from CHECKPOINT")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--python", type=Path, help="one that has transformers and torch")
    parser.add_argument("--record", type=Path, help="JSON file for everything measured")
    args = parser.parse_args()
    if args.what == "forward":
        scores = forward(args.checkpoint, np.random.default_rng(0).integers(3, 32000, args.count).tolist())
        assert np.isfinite(scores).all()
        return
    if args.what == "verify":
        tell_stages(args.folder, args.checkpoint, args.lengths)
        return
    measured: Any
    if args.what == "agreement":
        measured = measure_agreement(args.python or peer_python("optimum", default_envs()))
    elif args.what == "cost":
        measured = measure_cost(args.checkpoint, args.tokens)
    elif args.what == "whole":
        measured = measure_whole(args.folder, args.checkpoint, args.lengths)
    else:
        measured = measure_limits()
    if args.record:
        write_record(args.record, "verify", {args.what: measured})


if __name__ == "__main__":
    main()
