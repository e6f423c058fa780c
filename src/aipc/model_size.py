"""How large a model is, before it is downloaded or loaded."""

from __future__ import annotations

from dataclasses import dataclass

from aipc import cache, hub
from aipc.conversion.recipe import make_recipe
from aipc.errors import ModelNotFoundError
from aipc.phi3 import ARCHITECTURE, Phi3Config
from aipc.runtimes.base import RUNTIMES

# How long a conversation room is made for.
CONTEXT_TOKENS = 4096
# The runtime itself: code, buffers of a prompt's chunk, the other process.
RUNTIME_BYTES = 500_000_000

# source   config.json of these repositories, so that a model's size is known before it is downloaded
_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "tie_word_embeddings",
)
_SHAPES = {
    "microsoft/Phi-3-mini-4k-instruct": (3072, 8192, 32, 32, 32, 32064, False),
    "microsoft/Phi-3-medium-4k-instruct": (5120, 17920, 40, 40, 10, 32064, False),
    "microsoft/Phi-3.5-mini-instruct": (3072, 8192, 32, 32, 32, 32064, False),
    "microsoft/Phi-4-mini-instruct": (3072, 8192, 32, 24, 8, 200064, True),
    "microsoft/phi-4": (5120, 17920, 40, 40, 10, 100352, False),
}


@dataclass(frozen=True, slots=True)
class Size:
    """What a model takes.

    weights_bytes     as int4, or as they were converted
    kv_numbers        of the KV cache of a conversation
    download_bytes    0 where it is here
    conversion_bytes  0 where it is converted
    """

    weights_bytes: int
    kv_numbers: int
    download_bytes: int = 0
    conversion_bytes: int = 0


def model_size(name: str) -> Size | None:
    """The size of a model, or None where nothing on this machine says it.

    raises   ModelNotFoundError, CheckpointError, UnsupportedModelError
    """
    known = _is_here(name)
    if known:
        source = hub.find(name, download=False)
        if source.kind == "converted":
            # One folder may hold the model for several runtimes, of which one is loaded.
            parts = [
                part for info in RUNTIMES.values() for part in hub.converted_folders(source.folder, info)
            ]
            largest = max(map(cache.bytes_below, parts))
            return Size(largest, _kv_numbers(_config_of(source)))
        config = Phi3Config.read(source.folder)
    else:
        shape = _SHAPES.get(hub.repository_of(name))
        if shape is None:
            return None
        raw = dict(zip(_FIELDS, shape, strict=True)) | {"max_position_embeddings": CONTEXT_TOKENS}
        config = Phi3Config.parse({"architectures": [ARCHITECTURE], **raw})
    weights_bytes = make_recipe(config).nbytes(config.weights())
    return Size(
        weights_bytes,
        _kv_numbers(config),
        download_bytes=0 if known else 2 * config.parameters,
        conversion_bytes=0 if _is_converted(name) else weights_bytes,
    )


def context_length(name: str) -> int | None:
    """Most tokens of prompt and answer, or None where nothing on this machine says it.

    raises   as `model_size`
    """
    if not _is_here(name):
        return None
    config = _config_of(hub.find(name, download=False))
    return None if config is None else config.context_length


def _is_here(name: str) -> bool:
    found = hub.local_folder(name) or name == hub.DEMO or hub.cached_snapshot(hub.repository_of(name))
    return bool(found)


def _config_of(source: hub.Source) -> Phi3Config | None:
    """Of a model that is here. A converted folder may have none, where others made it."""
    if source.kind == "converted" and not (source.folder / "config.json").is_file():
        return None
    return Phi3Config.read(source.folder)


def _kv_numbers(config: Phi3Config | None) -> int:
    """Keys and values of CONTEXT_TOKENS, or of as many as the model takes."""
    if config is None:
        return 0
    tokens = min(CONTEXT_TOKENS, config.context_length)
    return 2 * tokens * config.layers * config.kv_heads * config.head_size


def _is_converted(name: str) -> bool:
    try:
        return bool(cache.select(name))
    except ModelNotFoundError:
        return False
