"""Compile a model for an NPU before it gets there: the blob goes into the model's folder."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from aipc import inventory, preflight, prepare
from aipc.compiled import ANSWER_TOKENS, PLATFORMS, SMALLEST_BUCKET, bucket
from aipc.errors import StorageError, UnsupportedModelError, UsageError
from aipc.runtimes.base import OPENVINO, Device
from aipc.types import Progress

_LOG = logging.getLogger("aipc")


def compile_ahead(
    source: str | Path,
    platform: str,
    *,
    prompt_tokens: int = SMALLEST_BUCKET,
    weight_format: str | None = None,
    revision: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Path:
    """Compile a model for an NPU, which need not be in this machine; gives the blob.

    platform        of the NPU: "3720", "4000" …
    prompt_tokens   longest prompt, rounded up to 1024, 2048, 4096 …
    raises          UsageError for an unknown platform or length; what `load` raises; DeviceError where no
                    compiler for the platform is here; UnsupportedModelError for LongRoPE
    """
    if platform not in PLATFORMS:
        known = ", ".join(f"{word} ({name})" for word, name in PLATFORMS.items())
        raise UsageError(f"there is no NPU {platform!r}; possible are {known}")
    if prompt_tokens < 1:
        raise UsageError(f"a prompt has one token or more, not {prompt_tokens}")
    # Whether there is a compiler is known before anything is fetched.
    runtime = inventory.runtime_module(OPENVINO)
    compiler = runtime.npu_compiler(platform)
    ready = prepare.ready_model(
        source,
        OPENVINO,
        Device("NPU", PLATFORMS[platform], "NPU"),
        progress,
        weight_format=weight_format,
        revision=revision,
    )
    if ready.rope_border is not None:
        raise UnsupportedModelError(
            f"{source} has LongRoPE, whose factors make two models: that is not compiled ahead yet",
            hint="aipc run compiles it on the NPU itself",
        )
    room = min(ready.context_length, runtime.NPU_CONTEXT_LENGTH)
    if prompt_tokens > room:
        raise UsageError(f"{source} takes {room} tokens on an NPU, not a prompt of {prompt_tokens}")
    for note in preflight.check_npu(ready.folder):
        _LOG.warning(note)
    _check_space(ready.folder)
    blob: Path = runtime.compile_for_npu(
        ready.folder, platform, compiler, bucket(prompt_tokens), ANSWER_TOKENS
    )
    return blob


def _check_space(folder: Path) -> None:
    """Refuse a disk that is too full: a blob of int4 in groups is as large as the weights.

    raises   StorageError
    """
    weights = folder / preflight.WEIGHTS_FILE
    needed = weights.stat().st_size if weights.is_file() else 0
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"the compiled model may take {needed / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free",
            hint="free some space",
        )
