"""Sessions on the real ONNX Runtime GenAI: its cache, its packages, its devices and its words."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aipc.errors import (
    AipcError,
    CheckpointError,
    DeviceError,
    MissingExtraError,
    RuntimeFailedError,
    UnsupportedModelError,
    UsageError,
)
from aipc.runtimes import onnxruntime, onnxruntime_engine, packages
from aipc.runtimes.cores import _linux_cores, physical_cores
from aipc.runtimes.engine import Request
from aipc.runtimes.onnxruntime import available_devices, open_session
from aipc.runtimes.onnxruntime_engine import CAPACITY_STEP, KVCache, OnnxEngine, Options
from aipc.runtimes.onnxruntime_errors import gist, translated
from aipc.runtimes.session import EngineSession
from aipc.types import Sampling, ScoredToken
from checkpoints import GQA, LONGROPE
from sessions import CONTEXT, GREEDY, RandomModel, Script, ids

# A tiny random model (tests/checkpoints.py, seed 0, F16, 704 tokens, window 128, context 512), made by
# onnxruntime-genai 0.18.0's model builder: python -m onnxruntime_genai.models.builder -p int4 -e cpu.
BUILDER_FOLDER = Path(__file__).parent / "data" / "builder-int4.zip"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RandomModel:
    return RandomModel("onnxruntime", tmp_path_factory.mktemp("fp16"), GQA, weight_format="fp16")


@pytest.fixture(scope="module")
def session(model: RandomModel) -> Iterator[EngineSession]:
    session = model.open(exact=True)
    yield session
    session.close()


@pytest.fixture
def engine(model: RandomModel) -> OnnxEngine:
    return load(model.folder)


def load(folder: Path, *, border: int | None = None, **properties: object) -> OnnxEngine:
    return onnxruntime_engine.load(Options(str(folder), "CPU", properties, CONTEXT, border))


def answers(engine: OnnxEngine, *requests: Request) -> list[list[int]]:
    script = Script(*requests)
    script.run(engine)
    assert not script.errors
    return [script.ids[request.number] for request in requests]


@pytest.fixture
def appended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each call of the runtime computes, in chunks of 64."""
    monkeypatch.setattr(onnxruntime_engine, "CHUNK_TOKENS", 64)
    sizes: list[int] = []
    append = KVCache.append

    def counted(cache: KVCache, new: list[int]) -> None:
        sizes.append(len(new))
        append(cache, new)

    monkeypatch.setattr(KVCache, "append", counted)
    return sizes


def test_sampled_tokens_are_the_references(model: RandomModel, session: EngineSession) -> None:
    """The choice is ours, so one seed means the same draw on the same scores."""
    sampling = Sampling(max_new_tokens=40, temperature=1.3, top_p=0.9, top_k=50, seed=11)
    prompt = ids(20)
    assert list(session.generate(prompt, sampling)) == list(model.reference.generate(prompt, sampling))


def test_the_next_turn_computes_only_what_is_new(engine: OnnxEngine, appended: list[int]) -> None:
    prompt = ids(200)
    answers(engine, Request(0, prompt, Sampling(max_new_tokens=300, stop_ids=frozenset(range(320)))))
    sampling = Sampling(max_new_tokens=10, temperature=1.0, seed=1)
    (answer,) = answers(engine, Request(1, prompt, sampling))
    first = sum(appended)
    assert first == 200 + 1 + 9
    turn = prompt + answer + ids(30, seed=1)
    answers(engine, Request(2, turn, GREEDY))
    # The last token of an answer is not computed before something follows it.
    assert sum(appended) - first == 1 + 30 + 23


def test_a_chat_that_outgrows_its_memory_goes_on(
    model: RandomModel, engine: OnnxEngine, appended: list[int]
) -> None:
    """The cache of the first request has room for little more; the second is allowed far more than that."""
    prompt = ids(20)
    (answer,) = answers(engine, Request(1, prompt, Sampling(max_new_tokens=CAPACITY_STEP)))
    assert engine._cache is not None
    first = engine._cache.capacity
    sampling = Sampling(max_new_tokens=CAPACITY_STEP * 2)
    (longer,) = answers(engine, Request(2, prompt + answer[:10], sampling))
    assert longer == list(model.reference.generate(prompt + answer[:10], sampling))
    assert engine._cache.capacity > first
    assert sum(appended) < 1500


@pytest.mark.parametrize("appends", [True, False])
def test_log_probabilities_are_those_of_the_models_own_scores(
    model: RandomModel, engine: OnnxEngine, appends: bool
) -> None:
    """Also where the search is the runtime's, which changes the scores that it was given."""
    engine._appends = appends
    greedy = Sampling(max_new_tokens=12, logprobs=4)
    requests = [Request(1, ids(20), greedy), Request(2, ids(20), replace(greedy, repetition_penalty=1.5))]
    for request, answer in zip(requests, answers(engine, *requests), strict=True):
        expected = list(model.reference.generate(request.prompt, request.sampling))
        assert answer == expected
        for token, theirs in zip(answer, expected, strict=True):
            assert isinstance(token, ScoredToken)
            assert isinstance(theirs, ScoredToken)
            assert token.logprob == pytest.approx(theirs.logprob, abs=1e-3)
            assert [one for one, _ in token.likeliest] == [one for one, _ in theirs.likeliest]


def test_the_tokens_that_the_cache_gave_are_told(engine: OnnxEngine) -> None:
    script = Script(Request(1, ids(50), GREEDY), Request(2, ids(50) + ids(5, seed=1), GREEDY))
    script.run(engine)
    assert script.cached == {1: 0, 2: 50}
    engine._appends = False
    again = Script(Request(3, ids(50), GREEDY))
    again.run(engine)
    assert again.cached == {3: 0}


def test_a_long_prompt_ends_with_its_caller(engine: OnnxEngine, appended: list[int]) -> None:
    script = Script(Request(1, ids(1000), GREEDY), Request(2, ids(4), GREEDY))
    asked = iter(range(1000))

    def withdrawn(number: int) -> bool:
        return script.closed or (number == 1 and next(asked) >= 3)

    script.withdrawn = withdrawn  # type: ignore[method-assign]
    script.run(engine)
    assert appended[:2] == [64, 64]
    assert sum(appended) < 200
    assert 1 not in script.ids
    assert len(script.ids[2]) == 24


def test_a_foreign_graph_that_outgrows_longropes_border_is_computed_anew(
    model: RandomModel, appended: list[int]
) -> None:
    engine = load(model.folder, border=100)
    appended.clear()
    (answer,) = answers(engine, Request(1, ids(95), Sampling(max_new_tokens=10)))
    assert appended == [64, 31, *[1] * 5, 101, 1, 1, 1]
    appended.clear()
    # Beyond the border the beginning is kept; what is new must reach over it at once.
    answers(engine, Request(2, ids(95)[:50] + ids(80, seed=9), Sampling(max_new_tokens=2)))
    assert appended == [64, 16, 1]
    appended.clear()
    answers(engine, Request(3, ids(95)[:50], Sampling(max_new_tokens=1)))
    assert appended == [50]
    assert len(answer) == 10


@pytest.fixture(scope="module")
def longrope(tmp_path_factory: pytest.TempPathFactory) -> RandomModel:
    return RandomModel("onnxruntime", tmp_path_factory.mktemp("longrope"), LONGROPE, weight_format="fp16")


def test_a_request_that_may_cross_the_border_has_the_long_factors_from_the_start(
    longrope: RandomModel, appended: list[int]
) -> None:
    engine = load(longrope.folder, border=64)
    appended.clear()
    sampling = Sampling(max_new_tokens=30)
    (answer,) = answers(engine, Request(1, ids(50), sampling))
    assert answer == list(longrope.reference.generate(ids(50), sampling))
    assert appended == [50, *[1] * 29]


@pytest.mark.parametrize("appends", [True, False])
def test_a_chat_that_grows_across_the_border_is_the_references(
    longrope: RandomModel, appended: list[int], appends: bool
) -> None:
    engine = load(longrope.folder, border=64)
    engine._appends = appends
    tokens, sampling = ids(20), Sampling(max_new_tokens=8)
    sizes = []
    for turn in range(5):
        appended.clear()
        (answer,) = answers(engine, Request(turn, tokens, sampling))
        assert answer == list(longrope.reference.generate(tokens, sampling))
        sizes.append(sum(appended))
        tokens = tokens + answer + ids(7, seed=turn)
    # 20, 35, 50, 65 and 80 tokens: the fourth is computed anew, the fifth goes on from it.
    expected = [27, 8 + 7, 8 + 7, 65 + 7, 8 + 7] if appends else [0] * 5
    assert sizes == expected


def test_the_runtimes_own_search_gives_the_same_tokens(model: RandomModel) -> None:
    """What DirectML takes, which is not here: the prompt at once, and every token by the runtime's choice."""
    engine = load(model.folder)
    engine._appends = False
    prompt = ids(150)
    expected = list(model.reference.generate(prompt, GREEDY))
    penalised = Sampling(max_new_tokens=24, repetition_penalty=1.5)
    assert answers(engine, Request(1, prompt, GREEDY), Request(2, prompt, penalised)) == [
        expected,
        list(model.reference.generate(prompt, penalised)),
    ]
    narrow = Sampling(max_new_tokens=24, temperature=5.0, top_k=1, seed=3)
    stop = Sampling(max_new_tokens=24, stop_ids=frozenset({expected[4]}))
    assert answers(engine, Request(3, prompt, narrow), Request(4, prompt, stop)) == [
        expected,
        expected[: expected.index(expected[4]) + 1],
    ]


def test_the_runtimes_own_search_goes_on_after_the_folders_end(model: RandomModel, tmp_path: Path) -> None:
    prompt = ids(7)
    whole = list(model.reference.generate(prompt, GREEDY))
    folder = shutil.copytree(model.folder, tmp_path / "with-eos")
    edit(folder, lambda config: config["model"].update(eos_token_id=[whole[2], whole[5]]))
    engine = load(folder)
    engine._appends = False
    assert answers(engine, Request(1, prompt, GREEDY)) == [whole]


def test_a_request_that_fails_ends_alone(model: RandomModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(model.folder)
    append = KVCache.append
    calls = iter([RuntimeError("Failed to allocate memory for requested buffer of size 123"), None])

    def fail_once(cache: KVCache, new: list[int]) -> None:
        error = next(calls, None)
        if error is not None:
            raise error
        append(cache, new)

    monkeypatch.setattr(KVCache, "append", fail_once)
    script = Script(Request(1, ids(9), GREEDY), Request(2, ids(9), GREEDY))
    script.run(engine)
    assert isinstance(script.errors[1], DeviceError)
    assert script.ids[2] == list(model.reference.generate(ids(9), GREEDY))


def edit(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    change(config)
    path.write_text(json.dumps(config), encoding="utf-8")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: truncate(folder / "model.onnx"), "model.onnx"),
        (lambda folder: (folder / "model.onnx").unlink(), "model.onnx"),
        (lambda folder: truncate(folder / "model.onnx.data"), "initializer"),
        (lambda folder: (folder / "model.onnx.data").unlink(), "model.onnx.data"),
        (lambda folder: (folder / "genai_config.json").unlink(), "genai_config.json"),
        (lambda folder: (folder / "genai_config.json").write_text("{", encoding="utf-8"), "genai_config"),
        (lambda folder: edit(folder, lambda c: c.pop("model")), "model is None"),
    ],
    ids=[
        "half a graph",
        "no graph",
        "half the weights",
        "no weights",
        "no config",
        "no JSON",
        "no model",
    ],
)
def test_a_damaged_folder_is_named(
    model: RandomModel, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    folder = shutil.copytree(model.folder, tmp_path / "damaged")
    damage(folder)
    with pytest.raises(CheckpointError, match=r"damaged|genai_config") as caught:
        model.open(folder=folder)
    assert words in caught.value.message
    assert caught.value.hint


def test_a_missing_file_is_known_in_any_language() -> None:
    missing = FileNotFoundError(2, "Das System kann die angegebene Datei nicht finden", "model.onnx")
    assert isinstance(translated(missing, "folder", "CPU"), CheckpointError)


@pytest.mark.parametrize("place", ["model", "search"])
def test_an_unknown_key_is_named_where_it_matters(model: RandomModel, tmp_path: Path, place: str) -> None:
    folder = shutil.copytree(model.folder, tmp_path / "unknown")
    edit(folder, lambda config: config[place].update(new_key=1))
    with pytest.raises(CheckpointError, match=f"key 'new_key' in '{place}'"):
        load(folder)
    session = model.open(folder=folder, exact=True)
    assert list(session.generate(ids(9), GREEDY)) == list(model.reference.generate(ids(9), GREEDY))
    session.close()


def test_a_model_of_another_kind_is_named(model: RandomModel, tmp_path: Path) -> None:
    folder = shutil.copytree(model.folder, tmp_path / "other")
    edit(folder, lambda config: config["model"].update(type="nonsense"))
    with pytest.raises(UnsupportedModelError, match="nonsense"):
        load(folder)


def test_an_unknown_session_option_is_the_callers_mistake(model: RandomModel) -> None:
    with pytest.raises(UsageError, match="no_such"):
        load(model.folder, no_such=1)
    load(model.folder, intra_op_num_threads=1)


def test_the_folder_decides_what_the_kv_cache_holds(model: RandomModel) -> None:
    model.open(kv_cache="f32").close()
    with pytest.raises(UsageError, match=r"CPU is f32.*'u8'") as caught:
        model.open(kv_cache="u8")
    assert "openvino" in caught.value.hint


def test_quantised_weights_are_not_exact(model: RandomModel) -> None:
    with pytest.raises(UsageError, match="8-bit integers") as caught:
        model.open(exact=True, precision="int4")
    assert "openvino" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("std::bad_alloc", DeviceError),
        ("Cuda interface not available: Failed to load library: x.so", DeviceError),
        ("External data path does not exist: x", CheckpointError),
        ("Unsupported model_type in config.json: x", UnsupportedModelError),
        ("something new", RuntimeFailedError),
    ],
)
def test_onnxruntimes_words_become_ours(text: str, error: type[AipcError]) -> None:
    assert type(translated(RuntimeError(text), "folder", "CPU")) is error


def test_the_gist_leaves_out_where_it_happened() -> None:
    long = "Exception: /a/b.cc:74 f() [ONNXRuntimeError] : 1 : FAIL : t.cc:22 Get External: bad\n"
    assert gist(RuntimeError(long)) == "Get External: bad"
    assert gist(MemoryError()) == "MemoryError"


PLAIN = {"onnxruntime-genai": "0.18.0", "onnxruntime": "1.32.0"}
CUDA = {"onnxruntime-genai-cuda": "0.18.0", "onnxruntime-gpu": "1.32.0"}


@pytest.mark.parametrize(
    ("found", "words", "hint"),
    [
        ({}, "not installed", 'pip install "aipc[onnx]"'),
        (
            PLAIN | CUDA,
            "onnxruntime-genai 0.18.0 and onnxruntime-genai-cuda 0.18.0 are installed over each other",
            "pip uninstall -y onnxruntime-genai onnxruntime onnxruntime-genai-cuda onnxruntime-gpu"
            '  and then  pip install "aipc[cuda]"',
        ),
        (
            CUDA | {"onnxruntime": "1.31.0"},
            "onnxruntime 1.31.0 and onnxruntime-gpu 1.32.0",
            'pip install "aipc[cuda]"',
        ),
        (
            PLAIN | {"onnxruntime-directml": "1.24.4"},
            "onnxruntime-directml 1.24.4",
            'pip install "aipc[onnx]"',
        ),
        ({"onnxruntime-genai": "0.18.0"}, "needs onnxruntime,", 'pip install "aipc[onnx]"'),
    ],
)
def test_packages_over_each_other_are_explained(found: dict[str, str], words: str, hint: str) -> None:
    with pytest.raises(MissingExtraError) as caught:
        packages.installed_flavour(found)
    assert words in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("provider", "found", "extra"),
    [("CUDA", PLAIN, "cuda"), ("DML", PLAIN, "directml"), ("DML", CUDA, "directml"), ("CPU", CUDA, "")],
)
def test_a_provider_that_is_not_installed_is_named_with_its_extra(
    provider: str, found: dict[str, str], extra: str
) -> None:
    if not extra:
        packages.require_provider(provider, found)
        return
    with pytest.raises(DeviceError, match=f"{provider} needs the package") as caught:
        packages.require_provider(provider, found)
    assert next(iter(found)) in caught.value.message
    assert f'pip install "aipc[{extra}]"' in caught.value.hint


@pytest.mark.parametrize("device", ["CUDA:0", "DML:0", "DML", "TPU"])
@pytest.mark.skipif("onnxruntime-genai" not in packages.installed(), reason="has another flavour")
def test_no_other_device_is_taken_in_place_of_the_one_asked_for(model: RandomModel, device: str) -> None:
    with pytest.raises(DeviceError, match="onnxruntime-genai 0"):
        model.open(device)


def test_a_cuda_without_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch, model: RandomModel) -> None:
    monkeypatch.setattr(packages, "installed", lambda: CUDA)
    monkeypatch.setattr(onnxruntime.devices, "cuda_devices", list)
    assert [device.word for device in available_devices()] == ["CPU"]
    with pytest.raises(DeviceError, match="no device 'CUDA:0' here; possible: CPU"):
        model.open("CUDA")


def test_the_cpu_is_among_the_devices() -> None:
    cpu = available_devices()[0]
    assert (cpu.word, cpu.kind) == ("CPU", "CPU")
    assert cpu.name


def test_two_threads_on_a_core_are_one_core(tmp_path: Path) -> None:
    for thread, siblings in enumerate(["0,4", "1,5", "2", "3", "0,4", "1,5"]):
        (tmp_path / f"cpu{thread}").write_text(siblings + "\n", encoding="utf-8")
    assert len(_linux_cores({0, 1, 2, 4, 5}, f"{tmp_path}/cpu{{}}")) == 3
    assert len(_linux_cores({7, 8}, f"{tmp_path}/cpu{{}}")) == 2, "nothing is known of them"
    assert 1 <= physical_cores() <= (os.cpu_count() or 1)


@pytest.fixture(scope="module")
def by_the_builder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("builder")
    with zipfile.ZipFile(BUILDER_FOLDER) as archive:
        archive.extractall(folder)
    return folder


def test_the_model_builders_folder_loads_and_answers(by_the_builder: Path) -> None:
    session = open_session(by_the_builder, "CPU", context_length=512, precision="as converted")
    short = ids(20)
    answer = list(session.generate(short, GREEDY))
    assert len(answer) == 24
    # Its own configuration has room for the window and 16 tokens, and breaks at a longer prompt.
    assert len(list(session.generate(ids(300), GREEDY))) == 24
    assert list(session.generate(short, GREEDY)) == answer
    with pytest.raises(UsageError, match="0 to 703"):
        session.generate([704], GREEDY)
    session.close()
