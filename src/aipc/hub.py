"""From a name to a folder: an alias, a hub id or a path. What lies on the disk is used without a network."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from aipc.errors import ModelNotFoundError, UsageError
from aipc.phi3 import read_json_object
from aipc.runtimes.base import ONNXRUNTIME, RUNTIMES, RuntimeInfo
from aipc.types import Progress

Kind = Literal["checkpoint", "converted"]

ALIASES: Mapping[str, str] = MappingProxyType({
    "phi-3-mini": "microsoft/Phi-3-mini-4k-instruct",
    "phi-3-mini-128k": "microsoft/Phi-3-mini-128k-instruct",
    "phi-3-medium": "microsoft/Phi-3-medium-4k-instruct",
    "phi-3-medium-128k": "microsoft/Phi-3-medium-128k-instruct",
    "phi-3.5-mini": "microsoft/Phi-3.5-mini-instruct",
    "phi-4-mini": "microsoft/Phi-4-mini-instruct",
    "phi-4-mini-reasoning": "microsoft/Phi-4-mini-reasoning",
    "phi-4": "microsoft/phi-4",
    "phi-4-reasoning": "microsoft/Phi-4-reasoning",
})  # fmt: skip

# The model that ships with the package.
DEMO = "demo"

COMMIT = re.compile(r"[0-9a-f]{40}")
INDEX_FILE = "model.safetensors.index.json"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")
# What a path says of whose kernels the ONNX model in it is for.
_TARGET_WORDS = {"cpu": ("cpu",), "cuda": ("cuda", "gpu"), "dml": ("directml", "dml")}


@dataclass(frozen=True, slots=True)
class Source:
    """A model on the disk.

    name       how the user called it
    kind       "checkpoint" is to be converted, "converted" is ready for a runtime
    revision   the commit of a hub snapshot, else None
    """

    name: str
    folder: Path
    kind: Kind
    revision: str | None = None


def find(
    source: str | Path,
    *,
    revision: str | None = None,
    target: str | None = None,
    download: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> Source:
    """The folder of a model, downloaded where it is not on the disk yet.

    revision   branch, tag or commit of a hub repository
    target     "cpu", "cuda" or "dml": of a repository with ONNX models, fetch the one for it; None takes none
    download   False never touches the network
    progress   called before the first request, and never when the files are already here

    raises   ModelNotFoundError, DownloadError, UnsupportedModelError, CheckpointError, StorageError,
             UsageError; SchemeError for a repository of ONNX models with none for the target
    """
    folder = local_folder(source)
    if folder is None and str(source) == DEMO:
        from aipc import demo

        folder = Path(demo.path())
    if folder is not None:
        if revision is not None:
            raise UsageError(f"{str(source)!r} is a folder, which has no revision {revision!r}")
        return Source(str(source), folder, kind_of(folder))
    repository = repository_of(str(source))
    snapshot = cached_snapshot(repository, revision, target)
    if snapshot is None and not download:
        raise ModelNotFoundError(f"{repository} is not in the Hugging Face cache {hub_cache()}")
    if snapshot is None:
        from aipc import hub_download

        snapshot = hub_download.download(repository, revision, target, progress or (lambda now: None))
    return Source(str(source), snapshot, kind_of(snapshot), snapshot.name)


def repository_of(name: str) -> str:
    """The hub id that an alias or a hub id stands for.

    raises   ModelNotFoundError, with the closest alias, if it can be neither
    """
    if name.lower() in ALIASES:
        return ALIASES[name.lower()]
    if _REPOSITORY.fullmatch(name) and ".." not in name and "--" not in name:
        return name
    names = (DEMO, *ALIASES)
    close = difflib.get_close_matches(name.lower(), names, n=1)
    hint = f"did you mean {close[0]}?" if close else ""
    if Path(name).is_dir():
        hint = f"the folder {name} that is here holds no model"
    raise ModelNotFoundError(
        f"there is no model {name!r}; possible are {', '.join(names)}, a hub id such as "
        f"{ALIASES['phi-3-mini']}, and the path of a folder",
        hint=hint,
    )


def kind_of(folder: Path) -> Kind:
    """Whether a folder holds a checkpoint or a converted model.

    raises   ModelNotFoundError if it holds neither
    """
    if any(converted_folders(folder, info) for info in RUNTIMES.values()):
        return "converted"
    if (folder / "config.json").is_file():
        return "checkpoint"
    files = ", ".join(info.model_file for info in RUNTIMES.values())
    raise ModelNotFoundError(
        f"the folder {folder} holds no model: neither config.json of a checkpoint nor {files}",
        hint="name the folder that the files themselves are in",
    )


def converted_folders(folder: Path, runtime: RuntimeInfo) -> list[Path]:
    """Where in `folder` models for a runtime lie: in it, or one or two levels below.

    Microsoft publishes one ONNX folder for each kind of device in a repository.
    """
    if (folder / runtime.model_file).is_file():
        return [folder]
    found = (path for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{runtime.model_file}"))
    return sorted(path.parent for path in found)


def part_for(target: str, parts: Iterable[str]) -> str | None:
    """Which of the folders with ONNX models in a repository is for a target, or None.

    target   "cpu", "cuda" or "dml"
    parts    paths in the repository, "." for its top; their words say whom they are for
    """
    parts = list(parts)
    named = [part for part in parts if _says(part, _TARGET_WORDS[target])]
    if named:
        # Accuracy level 4 multiplies in 8-bit integers: three times as fast on a CPU.
        return min(named, key=lambda part: ("acc-level-4" not in part, "int4" not in part, part))
    others = [word for words in _TARGET_WORDS.values() for word in words]
    return parts[0] if len(parts) == 1 and not _says(parts[0], others) else None


def _says(part: str, words: Iterable[str]) -> bool:
    return any(word in part.lower() for word in words)


def cached_snapshot(repository: str, revision: str | None = None, target: str | None = None) -> Path | None:
    """The snapshot in the Hugging Face cache if every file that is needed is there, else None.

    source   the layout that huggingface_hub documents: refs/REVISION names a folder in snapshots
    raises   CheckpointError if the snapshot's index is damaged
    """
    if revision is not None and not _REVISION.fullmatch(revision):
        raise ModelNotFoundError(
            f"{revision!r} cannot be the revision of a model: not a branch, tag or commit"
        )
    storage = storage_of(repository)
    commit = revision or "main"
    if not COMMIT.fullmatch(commit):
        try:
            commit = (storage / "refs" / commit).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
    snapshot = storage / "snapshots" / commit
    return snapshot if COMMIT.fullmatch(commit) and _is_complete(snapshot, target) else None


def storage_of(repository: str) -> Path:
    """Where the Hugging Face cache keeps a repository."""
    return hub_cache() / f"models--{repository.replace('/', '--')}"


def hub_cache() -> Path:
    """The Hugging Face cache; HF_HOME and HF_HUB_CACHE move it."""
    # Before the first import, for this process only: nobody is told what is run here.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def local_folder(source: str | Path) -> Path | None:
    """The folder that `source` names, or None where it reads as an alias or a hub id."""
    text = str(source)
    folder = Path(source).expanduser()
    has_separator = "/" in text or os.sep in text
    if folder.is_dir() and (has_separator or isinstance(source, Path) or _holds_model(folder)):
        return folder
    is_path = isinstance(source, Path) or folder.is_absolute() or "\\" in text or text.count("/") > 1
    if not is_path and not text.startswith((".", "~")):
        return None
    if folder.is_file():
        raise ModelNotFoundError(
            f"{text} is a file; a model is a folder", hint="name the folder that config.json is in"
        )
    raise ModelNotFoundError(f"there is no folder {text}", hint="see aipc models for what is here")


def _holds_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or any(
        converted_folders(folder, info) for info in RUNTIMES.values()
    )


def _is_complete(folder: Path, target: str | None) -> bool:
    """Whether a snapshot holds all that is read from it; a broken link counts as missing."""
    if onnx := converted_folders(folder, ONNXRUNTIME):
        # genai_config.json, by which the folder was found, is fetched last.
        parts = (path.relative_to(folder).as_posix() for path in onnx)
        return target is None or part_for(target, parts) is not None
    names = {"tokenizer.json", "config.json"}
    if (folder / "openvino_model.xml").is_file():
        names = {"openvino_model.bin", "tokenizer.json"}
    elif (folder / INDEX_FILE).is_file():
        shards = read_json_object(folder / INDEX_FILE).get("weight_map")
        names |= (
            {str(name) for name in shards.values()} if isinstance(shards, dict) else {"model.safetensors"}
        )
    else:
        names |= {"model.safetensors"}
    return all((folder / name).is_file() for name in names)
