"""A small random model of each member of the family, and what transformers answers beside LongRoPE's border.

    answer = load_family("phi-4-mini")
    answer.ids(4097), answer.logits[4097]      # a text, and the scores of what follows it

tools/make_golden.py makes tests/data/golden/family.npz.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from checkpoints import TINY
from golden import FOLDER, fingerprint, make_weights

FAMILY_ARRAYS = FOLDER / "family.npz"
SEED = 7
LENGTHS = (50, 4095, 4096, 4097, 4200, 6000)

_SHORT = [1.0, 1.02, 1.05, 1.1, 1.16, 1.3, 1.8, 2.6]
_LONG = [1.08, 1.34, 1.6, 3.2, 9.1, 28.6, 57.9, 64.8]
_4K = TINY | {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096}
_128K = _4K | {
    "max_position_embeddings": 131_072,
    "rope_scaling": {"type": "longrope", "short_factor": _SHORT, "long_factor": _LONG},
    "sliding_window": 262_144,
}
_WIDE = {"hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 2}

FAMILY: dict[str, dict[str, Any]] = {
    "phi-3-mini-4k": _4K | {"sliding_window": 2047},
    "phi-3-mini-128k": {k: v for k, v in _128K.items() if k != "original_max_position_embeddings"}
    | {"rope_scaling": _128K["rope_scaling"] | {"type": "su", "original_max_position_embeddings": 4096}},
    "phi-3.5-mini": _128K,
    "phi-3-medium-4k": _4K | _WIDE | {"sliding_window": 2047},
    "phi-3-medium-128k": _128K | _WIDE | {"sliding_window": 131_072},
    "phi-4": _4K
    | _WIDE
    | {
        "max_position_embeddings": 16_384,
        "original_max_position_embeddings": 16_384,
        "rope_theta": 250_000.0,
    },
    "phi-4-mini": {k: v for k, v in _128K.items() if k != "rope_scaling"}
    | {
        "hidden_size": 96,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.75,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": _SHORT[:6],
            "long_factor": _LONG[:6],
            "attention_factor": 1.25,
        },
        "tie_word_embeddings": True,
        "vocab_size": 704,
    },
}


@dataclass(frozen=True, slots=True)
class FamilyAnswer:
    """What transformers says in float32.

    config   the content of config.json
    logits   by the length of the text, [vocab_size] float32 of its last token
    """

    config: dict[str, Any]
    weights: dict[str, np.ndarray]
    logits: dict[int, np.ndarray]

    def ids(self, tokens: int) -> list[int]:
        """The text of so many tokens; each is the beginning of the longer ones."""
        return text_ids(self.config, tokens)


def text_ids(config: dict[str, Any], tokens: int) -> list[int]:
    """Random token ids that are none of the special ones."""
    random = np.random.default_rng(SEED)
    return [int(token) for token in random.integers(3, config["vocab_size"], max(LENGTHS))[:tokens]]


def lengths_of(config: dict[str, Any]) -> list[int]:
    """The lengths of `LENGTHS` that fit into the context."""
    return [length for length in LENGTHS if length <= config["max_position_embeddings"]]


def load_family(member: str) -> FamilyAnswer:
    """The recorded answer of one of `FAMILY`."""
    config = FAMILY[member]
    weights = make_weights(config, SEED)
    with np.load(FAMILY_ARRAYS, allow_pickle=False) as arrays:
        assert str(arrays[f"{member}.weights"]) == fingerprint(weights), "run tools/make_golden.py"
        logits = {length: arrays[f"{member}.{length}"] for length in lengths_of(config)}
    return FamilyAnswer(config, weights, logits)
