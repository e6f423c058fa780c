"""OpenVINO GenAI in the process that computes: the pipelines, and their words in ours.

Two engines. `BatchEngine` is for CPU and GPU: paged attention, any number of streams in each step.
`SerialEngine` is for the NPU, and for models that paged attention does not take: one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aipc import preflight
from aipc.errors import AipcError, DeviceError, RuntimeFailedError, UsageError, require
from aipc.runtimes.engine import Engine, Inbox, Outbox, Request, serve
from aipc.runtimes.openvino_errors import gist, translated
from aipc.types import Sampling

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

# "NPU" means the NPU: by default NPUW moves what fails there to the CPU without a word.
NPU_ONLY = {"NPUW_DEVICES": "NPU", "NPUW_FALLBACK_EXEC": "NO"}

# A long prompt is computed in chunks; between two of them a cancel is heard and other streams go on.
# On a CPU 256 cost 2.5 % of the prefill, 512 and more nothing that could be measured.
CHUNK_TOKENS = {"CPU": 512, "GPU": 1024}

# What an NPU model is compiled for: a prompt of 1024, 2048, 4096 … tokens, and so much for the answer.
SMALLEST_BUCKET = 1024
ANSWER_TOKENS = 1024

# The first inference repacks the weights, and a decode step is compiled apart from a prefill.
_WARM_UP = Sampling(max_new_tokens=2)


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller's `open_session` hands over; JSON turns paths into text."""

    folder: str
    device: str
    exact: bool
    properties: Mapping[str, Any]
    compiled_dir: str | None


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
    properties = dict(EXACT) if options.exact else {}
    if options.compiled_dir is not None:
        properties["CACHE_DIR"] = options.compiled_dir
    properties |= options.properties
    try:
        batching = genai.ContinuousBatchingPipeline(
            options.folder,
            scheduler(options.device),
            options.device,
            {"sampler_num_threads": 1} | properties,
        )
    except (RuntimeError, MemoryError) as exc:
        error = translated(exc, options.folder, options.device)
        if type(error) is not RuntimeFailedError:
            raise error from exc
    else:
        return BatchEngine(batching, options.device, Grammars(options.folder))
    note = f"paged attention does not take this model ({error.message}): it answers one request at a time"
    pipeline = _pipeline(options.folder, options.device, {"ATTENTION_BACKEND": "SDPA"} | properties)
    return SerialEngine(lambda _tokens: pipeline, options.device, Grammars(options.folder), (note,))


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
    """Continuous batching: each step computes one token of every stream, and chunks of new prompts."""

    def __init__(self, pipeline: genai.ContinuousBatchingPipeline, device: str, grammars: Grammars) -> None:
        self._pipeline = pipeline
        self._grammars = grammars
        self._streams: dict[int, genai.GenerationHandle] = {}
        self.about: Mapping[str, object] = {"device": device, "notes": []}
        self._warm_up()

    def run(self, inbox: Inbox, outbox: Outbox) -> None:
        """Answer requests until the inbox is closed."""
        while not inbox.closed:
            for request in inbox.take(wait=not self._streams):
                self._admit(request, outbox)
            for number in [n for n in self._streams if inbox.withdrawn(n)]:
                self._streams.pop(number).cancel()
                inbox.forget(number)
            # A step also frees what a cancelled stream held.
            if self._pipeline.has_non_finished_requests():
                self._pipeline.step()
                self._deliver(inbox, outbox)

    def _admit(self, request: Request, outbox: Outbox) -> None:
        try:
            self._grammars.check(request.sampling.guidance)
            self._streams[request.number] = self._pipeline.add_request(
                request.number, as_tensor(request.prompt), generation_config(request.sampling)
            )
        except AipcError as error:
            outbox.error(request.number, error)
        except RuntimeError as exc:
            outbox.error(request.number, _failed(exc))

    def _deliver(self, inbox: Inbox, outbox: Outbox) -> None:
        """Give out what the last step made."""
        for number, handle in list(self._streams.items()):
            status = handle.get_status()
            ids: list[int] = []
            while handle.can_read():
                ids += next(iter(handle.read().values())).generated_ids
            end = status != genai.GenerationStatus.RUNNING
            if end:
                del self._streams[number]
                inbox.forget(number)
            if status == genai.GenerationStatus.IGNORED:
                outbox.error(number, _NO_ROOM)
            elif ids or end:
                outbox.ids(number, ids, end=end)

    def _warm_up(self) -> None:
        handle = self._pipeline.add_request(0, as_tensor([0]), generation_config(_WARM_UP))
        while handle.get_status() == genai.GenerationStatus.RUNNING:
            self._pipeline.step()


_NO_ROOM = RuntimeFailedError(
    "there is not enough memory for the KV cache of this request",
    hint="shorten the prompt, or run fewer streams at once",
)


class SerialEngine:
    """One stream at a time through an `LLMPipeline`.

    pipeline_for   gives a pipeline that takes a prompt of so many tokens
    """

    def __init__(
        self,
        pipeline_for: Callable[[int], genai.LLMPipeline],
        device: str,
        grammars: Grammars,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._pipeline_for = pipeline_for
        self._grammars = grammars
        self.about: Mapping[str, object] = {"device": device, "notes": list(notes)}
        pipeline_for(2).generate(as_tensor([0, 0]), generation_config(_WARM_UP))

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
        self._pipeline_for(len(ids)).generate(as_tensor(ids), generation_config(sampling), streamer)
        if len(streamer.ids) == made and not streamer.ended:
            raise RuntimeFailedError("OpenVINO gave no token and no reason", hint="try again on the CPU")


class _Streamer(genai.StreamerBase):  # type: ignore[misc]
    """Hands each new id on, and tells the pipeline when nobody wants the next."""

    def __init__(self, request: Request, inbox: Inbox, outbox: Outbox) -> None:
        super().__init__()
        self.request = request
        self.ids: list[int] = []
        self._inbox, self._outbox = inbox, outbox

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
        self._outbox.ids(self.request.number, new, end=False)
        return genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """Called after the last one."""


class NPUPipelines:
    """The NPU's pipeline. It is compiled for fixed lengths, and anew when a prompt needs more.

    An answer that outgrows its length becomes part of a longer prompt: what a caller allows is mostly far
    more than what a model says, and not worth minutes of compiling before it is needed.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._prompt_tokens = 0
        self._pipeline: genai.LLMPipeline | None = None

    def __call__(self, prompt_tokens: int) -> genai.LLMPipeline:
        """A pipeline that takes a prompt of so many tokens.

        raises   UsageError, SchemeError, DeviceError, RuntimeFailedError
        """
        if prompt_tokens < 2:
            # NPUW would take a single token for the next one of the answer before, and answer wrongly.
            raise UsageError("the NPU takes prompts of two tokens or more; this one has one")
        if self._pipeline is None or prompt_tokens > self._prompt_tokens:
            # Both at once may be more than the memory holds.
            self._pipeline = None
            self._pipeline = self._compile(bucket(prompt_tokens), ANSWER_TOKENS)
            self._prompt_tokens = bucket(prompt_tokens)
        return self._pipeline

    def _compile(self, prompt_tokens: int, answer_tokens: int) -> genai.LLMPipeline:
        properties: dict[str, Any] = {
            **NPU_ONLY,
            "MAX_PROMPT_LEN": prompt_tokens,
            "MIN_RESPONSE_LEN": answer_tokens,
        }
        if self._options.compiled_dir is not None:
            shapes = f"{prompt_tokens}-{answer_tokens}"
            properties["CACHE_DIR"] = str(Path(self._options.compiled_dir) / shapes)
        return _pipeline(self._options.folder, "NPU", properties | dict(self._options.properties))


def bucket(tokens: int) -> int:
    """The smallest of 1024, 2048, 4096 … that is not less than `tokens`."""
    return max(SMALLEST_BUCKET, 1 << (tokens - 1).bit_length())


def _load_npu(options: Options) -> SerialEngine:
    stand_in = str(options.properties.get("NPUW_DEVICES", "NPU"))
    if stand_in == "NPU":
        require_device("NPU")
    notes = preflight.check_npu(Path(options.folder))
    if options.exact:
        raise DeviceError("the NPU computes in float16: it has no exact arithmetic", hint="take --device CPU")
    word = "NPU" if stand_in == "NPU" else f"NPU (NPUW on {stand_in})"
    return SerialEngine(NPUPipelines(options), word, Grammars(options.folder), notes)


def _pipeline(folder: str, device: str, properties: Mapping[str, Any]) -> genai.LLMPipeline:
    try:
        return genai.LLMPipeline(folder, device, **properties)
    except (RuntimeError, MemoryError) as exc:
        raise translated(exc, folder, device) from exc


def _failed(exc: RuntimeError) -> RuntimeFailedError:
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
