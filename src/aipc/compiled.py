"""Blobs that were compiled ahead for an NPU: where they lie, and when one may be taken. Needs no OpenVINO.

FOLDER/npu/4000-1024-1024.blob    for NPU 4000, prompts of 1024 tokens and answers of 1024
FOLDER/npu/4000-1024-1024.json    what it was compiled from and with

A model with LongRoPE has 4000-1024-1024-short.blob, and 4000-4096-1024-long.blob for texts beyond its border.
A blob holds no weights that the folder has, so that both travel together.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from aipc.errors import CheckpointError, StorageError, shown
from aipc.longrope import takes_long_factors
from aipc.manifest import COMPILED_DIR, MANIFEST_FILE, Manifest
from aipc.phi3 import read_json_object
from aipc.preflight import MODEL_FILE, WEIGHTS_FILE

# What the compiler of OpenVINO 2026.4 knows, by the word for NPU_PLATFORM, and the processors that have it.
PLATFORMS: Mapping[str, str] = MappingProxyType({
    "3720": "Meteor Lake, Arrow Lake",
    "4000": "Lunar Lake",
    "5010": "Panther Lake",
    "5020": "Wildcat Lake",
    "6010": "Nova Lake",
})  # fmt: skip

# "NPU" means the NPU: by default NPUW moves what fails there to the CPU without a word.
NPU_ONLY = {"NPUW_DEVICES": "NPU", "NPUW_FALLBACK_EXEC": "NO"}

# What an NPU model is compiled for: a prompt of 1024, 2048, 4096 … tokens, and so much for the answer.
SMALLEST_BUCKET = 1024
ANSWER_TOKENS = 1024

# Which of LongRoPE's two sets of factors a blob was compiled with.
Factors = Literal["short", "long"]


def bucket(tokens: int) -> int:
    """The smallest of 1024, 2048, 4096 … that is not less than `tokens`."""
    return max(SMALLEST_BUCKET, 1 << (tokens - 1).bit_length())


def pipeline_properties(prompt_tokens: int, answer_tokens: int) -> dict[str, str]:
    """What OpenVINO GenAI's pipeline asks of the NPU's compiler, which cuts the model up by it.

    source   update_npu_config in openvino.genai
    """
    return {
        "NPU_USE_NPUW": "YES",
        "NPUW_LLM": "YES",
        "NPUW_LLM_BATCH_DIM": "0",
        "NPUW_LLM_SEQ_LEN_DIM": "2",
        "NPUW_LLM_MAX_PROMPT_LEN": str(prompt_tokens),
        "NPUW_LLM_MIN_RESPONSE_LEN": str(answer_tokens),
    }


@dataclass(frozen=True, slots=True)
class Build:
    """What a blob is compiled for.

    platform   of `PLATFORMS`
    factors    of LongRoPE; None where the model has none, or chooses by itself
    """

    platform: str
    prompt_tokens: int
    answer_tokens: int
    factors: Factors | None

    @property
    def name(self) -> str:
        """By which a blob is known to people."""
        suffix = f"-{self.factors}" if self.factors else ""
        return f"{self.platform}-{self.prompt_tokens}-{self.answer_tokens}{suffix}"

    def path(self, folder: Path) -> Path:
        """Where the blob of a model's folder lies."""
        return folder / COMPILED_DIR / f"{self.name}.blob"


def builds(platform: str, prompt_tokens: int, border: int | None) -> tuple[Build, ...]:
    """What is compiled so that each prompt of up to so many tokens, with its answer, finds a blob.

    border   after how many tokens LongRoPE's factors change; None if they never do
    """
    if border is None:
        return (Build(platform, bucket(prompt_tokens), ANSWER_TOKENS, None),)
    # No prompt beyond the border has the short factors.
    short = Build(platform, bucket(min(prompt_tokens, border)), ANSWER_TOKENS, "short")
    if not takes_long_factors(border, prompt_tokens, ANSWER_TOKENS):
        return (short,)
    return short, Build(platform, bucket(prompt_tokens), ANSWER_TOKENS, "long")


@dataclass(frozen=True, slots=True)
class Blob(Build):
    """What is known of a blob.

    openvino   the version that compiled it, to the commit
    driver     whose compiler made it; None for OpenVINO's own, which depends on no driver
    model      `model_digest` of the folder it was compiled from
    """

    openvino: str
    driver: str | None
    model: str
    bytes: int

    @classmethod
    def read(cls, path: Path) -> Blob:
        """The record in a file, which is not trusted.

        raises   CheckpointError
        """
        raw = read_json_object(path)
        for name, kinds in _KINDS.items():
            value = raw.get(name)
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise CheckpointError(f"{path}: {name} is {shown(value)}")
        return cls(**{name: raw.get(name) for name in _KINDS})  # type: ignore[arg-type]

    def write(self, folder: Path) -> None:
        """Write the record beside the blob, which is taken from then on.

        raises   StorageError
        """
        path = self.path(folder).with_suffix(".json")
        try:
            path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        except OSError as exc:
            raise StorageError(f"{path} cannot be written: {exc.strerror or exc}") from exc


_KINDS: Mapping[str, tuple[type, ...]] = {
    "platform": (str,),
    "prompt_tokens": (int,),
    "answer_tokens": (int,),
    "factors": (str, type(None)),
    "openvino": (str,),
    "driver": (str, type(None)),
    "model": (str,),
    "bytes": (int,),
}


def model_digest(folder: Path) -> str:
    """One sha256 for the graph and the weights of a folder.

    raises   CheckpointError if they cannot be read
    """
    names = (MODEL_FILE, WEIGHTS_FILE)
    whole = hashlib.sha256()
    try:
        if (folder / MANIFEST_FILE).is_file():
            files = Manifest.read(folder).files
            if all(name in files and files[name].bytes == (folder / name).stat().st_size for name in names):
                return hashlib.sha256("".join(files[name].sha256 for name in names).encode()).hexdigest()
        for name in names:
            with (folder / name).open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").hexdigest().encode())
    except OSError as exc:
        raise CheckpointError(f"{exc.filename or folder} cannot be read: {exc.strerror or exc}") from exc
    return whole.hexdigest()


def find(folder: Path, build: Build, *, openvino: str, driver: str | None) -> tuple[Blob | None, str]:
    """The blob that an NPU can take, or why there is none, as a clause; "" where nothing was compiled ahead.

    A blob for longer prompts is taken where there is none for these: it gives the same answers.

    openvino, driver   what is here
    """
    names = sorted(path.stem for path in build.path(folder).parent.glob("*.blob") if path.is_file())
    why_not = []
    for fitting in _that_take(build, names):
        path = fitting.path(folder)
        try:
            blob = Blob.read(path.with_suffix(".json"))
            misfit = _misfit(blob, path, folder, openvino, driver)
        except CheckpointError as error:
            misfit = error.message
        else:
            if not misfit:
                return blob, ""
        why_not.append(misfit)
    if names and not why_not:
        why_not = [f"this needs {build.name}, and there is {', '.join(names)}"]
    return None, why_not[0] if why_not else ""


def _that_take(build: Build, names: Iterable[str]) -> list[Build]:
    """Those of the named builds that take the prompts of `build`, the shortest first."""
    taking = []
    for found in filter(None, map(_NAME.fullmatch, names)):
        other = replace(build, prompt_tokens=int(found[1]))
        if other.name == found[0] and other.prompt_tokens >= build.prompt_tokens:
            taking.append(other)
    return sorted(taking, key=lambda one: one.prompt_tokens)


_NAME = re.compile(r"[^-]+-([1-9]\d{0,8})-.+")


def _misfit(blob: Blob, path: Path, folder: Path, openvino: str, driver: str | None) -> str:
    """What about a blob does not fit this machine or the model beside it, or ""."""
    size = path.stat().st_size
    if blob.path(folder) != path:
        return f"{path.name} was compiled as {blob.path(folder).name}"
    if blob.openvino != openvino:
        return f"{path.name} was compiled by OpenVINO {blob.openvino}, and this is {openvino}"
    if blob.driver not in {None, driver}:
        return f"{path.name} was compiled by the driver {blob.driver}, and this is {driver}"
    if blob.bytes != size:
        return f"{path.name} has {size:,} bytes instead of {blob.bytes:,}"
    if blob.model != model_digest(folder):
        return f"{path.name} was compiled from other weights than those beside it"
    return ""
