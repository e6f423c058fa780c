"""ONNX Runtime GenAI in the process that computes: one stream at a time.

A generator of the runtime computes the scores, and the choice is ours. So a generator lives as long as its
memory suffices, whatever each request asks of the choice, and the next turn of a chat computes only what is
new. Two things remain for the runtime's own choice: guidance, which masks the scores inside it, and DirectML,
where a generator takes a single prompt.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aipc.errors import AipcError, DeviceError, UsageError
from aipc.longrope import takes_long_factors
from aipc.phi3 import ONNX_FACTORS_MODEL_FILE, ONNX_LONG_FACTORS, read_json_object
from aipc.runtimes.cores import physical_cores
from aipc.runtimes.engine import Inbox, Outbox, Request, serve
from aipc.runtimes.onnxruntime_errors import failed, gist, translated
from aipc.runtimes.onnxruntime_options import Options
from aipc.runtimes.sampling import choose, scored
from aipc.runtimes.scoring import write_scores
from aipc.types import MAX_LOGPROBS, Sampling

# The package reports to Microsoft unless it finds this before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime_genai as og

# A prompt is computed in chunks; between two of them a cancel is heard. 64 cost 2 % of the prefill, and 256
# gained nothing.
CHUNK_TOKENS = 128

# The memory of a generator is taken at once: in steps of so many tokens.
CAPACITY_STEP = 256

# A generator is kept for a prompt that leaves it so much room: most answers are far shorter than allowed.
ENOUGH_ROOM = 256

_PROVIDERS = {"CPU": "", "CUDA": "cuda", "DML": "dml"}

# A generator reads these arrays at every step and does not copy them.
_CHOICES = {False: np.array([[0]], np.int64), True: np.array([[1]], np.int64)}

# A score that no search chooses.
_NEVER = -1e4

Wanted = Callable[[], bool]


def main() -> None:
    """Serve the caller at the other end of stdin and stdout."""
    serve(lambda options: load(Options(**options)))


def load(options: Options) -> OnnxEngine:
    """The engine for a device, warm.

    raises   DeviceError, CheckpointError, UnsupportedModelError, UsageError, RuntimeFailedError
    """
    config = _config(options)
    try:
        model = og.Model(config)
    except (RuntimeError, MemoryError) as exc:
        raise translated(exc, options.folder, options.device) from exc
    provider = options.device.partition(":")[0]
    if provider != "CPU" and model.device_type == "CPU":
        raise DeviceError(f"ONNX Runtime took the CPU in place of {options.device}", hint="take --device CPU")
    engine = OnnxEngine(model, options)
    try:
        engine.warm_up()
    except (RuntimeError, MemoryError) as exc:
        raise translated(exc, options.folder, options.device) from exc
    return engine


def _config(options: Options) -> og.Config:
    """The folder's configuration, for one device and all cores."""
    provider, _, number = options.device.partition(":")
    name = _PROVIDERS[provider]
    try:
        config = og.Config(options.folder)
        config.clear_providers()
        if name:
            config.append_provider(name)
            for key, value in provider_options(Path(options.folder), name).items():
                config.set_provider_option(name, key, value)
            if int(number or 0):
                config.set_provider_option(name, "device_id" if name == "cuda" else "device_index", number)
    except RuntimeError as exc:
        raise translated(exc, options.folder, options.device) from exc
    decoder = _decoder(Path(options.folder))
    session = {"intra_op_num_threads": physical_cores()} | dict(options.properties)
    ours: dict[str, Any] = {"session_options": session}
    if takes_factors(options):
        ours["filename"] = ONNX_FACTORS_MODEL_FILE
    window = decoder.get("sliding_window")
    if isinstance(window, dict) and "cache_slack" in window:
        # The model builder's cache for a window is full at the first prompt that is longer than the window.
        ours["sliding_window"] = window | {"cache_slack": options.context_length}
    try:
        config.overlay(json.dumps({"model": {"decoder": ours}}))
    except RuntimeError as exc:
        raise UsageError(f"ONNX Runtime does not take these session options: {gist(exc)}") from exc
    return config


def takes_factors(options: Options) -> bool:
    """Whether the model can be told which of LongRoPE's factors to take."""
    return options.rope_border is not None and (Path(options.folder) / ONNX_FACTORS_MODEL_FILE).is_file()


def provider_options(folder: Path, name: str) -> dict[str, str]:
    """What the folder itself asks of a provider.

    raises   CheckpointError
    """
    session = _decoder(folder).get("session_options")
    listed = session.get("provider_options") if isinstance(session, dict) else None
    for entry in listed if isinstance(listed, list) else []:
        for found, options in entry.items() if isinstance(entry, dict) else []:
            if found.lower() == name and isinstance(options, dict):
                return {str(key): str(option) for key, option in options.items()}
    return {}


def _decoder(folder: Path) -> dict[str, Any]:
    """model.decoder of genai_config.json, or nothing where it is no object."""
    model = read_json_object(folder / "genai_config.json").get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    return decoder if isinstance(decoder, dict) else {}


@dataclass(frozen=True, slots=True)
class Factors:
    """Which of LongRoPE's factors a text is computed with.

    long     those for long texts
    border   where the graph itself decides, it takes those only when it sees more tokens than these at once
    """

    long: bool = False
    border: int | None = None

    def first_chunk(self, chunk: int) -> int:
        """How many tokens must be computed at once in the beginning."""
        return max(chunk, self.border + 1) if self.long and self.border is not None else chunk

    def apply(self, generator: og.Generator) -> None:
        """Tell a graph that is to be told."""
        if self.border is None:
            generator.set_model_input(ONNX_LONG_FACTORS, _CHOICES[self.long])


class KVCache:
    """The keys and values of the tokens computed last, inside a generator of the runtime.

    capacity   most tokens it takes; the memory is taken at once
    factors    what all its tokens are computed with; None for a model with one set
    tokens     what it holds
    """

    def __init__(self, model: og.Model, capacity: int, factors: Factors | None = None) -> None:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=capacity, do_sample=False)
        self._generator = og.Generator(model, params)
        if factors is not None:
            factors.apply(self._generator)
        self.capacity = capacity
        self.factors = factors
        self.tokens: list[int] = []

    def keep(self, tokens: list[int]) -> int:
        """Forget what is not the beginning of `tokens`, or their last one; how many are left."""
        same = _common(self.tokens, tokens[:-1])
        if same < len(self.tokens):
            self._generator.rewind_to(same)
            del self.tokens[same:]
        return same

    def append(self, ids: list[int]) -> None:
        """Compute more tokens."""
        # Always by append_tokens: after generate_next_token its own last token may be missing in the cache.
        self._generator.append_tokens(np.array(ids, np.int32))
        self.tokens += ids

    def logits(self) -> np.ndarray:
        """The scores of what could follow, [vocab_size] float32."""
        scores: np.ndarray = self._generator.get_logits().reshape(-1)
        return scores


class OnnxEngine:
    """Answers one request after another."""

    def __init__(self, model: og.Model, options: Options) -> None:
        self._model = model
        self._device = options.device
        self._context = options.context_length
        self._border = options.rope_border
        self._takes_factors = takes_factors(options)
        # A generator on DirectML takes one prompt, at once.
        self._appends = not options.device.startswith("DML")
        self._cache: KVCache | None = None
        # How many tokens of the newest prompt were there already.
        self._cached = 0
        self.about: Mapping[str, object] = {"device": options.device, "notes": [], "logprobs": MAX_LOGPROBS}

    def run(self, inbox: Inbox, outbox: Outbox) -> None:
        """Answer requests until the inbox is closed."""
        while not inbox.closed:
            for request in inbox.take(wait=True):
                if not inbox.withdrawn(request.number):
                    self._answer(request, inbox, outbox)
                inbox.forget(request.number)

    def warm_up(self) -> None:
        """Compute a prompt and a step, which are prepared apart."""
        for _ in self._tokens([0], Sampling(max_new_tokens=2), lambda: True):
            pass
        self._cache = None

    def _answer(self, request: Request, inbox: Inbox, outbox: Outbox) -> None:
        def wanted() -> bool:
            return not inbox.withdrawn(request.number)

        sampling = request.sampling
        try:
            if request.forced is not None:
                write_scores(request, self._scores(request.prompt, request.forced.ids), outbox)
            else:
                for count, token in enumerate(self._tokens(request.prompt, sampling, wanted)):
                    outbox.ids(request.number, [token], end=False, cached=None if count else self._cached)
        except AipcError as error:
            outbox.error(request.number, error)
        except (RuntimeError, MemoryError) as exc:
            # Nobody knows what a generator holds that broke.
            self._cache = None
            ours = failed(exc, self._device, guided=sampling.guidance is not None)
            ours.__cause__ = exc
            outbox.error(request.number, ours)
        else:
            # One that was withdrawn has no end: its caller may be told of another, such as a closed model.
            if wanted():
                outbox.ids(request.number, [], end=True)

    def _tokens(self, prompt: list[int], sampling: Sampling, wanted: Wanted) -> Iterator[int]:
        if self._appends and sampling.guidance is None:
            return self._by_our_choice(prompt, sampling, wanted)
        return self._by_the_runtimes_choice(prompt, sampling, wanted)

    def _factors(self, tokens: int, end: int) -> Factors | None:
        """What a text of so many tokens is computed with, which may grow to `end`.

        Where the graph decides, it does so by what it sees: a text that outgrows the border is computed anew.
        """
        if self._border is None:
            return None
        if self._takes_factors:
            return Factors(takes_long_factors(self._border, tokens, end - tokens))
        return Factors(tokens > self._border, self._border)

    def _by_our_choice(self, prompt: list[int], sampling: Sampling, wanted: Wanted) -> Iterator[int]:
        """The answer, until it ends or is no longer wanted."""
        tokens, end = list(prompt), len(prompt) + sampling.max_new_tokens
        random = np.random.default_rng(sampling.seed)
        cache = self._cache_for(tokens, end)
        while len(tokens) < end:
            if len(tokens) > cache.capacity or cache.factors != self._factors(len(tokens), end):
                cache = self._new_cache(tokens, end)
            if not self._compute(cache, tokens, wanted):
                return
            logits = cache.logits()
            tokens.append(choose(logits, tokens, sampling, random))
            yield tokens[-1] if sampling.logprobs is None else scored(tokens[-1], logits, sampling.logprobs)
            if tokens[-1] in sampling.stop_ids:
                return

    def _scores(self, prompt: list[int], following: list[int]) -> Iterator[np.ndarray]:
        """[vocab_size] float32 before each token of an answer that is given."""
        tokens, end = list(prompt), len(prompt) + len(following)
        generator = self._prefilled(tokens, end, Sampling(), lambda: True)
        assert generator is not None  # noqa: S101 - it is wanted
        yield generator.get_logits().reshape(-1).copy()
        for token in following[:-1]:
            # DirectML takes no second prompt: there as everywhere the search is made to choose the token.
            scores = np.full_like(generator.get_logits(), _NEVER)
            scores[..., token] = 0.0
            generator.set_logits(scores)
            generator.generate_next_token()
            yield generator.get_logits().reshape(-1).copy()

    def _compute(self, cache: KVCache, tokens: list[int], wanted: Wanted) -> bool:
        """Make the cache hold `tokens`, the last of them newly computed; False if nobody wants that now."""
        start = self._cached = cache.keep(tokens)
        first = CHUNK_TOKENS if cache.factors is None else cache.factors.first_chunk(CHUNK_TOKENS)
        while start < len(tokens):
            if not wanted():
                return False
            stop = max(start + CHUNK_TOKENS, first)
            cache.append(tokens[start:stop])
            start = stop
        return wanted()

    def _cache_for(self, prompt: list[int], end: int) -> KVCache:
        """The cache that is there, if it has room for most answers; else one with room for this one."""
        if self._cache is None or self._cache.capacity < min(end, len(prompt) + ENOUGH_ROOM):
            return self._new_cache(prompt, end)
        return self._cache

    def _new_cache(self, tokens: list[int], end: int) -> KVCache:
        """A new cache. For a chat that goes on it grows by half, so that this happens seldom."""
        old, self._cache = self._cache, None
        grows = old is not None and _common(old.tokens, tokens) > len(tokens) // 2
        wanted = max(end, old.capacity * 3 // 2) if grows and old is not None else end
        # The memory of the old one is free before that of the new one is taken.
        del old
        capacity = min(-(-wanted // CAPACITY_STEP) * CAPACITY_STEP, self._context)
        self._cache = KVCache(self._model, capacity, self._factors(len(tokens), end))
        return self._cache

    def _by_the_runtimes_choice(self, prompt: list[int], sampling: Sampling, wanted: Wanted) -> Iterator[int]:
        """The same, by the runtime's own search: each request is computed from its beginning."""
        self._cache, self._cached = None, 0
        tokens, end = list(prompt), len(prompt) + sampling.max_new_tokens
        generator = None
        while len(tokens) < end:
            generator = generator or self._prefilled(tokens, end, sampling, wanted)
            if generator is None or not wanted():
                return
            # The search changes them.
            logits = None if sampling.logprobs is None else generator.get_logits().reshape(-1).copy()
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
            yield tokens[-1] if logits is None else scored(tokens[-1], logits, sampling.logprobs or 0)
            if tokens[-1] in sampling.stop_ids:
                return
            if len(tokens) < end and generator.is_done():
                if sampling.guidance is not None:
                    return
                # It stops at the folder's own ids, which are not ours: it goes on as a longer prompt.
                generator = None

    def _prefilled(
        self, tokens: list[int], end: int, sampling: Sampling, wanted: Wanted
    ) -> og.Generator | None:
        """A generator that has computed `tokens`, or None if nobody wants it any more."""
        params = og.GeneratorParams(self._model)
        params.set_search_options(**search_options(sampling, end))
        if sampling.guidance is not None:
            params.set_guidance(*guidance(sampling))
        generator = og.Generator(self._model, params)
        first = CHUNK_TOKENS if self._appends else len(tokens)
        factors = self._factors(len(tokens), end)
        if factors is not None:
            factors.apply(generator)
            first = factors.first_chunk(first)
        starts = [0, *range(first, len(tokens), CHUNK_TOKENS)]
        for start, stop in zip(starts, [*starts[1:], len(tokens)], strict=True):
            if not wanted():
                return None
            generator.append_tokens(np.array(tokens[start:stop], np.int32))
        return generator


def search_options(sampling: Sampling, max_length: int) -> dict[str, Any]:
    """Our sampling in the runtime's words.

    max_length   tokens of prompt and answer together
    """
    options: dict[str, Any] = {
        "max_length": max_length,
        "do_sample": not sampling.greedy,
        "repetition_penalty": sampling.repetition_penalty,
    }
    if not sampling.greedy:
        options |= {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "random_seed": (sampling.seed or 0) % 2**31,
        }
    return options


def guidance(sampling: Sampling) -> tuple[str, str]:
    """Guidance as the runtime takes it: what it is, and its text."""
    asked = sampling.guidance
    assert asked is not None  # noqa: S101 - the caller asked before
    if asked.kind == "regex":
        return "regex", asked.text
    # Else a model may write blanks for ever.
    schema = json.loads(asked.text) | {"x-guidance": {"whitespace_flexible": False}}
    return "json_schema", json.dumps(schema)


def _common(first: list[int], second: list[int]) -> int:
    """How many tokens two sequences begin with in common."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    return next(place for place in range(shorter) if first[place] != second[place])
