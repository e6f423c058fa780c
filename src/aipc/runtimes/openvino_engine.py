"""OpenVINO GenAI in the process that computes: the pipelines, and their words in ours.

Two engines. `BatchEngine` is for CPU and GPU: paged attention, any number of streams in each step.
`SerialEngine` is for the NPU, and for models that paged attention does not take: one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aipc import compiled, memory, preflight
from aipc.compiled import ANSWER_TOKENS, NPU_ONLY, Build, Factors, bucket
from aipc.errors import AipcError, DeviceError, RuntimeFailedError, UsageError, require
from aipc.longrope import takes_long_factors
from aipc.runtimes.engine import Engine, Inbox, Outbox, Request, serve
from aipc.runtimes.openvino_devices import npu_here
from aipc.runtimes.openvino_errors import gist, translated
from aipc.runtimes.openvino_factors import folder_with_factors
from aipc.types import Sampling, ScoredToken

# The first import decides whether OpenVINO's telemetry comes with it.
require("openvino", "openvino")
import openvino  # noqa: E402
import openvino_genai as genai  # noqa: E402

from aipc.runtimes.openvino_grammar import Grammars, structured_output  # noqa: E402

# float32 in every place where the runtime would take less.
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "EXECUTION_MODE_HINT": "ACCURACY",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
}

# On a CPU the numbers that meet quantised weights become int8 in groups, of 32 unless told. In the groups of
# int4 weights a decode step took a quarter less and a prompt a third; larger ones than those are slow.
# int8 weights are taken for what they keep, and it costs them a part of that.
_INPUT_GROUPS = (128, 64)

# A long prompt is computed in chunks; between two of them a cancel is heard and other streams go on.
# On a CPU 256 cost 2.5 % of the prefill, 512 and more nothing that could be measured.
CHUNK_TOKENS = {"CPU": 512, "GPU": 1024}

# The first inference repacks the weights, and a decode step is compiled apart from a prefill.
_WARM_UP = Sampling(max_new_tokens=2)


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller's `open_session` hands over; JSON turns paths into text.

    rope_border   LongRoPE's factors change after so many tokens, or None
    """

    folder: str
    device: str
    exact: bool
    properties: Mapping[str, Any]
    compiled_dir: str | None
    rope_border: int | None = None

    def is_long(self, request: Request) -> bool:
        """Whether a request is computed with the factors for long texts."""
        return takes_long_factors(self.rope_border, len(request.prompt), request.sampling.max_new_tokens)

    def cache_dir(self, name: str, *, long: bool) -> dict[str, str]:
        """The property for what a device compiles: each set of factors makes another model."""
        if self.compiled_dir is None:
            return {}
        return {"CACHE_DIR": str(Path(self.compiled_dir, name, "long" if long else ""))}

    @contextmanager
    def model_folder(self, *, long: bool) -> Iterator[str]:
        """Where to load the model from, with one set of factors."""
        if self.rope_border is None:
            yield self.folder
            return
        with folder_with_factors(Path(self.folder), long=long) as folder:
            yield str(folder)


def main() -> None:
    """Serve the caller at the other end of stdin and stdout."""
    serve(lambda options: load(Options(**options)))


def load(options: Options) -> Engine:
    """The engine for a device, warm.

    raises   DeviceError, SchemeError, CheckpointError, RuntimeFailedError
    """
    if options.device == "NPU":
        return _load_npu(options)
    require_device(options.device)
    try:
        batching = _batching(options, long=False)
    except (RuntimeError, MemoryError) as exc:
        error = translated(exc, options.folder, options.device)
        if type(error) is not RuntimeFailedError:
            raise error from exc
    else:
        return BatchEngine(options, batching)
    note = f"paged attention does not take this model ({error.message}): it answers one request at a time"
    return SerialEngine(options, PlainPipelines(options), options.device, (note,))


def arithmetic(options: Options) -> Mapping[str, Any]:
    """The properties that say how a device computes.

    raises   CheckpointError
    """
    if options.exact:
        return EXACT
    if options.device != "CPU":
        return {}
    group = preflight.int4_group(Path(options.folder))
    for size in _INPUT_GROUPS:
        if group is not None and group % size == 0:
            return {"DYNAMIC_QUANTIZATION_GROUP_SIZE": size}
    return {}


def _properties(options: Options, *, long: bool) -> dict[str, Any]:
    return {**arithmetic(options), **options.cache_dir("", long=long), **options.properties}


def _batching(
    options: Options, *, long: bool, tokenizer: genai.Tokenizer | None = None
) -> genai.ContinuousBatchingPipeline:
    """A pipeline; without a tokenizer it loads one."""
    properties = {"sampler_num_threads": 1} | _properties(options, long=long)
    settings, device = scheduler(options.device), options.device
    with options.model_folder(long=long) as folder:
        if tokenizer is None:
            return genai.ContinuousBatchingPipeline(folder, settings, device, properties)
        return genai.ContinuousBatchingPipeline(folder, tokenizer, settings, device, **properties)


def require_device(device: str) -> None:
    """Refuse a device that OpenVINO does not see.

    raises   DeviceError naming those it does see
    """
    present = openvino.Core().available_devices
    names = {device, device.removesuffix(".0")}
    if device.partition(".")[0] in {"NPU", "GPU", "CPU"} and names & {*present}:
        return
    raise DeviceError(
        f"OpenVINO sees no device {device!r} here; possible: {', '.join(present)}",
        hint=_DRIVER_HINTS.get(device.partition(".")[0], f"take one of them, such as {present[0]}"),
    )


_DRIVER_HINTS = {
    "NPU": "an Intel NPU needs its driver: on Windows 32.0.100.3104 or newer, on Linux intel-npu-driver "
    "and access to /dev/accel",
    "GPU": "an Intel GPU needs its driver: on Linux intel-opencl-icd and access to /dev/dri/renderD*",
}


def generation_config(sampling: Sampling) -> genai.GenerationConfig:
    """Our sampling in GenAI's words.

    It stops at `stop_token_ids`; `eos_token_id` must be one of them, or it takes the model's own, and
    complains where the model has none.
    """
    config = genai.GenerationConfig()
    config.apply_chat_template = False
    config.max_new_tokens = sampling.max_new_tokens
    config.repetition_penalty = sampling.repetition_penalty
    config.ignore_eos = not sampling.stop_ids
    config.stop_token_ids = set(sampling.stop_ids) or {0}
    config.set_eos_token_id(min(config.stop_token_ids))
    # More than one are treated as one: there are no alternatives.
    config.logprobs = 0 if sampling.logprobs is None else 1
    if sampling.guidance is not None:
        config.structured_output_config = structured_output(sampling.guidance)
    if sampling.greedy:
        return config
    config.do_sample = True
    config.temperature = sampling.temperature
    config.top_p = sampling.top_p
    if sampling.top_k:
        config.top_k = sampling.top_k
    config.rng_seed = sampling.seed or 0
    return config


class BatchEngine:
    """Continuous batching: each step computes one token of every stream, and chunks of new prompts.

    Requests with LongRoPE's factors for long texts have a pipeline of their own, opened for the first of
    them. Where memory does not hold both, one is closed before the other is opened.
    """

    def __init__(self, options: Options, pipeline: genai.ContinuousBatchingPipeline) -> None:
        self._options = options
        self._pipelines = {False: pipeline}
        # All pipelines share it, and with it the grammars that were compiled.
        self._tokenizer = pipeline.get_tokenizer()
        self._grammars = Grammars(self._tokenizer)
        self._checker = ThreadPoolExecutor(1, "aipc-grammars")
        self._checks: dict[int, Future[None]] = {}
        self._waiting: list[Request] = []
        self._streams: dict[int, genai.GenerationHandle] = {}
        self._scored: set[int] = set()
        # The log-probability of the chosen token, of no other.
        self.about: Mapping[str, object] = {"device": options.device, "notes": [], "logprobs": 0}
        _warm_up(pipeline)

    @property
    def busy(self) -> bool:
        """Whether a pipeline has something to compute."""
        return any(pipeline.has_non_finished_requests() for pipeline in self._pipelines.values())

    def run(self, inbox: Inbox, outbox: Outbox) -> None:
        """Answer requests until the inbox is closed."""
        while not inbox.closed:
            for request in inbox.take(wait=not self._streams and not self._waiting):
                self._line_up(request, inbox)
            # In their order: else those for one pipeline could keep the other closed for ever.
            while self._waiting and self._admit(self._waiting[0], inbox, outbox):
                del self._waiting[0]
            for number in [n for n in self._streams if inbox.withdrawn(n)]:
                self._streams.pop(number).cancel()
                self._scored.discard(number)
                inbox.forget(number)
            # A step also frees what a cancelled stream held.
            if self.busy:
                for pipeline in self._pipelines.values():
                    if pipeline.has_non_finished_requests():
                        pipeline.step()
                self._deliver(inbox, outbox)

    def _line_up(self, request: Request, inbox: Inbox) -> None:
        """Have a request wait for its beginning; one with a grammar comes again once that is compiled."""
        guidance = request.sampling.guidance
        if guidance is None or request.number in self._checks:
            self._waiting.append(request)
            return
        check = self._checks[request.number] = self._checker.submit(self._grammars.check, guidance)
        check.add_done_callback(lambda _: inbox.again(request))

    def _admit(self, request: Request, inbox: Inbox, outbox: Outbox) -> bool:
        """Begin a request, or refuse it; False if there is no room for its pipeline yet."""
        check = self._checks.pop(request.number, None)
        if inbox.withdrawn(request.number):
            inbox.forget(request.number)
            return True
        try:
            if check is not None:
                check.result()
            pipeline = self._pipeline_for(long=self._options.is_long(request))
            if pipeline is None:
                return False
            self._streams[request.number] = pipeline.add_request(
                request.number, as_tensor(request.prompt), generation_config(request.sampling)
            )
            if request.sampling.logprobs is not None:
                self._scored.add(request.number)
        except AipcError as error:
            outbox.error(request.number, error)
        except (RuntimeError, MemoryError) as exc:
            outbox.error(request.number, _failed(exc))
        return True

    def _pipeline_for(self, *, long: bool) -> genai.ContinuousBatchingPipeline | None:
        """The pipeline with a set of factors, or None as long as its place is taken.

        raises   DeviceError, CheckpointError, StorageError, RuntimeFailedError
        """
        if long not in self._pipelines:
            if self._pipelines and not _has_room_for(self._options.folder):
                if self.busy:
                    return None
                self._pipelines.clear()
            try:
                pipeline = _batching(self._options, long=long, tokenizer=self._tokenizer)
            except (RuntimeError, MemoryError) as exc:
                raise translated(exc, self._options.folder, self._options.device) from exc
            _warm_up(pipeline)
            self._pipelines[long] = pipeline
        return self._pipelines[long]

    def _deliver(self, inbox: Inbox, outbox: Outbox) -> None:
        """Give out what the last step made."""
        for number, handle in list(self._streams.items()):
            status = handle.get_status()
            ids: list[int] = []
            while handle.can_read():
                made = next(iter(handle.read().values()))
                if number in self._scored:
                    pairs = zip(made.generated_ids, made.generated_log_probs, strict=True)
                    ids += [ScoredToken(token, logprob) for token, logprob in pairs]
                else:
                    ids += made.generated_ids
            end = status != genai.GenerationStatus.RUNNING
            if end:
                del self._streams[number]
                self._scored.discard(number)
                inbox.forget(number)
            if status == genai.GenerationStatus.IGNORED:
                outbox.error(number, _NO_ROOM)
            elif ids or end:
                outbox.ids(number, ids, end=end)


def _warm_up(pipeline: genai.ContinuousBatchingPipeline) -> None:
    handle = pipeline.add_request(0, as_tensor([0]), generation_config(_WARM_UP))
    while handle.get_status() == genai.GenerationStatus.RUNNING:
        pipeline.step()


def _has_room_for(folder: str) -> bool:
    """Whether memory holds the model's weights once more, as far as is known."""
    free = memory.free_bytes()
    # What a runtime needs besides them was at most a quarter of them.
    needed = Path(folder, "openvino_model.bin").stat().st_size * 5 // 4
    return free is None or free > needed


_NO_ROOM = RuntimeFailedError(
    "there is not enough memory for the KV cache of this request",
    hint="shorten the prompt, or run fewer streams at once",
)


class SerialEngine:
    """One stream at a time through an `LLMPipeline`.

    pipeline_for   gives a pipeline that takes a prompt of so many tokens, with one of LongRoPE's factors
    notes          for people; the first pipeline may add to them
    """

    def __init__(
        self,
        options: Options,
        pipeline_for: Callable[[int, bool], genai.LLMPipeline],
        device: str,
        notes: Sequence[str] = (),
    ) -> None:
        self._options = options
        self._pipeline_for = pipeline_for
        pipeline = pipeline_for(2, False)
        self._grammars = Grammars(pipeline.get_tokenizer())
        pipeline.generate(as_tensor([0, 0]), generation_config(_WARM_UP))
        self.about: Mapping[str, object] = {"device": device, "notes": list(notes)}

    def run(self, inbox: Inbox, outbox: Outbox) -> None:
        """Answer requests until the inbox is closed."""
        while not inbox.closed:
            for request in inbox.take(wait=True):
                if not inbox.withdrawn(request.number):
                    self._answer(request, inbox, outbox)
                inbox.forget(request.number)

    def _answer(self, request: Request, inbox: Inbox, outbox: Outbox) -> None:
        streamer = _Streamer(request, inbox, outbox)
        try:
            if request.sampling.guidance is not None:
                self._grammars.check(request.sampling.guidance)
            while not streamer.ended:
                self._continue(streamer)
        except AipcError as error:
            outbox.error(request.number, error)
        except RuntimeError as exc:
            outbox.error(request.number, _failed(exc))
        else:
            if not inbox.withdrawn(request.number):
                outbox.ids(request.number, [], end=True)

    def _continue(self, streamer: _Streamer) -> None:
        """Generate until the answer ends, or until a pipeline of fixed shapes is full."""
        asked, made = streamer.request.sampling, len(streamer.ids)
        sampling = replace(
            asked, max_new_tokens=asked.max_new_tokens - made, seed=((asked.seed or 0) + made) % 2**32
        )
        ids = streamer.request.prompt + streamer.ids
        streamer.outbox.compiling(begins=True)
        pipeline = self._pipeline_for(len(ids), self._options.is_long(streamer.request))
        streamer.outbox.compiling(begins=False)
        pipeline.generate(as_tensor(ids), generation_config(sampling), streamer)
        if len(streamer.ids) == made and not streamer.ended:
            raise RuntimeFailedError("OpenVINO gave no token and no reason", hint="try again on the CPU")


class _Streamer(genai.StreamerBase):  # type: ignore[misc]
    """Hands each new id on, and tells the pipeline when nobody wants the next."""

    def __init__(self, request: Request, inbox: Inbox, outbox: Outbox) -> None:
        super().__init__()
        self.request = request
        self.ids: list[int] = []
        self.outbox = outbox
        self._inbox = inbox

    @property
    def ended(self) -> bool:
        """Whether the answer is complete, or no longer wanted."""
        sampling = self.request.sampling
        return (
            self._inbox.withdrawn(self.request.number)
            or len(self.ids) >= sampling.max_new_tokens
            or (self.ids != [] and self.ids[-1] in sampling.stop_ids)
        )

    def write(self, token: int | list[int]) -> genai.StreamingStatus:
        """Called for each new token."""
        if self._inbox.withdrawn(self.request.number):
            return genai.StreamingStatus.CANCEL
        new = [token] if isinstance(token, int) else list(token)
        self.ids += new
        self.outbox.ids(self.request.number, new, end=False)
        return genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """Called after the last one."""


class PlainPipelines:
    """The pipeline with one of LongRoPE's factors; the other's is closed before it is opened."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._long: bool | None = None
        self._pipeline: genai.LLMPipeline | None = None

    def __call__(self, _prompt_tokens: int, long: bool) -> genai.LLMPipeline:
        """A pipeline; it takes prompts of any length.

        raises   DeviceError, CheckpointError, RuntimeFailedError
        """
        if self._pipeline is None or long is not self._long:
            self._pipeline = None
            properties = {"ATTENTION_BACKEND": "SDPA"} | _properties(self._options, long=long)
            self._pipeline = _pipeline(self._options, properties, long=long)
            self._long = long
        return self._pipeline


class NPUPipelines:
    """The NPU's pipeline. It is compiled for fixed lengths, and anew when a prompt needs more.

    An answer that outgrows its length becomes part of a longer prompt: what a caller allows is mostly far
    more than what a model says, and not worth minutes of compiling before it is needed.

    platform   of the NPU, such as "4000": what was compiled ahead for it is taken
    notes      what happened, for people
    """

    def __init__(self, options: Options, platform: str, driver: str | None, notes: Sequence[str]) -> None:
        self._options = options
        self._platform = platform
        self._driver = driver
        self.notes = list(notes)
        self._prompt_tokens = 0
        self._long = False
        self._pipeline: genai.LLMPipeline | None = None

    def __call__(self, prompt_tokens: int, long: bool) -> genai.LLMPipeline:
        """A pipeline that takes a prompt of so many tokens.

        raises   UsageError, SchemeError, DeviceError, RuntimeFailedError
        """
        if prompt_tokens < 2:
            # NPUW would take a single token for the next one of the answer before, and answer wrongly.
            raise UsageError("the NPU takes prompts of two tokens or more; this one has one")
        if self._pipeline is None or prompt_tokens > self._prompt_tokens or long is not self._long:
            # Both at once may be more than the memory holds.
            self._pipeline = None
            needed = bucket(prompt_tokens)
            self._pipeline = self._import(needed, long=long) or self._compile(needed, long=long)
            self._long = long
        return self._pipeline

    def _import(self, prompt_tokens: int, *, long: bool) -> genai.LLMPipeline | None:
        """What was compiled ahead for such prompts, or None."""
        folder = Path(self._options.folder)
        factors: Factors | None = None
        if self._options.rope_border is not None:
            factors = "long" if long else "short"
        build = Build(self._platform, prompt_tokens, ANSWER_TOKENS, factors)
        blob, why_not = compiled.find(folder, build, openvino=openvino.get_version(), driver=self._driver)
        if blob is not None:
            path, weights = blob.path(folder), folder / preflight.WEIGHTS_FILE
            properties = {**NPU_ONLY, "BLOB_PATH": str(path), "WEIGHTS_PATH": str(weights)}
            try:
                pipeline = _pipeline(self._options, properties | dict(self._options.properties), long=long)
            except AipcError as error:
                why_not = f"{path.name}: {error.message}"
            else:
                self._prompt_tokens = blob.prompt_tokens
                self.notes.append(f"{path.name} is taken, which was compiled ahead")
                return pipeline
        if why_not:
            self.notes.append(f"what was compiled ahead is not taken: {why_not}; it is compiled now")
        return None

    def _compile(self, prompt_tokens: int, *, long: bool) -> genai.LLMPipeline:
        shapes = f"{prompt_tokens}-{ANSWER_TOKENS}"
        properties: dict[str, Any] = {
            **NPU_ONLY,
            "MAX_PROMPT_LEN": prompt_tokens,
            "MIN_RESPONSE_LEN": ANSWER_TOKENS,
            **self._options.cache_dir(shapes, long=long),
            **self._options.properties,
        }
        pipeline = _pipeline(self._options, properties, long=long)
        self._prompt_tokens = prompt_tokens
        return pipeline


def _load_npu(options: Options) -> SerialEngine:
    stand_in = str(options.properties.get("NPUW_DEVICES", "NPU"))
    if stand_in == "NPU":
        require_device("NPU")
    notes = preflight.check_npu(Path(options.folder))
    if options.exact:
        raise DeviceError("the NPU computes in float16: it has no exact arithmetic", hint="take --device CPU")
    word = "NPU" if stand_in == "NPU" else f"NPU (NPUW on {stand_in})"
    # A device in the NPU's place is a platform of its own.
    platform, driver = npu_here() if stand_in == "NPU" else (stand_in, None)
    pipelines = NPUPipelines(options, platform, driver, notes)
    return SerialEngine(options, pipelines, word, pipelines.notes)


def _pipeline(options: Options, properties: Mapping[str, Any], *, long: bool) -> genai.LLMPipeline:
    try:
        with options.model_folder(long=long) as folder:
            return genai.LLMPipeline(folder, options.device, **properties)
    except (RuntimeError, MemoryError) as exc:
        raise translated(exc, options.folder, options.device) from exc


def _failed(exc: Exception) -> RuntimeFailedError:
    error = RuntimeFailedError(f"OpenVINO could not answer: {gist(exc)}")
    error.__cause__ = exc
    return error


def scheduler(device: str) -> genai.SchedulerConfig:
    """How the batch is put together.

    The KV cache grows with what is asked (`cache_size` 0), and keeps what it computed, so that the next
    turn of a chat prefills only what is new.
    """
    config = genai.SchedulerConfig()
    config.max_num_batched_tokens = CHUNK_TOKENS[device.partition(".")[0]]
    config.enable_prefix_caching = True
    return config


def as_tensor(ids: list[int]) -> openvino.Tensor:
    """Token ids as the pipelines take them, [1, tokens] int64."""
    return openvino.Tensor(np.array([ids], dtype=np.int64))
