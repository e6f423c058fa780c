"""From the name of a model to a folder that a runtime takes: found, downloaded, converted once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from aipc import cache, hub, preflight
from aipc.errors import CheckpointError, StorageError, UsageError, shown
from aipc.manifest import MANIFEST_FILE
from aipc.phi3 import read_json_object
from aipc.runtimes.base import OPENVINO, RUNTIMES, Device, RuntimeInfo
from aipc.types import Progress

_LOG = logging.getLogger("aipc")

# What NPU, GPU and CPU all take: the recipe of a model that is asked for by name.
DEFAULT_RECIPE = {"weight_format": "int4", "group_size": None, "sym": True, "ratio": 1.0}


@dataclass(frozen=True, slots=True)
class ReadyModel:
    """A folder that a runtime takes. `name` is how the user called it."""

    name: str
    folder: Path

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and answer together, as config.json has it.

        raises   CheckpointError
        """
        path = self.folder / "config.json"
        length = read_json_object(path).get("max_position_embeddings")
        if not isinstance(length, int) or isinstance(length, bool) or length < 1:
            raise CheckpointError(
                f"{path}: max_position_embeddings is {shown(length)}, not a number of tokens",
                hint="download or convert the model again",
            )
        return length

    @property
    def precision(self) -> str:
        """Of most weights, for people."""
        return preflight.weight_format(self.folder)

    def compiled_dir(self, device: Device, runtime: RuntimeInfo) -> Path | None:
        """Where what `runtime` compiles for `device` is kept: apart for every driver and version.

        None where nothing can be kept; a CPU compiles nothing that is worth it.
        """
        if device.kind == "CPU":
            return None
        folder = cache.compiled_dir(
            self.folder,
            device=device.word,
            driver=f"{device.name} {device.driver}",
            runtime_version=metadata.version(runtime.distribution),
        )
        try:
            return cache.ensure_writable(folder)
        except StorageError as exc:
            _LOG.warning("%s; the model is compiled anew each time", exc.message)
            return None


def convert(  # noqa: PLR0917 - the names and their order are optimum-cli's
    source: str | Path,
    out: str | Path,
    to: str = OPENVINO.name,
    weight_format: str = "int4",
    group_size: int | None = None,
    sym: bool = True,
    ratio: float = 1.0,
    progress: Callable[[Progress], None] | None = None,
    *,
    revision: str | None = None,
) -> Path:
    """Quantise a checkpoint and write it as a folder for a runtime. No torch, a few blocks of memory.

    source        an alias, a hub id or a checkpoint folder
    out           a folder that does not exist, or is empty
    to            the runtime: "openvino"
    weight_format "fp16", "int8" or "int4"
    group_size    of int4: 32, 64, 128 or -1 (channel-wise); None for 128, or the largest that fits
    sym           without zero points
    ratio         of int4: the share of the weights that become int4; the most sensitive rest is int8
    progress      called often, from this thread
    revision      of a hub repository: branch, tag or commit
    raises        ModelNotFoundError, CheckpointError, UnsupportedModelError, SchemeError, StorageError;
                  nothing is left of `out` then
    """
    if to not in RUNTIMES:
        raise UsageError(f"there is no runtime {to!r} to convert for; possible: {', '.join(RUNTIMES)}")
    from aipc.conversion.convert import convert_checkpoint
    from aipc.conversion.folder import refuse_taken

    out = Path(out)
    refuse_taken(out)
    found = hub.find(source, revision=revision, progress=progress)
    if found.kind == "converted":
        raise UsageError(
            f"{found.folder} is converted already", hint=f"run it as it is: aipc run {found.folder}"
        )
    recipe = convert_checkpoint(
        found.folder,
        out,
        name=found.name,
        revision=found.revision,
        weight_format=weight_format,
        group_size=group_size,
        sym=sym,
        ratio=ratio,
        progress=progress,
    )
    for note in recipe.notes:
        _LOG.warning(note)
    return out


def ready_model(
    source: str | Path, runtime: RuntimeInfo, progress: Callable[[Progress], None] | None = None
) -> ReadyModel:
    """A folder for `runtime`: the source itself, an earlier conversion in the cache, or a new one there.

    raises   as `convert`
    """
    name = str(source)
    if not Path(source).exists():
        earlier = cache.lookup(name, DEFAULT_RECIPE, runtime.name)
        if earlier is not None:
            return ReadyModel(name, earlier)
    found = hub.find(source, progress=progress)
    if found.kind == "converted":
        return ReadyModel(name, found.folder)
    out = cache.converted_folder(found, DEFAULT_RECIPE, runtime.name)
    if not (out / MANIFEST_FILE).is_file():
        cache.ensure_writable(out.parent)
        try:
            convert(source, out, to=runtime.name, progress=progress)
        except StorageError:
            # Another process that began at the same time may have put the same folder there.
            if not (out / MANIFEST_FILE).is_file():
                raise
    return ReadyModel(name, out)
