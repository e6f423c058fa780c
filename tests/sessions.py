"""Random models behind real sessions, beside the numpy reference with the same weights."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from aipc.conversion.checkpoint import Checkpoint
from aipc.conversion.convert import write_weights
from aipc.conversion.formats import formats_named
from aipc.conversion.recipe import make_recipe
from aipc.phi3 import Phi3Config
from aipc.runtimes.base import RUNTIMES
from aipc.runtimes.engine import Request
from aipc.runtimes.reference import ReferenceSession
from aipc.runtimes.session import EngineSession
from aipc.types import Sampling
from checkpoints import SINGLE_FILE, write_checkpoint, write_safetensors

CONTEXT = 4096
GREEDY = Sampling(max_new_tokens=24)
FORMATS = {"openvino": "openvino", "onnxruntime": "onnx"}


class RandomModel:
    """A random model in a folder for a runtime, and the numpy reference with the same weights.

    context   most tokens of prompt and answer together
    weights   in place of random ones, exact in float16
    """

    def __init__(
        self,
        runtime: str,
        folder: Path,
        shape: dict[str, Any],
        *,
        context: int = CONTEXT,
        weights: Mapping[str, np.ndarray] | None = None,
        **recipe: Any,
    ) -> None:
        checkpoint = folder / "checkpoint"
        random = write_checkpoint(checkpoint, shape, dtype="F16", max_position_embeddings=context)
        if weights is not None:
            write_safetensors(checkpoint / SINGLE_FILE, weights, "F16")
        self.runtime = runtime
        self.config = Phi3Config.read(checkpoint)
        self.folder = folder / runtime
        self.folder.mkdir()
        for name in ("config.json", "generation_config.json"):
            shutil.copyfile(checkpoint / "config.json", self.folder / name)
        scheme = make_recipe(self.config, **recipe)
        (kind,) = formats_named((FORMATS[runtime],), "cpu")
        if runtime == "onnxruntime":
            kind.write_texts(checkpoint, self.folder, self.config)
        writer = kind.open_writer(self.folder, self.config, scheme)
        write_weights(Checkpoint.open(checkpoint), self.config, scheme, [writer])
        writer.close()
        self.reference = ReferenceSession(self.config, weights or random)

    def _defaults(self) -> dict[str, Any]:
        config = self.config
        context, border = config.context_length, config.rope_border
        return {"context_length": context, "precision": "fp16", "rope_border": border}

    def open(self, device: str = "CPU", folder: Path | None = None, **options: Any) -> EngineSession:
        """A session on the folder, or on another one."""
        module = importlib.import_module(RUNTIMES[self.runtime].module)
        opened: EngineSession = module.open_session(
            folder or self.folder, device, **self._defaults() | options
        )
        return opened


def ids(count: int, seed: int = 0) -> list[int]:
    """Random token ids."""
    return [int(token) for token in np.random.default_rng(seed).integers(3, 300, count)]


class Script:
    """An inbox and an outbox in one: what is asked next is said by what was answered.

    react   called with the number of a request, how many ids it has, and whether it ended
    """

    def __init__(self, *requests: Request) -> None:
        self.queue = list(requests)
        self.ids: dict[int, list[int]] = {}
        self.cached: dict[int, int] = {}
        self.errors: dict[int, Exception] = {}
        self.gone: set[int] = set()
        self.closed = False
        self.react: Callable[[int, int, bool], None] = lambda *_: None

    def take(self, *, wait: bool) -> list[Request]:
        taken, self.queue = self.queue, []
        self.closed = self.closed or (wait and not taken)
        return taken

    def withdrawn(self, number: int) -> bool:
        return self.closed or number in self.gone

    def forget(self, number: int) -> None:
        self.gone.discard(number)

    def error(self, number: int, error: Exception) -> None:
        self.errors[number] = error

    def answer(self, number: int, new: Sequence[int], *, end: bool, cached: int | None = None) -> None:
        if cached is not None:
            assert number not in self.cached, "it is said once"
            self.cached[number] = cached
        self.ids.setdefault(number, []).extend(new)
        self.react(number, len(self.ids[number]), end)

    def run(self, engine: Any) -> None:
        engine.run(self, SimpleNamespace(ids=self.answer, error=self.error, compiling=lambda **_: None))
