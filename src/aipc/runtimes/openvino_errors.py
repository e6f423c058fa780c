"""OpenVINO's exceptions, which are all RuntimeError, in our words. They are told apart by their text."""

from __future__ import annotations

from aipc.errors import AipcError, CheckpointError, DeviceError, RuntimeFailedError, SchemeError, UsageError

_DAMAGED = (
    "incorrect weights in bin file",
    "empty weights data",
    "pugi::status_ok",
    "unable to read the model",
    "doesn't contain the operation with type",
    "could not find a model in the directory",
    "xml_deserialize",
    "frontends/ir",
)
_NO_MEMORY = (
    "bad_alloc",
    "out of memory",
    "not enough memory",
    "larger than available memory",
    "more memory than available",
    "cl_out_of",
    "cl_mem_object_allocation_failure",
    "ze_result_error_out_of",
    "failed to allocate",
)
_NO_DEVICE = (
    "is not registered in the openvino runtime",
    "cannot load library",
    "compiler loading failed",
    "no available devices",
    "device with",
    "ze_result_error_device_lost",
)
# What NPUW says when the compiler refused each of the devices it may use (openvino#34450).
_REFUSED = (
    "no more devices are left",
    "failed to compile",
    "stoplocationverifierpass",
    "compiler returned msg",
)


def translated(exc: BaseException, folder: str, device: str) -> AipcError:
    """Ours for an exception of OpenVINO while it loaded `folder` on `device`. Raise it `from exc`.

    RuntimeFailedError itself means that nothing is known about the cause.
    """
    text = str(exc).lower()
    words = gist(exc)
    if isinstance(exc, MemoryError) or _says(text, _NO_MEMORY):
        return DeviceError(
            f"{device} has not enough memory for this model: {words}",
            hint="take a smaller model or int4 weights, or close what else uses the memory",
        )
    if _says(text, _DAMAGED):
        return CheckpointError(
            f"{folder} is damaged or not a model for OpenVINO: {words}",
            hint="convert or download the model again",
        )
    if _says(text, _REFUSED):
        return SchemeError(
            f"the compiler of {device} refused this model: {words}",
            hint="NPUs take symmetric int4 in groups of 128 or channel-wise: "
            "aipc convert MODEL --weight-format int4 --sym --group-size 128 OUT",
        )
    if "unsupported property" in text:
        return UsageError(f"{device} does not know a property: {words}")
    if _says(text, _NO_DEVICE):
        return DeviceError(
            f"{device} does not work here: {words}", hint="see aipc doctor, or take --device CPU"
        )
    return RuntimeFailedError(f"OpenVINO could not load the model on {device}: {words}")


def gist(exc: BaseException, limit: int = 300) -> str:
    """The words of an OpenVINO exception for people: without the places in its source."""
    lines = [line.strip() for line in str(exc).splitlines()]
    telling = [line for line in lines if line and not line.startswith(("Exception from ", "Check '"))]
    return (" ".join(telling or [line for line in lines if line]) or type(exc).__name__)[:limit]


def _says(text: str, phrases: tuple[str, ...]) -> bool:
    return any(phrase in text for phrase in phrases)
