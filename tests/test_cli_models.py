"""`aipc models`, called as the command line calls it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from aipc import cache
from aipc.cli import models
from aipc.cli.parser import CommandParser
from aipc.errors import CheckpointError, ModelNotFoundError, UsageError
from aipc.hub import Source
from aipc.manifest import Manifest, SourceRecord, hash_files

RECIPE = {"weight_format": "int4", "group_size": 128, "sym": True, "ratio": 1.0}
COMMIT = "1234567890" * 4


@pytest.fixture(autouse=True)
def cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIPC_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def converted(name: str) -> Path:
    folder = cache.converted_folder(Source(name, Path(), "checkpoint", COMMIT), RECIPE)
    folder.mkdir(parents=True)
    (folder / "openvino_model.bin").write_bytes(b"w" * 5_000)
    source = SourceRecord(name, COMMIT, "0" * 64)
    Manifest(source, RECIPE, "openvino", hash_files(folder), "0.1.0").write(folder)
    return folder


def run(*words: str) -> int:
    parser = CommandParser("models", "list, verify and remove the models on this machine")
    models.add_arguments(parser)
    return models.run(parser.parse(words))


def test_an_empty_cache_says_so_beside_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    out, err = capsys.readouterr()
    assert not out
    assert "no converted models yet" in err
    assert run("--json") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_the_list_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    converted("phi-3-mini")
    folder = converted("someone/a-model-with-a-longer-name")
    assert run() == run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == lines[3:]
    assert [line.index(lines[0].split()[1]) for line in lines[:1]] == [lines[2].index("  openvino") + 2]
    assert lines[2].split() == [
        f"someone--a-model-with-a-longer-name/{folder.name}",
        "openvino",
        "int4_sym_g128",
        *cache_size(folder).split(),
        "now",
        "someone/a-model-with-a-longer-name",
    ]


def cache_size(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.iterdir()) / 1000:.1f} kB"


def test_json_gives_bytes_and_the_source(capsys: pytest.CaptureFixture[str]) -> None:
    folder = converted("phi-3-mini")
    run("list", "--json")
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["folder"] == str(folder)
    assert entry["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert (entry["source"], entry["revision"]) == ("phi-3-mini", COMMIT)
    assert (entry["runtime"], entry["precision"]) == ("openvino", "int4_sym_g128")


def test_one_model_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    converted("phi-3-mini")
    converted("phi-4")
    run("list", "phi-4")
    assert "phi-3-mini" not in capsys.readouterr().out
    with pytest.raises(ModelNotFoundError, match="no converted model 'phi-9'"):
        run("list", "phi-9")


def test_verify_says_ok_or_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    sound, damaged, torn = converted("phi-3-mini"), converted("phi-4"), converted("phi-3-medium")
    (damaged / "openvino_model.bin").write_bytes(b"v" * 5_000)
    (torn / "aipc.json").write_text("{", encoding="utf-8")
    assert run("verify", "phi-3-mini") == 0
    assert capsys.readouterr().out == f"phi-3-mini/{sound.name}: ok\n"
    with pytest.raises(CheckpointError, match="2 of 3 converted models") as caught:
        run("verify")
    out = capsys.readouterr().out
    assert f"phi-4/{damaged.name}: openvino_model.bin is damaged" in out
    assert "aipc.json is not JSON" in out
    assert "aipc models remove phi-3-medium" in caught.value.hint


def test_remove_asks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = converted("phi-3-mini")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    assert run("remove", "phi-3-mini") == 0
    assert folder.is_dir()
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert run("remove", "phi-3-mini") == 0
    assert not folder.exists()
    out, err = capsys.readouterr()
    assert not out
    assert "[y/N]" in err
    assert "removed 1 converted model" in err


def test_remove_without_a_terminal_wants_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = converted("phi-3-mini")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(UsageError) as caught:
        run("remove", "phi-3-mini")
    assert "--yes" in caught.value.hint
    assert run("remove", f"phi-3-mini/{folder.name}", "--yes") == 0
    assert not folder.exists()


def test_remove_wants_a_name() -> None:
    with pytest.raises(UsageError, match="remove what"):
        run("remove", "--yes")


def test_what_was_compiled_from_other_folders_is_shown_and_removed(
    cache_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blob = cache_root / "compiled" / "0123456789abcdef" / "NPU-1" / "a.blob"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"c" * 2_000)
    run()
    assert "2.0 kB compiled from other folders" in capsys.readouterr().err
    run("remove", "compiled")
    assert not blob.exists()


def test_a_prepared_model_is_counted_and_removed_as_a_whole(
    capsys: pytest.CaptureFixture[str], cache_root: Path
) -> None:
    assert run("prepare", "demo") == 0
    (entry,) = cache.entries()
    assert "packed for this processor" in capsys.readouterr().err
    assert entry.compiled_bytes > entry.bytes
    assert run("prepare", entry.name) == 0
    assert "prepared already" in capsys.readouterr().err
    assert run("remove", "demo", "--yes") == 0
    assert [path for path in cache_root.rglob("*") if path.is_file()] == []


def test_to_prepare_needs_a_name_and_a_model() -> None:
    with pytest.raises(UsageError, match="prepare what"):
        run("prepare")
    with pytest.raises(ModelNotFoundError):
        run("prepare", "no-such-model")
