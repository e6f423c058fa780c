"""What `open_session` hands over to the engines of ONNX Runtime; JSON turns paths into text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The graph of our folders that is told which of LongRoPE's factors to take, and the input that tells it:
# [rows, 1] int64, 1 for those of long texts.
FACTORS_MODEL_FILE = "model_long_factors.onnx"
LONG_FACTORS = "long_factors"


@dataclass(frozen=True, slots=True)
class Options:
    """For the process that computes.

    properties       session options, in the runtime's words
    context_length   most tokens of prompt and answer together
    rope_border      LongRoPE's factors change after so many tokens, or None
    prepacked_dir    where prepacked weights are if they were made, or None where they are not kept
    prepack          make them if they are not there
    """

    folder: str
    device: str
    properties: Mapping[str, Any]
    context_length: int
    rope_border: int | None
    prepacked_dir: str | None = None
    prepack: bool = False
