"""Compile a model for an NPU before it gets there: the blobs go into the model's folder."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from aipc import inventory, preflight, prepare
from aipc.compiled import PLATFORMS, SMALLEST_BUCKET, builds
from aipc.errors import StorageError, UsageError
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
) -> tuple[Path, ...]:
    """Compile a model for an NPU, which need not be in this machine; gives the blobs.

    There is one, or two where LongRoPE's factors change within the lengths asked for: one for each set.

    platform        of the NPU: "3720", "4000" …
    prompt_tokens   longest prompt, rounded up to 1024, 2048, 4096 …
    raises          UsageError for an unknown platform or length; what `load` raises; DeviceError where no
                    compiler for the platform is here
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
    room, border = runtime.usable_context(
        ready.folder, min(ready.context_length, runtime.NPU_CONTEXT_LENGTH), ready.rope_border
    )
    if prompt_tokens > room:
        raise UsageError(
            f"{source} takes {room} tokens on an NPU, not a prompt of {prompt_tokens}",
            hint="for more, convert its checkpoint with aipc convert" if border != ready.rope_border else "",
        )
    for note in preflight.check_npu(ready.folder):
        _LOG.warning(note)
    needed = builds(platform, prompt_tokens, border)
    if len(needed) > 1:
        _LOG.warning(
            "beyond %s tokens of prompt and answer LongRoPE has other factors: two blobs are compiled", border
        )
    _check_space(ready.folder, len(needed))
    return tuple(runtime.compile_for_npu(ready.folder, build, compiler) for build in needed)


def _check_space(folder: Path, blobs: int) -> None:
    """Refuse a disk that is too full: a blob of int4 in groups is as large as the weights.

    raises   StorageError
    """
    weights = folder / preflight.WEIGHTS_FILE
    needed = blobs * weights.stat().st_size if weights.is_file() else 0
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"what is compiled may take {needed / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free",
            hint="free some space",
        )
