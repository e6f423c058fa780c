"""What every runtime is to the rest of aipc: token ids in, token ids out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from aipc.types import DeviceKind, Sampling

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Device:
    """A device that a runtime reaches.

    word          the exact word for it, such as "GPU.0"
    name          what its maker calls it
    driver        its version, or None where it cannot be read
    address       the same for every runtime: of PCI on Linux, the LUID on Windows; None where it is not said
    memory_bytes  of its own, or None
    """

    word: str
    name: str
    kind: DeviceKind
    driver: str | None = None
    address: str | None = None
    memory_bytes: int | None = None

    @property
    def family(self) -> str:
        """The first part of its word: "GPU" of "GPU.1", "CUDA" of "CUDA:0"."""
        return self.word.replace(":", ".").partition(".")[0]


@runtime_checkable
class Session(Protocol):
    """A model loaded on one device.

    device           the exact word for the device that computes, such as "CPU", "GPU.0" or "NPU"
    precision        of the weights and the arithmetic, for people, such as "int4" or "fp16, exact"
    context_length   most tokens of prompt and answer together
    notes            what happened while it was loaded, a sentence each, for people
    """

    device: str
    precision: str
    context_length: int
    notes: tuple[str, ...]

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """Yield the ids that follow `prompt`, each as soon as it exists.

        The iterator ends after the first of `sampling.stop_ids`, which it yields, or after
        `max_new_tokens`, or when the context is full. Closing it stops the work. A request that
        cannot be served raises before the first id. Where `sampling.logprobs` asks, each id is a
        `ScoredToken`; the stop id at the end need not be. Where the runtime takes several streams at
        once, so may this be called; else a second call waits for the first.

        raises   PromptTooLongError, RuntimeFailedError; UsageError for log-probabilities it does not give
        """

    def close(self) -> None:
        """Free the device; every running stream ends with RuntimeFailedError."""


class Scorer(Protocol):
    """A model loaded on one device, to be asked how it scores given answers."""

    def scores(
        self, prompt: Sequence[int], following: Sequence[int], scored: Callable[[], None] = lambda: None
    ) -> np.ndarray:
        """The scores before each token of `following`, as the device gives them while it answers.

        prompt      two tokens or more, computed at once; then each of `following` by a step of its own
        scored      called after each of `following`
        returns     [following, vocab_size] float32: of every token in the place of each
        raises      RuntimeFailedError
        """

    def close(self) -> None:
        """Free the device."""


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """What a runtime is and needs, readable without importing it.

    name         the word for --runtime
    module       loads its Session with `open_session(folder, device, **options)`, and with `open_scorer`
                 and the same options its Scorer
    extra        the extra of aipc that installs it
    packages     the top-level modules it imports
    distribution the package on PyPI whose version marks what it compiled
    model_file   a folder that holds this file is for this runtime
    devices      families of devices that it reaches, as the first part of a device word, and for each
                 the extra of aipc that installs what computes there
    kv_caches    for each of them, what its KV cache may hold, such as "f16"; the first unless asked otherwise
    exact        the families on which it computes in float32
    most_tokens  of prompt and answer together, for the families that do not take all that a model does
    prepacks     the families for which it keeps weights as the processor's kernels want them
    compiles     the families for which it keeps what it made of a model
    """

    name: str
    title: str
    module: str
    extra: str
    packages: tuple[str, ...]
    distribution: str
    model_file: str
    devices: Mapping[str, str]
    kv_caches: Mapping[str, tuple[str, ...]]
    exact: tuple[str, ...]
    most_tokens: Mapping[str, int]
    prepacks: tuple[str, ...]
    compiles: tuple[str, ...]

    def kv_cache(self, device: Device) -> str:
        """What the KV cache on a device holds unless asked otherwise."""
        return self.kv_caches[device.family][0]


OPENVINO = RuntimeInfo(
    name="openvino",
    title="OpenVINO GenAI",
    module="aipc.runtimes.openvino",
    extra="openvino",
    packages=("openvino", "openvino_genai"),
    distribution="openvino-genai",
    model_file="openvino_model.xml",
    devices={"NPU": "openvino", "GPU": "openvino", "CPU": "openvino"},
    kv_caches={
        "NPU": ("f16",),
        "GPU": ("f16", "u8", "bf16", "f32"),
        "CPU": ("u8", "f16", "bf16", "f32"),
    },
    exact=("GPU", "CPU"),
    # It computes in fixed shapes there, and compiles each for minutes.
    most_tokens={"NPU": 8192},
    prepacks=(),
    compiles=("NPU", "GPU"),
)

ONNXRUNTIME = RuntimeInfo(
    name="onnxruntime",
    title="ONNX Runtime",
    module="aipc.runtimes.onnxruntime",
    extra="onnx",
    packages=("onnxruntime", "onnxruntime_genai"),
    distribution="onnxruntime-genai",
    model_file="genai_config.json",
    devices={"CPU": "onnx", "CUDA": "cuda", "DML": "directml"},
    kv_caches={"CPU": ("f32",), "CUDA": ("f16",), "DML": ("f16",)},
    exact=("CPU",),
    most_tokens={},
    prepacks=("CPU",),
    compiles=("CPU",),
)

RUNTIMES: dict[str, RuntimeInfo] = {info.name: info for info in (OPENVINO, ONNXRUNTIME)}
