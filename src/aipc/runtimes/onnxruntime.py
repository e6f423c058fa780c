"""ONNX Runtime GenAI behind `Session`: CPU, CUDA and DirectML.

It computes in a process of its own (aipc.runtimes.process says why); this side knows packages and devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from aipc.errors import CheckpointError, DeviceError, UsageError, shown
from aipc.phi3 import read_json_object
from aipc.runtimes import onnxruntime_devices as devices
from aipc.runtimes.base import ONNXRUNTIME, Device
from aipc.runtimes.packages import installed_flavour, require_provider
from aipc.runtimes.process import Worker
from aipc.runtimes.session import EngineScorer, EngineSession

# The first one takes what it cannot run to the other.
_CPU_ENGINE = "aipc.runtimes.onnxruntime_batching"
_GENAI_ENGINE = "aipc.runtimes.onnxruntime_engine"


def open_session(
    folder: Path,
    device: str,
    *,
    exact: bool = False,
    properties: Mapping[str, object] | None = None,
    compiled_dir: Path | None = None,
    fast_load: bool = False,
    context_length: int,
    precision: str,
    rope_border: int | None = None,
    kv_cache: str | None = None,
) -> OnnxRuntimeSession:
    """A converted folder, loaded and warm.

    device           "CPU", "CUDA:0", "DML:0"; no other is taken in its place
    exact            float32 arithmetic, which the CPU has for weights that are not quantised
    properties       session options of ONNX Runtime, which win over ours
    compiled_dir     where weights that are packed for this processor are kept
    fast_load        pack them now if they are not there
    context_length   most tokens of prompt and answer together
    precision        of the weights, for people
    rope_border      LongRoPE's factors change after so many tokens, or None
    kv_cache         "f32" on the CPU, "f16" elsewhere: the folder decides, and None is as well

    raises   DeviceError, CheckpointError, UnsupportedModelError, MissingExtraError, UsageError,
             RuntimeFailedError
    """
    device = device if device == "CPU" or ":" in device else f"{device}:0"
    _require_device(device)
    if exact:
        _require_exact(device, precision)
    held = "f32" if device == "CPU" else "f16"
    if kv_cache not in {None, held}:
        raise UsageError(
            f"the KV cache of ONNX Runtime on {device} is {held}; {kv_cache!r} is not possible",
            hint="leave --kv-cache out, or take --runtime openvino",
        )
    model = _model(folder)
    context = min(context_length, _number(model.get("context_length"), context_length))
    worker = Worker(
        _CPU_ENGINE if device == "CPU" else _GENAI_ENGINE,
        {
            "folder": str(folder),
            "device": device,
            "properties": dict(properties or {}),
            "context_length": context,
            "rope_border": rope_border,
            "prepacked_dir": None if compiled_dir is None else str(compiled_dir),
            "prepack": fast_load,
        },
    )
    vocab_size = _number(model.get("vocab_size"), 0) or None
    return OnnxRuntimeSession(worker, vocab_size, context, precision + ", exact" * exact)


def open_scorer(
    folder: Path,
    device: str,
    *,
    properties: Mapping[str, object] | None = None,
    compiled_dir: Path | None = None,
    rope_border: int | None = None,
) -> EngineScorer:
    """A `Scorer`, by onnxruntime-genai on every device; see `open_session`."""
    device = device if device == "CPU" or ":" in device else f"{device}:0"
    _require_device(device)
    return EngineScorer(
        _GENAI_ENGINE,
        {
            "folder": str(folder),
            "device": device,
            "properties": dict(properties or {}),
            "context_length": _number(_model(folder).get("context_length"), 0),
            "rope_border": rope_border,
        },
    )


class OnnxRuntimeSession(EngineSession):
    """A `Session`: several streams at once on the CPU; elsewhere one, and the next waits."""


def version() -> str:
    """The package of the installed flavour, and its version."""
    name = installed_flavour().genai
    return f"{name} {metadata.version(name)}"


def available_devices() -> list[Device]:
    """The devices that the installed package reaches and that are there.

    raises   MissingExtraError
    """
    providers = installed_flavour().providers
    found = [devices.cpu()]
    if "CUDA" in providers:
        found += devices.cuda_devices()
    if "DML" in providers:
        found += devices.dml_devices()
    return found


def _require_device(device: str) -> None:
    """Refuse a device that is not there, or that the installed package cannot reach.

    raises   DeviceError, MissingExtraError
    """
    require_provider(device.partition(":")[0])
    here = [found.word for found in available_devices()]
    if device not in here:
        raise DeviceError(
            f"ONNX Runtime sees no device {device!r} here; possible: {', '.join(here)}",
            hint="its driver may be missing; take --device CPU",
        )


def _require_exact(device: str, precision: str) -> None:
    if device != "CPU":
        raise DeviceError(f"{device} computes in float16: it is not exact", hint="take --device CPU")
    if precision.startswith("int"):
        raise UsageError(
            f"ONNX Runtime computes with {precision} weights in 8-bit integers: it is not exact",
            hint="take --runtime openvino, or convert with --weight-format fp16",
        )


def _model(folder: Path) -> dict[str, object]:
    """What genai_config.json says of the model.

    raises   CheckpointError
    """
    path = folder / ONNXRUNTIME.model_file
    model = read_json_object(path).get("model")
    if not isinstance(model, dict):
        raise CheckpointError(
            f"{path}: model is {shown(model)}, not an object", hint="convert or download the model again"
        )
    return model


def _number(value: object, otherwise: int) -> int:
    """A number of tokens, if it is one."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else otherwise
