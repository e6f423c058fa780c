"""Several streams in one step on plain ONNX Runtime: rows, chunks, memory, and who waits for whom."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from aipc.conversion.checkpoint import Checkpoint
from aipc.conversion.convert import write_weights
from aipc.conversion.formats import formats_named
from aipc.conversion.onnx_weights import COS, SIN
from aipc.conversion.recipe import make_recipe
from aipc.errors import DeviceError, UsageError
from aipc.phi3 import ONNX_FACTORS_MODEL_FILE
from aipc.runtimes import onnxruntime_batching, onnxruntime_engine
from aipc.runtimes.engine import Request
from aipc.runtimes.memory import available_bytes
from aipc.runtimes.onnxruntime_batching import MAX_ROWS, BatchEngine
from aipc.runtimes.onnxruntime_decoder import AHEAD_TOKENS, CacheShape, Decoder, KVCache
from aipc.runtimes.onnxruntime_engine import OnnxEngine
from aipc.runtimes.onnxruntime_options import Options
from aipc.types import Sampling
from checkpoints import GQA, LONGROPE
from sessions import CONTEXT, GREEDY, RandomModel, Script, ids

# Of checkpoints.LONGROPE.
BORDER = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RandomModel:
    return RandomModel("onnxruntime", tmp_path_factory.mktemp("fp16"), GQA, weight_format="fp16")


def load(folder: Path, *, border: int | None = None, **properties: object) -> Any:
    return onnxruntime_batching.load(Options(str(folder), "CPU", properties, CONTEXT, border))


@pytest.fixture
def engine(model: RandomModel) -> BatchEngine:
    engine = load(model.folder)
    assert isinstance(engine, BatchEngine)
    return engine


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """How many rows and how many tokens of each every call of the runtime computes."""
    sizes: list[tuple[int, int]] = []
    inputs = Decoder._inputs

    def counted(decoder: Decoder, first: int, ids: np.ndarray, *rest: np.ndarray) -> Any:
        sizes.append((ids.shape[0], ids.shape[1]))
        return inputs(decoder, first, ids, *rest)

    monkeypatch.setattr(Decoder, "_inputs", counted)
    return sizes


def computed(steps: list[tuple[int, int]]) -> int:
    return sum(rows * tokens for rows, tokens in steps)


def run(engine: BatchEngine, *requests: Request) -> Script:
    script = Script(*requests)
    script.run(engine)
    assert not script.errors
    return script


def expected(model: RandomModel, request: Request) -> list[int]:
    return list(model.reference.generate(request.prompt, request.sampling))


def come_and_go(model: RandomModel, engine: BatchEngine, lengths: list[tuple[int, int]]) -> None:
    """Twice as many streams as `lengths` of prompt and answer: five at first, others when some have ended."""
    requests = [
        Request(number, ids(prompt, seed=number), Sampling(max_new_tokens=new))
        for number, (prompt, new) in enumerate(lengths * 2, start=1)
    ]
    assert len(requests) > 2 * MAX_ROWS
    script = Script(*requests[:5])
    late = requests[5:]

    def come_later(number: int, count: int, end: bool) -> None:
        if late and (end or count == 20):
            script.queue.append(late.pop())

    script.react = come_later
    script.run(engine)
    assert not script.errors
    assert script.ids == {request.number: expected(model, request) for request in requests}


def test_streams_that_come_and_go_are_those_alone(model: RandomModel, engine: BatchEngine) -> None:
    """Rows change places and grow, and more streams ask than there are rows."""
    lengths = [(3, 40), (300, 9), (64, 128), (1, 70), (150, 25), (20, 5), (500, 12), (7, 33), (90, 60)]
    come_and_go(model, engine, lengths)


def test_pages_are_made_huge_only_while_nobody_waits(
    model: RandomModel, engine: BatchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(1, ids(5), Sampling(max_new_tokens=8))
    script, answered = Script(request), []

    def make_huge() -> Iterator[int]:
        for _ in range(3):
            answered.append(len(script.ids.get(1, [])))
            yield 2**21

    monkeypatch.setattr(onnxruntime_batching, "make_huge", make_huge)
    script.run(engine)
    assert script.ids == {1: expected(model, request)}
    assert answered == [0, 8, 8], "one before it is seen that somebody waits, the others at the end"


def test_a_newcomer_waits_for_a_step_and_others_for_a_chunk(
    engine: BatchEngine, steps: list[tuple[int, int]]
) -> None:
    script = Script(Request(1, ids(4), Sampling(max_new_tokens=60)))
    long, short = Request(2, ids(200, seed=2), GREEDY), Request(3, ids(20, seed=3), GREEDY)
    places: dict[int, int] = {}

    def react(number: int, count: int, end: bool) -> None:
        if number == 1 and count in {5, 7}:
            script.queue.append({5: long, 7: short}[count])
        places.setdefault(number, len(script.ids[1]))

    script.react = react
    script.run(engine)
    # Between two chunks the first stream has a token; the short prompt is not behind the long one.
    assert steps[5:14] == [(1, 32), (1, 1), (1, 32), (1, 1), (1, 20), (2, 1), (1, 32), (2, 1), (1, 32)]
    assert places[3] < places[2] < 5 + 200 // 32 + 4


def test_a_long_prompt_does_not_wait_for_ever(model: RandomModel, engine: BatchEngine) -> None:
    """Shorter ones that come all the time go first only as long as they came early."""
    long = Request(1, ids(400), Sampling(max_new_tokens=1))
    numbers = iter(range(3, 1000))
    script = Script(Request(2, ids(5), Sampling(max_new_tokens=400)), long)
    ended: list[int] = []

    def react(number: int, count: int, end: bool) -> None:
        if end:
            ended.append(number)
        if number == 2 and 1 not in ended:
            fresh = next(numbers)
            script.queue.append(Request(fresh, ids(60, seed=fresh), Sampling(max_new_tokens=1)))

    script.react = react
    script.run(engine)
    assert ended.index(1) < 20
    assert script.ids[1] == expected(model, long)


def test_the_next_turn_computes_only_what_is_new(
    model: RandomModel, engine: BatchEngine, steps: list[tuple[int, int]]
) -> None:
    first = Request(1, ids(200), Sampling(max_new_tokens=10))
    other = Request(2, ids(90, seed=2), Sampling(max_new_tokens=40))
    answer = run(engine, first, other).ids[1]
    steps.clear()
    turn = Request(3, first.prompt + answer + ids(30, seed=1), GREEDY)
    assert run(engine, turn).ids[3] == expected(model, turn)
    # The last token of an answer is not computed before something follows it.
    assert computed(steps) == 1 + 30 + 23
    again = Request(4, turn.prompt, GREEDY)
    assert run(engine, again).cached == {4: 239}, "the last token's scores are always computed"


def test_a_beginning_that_another_stream_has_is_copied(
    model: RandomModel, engine: BatchEngine, steps: list[tuple[int, int]]
) -> None:
    beginning = ids(250)
    requests = [Request(n, beginning + ids(10, seed=n), Sampling(max_new_tokens=80)) for n in (1, 2)]
    script = Script(requests[0])
    script.react = lambda number, count, end: (
        script.queue.append(requests[1]) if (number, count) == (1, 3) else None
    )
    script.run(engine)
    assert script.ids == {request.number: expected(model, request) for request in requests}
    assert computed(steps) == 260 + 10 + 2 * 79
    assert script.cached == {1: 0, 2: 250}


def test_a_withdrawn_prompt_ends_within_a_chunk(
    engine: BatchEngine, steps: list[tuple[int, int]], model: RandomModel
) -> None:
    gone, kept = Request(1, ids(1000), GREEDY), Request(2, ids(4), GREEDY)
    script = Script(gone, kept)
    script.react = lambda number, count, end: script.gone.add(1) if count == 3 else None
    script.run(engine)
    assert 1 not in script.ids
    assert script.ids[2] == expected(model, kept)
    assert computed(steps) < 4 * 128 + 4 + 24


def test_streams_wait_where_memory_is_short(
    model: RandomModel, engine: BatchEngine, steps: list[tuple[int, int]]
) -> None:
    engine.budget = 400
    requests = [Request(n, ids(150, seed=n), Sampling(max_new_tokens=30)) for n in range(1, 7)]
    requests.append(Request(9, ids(600, seed=9), GREEDY))
    script = run(engine, *requests)
    assert script.ids == {request.number: expected(model, request) for request in requests}
    assert max(rows for rows, _ in steps) == 2
    # What ended is forgotten before more memory is taken than allowed; one stream alone may have more,
    # and once again as much where its row moved.
    assert engine._cache.touched_tokens <= 2 * (600 + 24)
    assert run(engine, requests[0]).ids[1] == script.ids[1]
    assert engine._cache.touched_tokens <= 400


def test_a_row_that_grows_by_single_tokens_is_memory_before_they_are_written() -> None:
    cache = KVCache(CacheShape(layers=1, heads=2, head_size=8, dtype=np.dtype(np.float32)))
    cache.resize(2, 64, [])
    cache.touch(0, 40)
    assert cache.touched_tokens == 40, "a chunk is written by all cores"
    for part in cache.parts:
        part[0, :, :40] = 1
    cache.touch(0, 41)
    assert cache.touched_tokens == 41 + AHEAD_TOKENS
    for part in cache.parts:
        assert part[0, :, :40].all(), "what the row holds stays"
        part[0, :, 40 : 41 + AHEAD_TOKENS] = 2
    cache.touch(0, 41 + AHEAD_TOKENS)
    assert all((part[0, :, 40 : 41 + AHEAD_TOKENS] == 2).all() for part in cache.parts)
    cache.touch(0, 60)
    assert cache.touched_tokens == 64, "there is no more"


def test_memory_is_known_here() -> None:
    assert (available_bytes() or 0) > 2**20


@pytest.fixture(scope="module")
def longrope(tmp_path_factory: pytest.TempPathFactory) -> RandomModel:
    """With two sets of factors, which change after 64 tokens."""
    return RandomModel("onnxruntime", tmp_path_factory.mktemp("longrope"), LONGROPE, weight_format="fp16")


@pytest.fixture(scope="module", params=["told", "by the mask"])
def longrope_folder(
    longrope: RandomModel, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Our folder, and one whose graph chooses the factors as the model builder's do."""
    if request.param == "told":
        return longrope.folder
    folder = tmp_path_factory.mktemp("builder") / "longrope"
    shutil.copytree(longrope.folder, folder)
    (folder / ONNX_FACTORS_MODEL_FILE).unlink()
    choose_by_the_mask(folder / "model.onnx", BORDER)
    return folder


def choose_by_the_mask(path: Path, border: int) -> None:
    """Rewrite our graph: attention rotates, by tables that the length of the mask chooses for all rows."""
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    ours = {node.output[0]: node for node in graph.node}
    kept = [
        node
        for node in graph.node
        if node.op_type != "RotaryEmbedding"
        and not node.name.endswith("self_attn.split")
        and not node.name.startswith("rope/")
    ]
    int64 = {"first": [0], "border": [border], "end": [2**31], "axis": [0]}
    graph.initializer.extend(
        onnx.helper.make_tensor(f"by_mask/{name}", onnx.TensorProto.INT64, [1], values)
        for name, values in int64.items()
    )
    chosen = [
        onnx.helper.make_node("Greater", ["mask/shape", "by_mask/border"], ["by_mask/is_long"]),
        onnx.helper.make_node(
            "Where", ["by_mask/is_long", "by_mask/border", "by_mask/first"], ["by_mask/row"]
        ),
        *(
            onnx.helper.make_node(
                "Slice", [name, "by_mask/row", "by_mask/end", "by_mask/axis"], [f"{name}/chosen"]
            )
            for name in (COS, SIN)
        ),
    ]
    for node in kept:
        if node.op_type == "GroupQueryAttention":
            split = ours[ours[node.input[0]].input[0]] if node.input[0] in ours else None
            assert split is not None
            fused = split.input[0]
            node.input[:] = [fused, "", "", *node.input[3:], f"{COS}/chosen", f"{SIN}/chosen"]
            next(item for item in node.attribute if item.name == "do_rotary").i = 1
    shape = next(place for place, node in enumerate(kept) if node.name == "mask/shape")
    kept[shape + 1 : shape + 1] = chosen
    del graph.node[:]
    graph.node.extend(kept)
    positions = next(item for item in graph.input if item.name == "position_ids")
    graph.input.remove(positions)
    onnx.save(model, path)


def test_longropes_streams_on_both_sides_come_and_go(longrope: RandomModel, longrope_folder: Path) -> None:
    """Also those that begin below the border and end beyond it, and more of them than there are rows."""
    engine = load(longrope_folder, border=BORDER)
    assert isinstance(engine, BatchEngine)
    lengths = [(3, 40), (300, 9), (60, 30), (1, 64), (1, 65), (20, 5), (64, 1), (65, 1), (33, 70), (150, 25)]
    come_and_go(longrope, engine, lengths)


def test_longropes_chat_computes_what_is_new_and_all_anew_at_the_border(
    longrope: RandomModel, longrope_folder: Path, steps: list[tuple[int, int]]
) -> None:
    engine = load(longrope_folder, border=BORDER)
    tokens, sampling = ids(20), Sampling(max_new_tokens=8)
    sizes = []
    for turn in range(5):
        steps.clear()
        request = Request(turn, tokens, sampling)
        answer = run(engine, request).ids[turn]
        assert answer == expected(longrope, request)
        sizes.append(computed(steps))
        tokens = tokens + answer + ids(7, seed=turn)
    # 20, 35, 50, 65 and 80 tokens: the fourth is computed anew, the fifth goes on from it.
    assert sizes == [27, 8 + 7, 8 + 7, 65 + 7, 8 + 7]


def test_a_beginning_on_the_other_side_of_the_border_is_not_copied(
    longrope: RandomModel, steps: list[tuple[int, int]]
) -> None:
    """The same prompt twice, and the second may come to more."""
    engine = load(longrope.folder, border=BORDER)
    near = Request(1, ids(40), Sampling(max_new_tokens=25))
    far = Request(2, ids(40), Sampling(max_new_tokens=26))
    also_far = Request(3, ids(40), Sampling(max_new_tokens=60))
    script = Script(near)
    script.react = lambda number, count, end: script.queue.append(far) if (number, count) == (1, 3) else None
    script.run(engine)
    assert script.ids == {request.number: expected(longrope, request) for request in (near, far)}
    assert computed(steps) == 2 * 40 + 24 + 25
    steps.clear()
    assert run(engine, also_far).ids[3] == expected(longrope, also_far)
    assert computed(steps) == 60, "what the second left is taken"


def test_one_step_has_rows_of_both_sides_where_the_graph_is_told(
    longrope: RandomModel, longrope_folder: Path, steps: list[tuple[int, int]]
) -> None:
    engine = load(longrope_folder, border=BORDER)
    requests = [Request(n, ids(9, seed=n), Sampling(max_new_tokens=new)) for n, new in ((1, 30), (2, 90))]
    script = run(engine, *requests)
    assert script.ids == {request.number: expected(longrope, request) for request in requests}
    assert ((2, 1) in steps) is (longrope_folder == longrope.folder)


def test_a_short_text_of_long_factors_has_room_for_the_mask_that_chooses_them(
    longrope: RandomModel, longrope_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_batching, "CAPACITY_STEP", 16)
    monkeypatch.setattr(onnxruntime_batching, "ANSWER_TOKENS", 8)
    request = Request(1, ids(5), Sampling(max_new_tokens=100))
    assert run(load(longrope_folder, border=BORDER), request).ids[1] == expected(longrope, request)


def test_rows_of_a_step_have_each_their_own_factors(longrope: RandomModel) -> None:
    decoder = Decoder(longrope.folder, {}, BORDER)
    text = np.array([ids(20), ids(20)])
    decoder.cache.resize(2, 32, [])
    both = decoder.step(0, text, np.array([0, 0]), np.array([False, True]))
    alone = [decoder.step(0, text[:1], np.array([0]), np.array([far]))[0] for far in (False, True)]
    np.testing.assert_allclose(both, alone, rtol=1e-4, atol=1e-4)
    assert np.abs(both[0] - both[1]).max() > 0.01


def test_positions_and_two_kinds_of_rotation_untold_go_to_genai(
    longrope: RandomModel, tmp_path: Path
) -> None:
    folder = tmp_path / "untold"
    shutil.copytree(longrope.folder, folder)
    (folder / ONNX_FACTORS_MODEL_FILE).unlink()
    assert isinstance(load(folder, border=BORDER), OnnxEngine)


def test_a_request_that_fails_ends_alone(
    model: RandomModel, engine: BatchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    extend = Decoder.extend

    def fail(decoder: Decoder, *arguments: Any, **rest: Any) -> None:
        if arguments[2] == 32:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 123")
        extend(decoder, *arguments, **rest)

    monkeypatch.setattr(Decoder, "extend", fail)
    kept = Request(2, ids(9), GREEDY)
    script = Script(Request(1, ids(90), GREEDY), kept)
    script.run(engine)
    assert isinstance(script.errors[1], DeviceError)
    assert script.ids == {2: expected(model, kept)}


@pytest.mark.parametrize("target", ["cuda", "dml"])
def test_other_flavours_run_here_as_in_genai(tmp_path: Path, target: str) -> None:
    """float16 caches, and for DirectML positions that the graph is given."""
    model = RandomModel("onnxruntime", tmp_path, GQA, weight_format="fp16")
    folder = tmp_path / target
    folder.mkdir()
    checkpoint = tmp_path / "checkpoint"
    for name in ("config.json", "generation_config.json"):
        shutil.copyfile(checkpoint / "config.json", folder / name)
    (kind,) = formats_named(("onnx",), target)
    kind.write_texts(checkpoint, folder, model.config)
    recipe = make_recipe(model.config, weight_format="int4", group_size=32)
    writer = kind.open_writer(folder, model.config, recipe)
    write_weights(Checkpoint.open(checkpoint), model.config, recipe, [writer])
    writer.close()
    requests = [Request(n, ids(40 * n, seed=n), GREEDY) for n in (1, 2)]
    genai = Script(*requests)
    genai.run(onnxruntime_engine.load(Options(str(folder), "CPU", {}, CONTEXT, None)))
    ours = load(folder)
    assert isinstance(ours, BatchEngine)
    assert run(ours, *requests).ids == genai.ids


def edited(folder: Path, copy: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    shutil.copytree(folder, copy)
    path = copy / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    change(config["model"]["decoder"])
    path.write_text(json.dumps(config), encoding="utf-8")
    return copy


@pytest.mark.parametrize(
    "change",
    [
        lambda decoder: decoder.pop("head_size"),
        lambda decoder: decoder.update(num_key_value_heads=1),
    ],
    ids=["unknown sizes", "other sizes"],
)
def test_what_is_not_like_ours_goes_to_genai(
    model: RandomModel, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    engine = load(edited(model.folder, tmp_path / "other", change))
    assert isinstance(engine, OnnxEngine)


@pytest.mark.parametrize("options", [{"no_such": 1}, {"session.x": 1}, {"intra_op_num_threads": "many"}])
def test_an_unknown_session_option_is_the_callers_mistake(
    model: RandomModel, options: dict[str, object]
) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        load(model.folder, **options)
    load(model.folder, intra_op_num_threads=1, enable_mem_pattern=False)
