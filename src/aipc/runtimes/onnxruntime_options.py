"""What `open_session` hands over to the engines of ONNX Runtime; JSON turns paths into text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
