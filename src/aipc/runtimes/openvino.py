"""OpenVINO GenAI behind `Session`: CPU, GPU and NPU.

The pipelines run in a process of their own (aipc.runtimes.process says why); this side knows the devices.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from aipc.compiled import NPU_ONLY, Blob, Build, model_digest, pipeline_properties
from aipc.errors import DeviceError, MissingExtraError, StorageError, UsageError
from aipc.phi3 import read_json_object
from aipc.preflight import MODEL_FILE
from aipc.runtimes import openvino_devices
from aipc.runtimes.base import OPENVINO, Device
from aipc.runtimes.openvino_factors import description_with_factors, has_factors
from aipc.runtimes.process import EngineProcess, Worker
from aipc.runtimes.session import EngineScorer, EngineSession
from aipc.windows_files import move

_ENGINE = "aipc.runtimes.openvino_engine"
_SCORING_ENGINE = "aipc.runtimes.openvino_scoring"
_COMPILER = "aipc.runtimes.openvino_compile"

NPU_CONTEXT_LENGTH = OPENVINO.most_tokens["NPU"]


def open_session(
    folder: Path,
    device: str,
    *,
    exact: bool = False,
    properties: Mapping[str, object] | None = None,
    compiled_dir: Path | None = None,
    context_length: int,
    precision: str,
    rope_border: int | None = None,
    kv_cache: str | None = None,
) -> OpenVINOSession:
    """A converted folder, loaded and warm.

    device           "CPU", "GPU.0", "NPU"; no other is taken in its place
    exact            float32 arithmetic: with unquantised weights, the tokens of float32
    properties       OpenVINO's own, which win over ours
    compiled_dir     where GPU and NPU keep what they compile; its name must change with the model, the
                     driver and the version of OpenVINO. The CPU gains nothing from it and leaves it empty
    context_length   most tokens of prompt and answer together
    precision        of the weights, for people
    rope_border      LongRoPE's factors change after so many tokens, or None
    kv_cache         what the KV cache holds: one of `OPENVINO.kv_caches`, or None for OpenVINO's own choice

    raises   DeviceError, SchemeError, CheckpointError, MissingExtraError, UsageError, RuntimeFailedError
    """
    notes: tuple[str, ...] = ()
    if device == "NPU" and context_length > NPU_CONTEXT_LENGTH:
        notes += (f"on the NPU, prompt and answer together take {NPU_CONTEXT_LENGTH} tokens",)
        context_length = NPU_CONTEXT_LENGTH
    context_length, border = usable_context(folder, context_length, rope_border)
    if border != rope_border:
        notes += (
            f"this folder was made by others, and cannot be told LongRoPE's factors: it takes {rope_border} "
            "tokens; for more, convert the checkpoint",
        )
    words = _kv_cache_property(kv_cache, device) | dict(properties or {})
    options = _options(
        folder, device, exact=exact, properties=words, compiled_dir=compiled_dir, rope_border=border
    )
    worker = Worker(_ENGINE, options)
    session = OpenVINOSession(worker, _vocab_size(folder), context_length, precision + ", exact" * exact)
    session.notes += notes
    return session


def usable_context(folder: Path, context_length: int, rope_border: int | None) -> tuple[int, int | None]:
    """The most tokens of a folder, and the border that its pipelines can be told of.

    In a folder that others made they can be told of none, and compute with the short factors up to there.

    raises   CheckpointError
    """
    if rope_border is None or has_factors(folder):
        return context_length, rope_border
    return min(context_length, rope_border), None


def npu_compiler(platform: str) -> dict[str, str]:
    """The properties by which OpenVINO takes a compiler for an NPU, which need not be here.

    raises   DeviceError if there is none; MissingExtraError
    """
    _require_packages()
    package = importlib.util.find_spec("openvino")
    places = (package and package.submodule_search_locations) or []
    if any(any(Path(place, "libs").glob("*openvino_intel_npu_compiler.*")) for place in places):
        return {"NPU_COMPILER_TYPE": "PLUGIN", "NPU_PLATFORM": platform}
    if any(device.kind == "NPU" for device in available_devices()):
        return {"NPU_COMPILER_TYPE": "DRIVER"}
    raise DeviceError(
        "OpenVINO's packages for this system carry no compiler for NPUs, and no NPU is here whose driver "
        "has one",
        hint="run aipc compile under Windows, whose packages carry the compiler, and copy the folder here",
    )


def compile_for_npu(folder: Path, build: Build, compiler: Mapping[str, str]) -> Path:
    """Compile a folder for an NPU; gives the blob, which lies in the folder: a whole one, or the last.

    compiler   what `npu_compiler` gave
    raises     DeviceError, SchemeError, CheckpointError, StorageError, RuntimeFailedError
    """
    blob = build.path(folder)
    partial, description = blob.with_suffix(".partial"), blob.with_suffix(".xml")
    model = folder / MODEL_FILE if build.factors is None else description
    options = {
        "folder": str(folder),
        "platform": build.platform,
        "model": model.relative_to(folder).as_posix(),
        "blob": partial.relative_to(folder).as_posix(),
        "properties": {
            **pipeline_properties(build.prompt_tokens, build.answer_tokens),
            **NPU_ONLY,
            **compiler,
        },
    }
    try:
        blob.parent.mkdir(exist_ok=True)
        if build.factors is not None:
            edited = description_with_factors(folder, long=build.factors == "long")
            description.write_text(edited, encoding="utf-8")
        process = EngineProcess(_COMPILER, options)
        process.close()
        record = Blob(
            **asdict(build),
            openvino=process.ready["openvino"],
            driver=process.ready["driver"],
            model=model_digest(folder),
            bytes=partial.stat().st_size,
        )
        # A record stands for the blob beside it: the old one goes first, and the new one comes last.
        blob.with_suffix(".json").unlink(missing_ok=True)
        move(partial, blob)
    except OSError as exc:
        raise StorageError(f"{blob} cannot be written: {exc.strerror or exc}") from exc
    finally:
        for path in (partial, description):
            path.unlink(missing_ok=True)
    record.write(folder)
    return blob


def open_scorer(
    folder: Path,
    device: str,
    *,
    exact: bool = False,
    properties: Mapping[str, object] | None = None,
    compiled_dir: Path | None = None,
    rope_border: int | None = None,
) -> EngineScorer:
    """A `Scorer`; see `open_session`, whose pipelines give no scores: here the model itself is asked."""
    # GPU and NPU compile it apart from the pipelines' form of it.
    kept = None if compiled_dir is None else compiled_dir / "scores"
    border = rope_border if rope_border is not None and has_factors(folder) else None
    options = _options(
        folder, device, exact=exact, properties=properties, compiled_dir=kept, rope_border=border
    )
    return EngineScorer(_SCORING_ENGINE, options)


class OpenVINOSession(EngineSession):
    """A `Session`: several streams at once on CPU and GPU, one on the NPU."""


def version() -> str:
    """The package and its version."""
    return f"{OPENVINO.distribution} {metadata.version(OPENVINO.distribution)}"


def available_devices() -> list[Device]:
    """The devices that OpenVINO sees here.

    raises   MissingExtraError
    """
    _require_packages()
    return openvino_devices.devices()


def _kv_cache_property(kv_cache: str | None, device: str) -> dict[str, object]:
    if kv_cache is None:
        return {}
    possible = OPENVINO.kv_caches["CPU"]
    if kv_cache not in possible:
        raise UsageError(f"there is no KV cache {kv_cache!r}; OpenVINO has {', '.join(possible)}")
    if device == "NPU":
        raise UsageError(
            "the KV cache on the NPU is f16", hint="leave --kv-cache out, or take another device"
        )
    return {"KV_CACHE_PRECISION": kv_cache}


def _options(
    folder: Path,
    device: str,
    *,
    exact: bool,
    properties: Mapping[str, object] | None,
    compiled_dir: Path | None,
    rope_border: int | None,
) -> dict[str, object]:
    """What an engine needs to load a folder.

    raises   MissingExtraError
    """
    _require_packages()
    return {
        "rope_border": rope_border,
        "folder": str(folder),
        "device": device,
        "exact": exact,
        "properties": dict(properties or {}),
        "compiled_dir": None if compiled_dir is None or device == "CPU" else str(compiled_dir),
    }


def _require_packages() -> None:
    """Like `errors.require`, but this process has no use for what it would import."""
    for package in OPENVINO.packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(
                f"this needs the package {package!r}, which is not installed",
                hint=f'pip install "aipc[{OPENVINO.extra}]"',
            )


def _vocab_size(folder: Path) -> int | None:
    """How many ids the model knows, or None where nothing says so."""
    if not (folder / "config.json").is_file():
        return None
    size = read_json_object(folder / "config.json").get("vocab_size")
    return size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else None
