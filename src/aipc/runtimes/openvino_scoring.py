"""An OpenVINO model asked for its scores, in the process that computes.

The pipelines of openvino-genai give token ids only, so the model is compiled by itself, with the same
properties: on CPU and GPU as the stateful model that it is, on the NPU by the same NPUW for the same
static shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aipc import preflight
from aipc.compiled import ANSWER_TOKENS, NPU_ONLY, bucket
from aipc.errors import CheckpointError, RuntimeFailedError, require
from aipc.runtimes.engine import Inbox, Outbox, Request, serve
from aipc.runtimes.openvino_engine import CHUNK_TOKENS, Options, arithmetic, require_device
from aipc.runtimes.openvino_errors import gist, translated
from aipc.runtimes.scoring import write_scores

# The first import decides whether OpenVINO's telemetry comes with it.
require("openvino", "openvino")
import openvino  # noqa: E402

# How openvino-genai asks the plugin for a language model; batch and length are the KV cache's dimensions.
_NPU_LANGUAGE_MODEL = {
    "NPU_USE_NPUW": "YES",
    "NPUW_LLM": "YES",
    "NPUW_LLM_BATCH_DIM": 0,
    "NPUW_LLM_SEQ_LEN_DIM": 2,
    "NPUW_LLM_MIN_RESPONSE_LEN": ANSWER_TOKENS,
}


def main() -> None:
    """Serve the caller at the other end of stdin and stdout."""
    serve(lambda options: ScoringEngine(Options(**options)))


class ScoringEngine:
    """Answers forced requests, one after another.

    raises   DeviceError, SchemeError, CheckpointError, RuntimeFailedError
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._is_npu = options.device == "NPU"
        if self._is_npu:
            preflight.check_npu(Path(options.folder))
        if options.properties.get("NPUW_DEVICES", options.device) == options.device:
            require_device(options.device)
        self._prompt_tokens = 0
        self._long = False
        self._request: Any = None if self._is_npu else self._compile({})
        self.about: Mapping[str, object] = {"device": options.device, "notes": []}

    def run(self, inbox: Inbox, outbox: Outbox) -> None:
        """Answer requests until the inbox is closed."""
        while not inbox.closed:
            for request in inbox.take(wait=True):
                self._answer(request, outbox)
                inbox.forget(request.number)

    def _answer(self, request: Request, outbox: Outbox) -> None:
        assert request.forced is not None  # noqa: S101 - nothing else is asked of this engine
        try:
            model = self._request_for(len(request.prompt), long=self._options.is_long(request))
            write_scores(request, self._scores(model, request.prompt, request.forced.ids), outbox)
        except RuntimeError as exc:
            error = RuntimeFailedError(f"OpenVINO could not answer: {gist(exc)}")
            error.__cause__ = exc
            outbox.error(request.number, error)
            return
        outbox.ids(request.number, [], end=True)

    def _scores(self, request: Any, prompt: list[int], following: list[int]) -> Iterator[np.ndarray]:
        """[vocab_size] float32 before each token of `following`."""
        if not self._is_npu:
            request.reset_state()
        chunk = len(prompt) if self._is_npu else CHUNK_TOKENS[self._options.device.partition(".")[0]]
        for start in range(0, len(prompt), chunk):
            self._compute(request, prompt[start : start + chunk], start)
        yield self._last_scores(request)
        for number, token in enumerate(following[:-1], start=len(prompt)):
            self._compute(request, [token], number)
            yield self._last_scores(request)

    def _compute(self, request: Any, ids: Sequence[int], past: int) -> None:
        """Add the next tokens to what `request` holds."""
        end = past + len(ids)
        inputs = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(past, end, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        for name in self._input_names:
            request.set_tensor(name, openvino.Tensor(inputs[name]))
        request.infer()

    @staticmethod
    def _last_scores(request: Any) -> np.ndarray:
        scores: np.ndarray = request.get_tensor("logits").data[0, -1].astype(np.float32)
        return scores

    def _request_for(self, prompt_tokens: int, *, long: bool) -> Any:
        """An infer request that takes a prompt of so many tokens, with one of LongRoPE's factors."""
        too_small = self._is_npu and prompt_tokens > self._prompt_tokens
        if self._request is None or too_small or long is not self._long:
            # Both at once may be more than the memory holds.
            self._request = None
            self._prompt_tokens, self._long = bucket(prompt_tokens), long
            shapes = {"NPUW_LLM_MAX_PROMPT_LEN": self._prompt_tokens}
            self._request = self._compile(NPU_ONLY | _NPU_LANGUAGE_MODEL | shapes if self._is_npu else {})
        return self._request

    def _compile(self, properties: Mapping[str, Any]) -> Any:
        """An infer request for the model that stands in the folder."""
        asked = self._options
        shapes = str(self._prompt_tokens) if self._is_npu else ""
        wanted = {
            **arithmetic(asked),
            **properties,
            **asked.cache_dir(shapes, long=self._long),
            **asked.properties,
        }
        try:
            with asked.model_folder(long=self._long) as folder:
                model = self._read(Path(folder) / preflight.MODEL_FILE)
                return openvino.Core().compile_model(model, asked.device, wanted).create_infer_request()
        except (RuntimeError, MemoryError) as exc:
            raise translated(exc, asked.folder, asked.device) from exc

    def _read(self, path: Path) -> Any:
        """The model, if it is a language model.

        raises   CheckpointError
        """
        model = openvino.Core().read_model(path)
        self._input_names = [port.any_name for port in model.inputs]
        outputs = [port.any_name for port in model.outputs]
        known = {"input_ids", "attention_mask", "position_ids", "beam_idx"}
        if not {"input_ids", "attention_mask"} <= set(self._input_names) <= known or "logits" not in outputs:
            raise CheckpointError(
                f"{path}: a language model takes input_ids and gives logits; this one takes "
                f"{', '.join(self._input_names)} and gives {', '.join(outputs)}",
                hint="convert the model again, or export it for the task text-generation-with-past",
            )
        return model
