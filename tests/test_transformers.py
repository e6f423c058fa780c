"""Scripts for transformers, optimum-intel and the Intel NPU Acceleration Library, on the demo model."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers import (  # noqa: E402
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TextIteratorStreamer,
    TextStreamer,
    TopKLogitsWarper,
    pipeline,
)

from aipc import demo  # noqa: E402
from aipc.errors import (  # noqa: E402
    DeviceError,
    MissingExtraError,
    ModelNotFoundError,
    StorageError,
    UsageError,
)
from aipc.transformers import (  # noqa: E402
    CompilerConfig,
    NPUModelForCausalLM,
    OVModelForCausalLM,
    install,
    int4,
    notices,
    npu_library,
)

ROOT = Path(__file__).parents[1]
CHAT = "<|user|>Can you introduce yourself?<|end|><|assistant|>"
OTHER = "<|user|>What is an NPU?<|end|><|assistant|>"

# What warns inside of transformers and torch is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OVModelForCausalLM]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIPC_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        with OVModelForCausalLM.from_pretrained(demo.path()) as model:
            yield model


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(str(demo.path()), padding_side="left")


def ids(tokenizer: Any, text: str) -> Any:
    return tokenizer(text, return_tensors="pt").input_ids


def answer(model: OVModelForCausalLM, tokenizer: Any, text: str, **options: Any) -> list[int]:
    prompt = ids(tokenizer, text)
    rows = model.generate(prompt, **({"max_new_tokens": 24} | options))
    assert rows[:, : prompt.shape[1]].equal(prompt)
    tokens: list[int] = rows[0, prompt.shape[1] :].tolist()
    return tokens


# --- generate


def test_generate_gives_the_tokens_of_the_stream(model: OVModelForCausalLM, tokenizer: Any) -> None:
    expected = model.model.generate(ids(tokenizer, CHAT)[0].tolist(), max_new_tokens=60)
    assert expected.finish_reason == "stop"
    rows = answer(model, tokenizer, CHAT, max_new_tokens=60)
    assert tuple(rows[:-1]) == expected.token_ids
    assert rows[-1] in model.generation_config.eos_token_id


def test_a_padded_batch_is_answered_row_by_row(model: OVModelForCausalLM, tokenizer: Any) -> None:
    batch = tokenizer([CHAT, OTHER], return_tensors="pt", padding=True)
    assert (batch.attention_mask == 0).any()
    rows = model.generate(**batch, max_new_tokens=24)
    alone = [answer(model, tokenizer, text) for text in (CHAT, OTHER)]
    assert [row[batch.input_ids.shape[1] :][:24].tolist() for row in rows] == alone


def test_shorter_answers_are_filled_up(model: OVModelForCausalLM, tokenizer: Any) -> None:
    batch = tokenizer([CHAT, OTHER], return_tensors="pt", padding=True)
    rows = model.generate(**batch, max_new_tokens=100, pad_token_id=7)
    answers = [row[batch.input_ids.shape[1] :].tolist() for row in rows]
    ends = [
        next(i for i, t in enumerate(row) if t in model.generation_config.eos_token_id) for row in answers
    ]
    assert ends[0] != ends[1]
    assert all(set(row[end + 1 :]) <= {7} for row, end in zip(answers, ends, strict=True))


def test_a_seed_of_torch_makes_samples_repeatable(model: OVModelForCausalLM, tokenizer: Any) -> None:
    def sampled() -> Any:
        torch.manual_seed(3)
        options = {"do_sample": True, "temperature": 3.0, "top_k": 0, "num_return_sequences": 3}
        return model.generate(ids(tokenizer, CHAT), max_new_tokens=12, **options)

    first = sampled()
    assert first.shape[0] == 3
    assert sampled().equal(first)
    assert not first[0].equal(first[1])


def test_the_config_of_a_call_takes_the_end_tokens_of_the_model(
    model: OVModelForCausalLM, tokenizer: Any
) -> None:
    expected = answer(model, tokenizer, CHAT, max_new_tokens=60)
    prompt = ids(tokenizer, CHAT)
    rows = model.generate(prompt, GenerationConfig(max_new_tokens=60))
    assert rows[0, prompt.shape[1] :].tolist() == expected
    result = model.generate(prompt, max_new_tokens=60, return_dict_in_generate=True)
    assert result.sequences.equal(rows)


def test_an_end_token_of_the_call_ends_it(model: OVModelForCausalLM, tokenizer: Any) -> None:
    tokens = answer(model, tokenizer, CHAT)
    assert answer(model, tokenizer, CHAT, eos_token_id=tokens[5]) == tokens[: tokens.index(tokens[5]) + 1]


def test_max_length_counts_the_prompt(model: OVModelForCausalLM, tokenizer: Any) -> None:
    length = ids(tokenizer, CHAT).shape[1]
    assert len(answer(model, tokenizer, CHAT, max_new_tokens=None, max_length=length + 5)) == 5
    with pytest.raises(UsageError, match=f"the prompt alone has {length} tokens"):
        answer(model, tokenizer, CHAT, max_new_tokens=None, max_length=length)


class StopAfter(StoppingCriteria):
    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.length)


def test_stopping_criteria_see_prompt_and_answer(model: OVModelForCausalLM, tokenizer: Any) -> None:
    tokens = answer(model, tokenizer, CHAT)
    length = ids(tokenizer, CHAT).shape[1]
    assert answer(model, tokenizer, CHAT, stopping_criteria=[StopAfter(length + 4)]) == tokens[:4]
    assert answer(model, tokenizer, CHAT, max_time=1e-9) == tokens[:1]
    word = tokenizer.decode(tokens[:6]).split()[1]
    rows = model.generate(ids(tokenizer, CHAT), max_new_tokens=24, stop_strings=[word], tokenizer=tokenizer)
    stopped = rows[0, length:].tolist()
    assert stopped == tokens[: len(stopped)]
    assert tokenizer.decode(stopped).rstrip().endswith(word)
    with pytest.raises(UsageError, match="needs the tokenizer"):
        answer(model, tokenizer, CHAT, stop_strings=[word])


class Silence(LogitsProcessor):
    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return scores


def test_processors_that_the_runtime_has_are_taken_and_others_refused(
    model: OVModelForCausalLM, tokenizer: Any
) -> None:
    known = LogitsProcessorList([TemperatureLogitsWarper(5.0), TopKLogitsWarper(1)])
    assert answer(model, tokenizer, CHAT, do_sample=True, logits_processor=known) == answer(
        model, tokenizer, CHAT
    )
    with pytest.raises(UsageError, match="Silence is not possible"):
        answer(model, tokenizer, CHAT, logits_processor=LogitsProcessorList([Silence()]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_beams": 4}, "num_beams=4"),
        ({"no_repeat_ngram_size": 2}, "no_repeat_ngram_size=2"),
        ({"min_new_tokens": 1}, "min_new_tokens=1"),
        ({"output_scores": True}, "output_scores=True"),
        ({"max_new_tokns": 5}, "knows no max_new_tokns"),
        ({"do_sample": True, "temperature": 0.0}, "temperature is 0.0"),
    ],
)
def test_what_the_runtime_cannot_do_is_refused(
    model: OVModelForCausalLM, tokenizer: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        answer(model, tokenizer, CHAT, **options)


@pytest.mark.parametrize("options", [{"num_beams": 1}, {"no_repeat_ngram_size": 0}, {"use_cache": False}])
def test_what_changes_nothing_is_let_through(
    model: OVModelForCausalLM, tokenizer: Any, options: dict[str, Any]
) -> None:
    assert answer(model, tokenizer, CHAT, **options) == answer(model, tokenizer, CHAT)


@pytest.mark.parametrize("prompt", [None, [1, 2, 3], [[0.5]], [[]]])
def test_a_prompt_of_another_form_is_refused(model: OVModelForCausalLM, prompt: Any) -> None:
    with pytest.raises(UsageError, match=r"no prompt|must be \[batch, length\]"):
        model.generate(prompt, max_new_tokens=1)


# --- streamers


def test_a_streamer_shows_each_token(
    model: OVModelForCausalLM, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = answer(model, tokenizer, CHAT, streamer=TextStreamer(tokenizer, skip_prompt=True))
    assert capsys.readouterr().out.strip() == tokenizer.decode(tokens).strip()


def test_an_iterator_in_another_thread_sees_the_answer_and_its_end(
    model: OVModelForCausalLM, tokenizer: Any
) -> None:
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    prompt = ids(tokenizer, CHAT)
    options = {"max_new_tokens": 24, "streamer": streamer}
    thread = threading.Thread(target=model.generate, args=(prompt,), kwargs=options)
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == tokenizer.decode(answer(model, tokenizer, CHAT))


def test_a_streamer_of_a_request_that_fails_ends(model: OVModelForCausalLM, tokenizer: Any) -> None:
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    with pytest.raises(UsageError):
        model.generate([[10**9]], max_new_tokens=1, streamer=streamer)
    assert "".join(streamer) == ""
    with pytest.raises(UsageError, match="a streamer shows one answer"):
        model.generate([[1, 2], [3, 4]], max_new_tokens=1, streamer=streamer)


# --- pipelines


def test_a_pipeline_takes_text_messages_and_batches(model: OVModelForCausalLM, tokenizer: Any) -> None:
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    options = {"max_new_tokens": 60, "do_sample": False, "return_full_text": False}
    (text,) = pipe(CHAT, **options)
    assert "demo model" in text["generated_text"]
    (chat,) = pipe([{"role": "user", "content": "Can you introduce yourself?"}], **options)
    said = chat["generated_text"]
    assert (said[-1]["content"] if isinstance(said, list) else said) == text["generated_text"]
    both = pipe([CHAT, OTHER], batch_size=2, **options)
    assert both[0] == [text]
    assert both[1] != [text]
    whole = pipe(CHAT, **(options | {"return_full_text": True}))
    assert whole[0]["generated_text"] == CHAT + text["generated_text"]


def test_a_pipeline_does_not_complain_of_the_class(
    model: OVModelForCausalLM, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    logger = transformers.utils.logging.get_logger("transformers")
    logger.addHandler(caplog.handler)
    try:
        pipeline("text-generation", model=model, tokenizer=tokenizer)
    finally:
        logger.removeHandler(caplog.handler)
    assert "not supported" not in caplog.text


# --- loading


def test_without_an_npu_another_device_answers_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_given", set())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            with NPUModelForCausalLM.from_pretrained(
                demo.path(), use_cache=True, config=CompilerConfig(dtype=int4), attn_implementation="sdpa",
                torch_dtype=torch.float16,
            ).eval() as model:  # fmt: skip
                assert model.model.precision == "int4"
    texts = [
        str(w.message) for w in seen if "device answers" in str(w.message) or "no effect" in str(w.message)
    ]
    assert len(texts) == len(set(texts)) == 2


@pytest.mark.parametrize(
    ("config", "precision"),
    [
        (CompilerConfig(dtype=torch.int8), "int8"),
        (CompilerConfig(), "fp16"),
        (CompilerConfig(dtype=torch.float32), "fp16, exact"),
    ],
)
def test_the_dtype_is_how_weights_are_stored(config: CompilerConfig, precision: str) -> None:
    with NPUModelForCausalLM.from_pretrained(demo.path(), config) as model:
        assert model.model.precision == precision


def test_optimums_words_for_quantisation(model: OVModelForCausalLM) -> None:
    assert model.model.precision == "int4"
    with OVModelForCausalLM.from_pretrained(demo.path(), export=True, load_in_8bit=True) as int8:
        assert int8.model.precision == "int8"
    with OVModelForCausalLM.from_pretrained(demo.path(), quantization_config={"bits": 4}) as four:
        assert four.model.precision == "int4"
    with pytest.raises(UsageError, match="bits=3"):
        OVModelForCausalLM.from_pretrained(demo.path(), quantization_config={"bits": 3})


def test_a_saved_model_is_loaded_again(model: OVModelForCausalLM, tokenizer: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    with OVModelForCausalLM.from_pretrained(tmp_path / "saved", ov_config={"CACHE_DIR": ""}) as again:
        assert answer(again, tokenizer, CHAT) == answer(model, tokenizer, CHAT)
    with pytest.raises(StorageError, match="not empty"):
        model.save_pretrained(tmp_path / "saved")


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no dtype 'int5'") as caught:
        CompilerConfig(dtype="int5")
    assert "did you mean int" in caught.value.hint
    with pytest.raises(ModelNotFoundError, match="there is no folder"):
        NPUModelForCausalLM.from_pretrained(tmp_path / "missing", CompilerConfig(dtype=int4))
    with pytest.raises(DeviceError, match=r"there is no GPU\.7"):
        OVModelForCausalLM.from_pretrained(demo.path(), device="GPU.7")
    with pytest.raises(UsageError, match="training=True"):
        CompilerConfig(training=True)
    with pytest.raises(UsageError, match="config is a dict"):
        NPUModelForCausalLM.from_pretrained(demo.path(), {"dtype": "int4"})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="knows no token") as caught:
        OVModelForCausalLM.from_pretrained(demo.path(), token="hf_x")
    assert "HF_TOKEN" in caught.value.hint


def test_moving_names_a_device_of_aipc_or_does_nothing(
    model: OVModelForCausalLM, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "_given", set())
    before = model.model
    assert model.to("cpu") is model
    with pytest.warns(UserWarning, match="computes on CPU"):
        model.to(torch.float16)
    with pytest.raises(DeviceError, match="there is no GPU"):
        model.to("GPU.0")
    assert model.model is before
    assert model.to("CPU").model is not before
    assert answer(model, tokenizer, CHAT)


# --- the archived library's name


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("intel_npu_acceleration_library", "intel_npu_acceleration_library.compiler"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    install()


@pytest.mark.usefixtures("installed")
def test_not_even_the_import_changes() -> None:
    import intel_npu_acceleration_library as library
    from intel_npu_acceleration_library.compiler import CompilerConfig as Config

    assert library.NPUModelForCausalLM is NPUModelForCausalLM
    assert Config(dtype=library.int4) == CompilerConfig(dtype=int4)
    install()


def test_the_library_itself_is_not_replaced_behind_its_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "intel_npu_acceleration_library", time)
    with pytest.raises(UsageError, match="imported already"):
        install()


def test_compile_leaves_a_model_and_refuses_torchs(
    model: OVModelForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "_given", set())
    with pytest.warns(UserWarning, match="no effect"):
        assert npu_library.compile(model, CompilerConfig(dtype=int4)) is model
    with pytest.raises(UsageError, match="a Linear is not compiled here"):
        npu_library.compile(torch.nn.Linear(2, 2), int4)


def test_a_missing_package_is_named_with_the_extra() -> None:
    code = "import sys; sys.modules['torch'] = None; import aipc.transformers"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert MissingExtraError.__name__ in done.stderr
    assert "aipc[transformers]" in done.stderr


# --- the examples


def example(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_for_the_npu_library() -> None:
    assert "I am the aipc demo model" in example(sys.executable, "examples/intel_npu.py")


@pytest.mark.skipif(sys.platform == "win32", reason="the lines are for a POSIX shell")
def test_the_examples_for_optimum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "aipc").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m aipc "$@"\n', encoding="utf-8")
    (tmp_path / "aipc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    example("sh", "examples/convert.sh", "demo", str(tmp_path / "phi3"))
    for form in ("int4", "fp16"):
        out = example(sys.executable, "examples/optimum_intel.py", str(tmp_path / "phi3" / form), "CPU")
        assert "I am the aipc demo model" in out
