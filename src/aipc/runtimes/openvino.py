"""OpenVINO GenAI behind `Session`: CPU, GPU and NPU.

The pipelines run in a process of their own (aipc.runtimes.process says why); this side checks what is
asked, and knows the devices.
"""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aipc.errors import MissingExtraError, PromptTooLongError, UsageError, require
from aipc.phi3 import read_json_object
from aipc.runtimes.base import OPENVINO, Device, DeviceKind
from aipc.runtimes.process import EngineProcess
from aipc.types import Sampling

if TYPE_CHECKING:
    import openvino

_ENGINE = "aipc.runtimes.openvino_engine"


def open_session(
    folder: Path,
    device: str,
    *,
    exact: bool = False,
    properties: Mapping[str, object] | None = None,
    compiled_dir: Path | None = None,
    context_length: int,
    precision: str,
) -> OpenVINOSession:
    """A converted folder, loaded and warm.

    device           "CPU", "GPU.0", "NPU"; no other is taken in its place
    exact            float32 arithmetic: with unquantised weights, the tokens of float32
    properties       OpenVINO's own, which win over ours
    compiled_dir     where GPU and NPU keep what they compile; its name must change with the model, the
                     driver and the version of OpenVINO. The CPU gains nothing from it and leaves it empty
    context_length   most tokens of prompt and answer together
    precision        of the weights, for people

    raises   DeviceError, SchemeError, CheckpointError, MissingExtraError, RuntimeFailedError
    """
    _require_packages()
    process = EngineProcess(
        _ENGINE,
        {
            "folder": str(folder),
            "device": device,
            "exact": exact,
            "properties": dict(properties or {}),
            "compiled_dir": None if compiled_dir is None or device == "CPU" else str(compiled_dir),
        },
    )
    return OpenVINOSession(process, _vocab_size(folder), context_length, precision + ", exact" * exact)


class OpenVINOSession:
    """A `Session`: several streams at once on CPU and GPU, one on the NPU.

    notes   what happened while it was loaded, for people
    """

    def __init__(
        self, process: EngineProcess, vocab_size: int | None, context_length: int, precision: str
    ) -> None:
        self._process = process
        self._vocab_size = vocab_size
        self.device: str = process.ready["device"]
        self.notes: tuple[str, ...] = tuple(process.ready["notes"])
        self.precision = precision
        self.context_length = context_length

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """The ids that follow `prompt`; see `Session.generate`.

        raises   UsageError for an empty prompt or an id that does not exist; PromptTooLongError;
                 RuntimeFailedError
        """
        room = self.context_length - len(prompt)
        if not prompt:
            raise UsageError("the prompt is empty", hint="give at least one token")
        if room < 1:
            raise PromptTooLongError(
                f"the prompt has {len(prompt)} tokens; prompt and answer together have room for "
                f"{self.context_length} on {self.device}",
                hint="shorten the prompt",
            )
        self._check_ids(prompt)
        # numpy's integers are no int to JSON.
        ids = [int(token) for token in prompt]
        seed = secrets.randbits(32) if sampling.seed is None else sampling.seed % 2**32
        fitting = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room), seed=seed)
        return self._process.stream(ids, fitting)

    def close(self) -> None:
        """Free the device; every running stream ends with RuntimeFailedError."""
        self._process.close()

    def _check_ids(self, prompt: Sequence[int]) -> None:
        """GenAI looks an id up without looking at it first."""
        low, high = min(prompt), max(prompt)
        if low < 0 or (self._vocab_size is not None and high >= self._vocab_size):
            limit = "0 or more" if self._vocab_size is None else f"0 to {self._vocab_size - 1}"
            raise UsageError(f"the prompt has the id {low if low < 0 else high}; possible are {limit}")


def available_devices() -> list[Device]:
    """The devices that OpenVINO sees here.

    raises   MissingExtraError
    """
    core = require("openvino", OPENVINO.extra).Core()
    return [_device(core, name) for name in core.available_devices if _kind(core, name) is not None]


def _require_packages() -> None:
    """Like `errors.require`, but this process has no use for what it would import."""
    for package in OPENVINO.packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(
                f"this needs the package {package!r}, which is not installed",
                hint=f'pip install "aipc[{OPENVINO.extra}]"',
            )


def _device(core: openvino.Core, name: str) -> Device:
    kind = _kind(core, name)
    assert kind is not None  # noqa: S101 - the caller asked before
    word = "GPU.0" if name == "GPU" else name
    full_name = str(_property(core, name, "FULL_DEVICE_NAME") or name)
    driver = _property(core, name, "NPU_DRIVER_VERSION") if kind == "NPU" else None
    return Device(word, full_name.strip(), kind, None if driver is None else str(driver))


def _kind(core: openvino.Core, name: str) -> DeviceKind | None:
    first = name.partition(".")[0]
    if first == "GPU":
        discrete = "DISCRETE" in str(_property(core, name, "DEVICE_TYPE")).upper()
        return "discrete GPU" if discrete else "integrated GPU"
    kinds: dict[str, DeviceKind] = {"CPU": "CPU", "NPU": "NPU"}
    return kinds.get(first)


def _property(core: openvino.Core, device: str, name: str) -> Any:
    """A property, or None where the device has no such thing."""
    try:
        return core.get_property(device, name)
    except RuntimeError:
        return None


def _vocab_size(folder: Path) -> int | None:
    """How many ids the model knows, or None where nothing says so."""
    if not (folder / "config.json").is_file():
        return None
    size = read_json_object(folder / "config.json").get("vocab_size")
    return size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else None
