"""Weights packed once for this processor: the same answers, and never trusted when they do not fit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from aipc.errors import CheckpointError, StorageError
from aipc.phi3 import ONNX_FACTORS_MODEL_FILE
from aipc.runtimes import onnxruntime_batching, onnxruntime_prepacked
from aipc.runtimes.engine import Request
from aipc.runtimes.onnxruntime_batching import BatchEngine
from aipc.runtimes.onnxruntime_decoder import graph_file
from aipc.runtimes.onnxruntime_options import Options
from aipc.runtimes.onnxruntime_prepacked import make, prepacked_graph
from aipc.types import Sampling
from checkpoints import GQA, LONGROPE
from sessions import CONTEXT, GREEDY, RandomModel, Script, ids


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RandomModel:
    return RandomModel(
        "onnxruntime", tmp_path_factory.mktemp("int4"), GQA, weight_format="int4", group_size=32
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return tmp_path / "compiled" / "CPU"


def load(
    model: RandomModel, copy: Path | None, *, prepack: bool = False, **properties: object
) -> BatchEngine:
    where = None if copy is None else str(copy)
    engine = onnxruntime_batching.load(
        Options(str(model.folder), "CPU", properties, CONTEXT, None, where, prepack)
    )
    assert isinstance(engine, BatchEngine)
    return engine


def answer(engine: BatchEngine) -> list[int]:
    script = Script(Request(1, ids(40), GREEDY))
    script.run(engine)
    return script.ids[1]


def graph(model: RandomModel) -> Path:
    return model.folder / "model.onnx"


def test_it_answers_as_the_folder_does(model: RandomModel, copy: Path) -> None:
    plain = answer(load(model, copy))
    assert not copy.parent.exists(), "nothing is written that nobody asked for"
    first = load(model, copy, prepack=True)
    assert str(copy) in first.about["notes"][0]  # type: ignore[index]
    data = copy / "model.onnx.data"
    assert data.stat().st_size > 1.1 * (model.folder / "model.onnx.data").stat().st_size
    again = load(model, copy)
    assert again.about["notes"] == []
    assert answer(first) == answer(again) == plain
    assert [path.name for path in copy.parent.iterdir()] == ["CPU"]


def test_the_copy_is_what_is_loaded(model: RandomModel, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(copy, graph(model))
    opened: list[Path] = []
    monkeypatch.setattr(
        "aipc.runtimes.onnxruntime_graph.open_graph", lambda path, _: opened.append(path) or 1 / 0
    )
    for properties in ({}, {"intra_op_num_threads": 1}):
        with pytest.raises(ZeroDivisionError):
            load(model, copy, **properties)
    assert opened == [copy / "model.onnx", graph(model)]


def stamp(copy: Path, key: str, value: object) -> None:
    path = copy / "aipc-prepacked.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert key in content
    path.write_text(json.dumps(content | {key: value}), encoding="utf-8")


def flip_a_byte(path: Path) -> None:
    with path.open("r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize(
    "damage",
    [
        lambda copy: os.truncate(copy / "model.onnx.data", 1000),
        lambda copy: flip_a_byte(copy / "model.onnx.data"),
        lambda copy: flip_a_byte(copy / "model.onnx"),
        lambda copy: (copy / "model.onnx").unlink(),
        lambda copy: stamp(copy, "onnxruntime", "1.0.0"),
        lambda copy: stamp(copy, "processor", "another"),
        lambda copy: stamp(copy, "sources", {}),
        lambda copy: stamp(copy, "format", 0),
        lambda copy: (copy / "aipc-prepacked.json").write_text("[", encoding="utf-8"),
    ],
    ids=[
        "cut short",
        "another byte",
        "another graph",
        "no graph",
        "another runtime",
        "another processor",
        "another source",
        "another format",
        "no JSON",
    ],
)
def test_what_does_not_fit_is_made_anew(
    model: RandomModel, copy: Path, damage: Callable[[Path], object]
) -> None:
    make(copy, graph(model))
    assert prepacked_graph(copy, graph(model)) is not None
    damage(copy)
    assert prepacked_graph(copy, graph(model)) is None
    engine = load(model, copy)
    assert engine.about["notes"]
    assert prepacked_graph(copy, graph(model)) is not None
    assert answer(engine) == answer(load(model, None))


def test_the_graph_that_is_told_longropes_factors_is_packed_with_the_weights_of_both(
    tmp_path: Path, copy: Path
) -> None:
    model = RandomModel("onnxruntime", tmp_path, LONGROPE, weight_format="int4", group_size=32)
    border, told = model.config.rope_border, model.folder / ONNX_FACTORS_MODEL_FILE
    assert graph_file(model.folder) == told
    request = Request(1, ids(40), Sampling(max_new_tokens=40))
    given = []
    for where in (None, str(copy)):
        engine = onnxruntime_batching.load(
            Options(str(model.folder), "CPU", {}, CONTEXT, border, where, where is not None)
        )
        script = Script(request)
        script.run(engine)
        given.append(script.ids[1])
    assert given[0] == given[1]
    assert prepacked_graph(copy, told) is not None
    os.utime(model.folder / "model.onnx.data", ns=(1, 1))
    assert prepacked_graph(copy, told) is None


def test_weights_that_changed_are_packed_anew(model: RandomModel, copy: Path) -> None:
    make(copy, graph(model))
    os.utime(model.folder / "model.onnx.data", ns=(1, 1))
    assert prepacked_graph(copy, graph(model)) is None


def test_without_room_the_folder_is_loaded_as_it_is(
    model: RandomModel, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(copy, graph(model))
    stamp(copy, "onnxruntime", "1.0.0")
    monkeypatch.setattr(onnxruntime_prepacked.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(StorageError, match="GB free"):
        load(model, copy, prepack=True)
    engine = load(model, copy)
    assert "free" in engine.about["notes"][0]  # type: ignore[index]
    assert answer(engine) == answer(load(model, None))


def test_a_copy_that_fails_leaves_nothing(
    model: RandomModel, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, folder: Path) -> None:
        (folder / "model.onnx").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnxruntime_prepacked, "_save", fail)
    with pytest.raises(StorageError, match="No space left"):
        make(copy, graph(model))
    assert list(copy.parent.iterdir()) == []


def test_a_damaged_folder_is_named(tmp_path: Path, copy: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(CheckpointError, match="damaged"):
        make(copy, tmp_path / "model.onnx")
    assert list(copy.parent.iterdir()) == []
