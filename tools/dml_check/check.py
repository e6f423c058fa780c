"""One folder for DirectML: where its nodes go, if it is captured, and if it computes what the CPU does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import folders
import onnx
from directml import DirectML, SessionError
from generation import Answer, Comparison, answer, compare, empty_cache, request
from operators import HALF_TOLERANCE, TOLERANCE, Operator, obstacle, operators
from placement import CPU, DIRECTML, Placement, placement

_REFUSED = re.compile(r"FAILED session: (.*)")
_CAPTURE = {"ep.dml.enable_graph_capture": "1"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a folder.

    placed       on a device with float16
    refused      why the graph cannot be captured there, which onnxruntime-genai asks for, or ""
    comparison   of DirectML's answer in float32 with the CPU provider's; None where it was not asked for
    half         of DirectML's answer with the folder as it is, in float16, with the CPU provider's in float32
    broken       why there is no comparison though it was asked for, or ""
    no_half      why the software driver did not compute it in float16, or ""; it says nothing of the folder
    operators    each by itself, where they were asked for
    """

    folder: str
    placed: Placement
    refused: str = ""
    comparison: Comparison | None = None
    half: Comparison | None = None
    broken: str = ""
    no_half: str = ""
    operators: list[Operator] = field(default_factory=list)

    @property
    def wrong(self) -> list[str]:
        """A sentence for everything that a folder for DirectML must not have."""
        found = [f"its graph is not captured: {self.refused}"] if self.refused else []
        found += [f"DirectML did not compute it: {self.broken}"] if self.broken else []
        if self.comparison is not None:
            found += [text for text in [_difference(self.comparison, TOLERANCE)] if text]
        if self.half is not None:
            text = _difference(self.half, HALF_TOLERANCE)
            found += [f"in float16 {text}"] if text else []
        found += [f"{each.name} ({each.kind}): {each.wrong}" for each in self.operators if each.wrong]
        return found


@dataclass(frozen=True, slots=True)
class Wish:
    """What to look at.

    tokens      of a greedy answer that are compared; 0 for none
    operators   whether each is also computed by itself
    """

    tokens: int = 64
    operators: bool = False


def check(directml: DirectML, folder: Path, prompt: Sequence[int], wish: Wish, scratch: Path) -> Verdict:
    """Everything of `wish` about one folder."""
    placed, refused = load(directml, folder / folders.MODEL_FILE)
    comparison, half, broken, no_half, found = None, None, "", "", []
    if wish.tokens or wish.operators:
        model = onnx.load(folder / folders.MODEL_FILE)
        shape = folders.shape_of(folder)
        if wish.tokens:
            twin = folders.save(folders.in_float32(model), scratch / f"{folder.name}-float32")
            try:
                right = answer(directml, twin, "cpu", shape, prompt, tokens=wish.tokens)
                comparison = compare(answer(directml, twin, "dml", shape, prompt, tokens=wish.tokens), right)
                half, no_half = _in_float16(directml, folder, prompt, right)
            except SessionError as error:
                broken = str(error)
        if wish.operators:
            inputs = {**request(shape, prompt, 0), **empty_cache(shape)}
            found = operators(directml, model, inputs, scratch / f"{folder.name}-operators")
    return Verdict(folder.name, placed, refused, comparison, half, broken, no_half, found)


def _in_float16(
    directml: DirectML, folder: Path, prompt: Sequence[int], right: Answer
) -> tuple[Comparison | None, str]:
    """The comparison, or what vkd3d refused; where it refused nothing, a failure is the folder's."""
    model, shape = folder / folders.MODEL_FILE, folders.shape_of(folder)
    try:
        mine = answer(directml, model, "dml", shape, prompt, tokens=len(right.tokens), claim_half=True)
    except SessionError as error:
        refused = obstacle(error.log)
        if not refused:
            raise
        return None, refused
    return compare(mine, right), ""


def load(directml: DirectML, model: Path, *, claim_half: bool = True) -> tuple[Placement, str]:
    """Where the nodes go, and why the graph cannot be captured or "".

    claim_half   on a device that computes in float16
    """
    with directml.session(model, "dml", claim_half=claim_half, log=0) as session:
        placed = placement(session.log())
    try:
        with directml.session(model, "dml", claim_half=claim_half, **_CAPTURE):
            return placed, ""
    except SessionError as error:
        found = _REFUSED.match(str(error))
        return placed, " ".join((found[1] if found else str(error)).split())


def lines(verdict: Verdict) -> list[str]:
    """A verdict for people."""
    placed = verdict.placed
    others = ", ".join(
        f"{provider.removesuffix('ExecutionProvider')}: "
        + ", ".join(f"{kind} {count}" for kind, count in placed.kinds.get(provider, {}).items())
        for provider in placed.totals
        if provider != DIRECTML
    )
    found = [
        f"{'wrong' if verdict.wrong else 'right':6}  {verdict.folder}",
        f"  nodes on DirectML {placed.totals.get(DIRECTML, 0)}, on the CPU {placed.totals.get(CPU, 0)}"
        + (f" ({others})" if others else ""),
        f"  graph capture: {verdict.refused or 'accepted'}",
    ]
    for name, it in (("float32", verdict.comparison), ("float16", verdict.half)):
        if it is not None:
            found.append(
                f"  in {name} {it.equal} of {it.tokens} greedy tokens equal the CPU provider's in float32; "
                f"scores within {it.error:.1e}, the largest is {it.largest:.1f}"
            )
    if verdict.no_half:
        found.append(f"  in float16 not computed here: {verdict.no_half}")
    if verdict.broken:
        found.append(f"  {verdict.broken}")
    found += [f"  {_operator_line(each)}" for each in verdict.operators]
    return found


def _operator_line(operator: Operator) -> str:
    name = operator.kind + (" (CPU)" if operator.float32.provider == CPU else "")
    single, half = (_cell(each.error, each.words) for each in (operator.float32, operator.float16))
    return f"{name:34} {single:>10}  float16: {half}  {operator.name}"


def _cell(error: float | None, words: str) -> str:
    return words if error is None else f"{error:.1e}"


def _difference(comparison: Comparison, tolerance: float) -> str:
    """What is wrong with an answer, or ""; `tolerance` is a part of the largest score."""
    if comparison.equal < comparison.tokens:
        return f"token {comparison.equal + 1} is not the CPU provider's"
    if comparison.error > tolerance * comparison.largest:
        return f"scores differ by {comparison.error:.1e} where the largest is {comparison.largest:.1f}"
    return ""
