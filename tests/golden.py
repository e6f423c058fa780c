"""What transformers answers in float32 for small random models, kept so that no test needs torch.

    golden = load_golden("window")
    golden.write_checkpoint(tmp_path)      # the very weights it was made with

tools/make_golden.py makes the files in tests/data/golden.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import checkpoints
from aipc.phi3 import Phi3Config, Role
from aipc.types import Sampling
from checkpoints import TINY

FOLDER = Path(__file__).parent / "data" / "golden"
DESCRIPTION = FOLDER / "golden.json"
ARRAYS = FOLDER / "golden.npz"

# Matrices this much larger than those of `checkpoints` make attention look at few tokens, so that a
# wrong rotation or mask changes the answer. A power of two keeps them exact in float16.
MATRIX_SCALE = 4.0
DTYPE = "F16"

CASES: dict[str, dict[str, Any]] = {
    "mha": TINY,
    "gqa": TINY | {"num_key_value_heads": 2},
    "window": TINY | {"sliding_window": 8},
    "tied": TINY | {"tie_word_embeddings": True},
    "partial": TINY | {"partial_rotary_factor": 0.75},
    "all": TINY
    | {
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        "partial_rotary_factor": 0.75,
        "rms_norm_eps": 1e-3,
        "rope_theta": 250000.0,
        "sliding_window": 17,
        "tie_word_embeddings": True,
    },
}

# Every step of sampling at once, for the distribution of the token after the prompt.
SAMPLING = Sampling(temperature=0.7, top_k=40, top_p=0.9, repetition_penalty=1.3)


@dataclass(frozen=True, slots=True)
class Golden:
    """The answer of transformers to one prompt, by one small model.

    config          the content of config.json
    prompt          token ids
    tokens          the greedy ids that follow; none is a special token
    margins         of the best logit over the second best, at each of `tokens`
    positions       where in prompt + tokens the logits were taken
    logits          [positions, vocab_size] float32
    probabilities   [vocab_size] float32, of the token after the prompt under `SAMPLING`
    """

    config: Mapping[str, Any]
    seed: int
    weights_sha256: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    margins: tuple[float, ...]
    positions: tuple[int, ...]
    logits: np.ndarray
    probabilities: np.ndarray

    def weights(self) -> dict[str, np.ndarray]:
        """The weights, float32; the same on every machine, or the test says so."""
        weights = make_weights(self.config, self.seed)
        assert fingerprint(weights) == self.weights_sha256, "run tools/make_golden.py: the weights changed"
        return weights

    def write_checkpoint(self, folder: Path, tokenizer_from: Path | None = None) -> None:
        """Write the model as float16 safetensors, which hold its weights exactly."""
        checkpoints.write_checkpoint(folder, self.config, dtype=DTYPE, tokenizer_from=tokenizer_from)
        checkpoints.write_safetensors(folder / checkpoints.SINGLE_FILE, self.weights(), DTYPE)


def make_weights(config: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    """The weights that a seed stands for."""
    shape = Phi3Config.parse(config)
    weights = checkpoints.random_weights(shape, DTYPE, seed)
    matrices = {spec.name for spec in shape.weights() if spec.role is not Role.NORM}
    return {n: w * np.float32(MATRIX_SCALE) if n in matrices else w for n, w in weights.items()}


def fingerprint(weights: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over all weights in their order."""
    digest = hashlib.sha256()
    for array in weights.values():
        digest.update(array.astype("<f4").tobytes())
    return digest.hexdigest()


def load_golden(case: str) -> Golden:
    """The golden answer of one of `CASES`."""
    entry = json.loads(DESCRIPTION.read_text(encoding="utf-8"))["cases"][case]
    with np.load(ARRAYS, allow_pickle=False) as arrays:
        return Golden(
            config=CASES[case],
            seed=entry["seed"],
            weights_sha256=entry["weights_sha256"],
            prompt=tuple(entry["prompt"]),
            tokens=tuple(entry["tokens"]),
            margins=tuple(entry["margins"]),
            positions=tuple(entry["positions"]),
            logits=arrays[f"{case}.logits"],
            probabilities=arrays[f"{case}.probabilities"],
        )
