"""A stand-in for the hub: an HTTP server in a thread that answers what huggingface_hub and aipc ask.

    with HubServer() as hub:
        hub.add("someone/model", {"config.json": b"{}"})
        hub.cuts = [1000]                   # the next body is cut off after 1000 bytes

Files over LFS_BYTES carry the sha256 of Git LFS, smaller ones the sha1 of a git blob, as on the hub.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

LFS_BYTES = 10_000


@dataclass
class Repository:
    files: dict[str, bytes]
    revisions: dict[str, str]
    gated: bool = False


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class HubServer:
    """A server in a thread.

    requests   what was asked
    cuts       bytes after which the next bodies are cut off, one a file request
    statuses   what the next file requests are refused with
    ranges     whether the rest of a file can be asked for
    raw_info   the answer to every question about a repository
    sizes      said of files in place of the truth
    cdn        another server, to which requests for files of Git LFS are sent on, as on the hub
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    ranges: bool = True
    raw_info: bytes | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    cdn: HubServer | None = None

    def add(self, name: str, files: dict[str, bytes], *, gated: bool = False) -> str:
        """Put a repository there, and return the commit of its main branch."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.repositories[name] = Repository(files, {"main": commit, commit: commit, "v1.0": commit}, gated)
        return commit

    def add_folder(self, name: str, folder: Path) -> str:
        """Put the files of a folder there."""
        return self.add(name, {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def files_asked(self) -> list[str]:
        return [request.path.rpartition("/")[2] for request in self.requests if "/resolve/" in request.path]

    def stop(self) -> None:
        """Go, as a network that fails."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("_Bound", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread.is_alive():
            self.stop()


def etag_of(content: bytes) -> str:
    if len(content) > LFS_BYTES:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(
            Request(self.command, path, self.headers.get("Range"), self.headers.get("Authorization"))
        )
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/(.+))?", path):
            self._info(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3])
        else:
            self._refuse(404, "", "not found")

    def _find(self, name: str, revision: str) -> tuple[Repository, str] | None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif revision not in repository.revisions:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repository, repository.revisions[revision]
        return None

    def _info(self, name: str, revision: str) -> None:
        if self.hub.raw_info is not None:
            self._send(200, self.hub.raw_info, {"Content-Type": "application/json"})
            return
        if (found := self._find(name, revision)) is None:
            return
        repository, commit = found
        siblings = []
        for file, content in repository.files.items():
            sibling: dict[str, Any] = {
                "rfilename": file,
                "size": self.hub.sizes.get(file, len(content)),
                "blobId": etag_of(content),
            }
            if len(content) > LFS_BYTES:
                sibling |= {"blobId": "0" * 40}
                sibling["lfs"] = {"sha256": etag_of(content), "size": len(content), "pointerSize": 134}
            siblings.append(sibling)
        info = {
            "id": name,
            "modelId": name,
            "sha": commit,
            "siblings": siblings,
            "tags": [],
            "private": False,
        }
        self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, revision: str, file: str) -> None:
        if (found := self._find(name, revision)) is None:
            return
        repository, commit = found
        if repository.gated and self.headers.get("Authorization") != "Bearer hf_accepted":
            status = 403 if self.headers.get("Authorization") else 401
            self._refuse(status, "GatedRepo", f"Access to model {name} is restricted.")
            return
        if self.hub.statuses:
            self._refuse(self.hub.statuses.pop(0), "", "later")
            return
        if file not in repository.files:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        content = repository.files[file]
        if self.hub.cdn is not None and len(content) > LFS_BYTES:
            self._send(302, b"", {"Location": f"{self.hub.cdn.url}{self.path}", "X-Repo-Commit": commit})
            return
        headers = {"ETag": f'"{etag_of(content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if start and self.hub.ranges:
            headers["Content-Range"] = f"bytes {start[1]}-{len(content) - 1}/{len(content)}"
            self._send(206, content[int(start[1]) :], headers)
        else:
            self._send(200, content, headers)

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message, "Content-Type": "application/json"}
        if code:
            headers["X-Error-Code"] = code
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if status in {200, 206} and "ETag" in headers and self.hub.cuts:
            body = body[: self.hub.cuts.pop(0)]
            self.close_connection = True
        self.wfile.write(body)
