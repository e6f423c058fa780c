"""Sessions on the real OpenVINO GenAI: CPU, and the NPU's pipeline with a CPU in the NPU's place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aipc.errors import (
    CheckpointError,
    DeviceError,
    PromptTooLongError,
    RuntimeFailedError,
    SchemeError,
    UsageError,
)
from aipc.runtimes import openvino_engine
from aipc.runtimes.engine import Request
from aipc.runtimes.openvino import available_devices, open_session
from aipc.runtimes.openvino_engine import EXACT, BatchEngine, Options, SerialEngine, arithmetic
from aipc.runtimes.openvino_errors import gist, translated
from aipc.runtimes.openvino_scoring import ScoringEngine
from aipc.runtimes.session import EngineSession
from aipc.types import Sampling
from checkpoints import GQA, LONGROPE
from sessions import CONTEXT, GREEDY, RandomModel, Script, ids

NPU_ON_CPU = {"NPUW_DEVICES": "CPU", "NPUW_ONLINE_PIPELINE": "NONE"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RandomModel:
    return RandomModel("openvino", tmp_path_factory.mktemp("fp16"), GQA, weight_format="fp16")


@pytest.fixture(scope="module")
def session(model: RandomModel) -> Iterator[EngineSession]:
    session = model.open(exact=True)
    yield session
    session.close()


@pytest.fixture(scope="module")
def int4(tmp_path_factory: pytest.TempPathFactory) -> RandomModel:
    return RandomModel("openvino", tmp_path_factory.mktemp("int4"), GQA, weight_format="int4", group_size=-1)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def npu(model: RandomModel, compiled: Path) -> Iterator[EngineSession]:
    # A CPU that has bfloat16 would compute in it.
    session = model.open(
        "NPU", properties=NPU_ON_CPU | {"INFERENCE_PRECISION_HINT": "f32"}, compiled_dir=compiled
    )
    yield session
    session.close()


def test_a_folder_that_others_made_needs_only_the_model(
    model: RandomModel, session: EngineSession, tmp_path: Path
) -> None:
    for name in ("openvino_model.xml", "openvino_model.bin"):
        shutil.copyfile(model.folder / name, tmp_path / name)
    foreign = open_session(tmp_path, "CPU", exact=True, context_length=64, precision="as converted")
    assert list(foreign.generate(ids(7), GREEDY)) == list(session.generate(ids(7), GREEDY))
    with pytest.raises(UsageError, match="0 or more"):
        foreign.generate([-1], GREEDY)
    foreign.close()


def test_a_long_prompt_neither_stops_the_others_nor_outlives_its_caller(model: RandomModel) -> None:
    engine = openvino_engine.load(Options(str(model.folder), "CPU", False, {}, None))
    assert isinstance(engine, BatchEngine)
    script = Script(Request(1, ids(4), Sampling(max_new_tokens=12)))

    def react(number: int, count: int, _end: bool) -> None:
        if (number, count) == (1, 2):
            script.queue.append(Request(2, ids(4000), Sampling(max_new_tokens=90)))
        elif (number, count) == (1, 6):
            script.gone.add(2)

    script.react = react
    script.run(engine)
    # The prompt takes 8 steps: it was withdrawn in the middle of them, while the first stream went on.
    assert len(script.ids[1]) == 12
    assert 2 not in script.ids
    assert not engine.busy


def test_the_last_stream_that_is_withdrawn_leaves_nothing(model: RandomModel) -> None:
    engine = openvino_engine.load(Options(str(model.folder), "CPU", False, {}, None))
    assert isinstance(engine, BatchEngine)
    script = Script(Request(1, ids(40), Sampling(max_new_tokens=3000)))

    def react(number: int, count: int, _end: bool) -> None:
        if count == 3:
            script.gone.add(number)

    script.react = react
    script.run(engine)
    assert len(script.ids[1]) == 3
    assert not engine.busy


@pytest.fixture(scope="module")
def longrope(tmp_path_factory: pytest.TempPathFactory) -> RandomModel:
    return RandomModel("openvino", tmp_path_factory.mktemp("longrope"), LONGROPE, weight_format="fp16")


MIXED = [Request(1, ids(20), GREEDY), Request(2, ids(60), GREEDY), Request(3, ids(90), GREEDY)]
MIXED += [Request(4, ids(30), GREEDY), Request(5, ids(61), GREEDY)]


@pytest.mark.parametrize("free_bytes", [None, 0], ids=["room for both", "room for one"])
def test_both_sides_of_longropes_border_in_whatever_memory_there_is(
    longrope: RandomModel, monkeypatch: pytest.MonkeyPatch, free_bytes: int | None
) -> None:
    monkeypatch.setattr(openvino_engine.memory, "free_bytes", lambda: free_bytes)
    engine = openvino_engine.load(Options(str(longrope.folder), "CPU", True, {}, None, 64))
    assert isinstance(engine, BatchEngine)
    script = Script(*MIXED)
    opened = []
    script.react = lambda *_: opened.append(len(engine._pipelines))
    script.run(engine)
    for request in MIXED:
        assert script.ids[request.number] == list(longrope.reference.generate(request.prompt, GREEDY))
    assert max(opened) == (2 if free_bytes is None else 1)


def test_a_request_that_waits_for_a_pipeline_may_be_withdrawn(
    longrope: RandomModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_engine.memory, "free_bytes", lambda: 0)
    engine = openvino_engine.load(Options(str(longrope.folder), "CPU", True, {}, None, 64))
    script = Script(*MIXED[:2])

    def react(number: int, count: int, _end: bool) -> None:
        if count == 3:
            script.gone.add(2)

    script.react = react
    script.run(engine)
    assert len(script.ids[1]) == 24
    assert 2 not in script.ids
    assert script.errors == {}


def test_without_paged_attention_both_sides_are_computed_by_turns(
    longrope: RandomModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("Exception from pass.cpp:1:\nnothing to transform")

    monkeypatch.setattr(openvino_engine.genai, "ContinuousBatchingPipeline", refuse)
    engine = openvino_engine.load(Options(str(longrope.folder), "CPU", True, {}, None, 64))
    assert isinstance(engine, SerialEngine)
    script = Script(*MIXED)
    script.run(engine)
    for request in MIXED:
        assert script.ids[request.number] == list(longrope.reference.generate(request.prompt, GREEDY))


def test_a_folder_by_others_ends_at_longropes_border(longrope: RandomModel, tmp_path: Path) -> None:
    folder = shutil.copytree(longrope.folder, tmp_path / "foreign")
    path = folder / "openvino_model.xml"
    path.write_text(path.read_text(encoding="utf-8").replace("rope/", "other/"), encoding="utf-8")
    session = longrope.open(folder=folder)
    assert "takes 64 tokens" in session.notes[0]
    with pytest.raises(PromptTooLongError, match="64"):
        session.generate(ids(64), GREEDY)
    assert len(list(session.generate(ids(50), GREEDY))) == 14
    session.close()


@pytest.mark.parametrize("kv_cache", ["u8", "f16"])
def test_the_kv_cache_is_as_asked(model: RandomModel, kv_cache: str) -> None:
    session = model.open(kv_cache=kv_cache)
    assert len(list(session.generate(ids(9), GREEDY))) == 24
    session.close()


def test_a_kv_cache_that_is_not_there(model: RandomModel) -> None:
    with pytest.raises(UsageError, match="u8, f16, bf16, f32"):
        model.open(kv_cache="int3")
    with pytest.raises(UsageError, match="f16"):
        model.open("NPU", kv_cache="u8", properties=NPU_ON_CPU)


def test_a_request_that_genai_refuses_ends_alone(model: RandomModel) -> None:
    engine = openvino_engine.load(Options(str(model.folder), "CPU", False, {}, None))
    assert isinstance(engine, BatchEngine)
    script = Script(Request(1, [], GREEDY), Request(2, ids(4), GREEDY))
    script.run(engine)
    assert isinstance(script.errors[1], RuntimeFailedError)
    assert len(script.ids[2]) == 24


def test_a_model_that_paged_attention_refuses_answers_one_at_a_time(
    model: RandomModel, session: EngineSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("Exception from pass.cpp:1:\nnothing to transform")

    monkeypatch.setattr(openvino_engine.genai, "ContinuousBatchingPipeline", refuse)
    engine = openvino_engine.load(Options(str(model.folder), "CPU", True, {}, None))
    assert isinstance(engine, SerialEngine)
    (note,) = engine.about["notes"]  # type: ignore[misc]
    assert "nothing to transform" in note
    assert "one request at a time" in note
    script = Script(Request(1, ids(9), GREEDY), Request(2, ids(50), Sampling(max_new_tokens=2000)))

    def react(number: int, count: int, _end: bool) -> None:
        if (number, count) == (2, 5):
            script.gone.add(2)

    script.react = react
    script.run(engine)
    assert script.ids[1] == list(session.generate(ids(9), GREEDY))
    assert len(script.ids[2]) == 5


@pytest.mark.skipif(len(available_devices()) > 1, reason="has more devices than a CPU")
@pytest.mark.parametrize(("device", "hint"), [("NPU", "driver"), ("GPU.0", "driver"), ("AUTO", "CPU")])
def test_an_absent_device_is_named_with_those_present(model: RandomModel, device: str, hint: str) -> None:
    with pytest.raises(DeviceError, match=f"no device '{device}'.*CPU") as caught:
        model.open(device)
    assert hint in caught.value.hint


def test_the_cpu_is_among_the_devices() -> None:
    cpu = next(device for device in available_devices() if device.word == "CPU")
    assert cpu.kind == "CPU"
    assert cpu.name


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: truncate(folder / "openvino_model.bin"),
        lambda folder: (folder / "openvino_model.bin").unlink(),
        lambda folder: truncate(folder / "openvino_model.xml"),
        lambda folder: (folder / "openvino_model.xml").write_text("hello", encoding="utf-8"),
        lambda folder: (folder / "openvino_model.xml").unlink(),
    ],
    ids=["half a bin", "no bin", "half an xml", "no xml inside", "no xml"],
)
def test_a_damaged_folder_is_named(
    model: RandomModel, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(model.folder, folder)
    damage(folder)
    with pytest.raises(CheckpointError, match="damaged"):
        openvino_engine.load(Options(str(folder), "CPU", False, {}, None))


def test_an_unknown_property_is_the_callers_mistake(model: RandomModel) -> None:
    with pytest.raises(UsageError, match="NO_SUCH"):
        openvino_engine.load(Options(str(model.folder), "CPU", False, {"NO_SUCH": 1}, None))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("Exception from a.cpp:1:\nstd::bad_alloc", DeviceError),
        ("[GPU] clEnqueueMapBuffer, error code: CL_OUT_OF_RESOURCES", DeviceError),
        ("Check 'x' failed at y.cpp:3:\nNo more devices are left!", SchemeError),
        ('Device with "GPU" name is not registered in the OpenVINO Runtime', DeviceError),
        ("something new", RuntimeFailedError),
    ],
)
def test_openvinos_words_become_ours(text: str, error: type[Exception]) -> None:
    ours = translated(RuntimeError(text), "folder", "NPU")
    assert type(ours) is error
    assert text.splitlines()[-1] in ours.message


def test_the_gist_leaves_out_where_it_happened() -> None:
    assert gist(RuntimeError("Exception from a.cpp:1:\nCheck 'b' failed at c.cpp:2:\nno such thing\n")) == (
        "no such thing"
    )
    assert gist(RuntimeError("Exception from a.cpp:1:")) == "Exception from a.cpp:1:"
    assert gist(MemoryError()) == "MemoryError"


def test_the_npu_pipeline_gives_the_references_tokens(model: RandomModel, npu: EngineSession) -> None:
    assert npu.device == "NPU (NPUW on CPU)"
    for length in (2, 30, 300):
        prompt = ids(length, seed=length)
        assert list(npu.generate(prompt, GREEDY)) == list(model.reference.generate(prompt, GREEDY))


def test_the_npu_answers_one_after_another(npu: EngineSession) -> None:
    alone = [list(npu.generate(ids(9, seed), GREEDY)) for seed in range(3)]
    streams = [npu.generate(ids(9, seed), GREEDY) for seed in range(3)]
    together = [list(column) for column in zip(*zip(*streams, strict=True), strict=True)]
    assert together == alone


def test_the_npu_stops_samples_and_is_cancelled(npu: EngineSession) -> None:
    whole = list(npu.generate(ids(9), GREEDY))
    stop = frozenset({whole[5], 319})
    expected = whole[: whole.index(whole[5]) + 1]
    assert list(npu.generate(ids(9), Sampling(max_new_tokens=24, stop_ids=stop))) == expected

    sampling = Sampling(max_new_tokens=16, temperature=3.0, seed=4)
    assert list(npu.generate(ids(9), sampling)) == list(npu.generate(ids(9), sampling))

    cancelled = npu.generate(ids(9), Sampling(max_new_tokens=4000))
    next(cancelled)
    cancelled.close()
    assert list(npu.generate(ids(9), GREEDY)) == whole


def test_the_npu_is_compiled_again_only_for_what_needs_it(
    session: EngineSession, npu: EngineSession, compiled: Path
) -> None:
    def shapes() -> set[str]:
        return {path.name for path in compiled.iterdir()}

    list(npu.generate(ids(1000), Sampling(max_new_tokens=8)))
    assert shapes() == {"1024-1024"}
    # It outgrows the 2048 tokens of prompt and answer, and goes on as a longer prompt.
    sampling = Sampling(max_new_tokens=1100)
    assert list(npu.generate(ids(1000), sampling)) == list(session.generate(ids(1000), sampling))
    assert shapes() == {"1024-1024", "2048-1024"}
    assert len(list(npu.generate(ids(CONTEXT - 3), GREEDY))) == 3
    assert shapes() == {"1024-1024", "2048-1024", "4096-1024"}
    assert all(any(folder.iterdir()) for folder in compiled.iterdir())


def test_the_npu_refuses_a_prompt_that_it_would_misunderstand(npu: EngineSession) -> None:
    with pytest.raises(UsageError, match="two tokens or more"):
        next(npu.generate([5], GREEDY))
    assert len(list(npu.generate([5, 6], GREEDY))) == 24


def test_the_npu_refuses_log_probabilities_that_it_does_not_have(npu: EngineSession) -> None:
    with pytest.raises(UsageError, match=r"on NPU .* gives no log-probabilities") as caught:
        npu.generate(ids(9), Sampling(max_new_tokens=4, logprobs=0))
    assert "--runtime onnxruntime" in caught.value.hint


def test_the_npu_crosses_longropes_border_with_one_compilation_for_each_side(
    longrope: RandomModel, tmp_path: Path
) -> None:
    # In the online partitioning a model of two layers has too few repeated blocks.
    properties = NPU_ON_CPU | {"INFERENCE_PRECISION_HINT": "f32"}
    session = longrope.open("NPU", properties=properties, compiled_dir=tmp_path)
    tokens, sampling = ids(20), Sampling(max_new_tokens=12)
    for turn in range(4):
        answer = list(session.generate(tokens, sampling))
        assert answer == list(longrope.reference.generate(tokens, sampling))
        tokens = tokens + answer + ids(9, seed=turn)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_dir()} == {
        "1024-1024",
        "1024-1024/long",
    }
    session.close()


def test_a_prompt_too_long_for_the_npu_names_both_numbers(npu: EngineSession) -> None:
    with pytest.raises(PromptTooLongError, match=r"5000 tokens.*maximum context length is 4096 tokens"):
        npu.generate([1] * 5000, GREEDY)


def test_the_npu_takes_no_more_than_its_largest_shape(model: RandomModel) -> None:
    session = model.open("NPU", properties=NPU_ON_CPU, context_length=131_072)
    assert session.context_length == 8192
    assert "8192 tokens" in session.notes[-1]
    session.close()


def test_the_npu_refuses_a_scheme_before_it_compiles(tmp_path: Path) -> None:
    model = RandomModel("openvino", tmp_path, GQA, weight_format="int4", group_size=32)
    with pytest.raises(SchemeError, match="groups of 32") as caught:
        model.open("NPU", properties=NPU_ON_CPU)
    assert "aipc convert MODEL --weight-format int4 --sym --group-size 128 openvino-npu" in caught.value.hint


@pytest.mark.parametrize(
    ("shape", "recipe"),
    [
        (GQA, {"group_size": -1}),
        (GQA, {"group_size": 64}),
        (GQA, {"group_size": 64, "sym": False}),
        (GQA | {"hidden_size": 256, "intermediate_size": 512}, {"group_size": 256}),
    ],
    ids=["channel-wise", "groups of 64", "asymmetric", "groups of 256"],
)
def test_the_npu_pipeline_gives_the_cpus_tokens_for_int4(
    tmp_path: Path, shape: dict[str, Any], recipe: dict[str, Any]
) -> None:
    model = RandomModel("openvino", tmp_path, shape, weight_format="int4", **recipe)
    answers = []
    for device, properties in (("CPU", {}), ("NPU", NPU_ON_CPU | {"INFERENCE_PRECISION_HINT": "f32"})):
        session = model.open(device, exact=device == "CPU", properties=properties)
        # Of random weights the scores lie close together: later on, rounding decides.
        answers.append(list(session.generate(ids(9), replace(GREEDY, max_new_tokens=16))))
        session.close()
    assert answers[0] == answers[1]
    assert len(answers[0]) == 16


def test_the_npu_has_no_exact_arithmetic(model: RandomModel) -> None:
    with pytest.raises(DeviceError, match="float16"):
        openvino_engine.load(Options(str(model.folder), "NPU", True, NPU_ON_CPU, None))


def test_inputs_of_int4_products_are_quantised_in_groups_that_fit_the_weights(int4: RandomModel) -> None:
    options = Options(str(int4.folder), "CPU", False, {}, None)
    assert arithmetic(options) == {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 64}
    assert arithmetic(replace(options, device="GPU.0")) == {}
    assert arithmetic(replace(options, exact=True)) == EXACT


def test_folders_without_int4_keep_what_the_runtime_takes(model: RandomModel) -> None:
    assert arithmetic(Options(str(model.folder), "CPU", False, {}, None)) == {}


@pytest.mark.parametrize(
    ("properties", "expected"), [({}, 64), ({"DYNAMIC_QUANTIZATION_GROUP_SIZE": 32}, 32)]
)
def test_scores_are_those_of_the_same_arithmetic_and_a_person_has_the_last_word(
    int4: RandomModel, properties: dict[str, int], expected: int
) -> None:
    scorer = ScoringEngine(Options(str(int4.folder), "CPU", False, properties, None))
    compiled_model = scorer._request.get_compiled_model()
    assert compiled_model.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == expected
