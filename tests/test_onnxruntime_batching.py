"""Several streams in one step on plain ONNX Runtime: rows, chunks, memory, and who waits for whom."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aipc.conversion.checkpoint import Checkpoint
from aipc.conversion.convert import write_weights
from aipc.conversion.formats import formats_named
from aipc.conversion.recipe import make_recipe
from aipc.errors import DeviceError, UsageError
from aipc.runtimes import onnxruntime_batching, onnxruntime_engine
from aipc.runtimes.engine import Request
from aipc.runtimes.memory import available_bytes
from aipc.runtimes.onnxruntime_batching import MAX_ROWS, BatchEngine
from aipc.runtimes.onnxruntime_decoder import Decoder
from aipc.runtimes.onnxruntime_engine import OnnxEngine
from aipc.runtimes.onnxruntime_options import Options
from aipc.types import Sampling
from checkpoints import GQA
from sessions import CONTEXT, GREEDY, RandomModel, Script, ids


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
    bound = Decoder._bound

    def counted(decoder: Decoder, first: int, ids: np.ndarray, held: np.ndarray, *, far: bool) -> Any:
        sizes.append((ids.shape[0], ids.shape[1]))
        return bound(decoder, first, ids, held, far=far)

    monkeypatch.setattr(Decoder, "_bound", counted)
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


def test_streams_that_come_and_go_are_those_alone(model: RandomModel, engine: BatchEngine) -> None:
    """Rows change places and grow, and more streams ask than there are rows."""
    lengths = [(3, 40), (300, 9), (64, 128), (1, 70), (150, 25), (20, 5), (500, 12), (7, 33), (90, 60)]
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


def test_memory_is_known_here() -> None:
    assert (available_bytes() or 0) > 2**20


def test_longropes_border_is_crossed_with_everything_computed_anew(
    model: RandomModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(model.folder, border=100)
    calls: list[tuple[int, int, bool, int]] = []
    bound = Decoder._bound

    def recorded(decoder: Decoder, first: int, ids: np.ndarray, held: np.ndarray, *, far: bool) -> Any:
        binding = bound(decoder, first, ids, held, far=far)
        calls.append((len(ids), ids.shape[1], far, int(held.max()) + ids.shape[1]))
        return binding

    monkeypatch.setattr(Decoder, "_bound", recorded)
    crossing, near = Request(1, ids(95), Sampling(max_new_tokens=10)), Request(2, ids(20), GREEDY)
    script = run(engine, crossing, near)
    assert script.ids[1] == expected(model, crossing)
    assert script.ids[2] == expected(model, near)
    anew = [(tokens, total) for rows, tokens, far, total in calls if far and tokens > 1]
    assert anew == [(32, 32), (32, 64), (32, 96), (5, 101)]
    assert all(far == (total > 100) for rows, tokens, far, total in calls if tokens == 1)


def test_the_graph_sees_a_long_text_beyond_the_border(
    model: RandomModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LongRoPE's factors are chosen inside the graph, by the length of the mask."""
    decoder = Decoder(model.folder, {}, border=100)
    decoder.cache.resize(1, 256, [])
    near = decoder.step(0, np.array([ids(20)]), np.array([0]), far=False)
    far = decoder.step(0, np.array([ids(20)]), np.array([0]), far=True)
    assert np.array_equal(near, far), "without LongRoPE a longer mask changes nothing"
    widths: list[int] = []
    ones = np.arange

    def arange(stop: int, *rest: int) -> np.ndarray:
        widths.append(stop)
        return ones(stop, *rest)

    monkeypatch.setattr(np, "arange", arange)
    decoder.step(0, np.array([ids(20)]), np.array([0]), far=True)
    assert 101 in widths


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
