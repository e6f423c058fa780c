"""The flavours of ONNX Runtime GenAI. They are packages of different names that hold the same modules.

pip does not know that, and installs one over the other: what then lies there is a mixture. Nothing is
imported here; what is installed is read from the packages' own records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

from aipc.errors import DeviceError, MissingExtraError


@dataclass(frozen=True, slots=True)
class Flavour:
    """One way to install it.

    extra      of aipc
    genai      the package that holds the module onnxruntime_genai
    runtime    the one that holds onnxruntime
    providers  what it computes with, as the first part of a device word
    """

    extra: str
    genai: str
    runtime: str
    providers: tuple[str, ...]


FLAVOURS = (
    Flavour("onnx", "onnxruntime-genai", "onnxruntime", ("CPU",)),
    Flavour("cuda", "onnxruntime-genai-cuda", "onnxruntime-gpu", ("CPU", "CUDA")),
    Flavour("directml", "onnxruntime-genai-directml", "onnxruntime-directml", ("CPU", "DML")),
    Flavour("winml", "onnxruntime-genai-winml", "onnxruntime-windowsml", ("CPU", "DML")),
)


def installed_flavour(versions: Mapping[str, str] | None = None) -> Flavour:
    """The one flavour that is installed.

    versions   of the installed packages by name; None looks them up
    raises     MissingExtraError if there is none, or a mixture of several
    """
    found = installed() if versions is None else versions
    flavours = [flavour for flavour in FLAVOURS if flavour.genai in found]
    if not flavours:
        raise MissingExtraError(
            "this needs the package 'onnxruntime_genai', which is not installed",
            hint=f'pip install "aipc[{FLAVOURS[0].extra}]"',
        )
    wanted = flavours[-1]
    runtimes = [flavour.runtime for flavour in FLAVOURS if flavour.runtime in found]
    _refuse_mixture("onnxruntime_genai", [flavour.genai for flavour in flavours], found, wanted)
    _refuse_mixture("onnxruntime", runtimes, found, wanted)
    if wanted.runtime not in found:
        raise MissingExtraError(
            f"{wanted.genai} needs {wanted.runtime}, which is not installed", hint=mending(found, wanted)
        )
    return wanted


def require_provider(provider: str, versions: Mapping[str, str] | None = None) -> None:
    """Refuse a device that the installed package cannot reach, whatever is in the machine.

    provider   the first part of a device word: "CPU", "CUDA" or "DML"
    raises     DeviceError naming what is installed; MissingExtraError as `installed_flavour`
    """
    found = installed() if versions is None else versions
    flavour = installed_flavour(found)
    if provider in flavour.providers:
        return
    wanted = next((other for other in FLAVOURS if provider in other.providers), None)
    what = f"{flavour.genai} {found[flavour.genai]}, which computes on {' and '.join(flavour.providers)} only"
    if wanted is None:
        raise DeviceError(f"ONNX Runtime has no device {provider!r} for aipc; installed is {what}")
    raise DeviceError(
        f"{provider} needs the package {wanted.genai}; installed is {what}", hint=mending(found, wanted)
    )


def installed() -> dict[str, str]:
    """The versions of all packages of all flavours that are installed."""
    names = [name for flavour in FLAVOURS for name in (flavour.genai, flavour.runtime)]
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def mending(found: Mapping[str, str], wanted: Flavour) -> str:
    """The commands that leave `wanted` alone, whatever is there."""
    # After one of two was removed, files of the other are missing: all must go first.
    return f'pip uninstall -y {" ".join(found)}  and then  pip install "aipc[{wanted.extra}]"'


def _refuse_mixture(module: str, packages: list[str], found: Mapping[str, str], wanted: Flavour) -> None:
    if len(packages) < 2:
        return
    listed = " and ".join(f"{name} {found[name]}" for name in packages)
    raise MissingExtraError(
        f"{listed} are installed over each other: each is the module {module}, and only one of them can be",
        hint=mending(found, wanted),
    )
