"""From the name of a model to a folder that a runtime takes: found, downloaded, converted once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from aipc import cache, hub, memory, preflight
from aipc.errors import (
    AipcError,
    CheckpointError,
    ModelNotFoundError,
    SchemeError,
    StorageError,
    UsageError,
    shown,
)
from aipc.longrope import USUAL_BORDER, border_in
from aipc.manifest import MANIFEST_FILE, Manifest
from aipc.phi3 import Phi3Config, read_json_object
from aipc.runtimes.base import ONNXRUNTIME, OPENVINO, RUNTIMES, Device, RuntimeInfo
from aipc.types import Progress

_LOG = logging.getLogger("aipc")

# What NPU, GPU and CPU all take: the recipe of a model that is asked for by name.
DEFAULT_RECIPE: Mapping[str, object] = {
    "weight_format": "int4",
    "group_size": None,
    "sym": True,
    "ratio": 1.0,
    "quant_method": "rtn",
}


# The precision of a folder of others that says nothing of it.
_UNSAID = "as converted"

# Whose kernels an ONNX folder is for, by the first part of a device word.
_TARGETS = {"CPU": "cpu", "CUDA": "cuda", "DML": "dml"}


@dataclass(frozen=True, slots=True)
class ReadyModel:
    """A folder that a runtime takes. `name` is how the user called it."""

    name: str
    folder: Path

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and answer together, as the folder's configuration has it.

        raises   CheckpointError
        """
        path, config = self.folder / "config.json", {}
        if path.is_file():
            config = read_json_object(path)
        length = config.get("max_position_embeddings")
        if not path.is_file() and (self.folder / ONNXRUNTIME.model_file).is_file():
            path = self.folder / ONNXRUNTIME.model_file
            model = read_json_object(path).get("model")
            length = model.get("context_length") if isinstance(model, dict) else None
        if not isinstance(length, int) or isinstance(length, bool) or length < 1:
            raise CheckpointError(
                f"{path}: the context length is {shown(length)}, not a number of tokens",
                hint="download or convert the model again",
            )
        return length

    @property
    def rope_border(self) -> int | None:
        """After how many tokens LongRoPE's factors change; None if they never do.

        raises   CheckpointError
        """
        path = self.folder / "config.json"
        if path.is_file():
            return border_in(read_json_object(path))
        return USUAL_BORDER if self.context_length > USUAL_BORDER else None

    def fitting_context(
        self, device: Device, runtime: RuntimeInfo, asked: int | None, kv_cache: str | None
    ) -> int:
        """The most tokens that the model takes, memory holds and the caller asks for.

        raises   UsageError for more than the model takes; DeviceError for more than memory holds
        """
        length = self.context_length
        if asked is not None and not 1 <= asked <= length:
            raise UsageError(f"the context length is {asked}; this model takes 1 to {length} tokens")
        numbers = self._kv_numbers()
        # A discrete GPU has memory of its own, and its runtime says when it is full.
        if device.kind == "discrete GPU" or numbers is None:
            return asked or length
        return memory.fitting_context(
            asked or length,
            asked=asked is not None,
            weights_bytes=cache.bytes_below(self.folder),
            kv_numbers=numbers,
            kv_cache=kv_cache or runtime.kv_cache(device),
        )

    def _kv_numbers(self) -> int | None:
        """Numbers of a token in the KV cache; None for a model of others that aipc does not know."""
        try:
            config = Phi3Config.read(self.folder)
        except AipcError:
            return None
        return 2 * config.layers * config.kv_heads * config.head_size

    @property
    def precision(self) -> str:
        """Of most weights, for people."""
        if (self.folder / OPENVINO.model_file).is_file():
            return preflight.weight_format(self.folder)
        if (self.folder / MANIFEST_FILE).is_file():
            return str(Manifest.read(self.folder).recipe.get("weight_format", _UNSAID))
        return _UNSAID

    def compiled_dir(self, device: Device, runtime: RuntimeInfo) -> Path | None:
        """Where what `runtime` makes of the model for `device` is kept: apart for every driver and version.

        None where nothing can be kept.
        """
        if device.family not in runtime.compiles:
            return None
        if device.family == "CPU":
            # What lies there says itself for which processor and version it was made.
            return cache.compiled_dir(self.folder, device="CPU", driver="", runtime_version="")
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
    to: str | Sequence[str] = "openvino",
    weight_format: str = "int4",
    group_size: int | None = None,
    sym: bool = True,
    ratio: float = 1.0,
    progress: Callable[[Progress], None] | None = None,
    *,
    target: str = "cpu",
    revision: str | None = None,
    quant_method: str = "rtn",
    dataset: str | Path | None = None,
) -> Path:
    """Quantise a checkpoint and write it as a folder for a runtime. No torch, a few blocks of memory.

    source        an alias, a hub id or a checkpoint folder
    out           a folder that does not exist, or is empty
    to            "openvino", "onnx", or both ("openvino,onnx"): then as two folders in `out`, from one pass
    weight_format "fp16", "int8" or "int4"
    group_size    of int4: 32, 64, 128, 256 or -1 (channel-wise); None for 128, or the largest that fits
    sym           without zero points
    ratio         of int4: the share of the weights that become int4; the most sensitive rest is int8
    progress      called often, from this thread
    target        whose kernels an ONNX folder is for: "cpu", "cuda" or "dml"
    revision      of a hub repository: branch, tag or commit
    quant_method  of int4: "rtn" rounds to nearest as NNCF does; "mse" fits the scales to the weights; "gptq"
                  also chooses the codes by what the model computes with them on a text, in minutes;
                  "gptq-random" on random tokens, without a text, in a part of that time
    dataset       of "gptq": a UTF-8 text file; None for the text that comes with aipc
    raises        ModelNotFoundError, CheckpointError, UnsupportedModelError, SchemeError, StorageError,
                  UsageError; nothing is left of `out` then
    """
    from aipc.conversion.convert import convert_checkpoint
    from aipc.conversion.folder import refuse_taken
    from aipc.conversion.formats import formats_named

    out = Path(out)
    refuse_taken(out)
    words = to.split(",") if isinstance(to, str) else list(to)
    formats_named(words, target)
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
        to=words,
        target=target,
        weight_format=weight_format,
        group_size=group_size,
        sym=sym,
        ratio=ratio,
        quant_method=quant_method,
        dataset=None if dataset is None else Path(dataset),
        progress=progress,
    )
    for note in recipe.notes:
        _LOG.warning(note)
    return out


def formats_of(source: str | Path) -> frozenset[str] | None:
    """The runtimes that a converted folder is for; None for what can be converted, or is not here yet."""
    folder = hub.local_folder(source)
    if folder is None or hub.kind_of(folder) == "checkpoint":
        return None
    return frozenset(name for name, info in RUNTIMES.items() if hub.converted_folders(folder, info))


def ready_model(
    source: str | Path,
    runtime: RuntimeInfo,
    device: Device,
    progress: Callable[[Progress], None] | None = None,
    *,
    weight_format: str | None = None,
    revision: str | None = None,
) -> ReadyModel:
    """A folder for `runtime` on `device`: in the source itself, in the cache, or converted there now.

    weight_format  "fp16", "int8" or "int4"; None for what the folder has, int4 where it is converted now
    revision       of a hub repository: branch, tag or commit
    raises         as `convert`; SchemeError if the source is a folder for another runtime or format
    """
    recipe, target = _recipe_for(runtime, device, weight_format)
    ready = _stored(source, runtime, recipe, revision)
    if ready is not None:
        return ready
    onnx = runtime is ONNXRUNTIME
    found = hub.find(source, revision=revision, target=target if onnx else None, progress=progress)
    if found.kind == "converted":
        ready = ReadyModel(str(source), _fitting_folder(found.folder, runtime, target))
        _require_format(ready, weight_format)
        return ready
    out = cache.converted_folder(found, recipe, runtime.name)
    if not (out / MANIFEST_FILE).is_file():
        cache.ensure_writable(out.parent)
        try:
            word = "onnx" if onnx else runtime.name
            convert(
                source,
                out,
                to=word,
                weight_format=str(recipe["weight_format"]),
                progress=progress,
                target=target,
                revision=revision,
            )
        except StorageError:
            # Another process that began at the same time may have put the same folder there.
            if not (out / MANIFEST_FILE).is_file():
                raise
    return ReadyModel(str(source), out)


def ready_here(source: str | Path, runtime: RuntimeInfo, device: Device) -> ReadyModel | None:
    """The folder that `ready_model` would give, if it is here already: nothing is fetched or converted.

    raises   CheckpointError, SchemeError
    """
    recipe, target = _recipe_for(runtime, device, None)
    ready = _stored(source, runtime, recipe, None)
    if ready is not None:
        return ready
    try:
        found = hub.find(source, target=target if runtime is ONNXRUNTIME else None, download=False)
    except ModelNotFoundError:
        return None
    if found.kind == "converted":
        return ReadyModel(str(source), _fitting_folder(found.folder, runtime, target))
    out = cache.converted_folder(found, recipe, runtime.name)
    return ReadyModel(str(source), out) if (out / MANIFEST_FILE).is_file() else None


def _recipe_for(
    runtime: RuntimeInfo, device: Device, weight_format: str | None
) -> tuple[Mapping[str, object], str]:
    """How a checkpoint is converted, and whose kernels an ONNX folder is for."""
    target = _TARGETS.get(device.family, "cpu")
    recipe = dict(DEFAULT_RECIPE) | ({"target": target} if runtime is ONNXRUNTIME else {})
    if weight_format is not None:
        recipe |= {"weight_format": weight_format}
    return recipe, target


def _stored(
    source: str | Path, runtime: RuntimeInfo, recipe: Mapping[str, object], revision: str | None
) -> ReadyModel | None:
    """What was converted of a hub model, even where its checkpoint has been deleted since."""
    if hub.local_folder(source) is not None:
        return None
    earlier = cache.lookup(str(source), recipe, runtime.name, revision)
    return None if earlier is None else ReadyModel(str(source), earlier)


def _require_format(ready: ReadyModel, weight_format: str | None) -> None:
    """Refuse a folder of another format than the one asked for, as far as it says.

    raises   SchemeError
    """
    if weight_format is not None and ready.precision not in {weight_format, _UNSAID}:
        raise SchemeError(
            f"{ready.folder} holds {ready.precision} weights, and {weight_format} is asked for",
            hint="name the checkpoint, which is converted, or ask for no format",
        )


def _fitting_folder(folder: Path, runtime: RuntimeInfo, target: str) -> Path:
    """The folder for a runtime and a target, where several lie in one.

    raises   SchemeError if none is for the runtime, or none of several for the target
    """
    found = hub.converted_folders(folder, runtime)
    if not found:
        other = next(info for info in RUNTIMES.values() if hub.converted_folders(folder, info))
        raise SchemeError(
            f"{folder} is a folder for {other.title}, not for {runtime.title}",
            hint=f"--runtime {other.name}, or give the checkpoint, which is converted for either",
        )
    if len(found) == 1:
        return found[0]
    parts = [path.relative_to(folder).as_posix() for path in found]
    part = hub.part_for(target, parts)
    if part is not None:
        return folder / part
    raise SchemeError(
        f"{folder} holds several models, and none of them says that it is for {target}: {', '.join(parts)}",
        hint="name the folder that is meant",
    )
