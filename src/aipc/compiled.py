"""Blobs that were compiled ahead for an NPU: where they lie, and when one may be taken. Needs no OpenVINO.

FOLDER/npu/4000-1024-1024.blob    for NPU 4000, prompts of 1024 tokens and answers of 1024
FOLDER/npu/4000-1024-1024.json    what it was compiled from and with

A blob holds no weights that the folder has, so that both travel together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

from aipc.errors import CheckpointError, StorageError, shown
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
class Blob:
    """What is known of a blob.

    platform   of `PLATFORMS`
    openvino   the version that compiled it, to the commit
    driver     whose compiler made it; None for OpenVINO's own, which depends on no driver
    model      `model_digest` of the folder it was compiled from
    """

    platform: str
    prompt_tokens: int
    answer_tokens: int
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
        return cls(**{name: raw[name] for name in _KINDS})

    def path(self, folder: Path) -> Path:
        """Where it lies."""
        return blob_path(folder, self.platform, self.prompt_tokens, self.answer_tokens)

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
    "openvino": (str,),
    "driver": (str, type(None)),
    "model": (str,),
    "bytes": (int,),
}


def blob_path(folder: Path, platform: str, prompt_tokens: int, answer_tokens: int) -> Path:
    """Where the blob of a model for a platform and these lengths lies."""
    return folder / COMPILED_DIR / f"{platform}-{prompt_tokens}-{answer_tokens}.blob"


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


def find(
    folder: Path, platform: str, prompt_tokens: int, answer_tokens: int, *, openvino: str, driver: str | None
) -> tuple[Path | None, str]:
    """The blob that an NPU can take, or why there is none, as a clause; "" where nothing was compiled ahead.

    platform, openvino, driver   what is here
    """
    path = blob_path(folder, platform, prompt_tokens, answer_tokens)
    others = sorted(other.stem for other in path.parent.glob("*.blob"))
    if not path.is_file():
        return None, f"this needs {path.stem}, and there is {', '.join(others)}" if others else ""
    try:
        why_not = _misfit(Blob.read(path.with_suffix(".json")), path, folder, openvino, driver)
    except CheckpointError as error:
        why_not = error.message
    return (None, why_not) if why_not else (path, "")


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
