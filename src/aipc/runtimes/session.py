"""The caller's side of a runtime whose engine runs in a process of its own: what is asked is checked here."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from aipc.errors import PromptTooLongError, UsageError
from aipc.runtimes.process import EngineProcess, Worker
from aipc.types import Sampling, TokenStream

# The runtimes compute in float32, where less than this is 0, or makes infinity of a score.
_LEAST = 1e-30


class EngineSession:
    """A `Session` over a `Worker`: after the death of its process, the next request starts a fresh one.

    vocab_size       how many ids the model knows, or None where nothing says so
    notes            what happened while it was loaded, for people
    """

    def __init__(self, worker: Worker, vocab_size: int | None, context_length: int, precision: str) -> None:
        self._worker = worker
        self._vocab_size = vocab_size
        self._most_logprobs: int | None = worker.ready.get("logprobs")
        self.device = str(worker.ready["device"])
        self.notes: tuple[str, ...] = tuple(worker.ready["notes"])
        self.precision = precision
        self.context_length = context_length

    @property
    def pid(self) -> int:
        """The number of the process that computes."""
        return self._worker.pid

    @property
    def alive(self) -> bool:
        """Whether that process is there."""
        return self._worker.alive

    def when_ended(self, call: Callable[[], None]) -> None:
        """Have this called in a thread whenever that process has ended, by itself or by `close`."""
        self._worker.when_ended(call)

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> TokenStream:
        """The ids that follow `prompt`; see `Session.generate`.

        raises   UsageError for an empty prompt, an id that does not exist, or log-probabilities that the
                 runtime does not give; PromptTooLongError; RuntimeFailedError
        """
        room = self.context_length - len(prompt)
        if not prompt:
            raise UsageError("the prompt is empty", hint="give at least one token")
        if room < 1:
            raise PromptTooLongError(
                # Agents and their libraries look for OpenAI's "maximum context length is 2048 tokens".
                f"the prompt has {len(prompt)} tokens; this model's maximum context length is "
                f"{self.context_length} tokens on {self.device}, for prompt and answer together",
                hint="shorten the prompt",
            )
        self._check_ids(prompt)
        self._check_logprobs(sampling.logprobs)
        # numpy's integers are no int to JSON.
        ids = [int(token) for token in prompt]
        seed = secrets.randbits(32) if sampling.seed is None else sampling.seed % 2**32
        fitting = replace(
            sampling,
            max_new_tokens=min(sampling.max_new_tokens, room),
            seed=seed,
            # More than there are is all of them, but ONNX Runtime refuses it.
            top_k=0 if self._vocab_size and sampling.top_k >= self._vocab_size else sampling.top_k,
            top_p=max(sampling.top_p, _LEAST),
            temperature=sampling.temperature and max(sampling.temperature, _LEAST),
            repetition_penalty=max(sampling.repetition_penalty, _LEAST),
        )
        return self._worker.stream(ids, fitting)

    def close(self) -> None:
        """Free the device; every running stream ends with RuntimeFailedError."""
        self._worker.close()

    def _check_ids(self, prompt: Sequence[int]) -> None:
        """The runtimes look an id up without looking at it first."""
        low, high = min(prompt), max(prompt)
        if low < 0 or (self._vocab_size is not None and high >= self._vocab_size):
            limit = "0 or more" if self._vocab_size is None else f"0 to {self._vocab_size - 1}"
            raise UsageError(f"the prompt has the id {low if low < 0 else high}; possible are {limit}")

    def _check_logprobs(self, asked: int | None) -> None:
        most = self._most_logprobs
        if asked is None or (most is not None and asked <= most):
            return
        hint = "take --runtime onnxruntime, which tells of 20, or leave the log-probabilities out"
        if most is None:
            raise UsageError(f"on {self.device} this runtime gives no log-probabilities", hint=hint)
        told = f"{most} alternatives" if most else "the chosen token alone"
        raise UsageError(
            f"log-probabilities of {asked} alternatives are asked for; on {self.device} this runtime tells "
            f"those of {told}",
            hint=hint,
        )


class EngineScorer:
    """A `Scorer` over an engine that answers forced requests.

    raises   what the engine raised while it loaded
    """

    def __init__(self, module: str, options: Mapping[str, object]) -> None:
        self._process = EngineProcess(module, options)

    def scores(
        self, prompt: Sequence[int], following: Sequence[int], scored: Callable[[], None] = lambda: None
    ) -> np.ndarray:
        """See `Scorer.scores`."""
        with tempfile.TemporaryDirectory(prefix="aipc-scores-") as folder:
            path = Path(folder) / "scores.npy"
            for _ in self._process.write_scores(prompt, following, path):
                scored()
            scores: np.ndarray = np.load(path, allow_pickle=False)
        return scores

    def close(self) -> None:
        """Free the device."""
        self._process.close()
