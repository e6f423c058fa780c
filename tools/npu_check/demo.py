"""The demo model in every precision, and what the compiler must refuse: proof that the check can fail."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from compiler import Verdict

import aipc

PRECISIONS = {
    "demo-fp16": {"weight_format": "fp16"},
    "demo-int8": {"weight_format": "int8"},
    "demo-int4-group-128": {"weight_format": "int4", "group_size": 128},
    "demo-int4-channel-wise": {"weight_format": "int4", "group_size": -1},
}
PLATFORMS = ("3720", "4000")
CONTROL_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Control:
    """What the compiler must refuse, and a word by which it says so."""

    folder: Path
    platform: str
    word: str

    def wrong(self, verdict: Verdict) -> str:
        """What is wrong with a verdict on it, or ""; a crash or an endless compile proves nothing."""
        if verdict.state == "refused" and self.word in verdict.words:
            return ""
        found = verdict.state + (f": {verdict.words}" if verdict.words else "")
        return f"{self.folder.name} for {self.platform} must be refused because of {self.word}; it is {found}"


def folders(scratch: Path) -> Iterator[Path]:
    """The demo model, converted in each precision."""
    for name, recipe in PRECISIONS.items():
        yield aipc.convert("demo", scratch / name, **recipe)  # type: ignore[arg-type]


def controls(scratch: Path) -> Iterator[Control]:
    """What must be refused: a platform that does not exist, and weights that Meteor Lake does not know."""
    int4 = scratch / "demo-int4-group-128"
    yield Control(int4, "9999", "9999")
    nf4 = scratch / "demo-nf4"
    shutil.copytree(int4, nf4)
    description = nf4 / "openvino_model.xml"
    text = description.read_text(encoding="utf-8")
    text, count = re.subn('element_type="i4"', 'element_type="nf4"', text)
    if not count:
        raise RuntimeError(f"{description} has no int4 weights to change")
    description.write_text(text.replace('precision="I4"', 'precision="NF4"'), encoding="utf-8")
    yield Control(nf4, "3720", "nf4")
