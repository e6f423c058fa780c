"""For code written for transformers, optimum-intel or the Intel NPU Acceleration Library: change the import.

    from aipc.transformers import NPUModelForCausalLM, OVModelForCausalLM, CompilerConfig, int4

With `install()` before it, not even the import of intel_npu_acceleration_library changes.
"""

from __future__ import annotations

import os

from aipc.errors import require

# The packages first: one that is missing is said with the command that installs it.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
require("torch", "transformers")
require("transformers", "transformers")

from aipc.transformers.compiler import CompilerConfig, float16, float32, int4, int8  # noqa: E402
from aipc.transformers.models import NPUModelForCausalLM, OVModelForCausalLM  # noqa: E402
from aipc.transformers.npu_library import compile, install  # noqa: A004, E402 - the library's own names

__all__ = [
    "CompilerConfig",
    "NPUModelForCausalLM",
    "OVModelForCausalLM",
    "compile",
    "float16",
    "float32",
    "install",
    "int4",
    "int8",
]
