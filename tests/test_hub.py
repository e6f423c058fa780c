"""From a name to a folder, against a stand-in for the hub."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aipc import hub
from aipc.errors import (
    AipcError,
    CheckpointError,
    DownloadError,
    ModelNotFoundError,
    SchemeError,
    StorageError,
    UnsupportedModelError,
    UsageError,
)
from aipc.types import Progress
from checkpoints import TINY
from hub_server import HubServer, etag_of

REPOSITORY = "someone/tiny-phi"
WEIGHTS = bytes(range(256)) * 12_000
FILES = {
    "config.json": json.dumps(TINY).encode(),
    "tokenizer.json": b'{"model": {}}',
    "model.safetensors": WEIGHTS,
    "README.md": b"read me",
    "pytorch_model.bin": b"a pickle",
    "modeling_phi3.py": b"raise SystemExit",
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    from huggingface_hub import close_session, constants

    from aipc import hub_download

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_download, "RETRY_WAITS_S", (0.0, 0.0))
    close_session()
    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        files = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + files)
        yield server
        close_session()


def blobs(tmp_path: Path) -> Path:
    return tmp_path / "hf" / "hub" / "models--someone--tiny-phi" / "blobs"


# --- names and folders, no network


def test_a_folder_is_a_checkpoint_or_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "config.json").write_bytes(FILES["config.json"])
    (tmp_path / "ready").mkdir()
    (tmp_path / "ready" / "openvino_model.xml").write_text("<net/>", encoding="utf-8")
    assert hub.find(tmp_path / "plain").kind == "checkpoint"
    assert hub.find(str(tmp_path / "ready")).kind == "converted"
    monkeypatch.chdir(tmp_path)
    assert hub.find("plain").folder == Path("plain")
    assert hub.find("./ready").revision is None


def test_a_folder_with_a_config_wins_over_an_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "phi-3-mini").mkdir()
    assert hub.repository_of("phi-3-mini") == "microsoft/Phi-3-mini-4k-instruct"
    with pytest.raises(ModelNotFoundError, match="not in the Hugging Face cache"):
        hub.find("phi-3-mini", revision="0" * 40, download=False)
    (tmp_path / "phi-3-mini" / "config.json").write_bytes(b"{}")
    assert hub.find("phi-3-mini").folder == Path("phi-3-mini")


@pytest.mark.parametrize("name", ["./nowhere", "../nowhere", "~/nowhere-at-all", "a/b/c", "C:\\models\\phi"])
def test_a_path_that_does_not_exist_is_never_asked_of_the_hub(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="no folder"):
        hub.find(name)


def test_a_file_and_an_empty_folder_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelNotFoundError, match="is a file"):
        hub.find(tmp_path / "model.gguf")
    with pytest.raises(ModelNotFoundError, match="holds no model"):
        hub.find(tmp_path)


def test_the_bare_name_of_a_folder_without_a_model_is_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "phi").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match="there is no model 'phi'") as caught:
        hub.find("phi")
    assert caught.value.hint == "the folder phi that is here holds no model"


@pytest.mark.parametrize(
    ("name", "close"), [("phi3-mini", "phi-3-mini"), ("phi-4mini", "phi-4-mini"), ("dmeo", "demo")]
)
def test_a_misspelt_alias_is_answered_with_the_closest(name: str, close: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"possible are demo, phi-3-mini") as caught:
        hub.find(name)
    assert caught.value.hint == f"did you mean {close}?"


def test_the_whole_family_has_aliases() -> None:
    members = {"phi-3-mini", "phi-3-medium", "phi-3.5-mini", "phi-4-mini", "phi-4"}
    assert members | {"phi-3-mini-128k", "phi-3-medium-128k"} <= set(hub.ALIASES)


def test_an_alias_is_found_in_capitals_too() -> None:
    assert hub.repository_of("Phi-4") == "microsoft/phi-4"


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"{}")
    with pytest.raises(UsageError, match="no revision"):
        hub.find(tmp_path, revision="main")


@pytest.mark.parametrize("revision", ["../../x", "/etc", "a b", "", "a//b"])
def test_a_revision_is_no_path(server: HubServer, revision: str) -> None:
    with pytest.raises(ModelNotFoundError, match="revision"):
        hub.find(REPOSITORY, revision=revision)
    assert not server.requests


# --- downloads


def test_download_brings_what_is_needed_and_a_second_time_asks_nothing(
    server: HubServer, tmp_path: Path
) -> None:
    commit = server.add(REPOSITORY, FILES)
    seen: list[Progress] = []
    source = hub.find(REPOSITORY, progress=seen.append)
    assert (source.name, source.kind, source.revision) == (REPOSITORY, "checkpoint", commit)
    assert sorted(path.name for path in source.folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (source.folder / "model.safetensors").read_bytes() == WEIGHTS
    total = sum(len(FILES[path.name]) for path in source.folder.iterdir())
    assert seen[0] == Progress(f"{REPOSITORY} from {server.url[7:]}", 0, 0)
    assert (seen[-1].done_bytes, seen[-1].total_bytes) == (total, total)

    server.stop()
    seen.clear()
    assert hub.find(REPOSITORY, progress=seen.append) == source
    assert not seen


def test_other_programs_find_the_files_where_they_expect_them(server: HubServer, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download, snapshot_download

    server.add(REPOSITORY, FILES)
    folder = hub.find(REPOSITORY).folder
    server.stop()
    assert Path(snapshot_download(REPOSITORY, local_files_only=True, cache_dir=hub.hub_cache())) == folder
    found = hf_hub_download(REPOSITORY, "model.safetensors", local_files_only=True, cache_dir=hub.hub_cache())
    assert Path(found).read_bytes() == WEIGHTS
    assert not list(blobs(tmp_path).glob("*.incomplete"))


def test_what_another_program_has_downloaded_is_used_without_a_request(server: HubServer) -> None:
    from huggingface_hub import hf_hub_download

    server.add(REPOSITORY, FILES)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        hf_hub_download(REPOSITORY, name, cache_dir=hub.hub_cache())
    server.requests.clear()
    assert (hub.find(REPOSITORY).folder / "model.safetensors").read_bytes() == WEIGHTS
    assert not server.requests


def test_sharded_weights_are_complete_only_with_every_shard(server: HubServer) -> None:
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    files = {name: content for name, content in FILES.items() if name != "model.safetensors"}
    files |= {name: WEIGHTS + name.encode() for name in shards.values()}
    files[hub.INDEX_FILE] = json.dumps({"weight_map": shards}).encode()
    server.add(REPOSITORY, files)
    folder = hub.find(REPOSITORY).folder
    assert hub.cached_snapshot(REPOSITORY) == folder
    linked = (folder / shards["b"]).is_symlink()
    (folder / shards["b"]).unlink()
    assert hub.cached_snapshot(REPOSITORY) is None
    server.requests.clear()
    assert hub.find(REPOSITORY).folder == folder
    # Behind a link, the blob was still there.
    assert server.files_asked() == ([] if linked else [shards["b"]])


def test_a_converted_repository_is_taken_as_it_is(server: HubServer) -> None:
    files = {
        "openvino_model.xml": b"<net/>",
        "openvino_model.bin": WEIGHTS,
        "openvino_tokenizer.xml": b"<net/>",
        "openvino_tokenizer.bin": b"1",
        "tokenizer.json": b"{}",
        "config.json": b'{"architectures": ["SomethingElse"]}',
        "pytorch_model.bin": b"a pickle",
    }
    server.add("OpenVINO/tiny-int4-ov", files)
    source = hub.find("OpenVINO/tiny-int4-ov")
    assert source.kind == "converted"
    assert {path.name for path in source.folder.iterdir()} == files.keys() - {"pytorch_model.bin"}


CPU_PART = "cpu_and_mobile/cpu-int4-rtn-block-32-acc-level-4"
ONNX_PARTS = (
    "cpu_and_mobile/cpu-int4-rtn-block-32",
    CPU_PART,
    "cuda/cuda-fp16",
    "cuda/cuda-int4-rtn-block-32",
    "directml/directml-int4-awq-block-128",
)
ONNX_FILES = ("genai_config.json", "model.onnx", "model.onnx.data", "tokenizer.json", "configuration_phi3.py")


def onnx_repository(parts: tuple[str, ...] = ONNX_PARTS) -> dict[str, bytes]:
    """As microsoft/Phi-3-mini-4k-instruct-onnx is laid out."""
    files = {f"{part}/{name}": f"{part} {name}".encode() for part in parts for name in ONNX_FILES}
    return files | {"config.json": b"{}", "README.md": b"read me"}


@pytest.mark.parametrize(
    ("target", "part"),
    [("cpu", CPU_PART), ("cuda", "cuda/cuda-int4-rtn-block-32"), ("dml", ONNX_PARTS[-1])],
)
def test_of_onnx_models_the_one_for_the_device_is_fetched(server: HubServer, target: str, part: str) -> None:
    server.add(REPOSITORY, onnx_repository())
    source = hub.find(REPOSITORY, target=target)
    assert source.kind == "converted"
    here = {path.relative_to(source.folder).as_posix() for path in source.folder.rglob("*") if path.is_file()}
    assert here == {f"{part}/{name}" for name in ONNX_FILES if not name.endswith(".py")}
    assert (source.folder / part / "model.onnx.data").read_text(encoding="utf-8") == f"{part} model.onnx.data"
    assert server.files_asked()[-1] == "genai_config.json"
    server.stop()
    assert hub.find(REPOSITORY, target=target) == source


def test_another_device_fetches_its_own_onnx_model(server: HubServer) -> None:
    server.add(REPOSITORY, onnx_repository())
    hub.find(REPOSITORY, target="cpu")
    assert hub.cached_snapshot(REPOSITORY, target="cpu") is not None
    assert hub.cached_snapshot(REPOSITORY, target="dml") is None


def test_onnx_models_are_refused_where_none_fits(server: HubServer) -> None:
    server.add(REPOSITORY, onnx_repository(("cuda/cuda-fp16", "cuda/cuda-int4-rtn-block-32")))
    with pytest.raises(SchemeError, match=r"no checkpoint: cuda/cuda-fp16") as caught:
        hub.find(REPOSITORY)
    assert "--runtime onnxruntime" in caught.value.hint
    with pytest.raises(SchemeError, match="for dml: cuda/cuda-fp16"):
        hub.find(REPOSITORY, target="dml")
    assert server.files_asked() == []


@pytest.mark.parametrize(("part", "taken"), [("onnx", True), ("cuda-int4", False), (".", True)])
def test_one_onnx_model_is_for_any_device_unless_it_says_otherwise(part: str, taken: bool) -> None:
    assert (hub.part_for("cpu", [part]) == part) is taken


def test_a_tag_and_a_commit_are_revisions(server: HubServer) -> None:
    commit = server.add(REPOSITORY, FILES)
    assert hub.find(REPOSITORY, revision="v1.0").revision == commit
    assert hub.find(REPOSITORY, revision=commit).revision == commit
    server.stop()
    assert hub.find(REPOSITORY, revision="v1.0", download=False).revision == commit
    with pytest.raises(ModelNotFoundError):
        hub.find(REPOSITORY, download=False)


def test_a_model_that_cannot_be_converted_is_refused_before_its_weights(server: HubServer) -> None:
    config = TINY | {"architectures": ["LlamaForCausalLM"]}
    server.add(REPOSITORY, FILES | {"config.json": json.dumps(config).encode()})
    with pytest.raises(UnsupportedModelError):
        hub.find(REPOSITORY)
    assert server.files_asked() == ["config.json"]


def test_pickles_alone_are_refused_without_a_download(server: HubServer) -> None:
    server.add(REPOSITORY, {"config.json": FILES["config.json"], "pytorch_model.bin": b"a pickle"})
    with pytest.raises(UnsupportedModelError, match=r"of weights it has \*\.bin"):
        hub.find(REPOSITORY)
    assert not server.files_asked()


# --- connections that break


def test_a_cut_connection_is_taken_up_where_it_broke(server: HubServer) -> None:
    server.add(
        REPOSITORY, {name: FILES[name] for name in ("config.json", "tokenizer.json", "model.safetensors")}
    )
    server.cuts = [10**9, 10**9, 1_000_000, 500_000]  # of config, tokenizer and the weights
    seen: list[Progress] = []
    folder = hub.find(REPOSITORY, progress=seen.append).folder
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [request.range for request in server.requests if request.path.endswith("model.safetensors")]
    assert ranges == [None, "bytes=1000000-", "bytes=1500000-"]
    assert seen[-1].done_bytes == seen[-1].total_bytes


def test_a_later_run_goes_on_where_an_earlier_one_ended(server: HubServer, tmp_path: Path) -> None:
    server.add(REPOSITORY, FILES)
    server.cuts = [10**9, 10**9, 2_000_000, 0, 0, 0]
    with pytest.raises(DownloadError, match=r"2,000,000 of 3,072,000 bytes") as caught:
        hub.find(REPOSITORY)
    assert "goes on from there" in caught.value.hint
    partial = blobs(tmp_path) / f"{etag_of(WEIGHTS)}.incomplete"
    assert partial.stat().st_size == 2_000_000
    server.requests.clear()
    seen: list[Progress] = []
    folder = hub.find(REPOSITORY, progress=seen.append).folder
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert [request.range for request in server.requests[1:]] == ["bytes=2000000-"]
    assert seen[1].done_bytes >= 2_000_000


def test_a_server_without_ranges_is_read_from_the_start(server: HubServer) -> None:
    server.add(REPOSITORY, FILES)
    server.ranges = False
    server.cuts = [10**9, 10**9, 1_000_000]
    seen: list[Progress] = []
    folder = hub.find(REPOSITORY, progress=seen.append).folder
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert seen[-1].done_bytes == seen[-1].total_bytes


def test_a_server_that_is_busy_is_asked_again(server: HubServer) -> None:
    server.add(REPOSITORY, FILES)
    server.statuses = [503, 429]
    assert hub.find(REPOSITORY).kind == "checkpoint"


def test_a_server_that_stays_broken_is_named(server: HubServer) -> None:
    server.add(REPOSITORY, FILES)
    server.statuses = [500] * 20
    with pytest.raises(DownloadError, match=r"config.json stopped at 0"):
        hub.find(REPOSITORY)


def test_damaged_bytes_are_thrown_away(server: HubServer, tmp_path: Path) -> None:
    server.add(REPOSITORY, FILES)
    partial = blobs(tmp_path) / f"{etag_of(WEIGHTS)}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"not what the file begins with")
    with pytest.raises(DownloadError, match="damaged"):
        hub.find(REPOSITORY)
    assert not partial.exists()
    assert hub.find(REPOSITORY).kind == "checkpoint"


def test_a_partial_file_that_is_too_long_is_started_over(server: HubServer, tmp_path: Path) -> None:
    server.add(REPOSITORY, FILES)
    partial = blobs(tmp_path) / f"{etag_of(WEIGHTS)}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(WEIGHTS + b"more")
    seen: list[Progress] = []
    assert (hub.find(REPOSITORY, progress=seen.append).folder / "model.safetensors").read_bytes() == WEIGHTS
    assert seen[-1].done_bytes == seen[-1].total_bytes


def test_two_downloads_at_once_fetch_each_file_once(server: HubServer) -> None:
    server.add(REPOSITORY, FILES)
    found: list[hub.Source] = []
    threads = [threading.Thread(target=lambda: found.append(hub.find(REPOSITORY))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert sorted(server.files_asked()) == ["config.json", "model.safetensors", "tokenizer.json"]


def refuse_link(self: Path, *_: Any) -> None:
    raise OSError(errno.EPERM, "a required privilege is not held by the client")


def pretend_link(self: Path, *_: Any) -> None:
    """As Wine does."""


@pytest.mark.parametrize("link", [refuse_link, pretend_link])
def test_without_symbolic_links_the_file_itself_is_moved(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, link: Callable[..., None]
) -> None:
    monkeypatch.setattr(Path, "symlink_to", link)
    server.add(REPOSITORY, FILES)
    folder = hub.find(REPOSITORY).folder
    assert not (folder / "model.safetensors").is_symlink()
    server.stop()
    assert hub.find(REPOSITORY).folder == folder


# --- words for what goes wrong


def test_a_gated_repository_says_where_to_accept(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add(REPOSITORY, FILES, gated=True)
    for token in ("", "hf_somebody"):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(ModelNotFoundError, match="gated") as caught:
            hub.find(REPOSITORY)
        assert f"{server.url}/{REPOSITORY}" in caught.value.hint
        assert "hf auth login" in caught.value.hint
    monkeypatch.setenv("HF_TOKEN", "hf_accepted")
    assert hub.find(REPOSITORY).kind == "checkpoint"


def test_large_files_come_from_elsewhere_and_the_token_stays_at_home(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.add(REPOSITORY, FILES)
    with HubServer() as cdn:
        cdn.add(REPOSITORY, FILES)
        cdn.cuts = [1_000_000]
        server.cdn = cdn
        folder = hub.find(REPOSITORY).folder
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert [request.range for request in cdn.requests] == [None, "bytes=1000000-"]
    assert {request.authorization for request in server.requests} == {"Bearer hf_secret"}
    assert {request.authorization for request in cdn.requests} == {None}


def test_a_repository_that_does_not_exist(server: HubServer) -> None:
    with pytest.raises(ModelNotFoundError, match="has no repository someone/else"):
        hub.find("someone/else")


def test_a_revision_that_does_not_exist(server: HubServer) -> None:
    server.add(REPOSITORY, FILES)
    with pytest.raises(ModelNotFoundError, match="no revision 'v9'"):
        hub.find(REPOSITORY, revision="v9")


def test_no_network(server: HubServer, tmp_path: Path) -> None:
    server.stop()
    with pytest.raises(DownloadError, match="cannot be reached") as caught:
        hub.find(REPOSITORY)
    assert str(tmp_path) in caught.value.message
    assert not (tmp_path / "hf").exists()


def test_hf_hub_offline(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    server.add(REPOSITORY, FILES)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        hub.find(REPOSITORY)
    assert not server.requests


def test_too_little_space_is_said_with_numbers(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 0, 1_500_000_000))
    server.add(REPOSITORY, FILES)
    server.sizes["model.safetensors"] = 7_600_000_000
    with pytest.raises(StorageError, match=r"needs 7\.6 GB, and 1\.5 GB are free"):
        hub.find(REPOSITORY)
    assert not server.files_asked()


def test_a_full_disk_and_a_forbidden_folder(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add(REPOSITORY, FILES)
    for number, words in ((errno.ENOSPC, "is full"), (errno.EACCES, "cannot be written")):

        def refuse(self: Path, *_: Any, number: int = number, **__: Any) -> None:
            raise OSError(number, "no", str(self))

        with monkeypatch.context() as patch, pytest.raises(StorageError, match=words):
            patch.setattr(Path, "mkdir", refuse)
            hub.find(REPOSITORY)


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>log in</html>",
        b"[]",
        b"null",
        b"{}",
        b'{"id": "a/b", "sha": "../../x", "siblings": []}',
        b'{"id": "a/b", "sha": null, "siblings": [{"rfilename": "config.json"}]}',
        b'{"id": "a/b", "sha": 7, "siblings": [{"rfilename": "config.json", "size": -1, "blobId": "../x"}]}',
        b'{"id": "a/b", "sha": 7, "siblings": [{"rfilename": 5}]}',
        b'{"id": "a/b", "sha": 7, "siblings": "yes", "createdAt": "never"}',
    ],
)
def test_an_answer_that_is_no_repository(server: HubServer, answer: bytes) -> None:
    server.raw_info = answer
    with pytest.raises(DownloadError):
        hub.find(REPOSITORY)


def test_names_that_lead_out_of_the_folder_are_not_fetched(server: HubServer, tmp_path: Path) -> None:
    server.add(REPOSITORY, FILES | {"../evil.json": b"{}", "sub/dir.json": b"{}", ".hidden.json": b"{}"})
    folder = hub.find(REPOSITORY).folder
    assert {path.name for path in folder.iterdir()} == {"config.json", "tokenizer.json", "model.safetensors"}
    assert not list(tmp_path.rglob("evil.json"))


def test_a_damaged_config_is_named(server: HubServer) -> None:
    server.add(REPOSITORY, FILES | {"config.json": b"{"})
    with pytest.raises(CheckpointError, match=r"config\.json"):
        hub.find(REPOSITORY)


def test_the_environment_is_respected_by_a_fresh_process(server: HubServer, tmp_path: Path) -> None:
    """HF_HOME and HF_ENDPOINT are read when huggingface_hub is imported; telemetry is off by then."""
    server.add(REPOSITORY, FILES)
    code = (
        "import sys; from aipc import hub; assert 'huggingface_hub' not in sys.modules\n"
        f"print(hub.find({REPOSITORY!r}).folder)\n"
        "from huggingface_hub import constants; assert constants.HF_HUB_DISABLE_TELEMETRY"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": server.url}
    environment = {name: value for name, value in environment.items() if name != "HF_HUB_CACHE"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert not done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "home" / "hub")


def test_every_error_has_a_message_of_one_line(server: HubServer) -> None:
    server.add(REPOSITORY, FILES)
    for source, revision in (("someone/else", None), (REPOSITORY, "v9"), ("no-such-alias", None)):
        with pytest.raises(AipcError) as caught:
            hub.find(source, revision=revision)
        assert "\n" not in caught.value.message + caught.value.hint
