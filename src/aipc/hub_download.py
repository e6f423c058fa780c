"""Fetches the files of a hub repository into the Hugging Face cache: resumed, verified, refused early.

huggingface_hub lists, authorises and names what went wrong; the bytes are fetched here, because its own
download (read in 1.33 and 2.4) deletes what an interrupted one has brought, and does not compare hashes.
Blobs, links and locks are where it puts its own, so that other programs find them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

from huggingface_hub import HfApi, constants, get_session
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # the root of all that the client raises: httpx's with huggingface_hub 1, httpx2's with 2
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    WeakFileLock,
    build_hf_headers,
    hf_raise_for_status,
)

import aipc
from aipc.errors import (
    AipcError,
    DownloadError,
    ModelNotFoundError,
    SchemeError,
    StorageError,
    UnsupportedModelError,
)
from aipc.hub import COMMIT, INDEX_FILE, hub_cache, part_for, storage_of
from aipc.phi3 import Phi3Config
from aipc.runtimes.base import ONNXRUNTIME
from aipc.types import Progress
from aipc.windows_files import is_device_name, move

# Waits between tries that bring nothing; each byte that arrives starts the row anew.
RETRY_WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
_PASSING_STATUS = {408, 429, 500, 502, 503, 504}
_CHUNK_BYTES = 2**20
_MAX_FILES = 10_000


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository.

    name   its path there
    etag   its sha256, or for a small file in git the sha1 of its git blob
    """

    name: str
    bytes: int
    etag: str

    def hasher(self) -> Any:
        """A hash that ends in `etag` when it has seen the whole file."""
        if len(self.etag) == 64:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.bytes, usedforsecurity=False)


def download(
    repository: str, revision: str | None, target: str | None, progress: Callable[[Progress], None]
) -> Path:
    """Fetch what aipc reads of a repository, and give its folder in the Hugging Face cache.

    A model that aipc cannot convert is refused by its config.json, before any weight is fetched.

    target   of ONNX models, fetch the one for "cpu", "cuda" or "dml"; None fetches none
    raises   ModelNotFoundError, DownloadError, UnsupportedModelError, SchemeError, CheckpointError,
             StorageError
    """
    host = urlsplit(constants.ENDPOINT).netloc
    if constants.HF_HUB_OFFLINE:
        raise DownloadError(
            f"{repository} is not in the Hugging Face cache {hub_cache()}, "
            "and HF_HUB_OFFLINE forbids the download",
            hint="unset HF_HUB_OFFLINE, or name a folder that holds the model",
        )
    what = f"{repository} from {host}"
    progress(Progress(what, 0, 0))
    with _in_our_words(repository, revision, host):
        commit, files = _list_files(repository, revision)
        snapshot = _Snapshot(repository, commit)
        wanted = _choose(repository, files, target)
        is_checkpoint = any(file.name.endswith(".safetensors") for file in wanted)
        _check_space(snapshot, wanted)
        done = sum(snapshot.bytes_here(file) for file in wanted)
        total = sum(file.bytes for file in wanted)

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(Progress(what, done, total))

        advance(0)
        for file in wanted:
            snapshot.fetch(file, advance)
            if file.name == "config.json" and is_checkpoint:
                Phi3Config.read(snapshot.folder)
        snapshot.name_as(revision or "main")
    return snapshot.folder


def _list_files(repository: str, revision: str | None) -> tuple[str, dict[str, RemoteFile]]:
    """The commit that a revision means, and the repository's files, also those one or two folders down."""
    try:
        info = HfApi(
            endpoint=constants.ENDPOINT, library_name="aipc", library_version=aipc.__version__
        ).model_info(
            repository, revision=revision, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        )
        commit = str(info.sha)
        files = [
            _remote_file(sibling) for sibling in (info.siblings or [])[:_MAX_FILES] if _is_plain(sibling)
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise DownloadError(
            f"{constants.ENDPOINT} answered with something that does not describe a repository ({exc})",
            hint="check HF_ENDPOINT and the network's login page",
        ) from exc
    if not COMMIT.fullmatch(commit):
        raise DownloadError(f"{constants.ENDPOINT} names the commit {commit[:80]!r}, which is none")
    return commit, {file.name: file for file in files}


def _is_plain(sibling: Any) -> bool:
    """Whether a listed file lies at most two folders down, under names that are only names."""
    name = sibling.rfilename
    plain = re.fullmatch(r"(\w[\w.-]{0,200}/){0,2}\w[\w.-]{0,200}", name) is not None
    return plain and not any(is_device_name(part) for part in name.split("/"))


def _remote_file(sibling: Any) -> RemoteFile:
    etag = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    if (
        not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", etag)
        or not isinstance(sibling.size, int)
        or sibling.size < 0
    ):
        raise ValueError(f"no size and hash for {sibling.rfilename}")
    return RemoteFile(sibling.rfilename, sibling.size, etag)


def _choose(repository: str, files: dict[str, RemoteFile], target: str | None) -> list[RemoteFile]:
    """What aipc reads, config.json first and the weights last: never a pickle, never code.

    raises   UnsupportedModelError, SchemeError
    """
    small = r"config\.json|[\w.-]+\.json|[\w.-]+\.jinja"
    weights = (
        r"openvino_[\w.-]+\.(xml|bin)" if "openvino_model.xml" in files else r"model[\w.-]*\.safetensors"
    )
    chosen = [file for name, file in files.items() if re.fullmatch(weights, name)]
    onnx = sorted(
        str(path.parent) for path in map(PurePosixPath, files) if path.name == ONNXRUNTIME.model_file
    )
    if not chosen and onnx:
        return _choose_onnx(repository, files, onnx, target)
    if not chosen or "config.json" not in files:
        kinds = sorted(
            {Path(name).suffix for name in files} & {".bin", ".pth", ".gguf", ".onnx", ".safetensors"}
        )
        raise UnsupportedModelError(
            f"{repository} holds no checkpoint that aipc reads: config.json with model*.safetensors, or "
            f"openvino_model.xml; of weights it has {', '.join('*' + kind for kind in kinds) or 'none'}",
            hint="take the model's original repository, for example microsoft/Phi-3-mini-4k-instruct",
        )
    texts = [file for name, file in files.items() if re.fullmatch(small, name)]
    return (
        sorted(texts, key=lambda file: (file.name != "config.json", file.name != INDEX_FILE, file.name))
        + chosen
    )


def _choose_onnx(
    repository: str, files: dict[str, RemoteFile], parts: list[str], target: str | None
) -> list[RemoteFile]:
    """The ONNX model for a target, genai_config.json last: where it is, all is.

    parts    the folders in the repository that hold one
    raises   SchemeError
    """
    if target is None:
        raise SchemeError(
            f"{repository} holds models for {ONNXRUNTIME.title}, and no checkpoint: {', '.join(parts)}",
            hint=f"run it with --runtime {ONNXRUNTIME.name}; for others take the model's original repository",
        )
    part = part_for(target, parts)
    if part is None:
        raise SchemeError(
            f"{repository} holds no model that says it is for {target}: {', '.join(parts)}",
            hint="take the model's original repository, which is converted for any device",
        )
    inside = [file for name, file in files.items() if str(PurePosixPath(name).parent) == part]
    read = [file for file in inside if re.search(r"\.(json|jinja|onnx|data)$", file.name)]
    return sorted(read, key=lambda file: (file.name.endswith(ONNXRUNTIME.model_file), file.bytes))


def _check_space(snapshot: _Snapshot, files: list[RemoteFile]) -> None:
    needed = sum(file.bytes - snapshot.bytes_here(file) for file in files)
    here = next(folder for folder in (snapshot.folder, *snapshot.folder.parents) if folder.exists())
    free = shutil.disk_usage(here).free
    if needed > free:
        raise StorageError(
            f"the download needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free at {here}",
            hint="make room, or set HF_HOME to a folder on a larger disk",
        )


class _Snapshot:
    """One commit of a repository in the Hugging Face cache, on its way to being complete."""

    def __init__(self, repository: str, commit: str) -> None:
        self.storage = storage_of(repository)
        self.folder = self.storage / "snapshots" / commit
        self.blobs = self.storage / "blobs"
        self.locks = hub_cache() / ".locks" / self.storage.name
        self.url = f"{constants.ENDPOINT}/{repository}/resolve/{commit}"

    def bytes_here(self, file: RemoteFile) -> int:
        """How much of a file is on the disk already."""
        places = (self.folder / file.name, self.blobs / file.etag, self._partial(file))
        return next((min(place.stat().st_size, file.bytes) for place in places if place.is_file()), 0)

    def fetch(self, file: RemoteFile, advance: Callable[[int], None]) -> None:
        """Bring a file into the snapshot; a second process waits, and finds it there."""
        pointer, blob = self.folder / file.name, self.blobs / file.etag
        if pointer.is_file():
            return
        for folder in (pointer.parent, self.blobs, self.locks):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(self.locks / f"{file.etag}.lock"):
            if not pointer.is_file() and not blob.is_file():
                _Transfer(f"{self.url}/{quote(file.name)}", file, self._partial(file), advance).run()
                move(self._partial(file), blob)
            if not pointer.is_file():
                _place(blob, pointer)

    def name_as(self, revision: str) -> None:
        """Record which commit a branch or tag meant."""
        if COMMIT.fullmatch(revision):
            return
        reference = self.storage / "refs" / revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        written = reference.with_name(f"{reference.name}.{uuid4().hex[:8]}")
        written.write_text(self.folder.name, encoding="utf-8")
        move(written, reference)

    def _partial(self, file: RemoteFile) -> Path:
        return self.blobs / f"{file.etag}.incomplete"


def _place(blob: Path, pointer: Path) -> None:
    pointer.unlink(missing_ok=True)
    with suppress(OSError):
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    if not pointer.is_file():
        # Windows without the right to make links: the file itself, as huggingface_hub does it there.
        move(blob, pointer)


class _Transfer:
    """One file over HTTP, appended to what an earlier try has left, and hashed as it arrives."""

    def __init__(self, url: str, file: RemoteFile, partial: Path, advance: Callable[[int], None]) -> None:
        self.url = url
        self.file = file
        self.partial = partial
        self.advance = advance
        self.received = 0
        self.hash = file.hasher()

    def run(self) -> None:
        """Fetch the rest of the file.

        raises   DownloadError if it arrives damaged, or the connection keeps breaking
        """
        with self.partial.open("ab+") as out:
            self._read_what_is_here(out)
            idle = 0
            while self.received < self.file.bytes:
                before = self.received
                failure = self._try(out)
                idle = 0 if self.received > before else idle + 1
                if idle > len(RETRY_WAITS_S):
                    raise DownloadError(
                        f"{self.file.name} stopped at {self.received:,} of {self.file.bytes:,} bytes "
                        f"({failure or 'the server closed the connection'})",
                        hint="run the command again: it goes on from there",
                    ) from failure
                if self.received < self.file.bytes:
                    time.sleep(RETRY_WAITS_S[max(idle - 1, 0)])
        if self.hash.hexdigest() != self.file.etag:
            self.partial.unlink()
            raise DownloadError(
                f"{self.file.name} arrived damaged: its hash is not the one the hub gives",
                hint="run the command again: the file is fetched anew",
            )

    def _read_what_is_here(self, out: Any) -> None:
        out.seek(0)
        while chunk := out.read(_CHUNK_BYTES):
            self.hash.update(chunk)
            self.received += len(chunk)
        if self.received > self.file.bytes:
            self._start_over(out)

    def _start_over(self, out: Any) -> None:
        out.truncate(0)
        self.advance(-min(self.received, self.file.bytes))
        self.received = 0
        self.hash = self.file.hasher()

    def _try(self, out: Any) -> Exception | None:
        """Receive until the end or a passing failure, which is given back."""
        headers = build_hf_headers(library_name="aipc", library_version=aipc.__version__)
        headers |= {"Accept-Encoding": "identity"}
        if self.received:
            headers["Range"] = f"bytes={self.received}-"
        try:
            with get_session().stream(
                "GET", self.url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            ) as response:
                hf_raise_for_status(response)
                if self.received and not self._continues(response):
                    self._start_over(out)
                for chunk in response.iter_bytes():
                    self._take(out, chunk)
        except HfHubHTTPError as exc:
            if exc.response.status_code not in _PASSING_STATUS:
                raise
            return exc
        except HTTPError as exc:
            failure: Exception = exc
            return failure
        finally:
            out.flush()
        return None

    def _continues(self, response: Any) -> bool:
        """Whether a server that was asked for the rest does send the rest."""
        return str(response.headers.get("Content-Range", "")).startswith(f"bytes {self.received}-")

    def _take(self, out: Any, chunk: bytes) -> None:
        if self.received + len(chunk) > self.file.bytes:
            raise DownloadError(
                f"{self.file.name} is longer than the {self.file.bytes:,} bytes that the hub gives"
            )
        out.write(chunk)
        self.hash.update(chunk)
        self.received += len(chunk)
        self.advance(len(chunk))


@contextmanager
def _in_our_words(repository: str, revision: str | None, host: str) -> Iterator[None]:
    """Translate what huggingface_hub, the network and the disk raise."""
    page = f"{constants.ENDPOINT}/{repository}"
    try:
        yield
    except AipcError:
        raise
    except GatedRepoError as exc:
        raise ModelNotFoundError(
            f"{repository} is gated: its owner shows it only to accounts that have accepted the licence",
            hint=f"accept the licence on {page}, then run: hf auth login",
        ) from exc
    except RepositoryNotFoundError as exc:
        raise ModelNotFoundError(
            f"{host} has no repository {repository}, or it is private",
            hint=f"check the spelling on {page}; for a private one run: hf auth login",
        ) from exc
    except RevisionNotFoundError as exc:
        raise ModelNotFoundError(
            f"{repository} has no revision {revision!r}", hint=f"see {page}/refs for its branches and tags"
        ) from exc
    except HfHubHTTPError as exc:
        raise _refused(exc, repository, host) from exc
    except (HTTPError, ConnectionError, TimeoutError) as exc:
        raise DownloadError(
            f"{repository} is not in the Hugging Face cache {hub_cache()}, "
            f"and {host} cannot be reached ({exc})",
            hint="check the network, or name a folder that holds the model",
        ) from exc
    except OSError as exc:
        raise _unwritable(exc) from exc


def _refused(exc: HfHubHTTPError, repository: str, host: str) -> AipcError:
    status = exc.response.status_code
    if status in {401, 403}:
        return ModelNotFoundError(
            f"{host} refuses {repository} to this account ({status})",
            hint="run: hf auth login, or unset HF_TOKEN if it is out of date",
        )
    return DownloadError(f"{host} answered {status} for {repository}", hint="try again later")


def _unwritable(exc: OSError) -> StorageError:
    if exc.errno == errno.ENOSPC:
        return StorageError(
            f"the disk of {hub_cache()} is full",
            hint="make room and run the command again: it goes on from there",
        )
    return StorageError(
        f"{exc.filename or hub_cache()} cannot be written: {exc.strerror or exc}",
        hint="set HF_HOME to a folder that you may write to",
    )
