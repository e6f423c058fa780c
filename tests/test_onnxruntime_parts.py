"""A graph in parts: the same answers as the whole, and whole where it cannot be cut."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from aipc.errors import AipcError
from aipc.runtimes import onnx_wire as wire
from aipc.runtimes import onnxruntime_batching, onnxruntime_parts
from aipc.runtimes.engine import Request
from aipc.runtimes.onnxruntime_batching import BatchEngine
from aipc.runtimes.onnxruntime_decoder import Decoder, graph_file
from aipc.runtimes.onnxruntime_options import Options
from aipc.runtimes.onnxruntime_parts import cut
from aipc.types import Sampling
from checkpoints import GQA, LONGROPE
from sessions import CONTEXT, RandomModel, Script, ids

BORDER = 64
CORES = {"intra_op_num_threads": 3}


@pytest.fixture(autouse=True)
def small_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_parts, "LEAST_WEIGHT_BYTES", 1)


@pytest.fixture(scope="module", params=["fp16", "int4", "longrope"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RandomModel:
    folder = tmp_path_factory.mktemp(request.param)
    shape = (LONGROPE if request.param == "longrope" else GQA) | {
        "num_hidden_layers": 16,
        "intermediate_size": 384,
    }
    recipe: dict[str, Any] = {"weight_format": "fp16"}
    if request.param == "int4":
        recipe = {"weight_format": "int4", "group_size": 32}
    return RandomModel("onnxruntime", folder, shape, **recipe)


def decoder(model: RandomModel, **properties: object) -> Decoder:
    return Decoder(model.folder, properties, model.config.rope_border)


def sessions(decoder: Decoder) -> int:
    return len(decoder._graph._sessions)


def whole(model: RandomModel) -> onnx.ModelProto:
    return onnx.load(graph_file(model.folder), load_external_data=False)


def test_parts_compute_what_the_whole_does(model: RandomModel) -> None:
    alone, cut_up = decoder(model, intra_op_num_threads=1), decoder(model, **CORES)
    assert (sessions(alone), sessions(cut_up)) == (1, 3)
    assert alone._graph.inputs.keys() == cut_up._graph.inputs.keys()
    assert alone._graph.outputs.keys() == cut_up._graph.outputs.keys()
    near = np.array([False])
    scores = []
    for one in (alone, cut_up):
        one.cache.resize(1, 256, [])
        one.extend(0, np.array([ids(30)]), 0, far=False)
        scores += [one.step(0, np.array([ids(20, seed=2)]), np.array([30]), near)]
        scores += [one.step(0, np.array([[5]]), np.array([50]), near)]
    assert all(np.array_equal(own, other) for own, other in zip(scores[:2], scores[2:], strict=True))


# What a process that has nothing else to compute does, as the worker is one.
ALONE = """
import json, sys, time
from pathlib import Path
import numpy as np
import psutil
from aipc.runtimes import onnxruntime_parts
from aipc.runtimes.onnxruntime_decoder import Decoder
from aipc.runtimes.onnxruntime_graph import share_threads

onnxruntime_parts.LEAST_WEIGHT_BYTES = 1
folder, properties, border, ids, expected = json.loads(sys.argv[1])
before = psutil.Process().num_threads()
share_threads(properties)
decoder = Decoder(Path(folder), properties, border)
# A thread that loaded a part may still be on its way out.
end = time.monotonic() + 10
while (threads := psutil.Process().num_threads() - before) > expected and time.monotonic() < end:
    time.sleep(0.01)
decoder.cache.resize(1, 64, [])
scores = decoder.step(0, np.array([ids]), np.array([0]), np.array([False]))
print(json.dumps([len(decoder._graph._sessions), threads, scores.tolist()]))
"""


@pytest.mark.parametrize(
    ("properties", "threads"), [(CORES, 2), (CORES | {"session.intra_op.allow_spinning": "0"}, 6)]
)
def test_parts_share_the_threads_of_their_process(
    model: RandomModel, properties: dict[str, object], threads: int
) -> None:
    """Unless somebody asks for something that shared threads cannot have."""
    prompt = ids(20)
    wanted = json.dumps([str(model.folder), properties, model.config.rope_border, prompt, threads])
    done = subprocess.run(
        [sys.executable, "-c", ALONE, wanted], check=True, capture_output=True, text=True, encoding="utf-8"
    )
    assert "thread" not in done.stderr, "the runtime warns of a number that it does not need"
    parts, started, scores = json.loads(done.stdout)
    assert (parts, started) == (3, threads)
    here = decoder(model, **CORES)
    here.cache.resize(1, 64, [])
    near = np.array([False])
    assert np.array_equal(scores, here.step(0, np.array([prompt]), np.array([0]), near))


def test_streams_in_parts_are_the_references(model: RandomModel) -> None:
    """Rows come and go, so that the memory which the parts are bound to moves."""
    options = Options(str(model.folder), "CPU", CORES, CONTEXT, model.config.rope_border)
    engine = onnxruntime_batching.load(options)
    assert isinstance(engine, BatchEngine)
    assert sessions(engine._decoder) == 3
    lengths = [(3, 30), (300, 9), (40, 40), (1, 20), (90, 12)]
    requests = [
        Request(number, ids(prompt, seed=number), Sampling(max_new_tokens=new))
        for number, (prompt, new) in enumerate(lengths, start=1)
    ]
    script = Script(*requests)
    script.run(engine)
    assert not script.errors
    if model.config.rope_border is None and "int4" not in str(model.folder):
        for request in requests:
            assert script.ids[request.number] == list(
                model.reference.generate(request.prompt, request.sampling)
            )
    apart = onnxruntime_batching.load(Options(str(model.folder), "CPU", {}, CONTEXT, options.rope_border))
    other = Script(*requests)
    other.run(apart)
    assert script.ids == other.ids


def test_the_parts_are_models_with_equal_shares(model: RandomModel) -> None:
    parts = [onnx.load_from_string(part) for part in cut(graph_file(model.folder), 3)]
    nodes = [node.name for part in parts for node in part.graph.node]
    assert {*nodes} == {node.name for node in whole(model).graph.node}
    # What needs no weight is computed again.
    doubled = {name for name in nodes if nodes.count(name) > 1}
    assert doubled
    assert not any("layers" in name for name in doubled)
    given = {item.name for item in whole(model).graph.input}
    for part in parts:
        passed = {item.name for item in part.graph.input} - given
        assert len(passed) <= 2 + 2 * (model.config.rope_border is not None)
        given |= {item.name for item in part.graph.output}
    sizes = [sum(weight_bytes(tensor) for tensor in part.graph.initializer) for part in parts]
    assert max(sizes) < 0.5 * sum(sizes)


def weight_bytes(tensor: TensorProto) -> int:
    return next((int(entry.value) for entry in tensor.external_data if entry.key == "length"), 0)


def rewritten(model: RandomModel, folder: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """A copy of the folder with a changed graph."""
    shutil.copytree(model.folder, folder)
    changed = whole(model)
    change(changed)
    onnx.save(changed, graph_file(folder))
    return folder


def nest(model: onnx.ModelProto) -> None:
    """An `If` that reads a value around it and does nothing."""
    value = model.graph.node[-1].input[0]
    same = helper.make_node("Identity", [value], ["nested/value"])
    out = helper.make_tensor_value_info("nested/value", TensorProto.FLOAT, None)
    branch = helper.make_graph([same], "branch", [], [out])
    yes = helper.make_tensor("nested/yes", TensorProto.BOOL, [], [True])
    model.graph.initializer.append(yes)
    node = helper.make_node("If", ["nested/yes"], ["nested/out"], then_branch=branch, else_branch=branch)
    model.graph.node.insert(len(model.graph.node) - 1, node)
    model.graph.node[-1].input[0] = "nested/out"


def through_half(model: onnx.ModelProto) -> None:
    """Every value between layers in another type than the outputs: the parts are then described wrongly."""
    for place in reversed(range(len(model.graph.node))):
        node = model.graph.node[place]
        if node.op_type in {"MatMulNBits", "FusedMatMul"}:
            value = node.input[0]
            down = helper.make_node("Cast", [value], [f"{node.name}/half"], to=TensorProto.FLOAT16)
            up = helper.make_node("Cast", [f"{node.name}/half"], [f"{node.name}/up"], to=TensorProto.FLOAT)
            node.input[0] = f"{node.name}/up"
            model.graph.node.insert(place, up)
            model.graph.node.insert(place, down)


@pytest.mark.parametrize("change", [nest, through_half])
def test_what_cannot_be_cut_is_loaded_whole(
    model: RandomModel, tmp_path: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    folder = rewritten(model, tmp_path / "changed", change)
    if change is nest:
        assert not cut(graph_file(folder), 3)
    loaded = Decoder(folder, CORES, model.config.rope_border)
    alone = Decoder(folder, {"intra_op_num_threads": 1}, model.config.rope_border)
    near, scores = np.array([False]), []
    for one in (loaded, alone):
        one.cache.resize(1, 256, [])
        scores.append(one.step(0, np.array([ids(20)]), np.array([0]), near))
    assert np.array_equal(*scores)


def test_a_small_model_is_not_cut(model: RandomModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_parts, "LEAST_WEIGHT_BYTES", 2**40)
    assert not cut(graph_file(model.folder), 3)
    assert not cut(graph_file(model.folder), 1)


def test_damaged_graphs_are_explained(model: RandomModel, tmp_path: Path) -> None:
    """Each cut short or with a byte changed: a clear error or a model that computes, and nothing else."""
    folder = tmp_path / "damaged"
    shutil.copytree(model.folder, folder)
    path, random = graph_file(folder), np.random.default_rng(5)
    sound = path.read_bytes()
    for _ in range(25):
        damaged = bytearray(sound)
        place = int(random.integers(len(sound)))
        if random.random() < 0.3:
            del damaged[place:]
        else:
            damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            Decoder(folder, CORES, model.config.rope_border)
        except AipcError as error:
            assert error.message


def test_messages_are_read_as_they_are_written(model: RandomModel) -> None:
    message = whole(model).SerializeToString()
    assert b"".join(field.raw for field in wire.fields(message)) == message
    (graph,) = wire.messages(message, wire.MODEL_GRAPH)
    names = [node.name for node in whole(model).graph.node]
    assert [wire.texts(node, 3)[0] for node in wire.messages(graph, wire.GRAPH_NODE)] == names
    entry = wire.joined(1, [b"key"]) + wire.number_field(2, 300)
    assert [field.value for field in wire.fields(entry)] == [b"key", 300]


@pytest.mark.parametrize(
    "message",
    [b"\x80", b"\xff" * 11, b"\x0a\x05abc", b"\x0a\xff\xff\xff\xff\x0f", b"\x0b", b"\x09\x00", b"\x0d\x00"],
    ids=["no end", "long number", "cut short", "huge", "no such kind", "half a double", "half a float"],
)
def test_what_is_no_message_is_refused(message: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        list(wire.fields(message))
