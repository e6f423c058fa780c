"""The words for a device, wherever one is asked for: "auto", a runtime's own word, or a kind of GPU."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aipc.errors import DeviceError, UsageError
from aipc.runtimes.base import RUNTIMES, Device, RuntimeInfo
from aipc.types import DeviceKind

AUTO = "auto"
KINDS: dict[str, DeviceKind] = {"igpu": "integrated GPU", "dgpu": "discrete GPU"}

_WORD = re.compile(r"([A-Z]+)(?:[.:]([0-9]{1,3}))?")
_LOOK = "aipc devices shows what is here, and what a device lacks, such as its driver"


@dataclass(frozen=True, slots=True)
class Selector:
    """What a word asks for: a kind of GPU, or the device of a family with a number.

    word     as it is shown to people
    family   the first part of runtimes' words, such as "CUDA"; "" for a kind
    number   0 where the word has none: the first device
    """

    word: str
    kind: DeviceKind | None = None
    family: str = ""
    number: int = 0

    def fits(self, device: Device) -> bool:
        """Whether a device is one that the word means."""
        if self.kind is not None:
            return device.kind == self.kind
        return (self.family, self.number) == _family_and_number(device.word)


def parse(text: str, infos: Sequence[RuntimeInfo]) -> Selector | None:
    """What a word asks for, in any case; None for "auto".

    infos    the runtimes that may be taken
    raises   UsageError for a word that none of them knows
    """
    word = text.lower()
    if word == AUTO:
        return None
    if word in KINDS:
        return Selector(word, KINDS[word])
    family, number = _family_and_number(text.upper())
    families = dict.fromkeys(family for info in infos for family in info.devices)
    if family in families:
        return Selector(text.upper(), None, family, number)
    for other in RUNTIMES.values():
        if family in other.devices:
            raise UsageError(
                f"{family} is reached by {other.title}, which is not installed, not what --runtime asks for, "
                "or not what this folder is for",
                hint=f'pip install "aipc[{other.devices[family]}]", then --runtime {other.name}',
            )
    possible = (AUTO, *families, *KINDS)
    close = difflib.get_close_matches(
        family or text.upper(), [each.upper() for each in possible], n=1, cutoff=0.5
    )
    near = [each for each in possible if each.upper() in close]
    raise UsageError(
        f"there is no device {text!r}; possible: {', '.join(possible)} (GPU.1 is a second GPU)",
        hint=f"did you mean {near[0]}?" if near else _LOOK,
    )


def select(selector: Selector, devices: Sequence[Device]) -> list[Device]:
    """The words by which runtimes reach the one device that is meant.

    raises   DeviceError if it is not among `devices`; UsageError if several are meant
    """
    found = [device for device in devices if selector.fits(device)]
    if not found:
        raise DeviceError(
            f"there is no {selector.word} here; there is: {_listed(devices) or 'none'}", hint=_hint(selector)
        )
    if len({device.address or device.word for device in found}) > 1:
        raise UsageError(
            f"{selector.word} can be {_listed(found)}", hint=f"name one of them: --device {found[0].word}"
        )
    return found


def _family_and_number(word: str) -> tuple[str, int]:
    matched = _WORD.fullmatch(word)
    return (matched[1], int(matched[2] or 0)) if matched else ("", 0)


def _listed(devices: Iterable[Device]) -> str:
    return ", ".join(dict.fromkeys(f"{device.word} ({device.name})" for device in devices))


def _hint(selector: Selector) -> str:
    """What an absent device may need."""
    for info in RUNTIMES.values():
        extra = info.devices.get(selector.family, info.extra)
        if extra != info.extra:
            return f'pip install "aipc[{extra}]", if that is missing; {_LOOK}'
    return _LOOK
