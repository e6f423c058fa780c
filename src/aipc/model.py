"""A model that answers: a folder, its text, and a session on a device."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from aipc import choice, inventory, prepare, verdicts
from aipc.errors import DeviceError, MissingExtraError, SchemeError, UsageError
from aipc.longrope import Crossings
from aipc.plan import Needs
from aipc.runtimes.base import Session
from aipc.text import LogprobsOfText, StopFilter, Text
from aipc.types import (
    Chunk,
    Completion,
    FinishReason,
    Guidance,
    Message,
    Progress,
    Sampling,
    Stats,
    Stream,
    TokenStream,
)

if TYPE_CHECKING:
    from aipc.monitor import Monitor

Prompt = str | Sequence[int] | Sequence[Message | Mapping[str, object]]


def load(
    source: str | Path,
    device: str = "auto",
    runtime: str | None = None,
    exact: bool = False,
    *,
    weight_format: str | None = None,
    revision: str | None = None,
    context_length: int | None = None,
    kv_cache: str | None = None,
    properties: Mapping[str, object] | None = None,
    fast_load: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Model:
    """A model, ready to answer.

    source          an alias, a hub id, a checkpoint folder (converted once, then cached), a converted folder
    device          "auto", "NPU", "GPU", "GPU.1", "CPU", "CUDA:0", "DML:0", "igpu", "dgpu"
    runtime         None for the one that suits the folder and the device
    exact           float32 arithmetic; with unquantised weights, the tokens are those of float32
    weight_format   "fp16", "int8" or "int4"; None for what a converted folder has, int4 for a checkpoint
    revision        of a hub repository: branch, tag or commit
    context_length  most tokens of prompt and answer; None for all that the model takes and memory holds
    kv_cache        numbers in the KV cache, "u8", "f16" or "f32", where the runtime has a choice
    properties      for the runtime below, in its own words; they win over ours
    fast_load       pack the weights for this processor, once, so that they load faster: ONNX Runtime, CPU
    raises          ModelNotFoundError, CheckpointError, UnsupportedModelError, DeviceError, StorageError,
                    SchemeError, MissingExtraError
    """
    started = time.perf_counter()
    # Wrong words are found before anything is fetched.
    needs = Needs(exact=exact, kv_cache=kv_cache, context_length=context_length, fast_load=fast_load)
    chosen = choice.choose(source, device, runtime, needs=needs, weight_format=weight_format).plan
    notes = list(chosen.notes)
    for candidate in chosen.candidates:
        try:
            ready = prepare.ready_model(
                source,
                candidate.runtime,
                candidate.device,
                progress,
                weight_format=weight_format,
                revision=revision,
            )
            model = _open(
                ready,
                candidate,
                exact=exact,
                context_length=context_length,
                kv_cache=kv_cache,
                properties=properties,
                fast_load=fast_load,
            )
        except (DeviceError, SchemeError, MissingExtraError) as exc:
            if chosen.named or candidate is chosen.candidates[-1]:
                raise
            notes.append(f"{candidate} is passed over: {exc.message}")
        else:
            model.load_s = time.perf_counter() - started
            model.notes = (*notes, *model.notes)
            return model
    raise DeviceError("no runtime reaches a device here", hint='pip install "aipc[openvino]"')


def _open(
    ready: prepare.ReadyModel,
    candidate: inventory.Candidate,
    *,
    exact: bool,
    context_length: int | None,
    kv_cache: str | None,
    properties: Mapping[str, object] | None,
    fast_load: bool,
) -> Model:
    """The model on one runtime and device."""
    runtime, device = candidate.runtime, candidate.device
    length = ready.fitting_context(device, runtime, context_length, kv_cache)
    # Only one runtime has something to do for it.
    options = {"fast_load": True} if fast_load else {}
    with ThreadPoolExecutor(1) as reader:
        # Tokenizer and template are read while another process loads the weights.
        reading = reader.submit(Text.load, ready.folder)
        session: Session = inventory.runtime_module(runtime).open_session(
            ready.folder,
            device.word,
            exact=exact,
            properties=properties,
            compiled_dir=ready.compiled_dir(device, runtime),
            context_length=length,
            precision=ready.precision,
            rope_border=ready.rope_border,
            kv_cache=kv_cache,
            **options,
        )
    try:
        text = reading.result()
    except BaseException:
        session.close()
        raise
    notes = session.notes
    if context_length is None and length < ready.context_length:
        notes += (f"memory holds a context of {length} of the model's {ready.context_length} tokens",)
    warning = verdicts.warning(ready.folder, device, inventory.runtime_version(runtime))
    if warning is not None:
        notes += (warning,)
    return Model(
        ready.name,
        text,
        session,
        runtime=runtime.title,
        folder=ready.folder,
        candidate=candidate,
        address=device.address,
        rope_border=ready.rope_border,
        notes=notes,
    )


class Model:
    """Answers prompts on one device. Close it, or use it in a `with` block, to free the device.

    folder        what it was loaded from
    candidate     the runtime and the device it was loaded for
    address       of the device that answers: of PCI or the LUID; None where the runtime does not say it
    rope_border   LongRoPE's factors change after so many tokens, or None
    notes         sentences about what was chosen, for people
    """

    def __init__(
        self,
        name: str,
        text: Text,
        session: Session,
        *,
        runtime: str,
        folder: Path | None = None,
        address: str | None = None,
        candidate: inventory.Candidate | None = None,
        load_s: float = 0.0,
        rope_border: int | None = None,
        notes: Iterable[str] = (),
    ) -> None:
        self.name = name
        self.text = text
        self.session = session
        self.runtime = runtime
        self.folder = folder
        self.address = address
        self.candidate = candidate
        self.load_s = load_s
        self.notes = tuple(notes)
        self._crossings = Crossings(rope_border)

    @property
    def device(self) -> str:
        """The device that answers."""
        return self.session.device

    @property
    def precision(self) -> str:
        """Of the weights and the arithmetic, for people."""
        return self.session.precision

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and answer together."""
        return self.session.context_length

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 1024,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        response_format: Mapping[str, object] | None = None,
        raw: bool = False,
        monitor: Monitor | None = None,
        ignore_eos: bool = False,
        logprobs: int | None = None,
    ) -> Stream[Chunk]:
        """The answer, piece by piece; `close` stops the work, and so does `cancel`, from any thread.

        prompt           one user message, with raw=True plain text; messages; or token ids
        max_new_tokens   fewer if the context is full before
        temperature      0 is greedy
        stop             strings that end the answer and are not part of it
        response_format  what the answer must look like, as OpenAI's clients write it: {"type": "json_object"}
                         or {"type": "json_schema", "json_schema": {"schema": {...}}}; and {"type": "regex",
                         "pattern": "..."}. Cut short by max_new_tokens it is incomplete
        monitor          a running one: what it sees of the device is in the Stats
        ignore_eos       go on after the end of text, as measurements do
        logprobs         tell in the Chunks how likely each token was, by the softmax of the model's own
                         scores (before temperature, top_p and the rest), and so many of the likeliest in
                         its place: 0 to 20 on ONNX Runtime, 0 on OpenVINO's CPU and GPU, none on its NPU
        raises           UsageError for a value that cannot be or that the runtime does not have,
                         PromptTooLongError
        """
        sampling = Sampling(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop_ids=frozenset() if ignore_eos else self.text.stop_ids,
            guidance=Guidance.parse(response_format),
            logprobs=logprobs,
        )
        stop_filter = StopFilter((stop,) if isinstance(stop, str) else stop)
        ids = self.encode(prompt, raw=raw)
        started = time.perf_counter()
        tokens = self.session.generate(ids, sampling)
        cancelled = tokens.cancelled if isinstance(tokens, Stream) else threading.Event()
        chunks = self._stream(
            ids, tokens, cancelled, sampling=sampling, stop_filter=stop_filter, started=started
        )
        watched = chunks if monitor is None else monitor.watch(chunks, self.device, self.address)
        return Stream(watched, cancelled)

    def generate(self, prompt: Prompt, **options: Any) -> Completion:
        """The whole answer at once; the options are those of `stream`."""
        chunks = list(self.stream(prompt, **options))
        last = chunks[-1]
        assert last.finish_reason is not None  # noqa: S101 - what _stream promises of its last chunk
        assert last.stats is not None  # noqa: S101
        return Completion(
            text="".join(chunk.text for chunk in chunks),
            token_ids=tuple(token for chunk in chunks for token in chunk.token_ids),
            finish_reason=last.finish_reason,
            stats=last.stats,
            logprobs=tuple(one for chunk in chunks for one in chunk.logprobs),
        )

    def encode(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """The token ids of a prompt.

        raises   UsageError for what is neither text, messages nor token ids
        """
        if isinstance(prompt, str):
            return self.text.encode(prompt) if raw else self.text.encode_chat([Message("user", prompt)])
        items = list(prompt)
        if not items:
            raise UsageError("the prompt is empty")
        if all(isinstance(item, int) for item in items):
            return items  # type: ignore[return-value]
        return self.text.encode_chat([Message.parse(item) for item in items])  # type: ignore[arg-type]

    def close(self) -> None:
        """Free the device."""
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stream(
        self,
        prompt: Sequence[int],
        tokens: Iterator[int],
        cancelled: threading.Event,
        *,
        sampling: Sampling,
        stop_filter: StopFilter,
        started: float,
    ) -> Generator[Chunk, None, None]:
        """Ids to text, and the only clock: time is taken where a token is received."""
        room = self.context_length - len(prompt)
        long_factors, prefilled_anew = self._crossings.add(prompt, min(sampling.max_new_tokens, room))
        decoder = self.text.decoder()
        likely = None if sampling.logprobs is None else LogprobsOfText(self.text)
        first = last = None
        received = 0
        reason: FinishReason = "length"
        try:
            for token in tokens:
                last = time.perf_counter()
                first = first or last
                received += 1
                if token in sampling.stop_ids:
                    reason = "stop"
                    break
                decoded = decoder.push(token)
                text = stop_filter.push(decoded)
                if stop_filter.stopped:
                    reason = "stop"
                if likely is None:
                    yield Chunk(text, (token,))
                else:
                    yield Chunk(text, (int(token),), logprobs=likely.push(token, decoded, text))
                if stop_filter.stopped or cancelled.is_set():
                    break
        finally:
            close = getattr(tokens, "close", None)
            if close is not None:
                close()
        if cancelled.is_set() and reason == "length":
            reason = "cancelled"
        rest = stop_filter.push(decoder.finish()) + stop_filter.finish()
        yield Chunk(
            rest,
            (),
            "stop" if stop_filter.stopped else reason,
            replace(
                self._stats(len(prompt), received, started, first, last),
                long_factors=long_factors,
                prefilled_anew=prefilled_anew,
                cached_tokens=tokens.prefill.cached_tokens if isinstance(tokens, TokenStream) else None,
            ),
            () if likely is None else likely.finish(rest, stopped=stop_filter.stopped),
        )

    def _stats(
        self, prompt_tokens: int, received: int, started: float, first: float | None, last: float | None
    ) -> Stats:
        """Prefill is in TTFT and never in TPOT."""
        later = received - 1
        return Stats(
            prompt_tokens=prompt_tokens,
            generated_tokens=received,
            load_s=self.load_s,
            ttft_s=None if first is None else first - started,
            tpot_s=(last - first) / later if first is not None and last is not None and later > 0 else None,
            device=self.device,
            runtime=self.runtime,
            precision=self.precision,
        )
