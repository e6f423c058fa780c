"""The cache of converted models, and the manifest in each."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from aipc import cache
from aipc.errors import CheckpointError, ModelNotFoundError, StorageError
from aipc.hub import Source
from aipc.manifest import MANIFEST_FILE, FileRecord, Manifest, SourceRecord, fingerprint, hash_files

RECIPE = {"weight_format": "int4", "group_size": 128, "sym": True, "ratio": 1.0}
COMMIT = "1234567890" * 4
WEIGHTS = b"w" * 5_000


@pytest.fixture(autouse=True)
def cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIPC_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "my phi"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def convert(source: Source, recipe: dict[str, Any] = RECIPE, weights: bytes = WEIGHTS) -> Path:
    """A folder in the cache as a conversion leaves it."""
    folder = cache.converted_folder(source, recipe)
    folder.mkdir(parents=True)
    (folder / "openvino_model.xml").write_text("<net/>", encoding="utf-8")
    (folder / "openvino_model.bin").write_bytes(weights)
    record = SourceRecord(source.name, source.revision, "0" * 64)
    Manifest(record, recipe, "openvino", hash_files(folder), "0.1.0").write(folder)
    return folder


def snapshot(tmp_path: Path, name: str = "phi-3-mini") -> Source:
    return Source(name, tmp_path, "checkpoint", COMMIT)


# --- where


def test_the_environment_moves_the_cache(monkeypatch: pytest.MonkeyPatch, cache_root: Path) -> None:
    assert cache.cache_dir() == cache_root
    monkeypatch.delenv("AIPC_CACHE_DIR")
    assert cache.cache_dir().name in {"aipc", "Cache"}
    assert cache.cache_dir().is_absolute()


def test_looking_creates_nothing(cache_root: Path, checkpoint: Path) -> None:
    assert cache.entries() == []
    cache.converted_folder(Source("x", checkpoint, "checkpoint"), RECIPE)
    assert cache.lookup("phi-3-mini", RECIPE) is None
    cache.remove_stale()
    assert not cache_root.exists()


def test_a_folder_is_readable_and_says_what_it_holds(tmp_path: Path, cache_root: Path) -> None:
    folder = cache.converted_folder(snapshot(tmp_path), RECIPE)
    assert folder.parent == cache_root / "models" / "phi-3-mini"
    assert folder.name.startswith("openvino-int4_sym_g128-")
    assert folder == cache.converted_folder(snapshot(tmp_path, "microsoft/Phi-3-mini-4k-instruct"), RECIPE)


@pytest.mark.parametrize(
    ("recipe", "word"),
    [
        ({"weight_format": "fp16"}, "fp16"),
        ({"weight_format": "int8", "sym": False, "group_size": -1}, "int8_asym"),
        ({"weight_format": "int4", "group_size": -1, "sym": True, "ratio": 1}, "int4_sym"),
        (RECIPE | {"ratio": 0.6}, "int4_sym_g128_r0.6"),
        ({"weight_format": "../../etc"}, "etc"),
    ],
)
def test_a_recipe_in_a_word(tmp_path: Path, recipe: dict[str, Any], word: str) -> None:
    folder = cache.converted_folder(snapshot(tmp_path), recipe)
    assert folder.name[len("openvino-") : -9] == word


def test_another_revision_recipe_runtime_or_content_is_another_folder(
    tmp_path: Path, checkpoint: Path
) -> None:
    local = Source(str(checkpoint), checkpoint, "checkpoint")
    folders = [
        cache.converted_folder(snapshot(tmp_path), RECIPE),
        cache.converted_folder(Source("phi-3-mini", tmp_path, "checkpoint", "f" * 40), RECIPE),
        cache.converted_folder(snapshot(tmp_path), RECIPE | {"ratio": 0.9}),
        cache.converted_folder(snapshot(tmp_path), RECIPE | {"quant_method": "mse"}),
        cache.converted_folder(snapshot(tmp_path), RECIPE, runtime="onnxruntime"),
        cache.converted_folder(local, RECIPE),
    ]
    (checkpoint / "config.json").write_text("{ }", encoding="utf-8")
    folders.append(cache.converted_folder(local, RECIPE))
    assert len(set(folders)) == len(folders)
    assert folders[-1].parent.name == "my-phi"


def test_names_stay_inside_the_cache(tmp_path: Path, cache_root: Path, checkpoint: Path) -> None:
    for name in ("../..", "..", "/", "a/../../b", "nul\0", "~", "C:\\x", str(checkpoint), "ü/é", ""):
        folder = cache.converted_folder(Source(name, checkpoint, "checkpoint"), RECIPE)
        assert folder.resolve().parent.parent == (cache_root / "models").resolve()
        assert "\0" not in str(folder)


def test_a_conversion_is_found_when_its_checkpoint_has_gone(tmp_path: Path) -> None:
    folder = convert(snapshot(tmp_path))
    assert cache.lookup("phi-3-mini", RECIPE) == folder
    assert cache.lookup("microsoft/Phi-3-mini-4k-instruct", RECIPE, revision=COMMIT) == folder
    assert cache.lookup("phi-3-mini", RECIPE, revision="f" * 40) is None
    assert cache.lookup("phi-3-mini", RECIPE | {"ratio": 0.5}) is None
    assert cache.lookup("phi-3-medium", RECIPE) is None


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    with pytest.raises(StorageError, match="cache") as caught:
        cache.ensure_writable(cache.cache_dir() / "models")
    assert "AIPC_CACHE_DIR" in caught.value.hint
    assert cache.entries() == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the right to write is not enforced here")
def test_a_read_only_cache_still_gives_its_models(tmp_path: Path) -> None:
    folder = convert(snapshot(tmp_path))
    folder.parent.chmod(0o500)
    try:
        assert cache.lookup("phi-3-mini", RECIPE) == folder
        assert cache.verify(folder) == []
        with pytest.raises(StorageError):
            cache.ensure_writable(folder.parent)
    finally:
        folder.parent.chmod(0o700)


# --- what is there


def test_entries_count_what_is_theirs(tmp_path: Path) -> None:
    folder = convert(snapshot(tmp_path))
    (folder.parent / ".partial-1").mkdir()
    (folder.parent / ".partial-1" / "openvino_model.bin").write_bytes(b"x" * 999)
    compiled = cache.compiled_dir(
        folder, device="NPU", driver="1.2", runtime_version="2026.4", shapes="1024+128"
    )
    compiled.mkdir(parents=True)
    (compiled / "a.blob").write_bytes(b"c" * 321)
    (entry,) = cache.entries()
    assert entry.name == f"phi-3-mini/{folder.name}"
    assert entry.bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert entry.compiled_bytes == 321
    assert entry.manifest is not None
    assert entry.manifest.source.name == "phi-3-mini"
    assert entry.created == entry.manifest.created


def test_compiled_models_are_told_apart(tmp_path: Path) -> None:
    folder = convert(snapshot(tmp_path))
    words = {"device": "NPU", "driver": "1.2", "runtime_version": "2026.4", "shapes": "1024+128"}
    same = cache.compiled_dir(folder, **words)
    assert same == cache.compiled_dir(folder, **words)
    others = [cache.compiled_dir(folder, **(words | {key: "other"})) for key in words]
    others.append(cache.compiled_dir(convert(snapshot(tmp_path), RECIPE | {"ratio": 0.5}, b"v"), **words))
    assert len({same, *others}) == 6
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "openvino_model.xml").write_text("<net/>", encoding="utf-8")
    assert cache.compiled_dir(tmp_path / "theirs", **words) not in {same, *others}


def test_a_damaged_manifest_is_listed_so_that_it_can_be_removed(tmp_path: Path) -> None:
    folder = convert(snapshot(tmp_path))
    (folder / MANIFEST_FILE).write_text("{", encoding="utf-8")
    (entry,) = cache.entries()
    assert entry.manifest is None
    cache.remove(entry.name)
    assert cache.entries() == []


# --- removing


def test_remove_takes_the_model_and_what_was_compiled_from_it(tmp_path: Path, cache_root: Path) -> None:
    folder = convert(snapshot(tmp_path))
    other = convert(snapshot(tmp_path), RECIPE | {"ratio": 0.5}, b"other")
    compiled = cache.compiled_dir(folder, device="CPU", driver="", runtime_version="1", shapes="")
    compiled.mkdir(parents=True)
    cache.remove(f"phi-3-mini/{folder.name}")
    assert [entry.folder for entry in cache.entries()] == [other]
    assert not compiled.parent.exists()
    cache.remove("microsoft/Phi-3-mini-4k-instruct")
    assert not any(path.is_file() for path in cache_root.rglob("*"))
    assert not (cache_root / "models" / "phi-3-mini").exists()


def test_what_was_compiled_from_folders_elsewhere_is_found(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "openvino_model.xml").write_text("<net/>", encoding="utf-8")
    for folder in (theirs, convert(snapshot(tmp_path))):
        compiled = cache.compiled_dir(folder, device="NPU", driver="1", runtime_version="1", shapes="")
        compiled.mkdir(parents=True)
        (compiled / "a.blob").write_bytes(b"c" * 100)
    assert len(cache.compiled_elsewhere()) == 1
    assert cache.remove_compiled_elsewhere() == 100
    assert cache.compiled_elsewhere() == []
    assert cache.entries()[0].compiled_bytes == 100


@pytest.mark.parametrize("name", ["nothing", "..", "../outside", "/", "", "phi-3-mini/..", ".partial-1"])
def test_only_what_is_listed_can_be_removed(tmp_path: Path, name: str) -> None:
    convert(snapshot(tmp_path))
    (tmp_path / "outside").mkdir()
    with pytest.raises(ModelNotFoundError, match="no converted model"):
        cache.remove(name)
    assert len(cache.entries()) == 1
    assert (tmp_path / "outside").is_dir()


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege")
def test_a_link_out_of_the_cache_is_neither_listed_nor_followed(tmp_path: Path, cache_root: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep.txt").write_text("mine", encoding="utf-8")
    folder = convert(snapshot(tmp_path))
    (folder.parent / "linked").symlink_to(outside)
    (folder / "inside-link").symlink_to(outside)
    assert [entry.folder for entry in cache.entries()] == [folder]
    cache.remove("phi-3-mini")
    assert (outside / "keep.txt").is_file()


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege")
def test_a_model_folder_that_is_a_link_is_left_alone(tmp_path: Path, cache_root: Path) -> None:
    (tmp_path / "outside" / "openvino-fp16-0").mkdir(parents=True)
    (cache_root / "models").mkdir(parents=True)
    (cache_root / "models" / "evil").symlink_to(tmp_path / "outside")
    with pytest.raises(ModelNotFoundError):
        cache.remove("evil")


def test_a_file_in_use_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = convert(snapshot(tmp_path))

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(13, "The process cannot access the file", str(self))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(StorageError, match="cannot be removed") as caught:
        cache.remove("phi-3-mini")
    assert "close the program" in caught.value.hint
    assert cache.verify(folder) == []


def test_what_a_crash_left_is_removed_and_work_under_way_is_not(tmp_path: Path) -> None:
    folder = convert(snapshot(tmp_path))
    hour_old = time.time() - 4_000
    for name in (".partial-dead", ".partial-alive"):
        (folder.parent / name).mkdir()
        (folder.parent / name / "openvino_model.bin").write_bytes(b"x")
        os.utime(folder.parent / name, (hour_old, hour_old))
    dead = folder.parent / ".partial-dead" / "openvino_model.bin"
    os.utime(dead, (hour_old, hour_old))
    cache.remove_stale()
    assert not dead.exists()
    assert (folder.parent / ".partial-alive").is_dir()
    assert folder.is_dir()


# --- verifying


def test_verify_names_each_damaged_missing_and_surplus_file(tmp_path: Path) -> None:
    folder = convert(snapshot(tmp_path))
    assert cache.verify(folder) == []
    (folder / "openvino_model.bin").write_bytes(b"W" + WEIGHTS[1:])
    assert cache.verify(folder) == ["openvino_model.bin is damaged: its sha256 has changed"]
    (folder / "openvino_model.bin").write_bytes(WEIGHTS[1:])
    (folder / "openvino_model.xml").unlink()
    (folder / "sub").mkdir()
    (folder / "sub" / "more.txt").write_text("?", encoding="utf-8")
    assert cache.verify(folder) == [
        "openvino_model.bin has 4,999 bytes instead of 5,000",
        "openvino_model.xml is missing",
        "sub/more.txt does not belong there",
    ]
    (folder / MANIFEST_FILE).unlink()
    with pytest.raises(CheckpointError, match="missing"):
        cache.verify(folder)


# --- the manifest


def manifest() -> Manifest:
    files = {"openvino_model.bin": FileRecord(3, "a" * 64), "sub/x.json": FileRecord(0, "b" * 64)}
    created = datetime(2026, 11, 22, 13, 0, 5, tzinfo=UTC)
    return Manifest(SourceRecord("demo", None, "c" * 64), RECIPE, "openvino", files, "0.1.0", created)


def test_a_manifest_survives_the_disk(tmp_path: Path) -> None:
    manifest().write(tmp_path)
    assert Manifest.read(tmp_path) == manifest()
    raw = json.loads((tmp_path / MANIFEST_FILE).read_text(encoding="utf-8"))
    assert raw["aipc_format"] == 1
    assert raw["created"] == "2026-11-22T13:00:05Z"
    assert raw["source"] == {"name": "demo", "revision": None, "fingerprint": "c" * 64}
    assert raw["files"]["openvino_model.bin"] == {"bytes": 3, "sha256": "a" * 64}


def test_the_digest_follows_the_content() -> None:
    one = manifest()
    assert one.digest == manifest().digest
    changed = Manifest(one.source, one.recipe, "openvino", {"x": FileRecord(3, "a" * 64)}, "0.1.0")
    assert changed.digest != one.digest
    assert one.bytes == 3


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["aipc_format"], 2),
        (["aipc_format"], "1"),
        (["aipc_format"], True),
        (["aipc_version"], None),
        (["created"], "yesterday"),
        (["created"], "2026-11-22T13:00:05"),
        (["source"], "demo"),
        (["source", "name"], "a\nb"),
        (["source", "name"], "x" * 5_000),
        (["source", "revision"], 7),
        (["source", "fingerprint"], "C" * 64),
        (["recipe"], []),
        (["runtime"], ""),
        (["files"], None),
        (["files", "../evil"], {"bytes": 1, "sha256": "a" * 64}),
        (["files", "/etc/passwd"], {"bytes": 1, "sha256": "a" * 64}),
        (["files", "C:evil"], {"bytes": 1, "sha256": "a" * 64}),
        (["files", "a\\b"], {"bytes": 1, "sha256": "a" * 64}),
        (["files", "a//b"], {"bytes": 1, "sha256": "a" * 64}),
        (["files", ""], {"bytes": 1, "sha256": "a" * 64}),
        (["files", "."], {"bytes": 1, "sha256": "a" * 64}),
        (["files", "ok"], {"bytes": -1, "sha256": "a" * 64}),
        (["files", "ok"], {"bytes": 1.5, "sha256": "a" * 64}),
        (["files", "ok"], {"bytes": 1, "sha256": "a" * 63}),
        (["files", "ok"], [1]),
    ],
)
def test_a_manifest_is_not_trusted(tmp_path: Path, place: list[str], value: object) -> None:
    manifest().write(tmp_path)
    path = tmp_path / MANIFEST_FILE
    raw = json.loads(path.read_text(encoding="utf-8"))
    inner = raw
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    path.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"aipc\.json") as caught:
        Manifest.read(tmp_path)
    assert caught.value.hint
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b" " * (5 * 2**20)])
def test_a_manifest_that_is_no_object(tmp_path: Path, text: bytes) -> None:
    (tmp_path / MANIFEST_FILE).write_bytes(text)
    with pytest.raises(CheckpointError):
        Manifest.read(tmp_path)


def test_a_manifest_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        manifest().write(tmp_path / "nowhere")


def test_the_fingerprint_sees_content_and_for_large_files_their_time(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fingerprint(checkpoint)
    (checkpoint / "notes.md").write_text("not read by a conversion", encoding="utf-8")
    os.utime(checkpoint / "model.safetensors", (1, 1))
    assert fingerprint(checkpoint) == first
    (checkpoint / "model.safetensors").write_bytes(b"WEIGHTS")
    assert fingerprint(checkpoint) != first

    monkeypatch.setattr("aipc.manifest._HASHED_WHOLE_BYTES", 4)
    os.utime(checkpoint / "model.safetensors", (1, 1))
    large, named = fingerprint(checkpoint), fingerprint(checkpoint, revision=COMMIT)
    os.utime(checkpoint / "model.safetensors", (2, 2))
    assert fingerprint(checkpoint) != large
    assert fingerprint(checkpoint, revision=COMMIT) == named
    with pytest.raises(CheckpointError):
        fingerprint(checkpoint / "nowhere")


def test_files_hashed_while_they_were_written_are_not_read_again(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"")
    known = {"a": FileRecord(3, "f" * 64)}
    seen: list[int] = []
    records = hash_files(tmp_path, known, seen.append)
    assert records["a"] == known["a"]
    assert records["b"].sha256.startswith("e3b0c442")
    assert seen == [3, 0]
