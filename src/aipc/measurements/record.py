"""What `aipc bench` found, as it is kept in JSON: every request with its steps. Unknown is None, never 0."""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from aipc.errors import StorageError, UsageError, shown
from aipc.types import DeviceKind

FORMAT = 1
_MAX_BYTES = 256 * 2**20

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Load:
    """A start of a model in a process of its own.

    compiled            whether its device compiled it then, and did not find it compiled
    first_inference_s   from the first request to its first token; its prompt is the shortest
    peak_bytes          the most resident memory of the process that computed
    device_peak_bytes   the most that it held of a GPU's or an NPU's memory
    system_rise_bytes   how much more of the system's memory was in use than before, by whatever program
    """

    round: int
    load_s: float
    compiled: bool
    first_inference_s: float | None
    peak_bytes: int | None
    device_peak_bytes: int | None = None
    system_rise_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One answer.

    stream       0, or with several at once which of them
    steps_s      between each token and the one before
    energy_j     of the device, for the whole request
    """

    round: int
    stream: int
    prompt_tokens: int
    generated_tokens: int
    stopped_early: bool
    ttft_s: float | None
    steps_s: tuple[float, ...]
    mean_utilisation: float | None = None
    energy_j: float | None = None

    @property
    def total_s(self) -> float | None:
        """From the request to its last token."""
        return None if self.ttft_s is None else self.ttft_s + sum(self.steps_s)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there are no figures.

    prompt_tokens   the length that was refused, or None where nothing works
    """

    message: str
    hint: str
    prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class CellRecord:
    """A runtime on a device, with weights of one format.

    device            the runtime's word for it
    runtime           the word for --runtime
    weight_format     the one that was asked for, or else what the folder holds
    driver            None where nothing says its version
    bytes_per_token   of weights, which each decode step reads; None for a folder that does not say
    """

    device: str
    kind: DeviceKind | None
    device_name: str
    driver: str | None
    runtime: str
    weight_format: str
    bytes_per_token: int | None
    failures: tuple[Failure, ...]
    loads: tuple[Load, ...]
    requests: tuple[Request, ...]

    @property
    def name(self) -> str:
        """For people: "CPU · openvino · int4"."""
        return " · ".join(filter(None, (self.device, self.runtime, self.weight_format)))


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for."""

    prompt_tokens: tuple[int, ...]
    new_tokens: int
    rounds: int
    concurrency: int


@dataclass(frozen=True, slots=True)
class Record:
    """A run of `aipc bench`.

    model                    as its user called it
    command                  the words after `aipc`
    bandwidth_bytes_per_s    that all cores together read from the system's memory
    interrupted              whether it was stopped before its end
    """

    model: str
    created: str
    command: tuple[str, ...]
    versions: Mapping[str, str]
    machine: Mapping[str, str | int | None]
    on_mains: bool | None
    options: Options
    bandwidth_bytes_per_s: float
    interrupted: bool
    cells: tuple[CellRecord, ...]

    def as_json(self) -> str:
        """All of it."""
        return json.dumps({"aipc_bench": FORMAT, **asdict(self)}, indent=1)

    def write(self, path: Path) -> None:
        """Write it as JSON.

        raises   StorageError
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.as_json() + "\n", encoding="utf-8")
        except OSError as exc:
            raise StorageError(f"{path} cannot be written: {exc.strerror or exc}") from exc

    @classmethod
    def read(cls, path: Path) -> Record:
        """What `write` wrote; the file is not trusted.

        raises   UsageError if there is none, or it is damaged or of another format
        """
        hint = "a record is what aipc bench MODEL --record FILE writes"
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise UsageError(f"{path} is too large for a record of aipc bench", hint=hint)
            raw = json.loads(path.read_text(encoding="utf-8"))
        except OSError as exc:
            raise UsageError(f"{path} cannot be read: {exc.strerror or exc}", hint=hint) from exc
        except (ValueError, RecursionError) as exc:
            raise UsageError(f"{path} is not JSON: {exc}", hint=hint) from exc
        version = raw.pop("aipc_bench", None) if isinstance(raw, dict) else None
        if version != FORMAT:
            raise UsageError(f"{path} is no record of aipc bench in format {FORMAT}", hint=hint)
        try:
            return _rebuilt(cls, raw, "record")
        except _WrongValueError as exc:
            raise UsageError(f"{path} is damaged: {exc}", hint=hint) from exc


class _WrongValueError(Exception):
    pass


def _rebuilt(kind: type[_T], raw: object, where: str) -> _T:
    """A dataclass from what `asdict` and JSON made of it.

    raises   _WrongValueError
    """
    if not isinstance(raw, dict):
        raise _WrongValueError(f"{where} is {shown(raw)}")
    hints = typing.get_type_hints(kind)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    values: dict[str, Any] = {name: _value(hints[name], raw.get(name), f"{where}.{name}") for name in names}
    return kind(**values)


def _value(hint: Any, raw: object, where: str) -> object:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in {types.UnionType, typing.Union}:
        inner = [part for part in parts if part is not type(None)]
        if raw is None and len(inner) < len(parts):
            return None
        return _one_of(inner, raw, where)
    if origin is tuple and isinstance(raw, list):
        return tuple(_value(parts[0], item, f"{where}[{index}]") for index, item in enumerate(raw))
    if origin is Mapping and isinstance(raw, dict):
        return {str(key): _value(parts[1], item, f"{where}.{key}") for key, item in raw.items()}
    if is_dataclass(hint):
        return _rebuilt(typing.cast("type[object]", hint), raw, where)
    return _one_of([hint], raw, where)


def _one_of(kinds: Sequence[Any], raw: object, where: str) -> object:
    """A plain value of one of these types."""
    for kind in kinds:
        if typing.get_origin(kind) is typing.Literal and raw in typing.get_args(kind):
            return raw
        if kind is float and type(raw) in {int, float} and math.isfinite(typing.cast("float", raw)):
            return float(typing.cast("float", raw))
        if kind in {str, bool} and type(raw) is kind:
            return raw
        if kind is int and isinstance(raw, int) and not isinstance(raw, bool) and raw >= 0:
            return raw
    raise _WrongValueError(f"{where} is {shown(raw)}")
