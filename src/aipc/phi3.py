"""What a Phi-3 is: its shape, and its weights in order, each with a role."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aipc.errors import CheckpointError, UnsupportedModelError, shown
from aipc.longrope import ROPE_TYPES, USUAL_BORDER, FactorSet, LongRope

if TYPE_CHECKING:
    import numpy as np

ARCHITECTURE = "Phi3ForCausalLM"

# In folders for ONNX Runtime, a LongRoPE model again, with the same data, for callers that say which factors
# to take: by an input more, [rows, 1] int64, 1 where a sequence takes the long ones from its first token on.
# With 0, and without the input, its length decides.
ONNX_FACTORS_MODEL_FILE = "model_long_factors.onnx"
ONNX_LONG_FACTORS = "long_factors"

# A config is untrusted: nothing in it may ask for more than any model of the family could.
_LIMITS = {
    "hidden_size": 65_536,
    "intermediate_size": 262_144,
    "num_hidden_layers": 512,
    "num_attention_heads": 1_024,
    "num_key_value_heads": 1_024,
    "head_dim": 65_536,
    "vocab_size": 2_000_000,
    "max_position_embeddings": 16_777_216,
    "original_max_position_embeddings": 16_777_216,
}
_MAX_CONFIG_BYTES = 4 * 2**20


class Role(StrEnum):
    """What a weight is for. Recipes decide by it, never by a name."""

    EMBEDDING = "embedding"
    QKV = "qkv"
    ATTENTION_OUTPUT = "attention_output"
    GATE_UP = "gate_up"
    DOWN = "down"
    HEAD = "head"
    NORM = "norm"


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """One weight of a checkpoint.

    shape   (out, in) for a matrix, (size,) for a norm
    layer   of the decoder, or None outside of it
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    layer: int | None = None

    @property
    def elements(self) -> int:
        """How many numbers the weight holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Phi3Config:
    """The shape of a Phi-3, as its config.json gives it.

    head_size        hidden_size / attention_heads
    rotary_size      how many of a head's channels are rotated
    longrope         what stretches the rotation, or None
    sliding_window   a token sees itself and the window - 1 before it; None for all
    eos_ids          the end-of-text ids the config names, possibly none
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    attention_heads: int
    kv_heads: int
    vocab_size: int
    context_length: int
    rope_theta: float
    rotary_size: int
    rms_norm_eps: float
    sliding_window: int | None
    tied_embeddings: bool
    eos_ids: tuple[int, ...]
    longrope: LongRope | None = None

    @property
    def rope_border(self) -> int | None:
        """After how many tokens LongRoPE's factors change; None if they never do."""
        if self.longrope is None or self.longrope.border >= self.context_length:
            return None
        return self.longrope.border

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.attention_heads

    @property
    def qkv_size(self) -> int:
        """Rows of the fused projection: all query heads, then the key heads, then the value heads."""
        return (self.attention_heads + 2 * self.kv_heads) * self.head_size

    @property
    def parameters(self) -> int:
        """How many numbers all weights hold."""
        return sum(spec.elements for spec in self.weights())

    def weights(self) -> Iterator[WeightSpec]:
        """Every weight, in the order in which a prompt meets them."""
        yield WeightSpec("model.embed_tokens.weight", (self.vocab_size, self.hidden_size), Role.EMBEDDING)
        for layer in range(self.layers):
            yield from self._layer_weights(layer)
        yield WeightSpec("model.norm.weight", (self.hidden_size,), Role.NORM)
        if not self.tied_embeddings:
            yield WeightSpec("lm_head.weight", (self.vocab_size, self.hidden_size), Role.HEAD)

    def _layer_weights(self, layer: int) -> Iterator[WeightSpec]:
        attention = self.attention_heads * self.head_size
        shapes = (
            ("input_layernorm", (self.hidden_size,), Role.NORM),
            ("self_attn.qkv_proj", (self.qkv_size, self.hidden_size), Role.QKV),
            ("self_attn.o_proj", (self.hidden_size, attention), Role.ATTENTION_OUTPUT),
            ("post_attention_layernorm", (self.hidden_size,), Role.NORM),
            ("mlp.gate_up_proj", (2 * self.intermediate_size, self.hidden_size), Role.GATE_UP),
            ("mlp.down_proj", (self.hidden_size, self.intermediate_size), Role.DOWN),
        )
        for name, shape, role in shapes:
            yield WeightSpec(f"model.layers.{layer}.{name}.weight", shape, role, layer)

    def inverse_frequencies(self, *, long: bool = False) -> np.ndarray:
        """Angle per position of each rotated pair of channels, [rotary_size / 2] float32.

        float32 as in transformers: a float16 copy is 0.84 rad off at position 4000. numpy's power in float32
        misses the last place in one of six, PyTorch's seldom: so it is taken in float64, and rounded.

        long   with LongRoPE's factors for long texts
        """
        import numpy as np

        exponents = np.arange(0, self.rotary_size, 2, dtype=np.float32) / np.float32(self.rotary_size)
        wavelengths = np.power(self.rope_theta, exponents.astype(np.float64)).astype(np.float32)
        if self.longrope is not None:
            wavelengths *= np.array(self._factors(self.longrope, long=long).divisors, np.float32)
        frequencies: np.ndarray = np.float32(1.0) / wavelengths
        return frequencies

    def rope_scale(self, *, long: bool = False) -> float:
        """What cosines and sines are multiplied by; 1.0 without LongRoPE."""
        return 1.0 if self.longrope is None else self._factors(self.longrope, long=long).scale

    @staticmethod
    def _factors(rope: LongRope, *, long: bool) -> FactorSet:
        return rope.long if long else rope.short

    @classmethod
    def read(cls, folder: Path) -> Phi3Config:
        """The config of a checkpoint or converted folder.

        raises   CheckpointError if config.json is missing or damaged; UnsupportedModelError
        """
        return cls.parse(read_json_object(folder / "config.json"), folder / "config.json")

    @classmethod
    def parse(cls, raw: Mapping[str, Any], source: Path | str = "config.json") -> Phi3Config:
        """A config from the content of config.json, which is not trusted.

        raises   CheckpointError for a missing or impossible value, UnsupportedModelError for a
                 model that is not of the family or needs what aipc does not have
        """
        fields = _Fields(raw, source)
        _check_architecture(raw)
        hidden_size = fields.size("hidden_size")
        heads, kv_heads, head_size = fields.heads(hidden_size)
        theta, rotary_size, longrope = fields.rope(head_size)
        return cls(
            hidden_size=hidden_size,
            intermediate_size=fields.size("intermediate_size"),
            layers=fields.size("num_hidden_layers"),
            attention_heads=heads,
            kv_heads=kv_heads,
            vocab_size=fields.size("vocab_size"),
            context_length=fields.size("max_position_embeddings"),
            rope_theta=theta,
            rotary_size=rotary_size,
            rms_norm_eps=fields.number("rms_norm_eps", default=1e-5),
            sliding_window=fields.window(),
            tied_embeddings=fields.flag("tie_word_embeddings", default=False),
            eos_ids=token_ids(raw.get("eos_token_id"), f"{source}: eos_token_id"),
            longrope=longrope,
        )


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a small JSON file that is not trusted.

    raises   CheckpointError if it is missing, too large, not UTF-8, not JSON or not an object
    """
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} is not a regular file", hint="download the model again")
        with path.open("rb") as file:
            data = file.read(_MAX_CONFIG_BYTES + 1)
    except FileNotFoundError as exc:
        raise CheckpointError(f"{path} is missing", hint="download the model again") from exc
    except OSError as exc:
        raise CheckpointError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    if len(data) > _MAX_CONFIG_BYTES:
        raise CheckpointError(f"{path} is larger than {_MAX_CONFIG_BYTES} bytes: it is no configuration")
    if data.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the file itself", hint="git lfs pull")
    try:
        # Some editors on Windows begin a file with a byte order mark.
        value = json.loads(data.decode("utf-8-sig"))
        if b"\\ud" in data.lower():
            # Half a surrogate pair is no text, and would fail wherever it is used first.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(f"{path} is not JSON: {exc}", hint="download the model again") from exc
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__} instead of an object")
    return value


def token_ids(value: object, source: str) -> tuple[int, ...]:
    """The ids of a field that may hold none, one or several, such as eos_token_id.

    raises   CheckpointError for anything else
    """
    values = [] if value is None else value if isinstance(value, list) else [value]
    for item in values:
        if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item < _LIMITS["vocab_size"]:
            raise CheckpointError(f"{source} is {shown(value)}, not a token id or a list of them")
    return tuple(values)


# What bears the family's name and is built otherwise.
_RELATIVES = {
    "Phi3VForCausalLM": "Phi-3-vision reads images",
    "Phi4MMForCausalLM": "Phi-4-multimodal reads images and speech",
    "Phi4MultimodalForCausalLM": "Phi-4-multimodal reads images and speech",
    "Phi3SmallForCausalLM": "Phi-3-small has blocksparse attention",
    "PhiMoEForCausalLM": "Phi-3.5-MoE has experts",
    "PhimoeForCausalLM": "Phi-3.5-MoE has experts",
    "PhiForCausalLM": "Phi-1 and Phi-2 are older",
}
_FAMILY = "Phi-3-mini, Phi-3-medium, Phi-3.5-mini, Phi-4, Phi-4-mini and models fine-tuned from them"


def _check_architecture(raw: Mapping[str, Any]) -> None:
    names = raw.get("architectures")
    name = names[0] if isinstance(names, list) and names else raw.get("model_type")
    if name == ARCHITECTURE or (not names and name == "phi3"):
        return
    relative = _RELATIVES.get(name) if isinstance(name, str) else None
    raise UnsupportedModelError(
        f"this checkpoint is a {shown(name)}; aipc converts {ARCHITECTURE}"
        + (f": {relative}, which aipc does not do" if relative else ""),
        hint=f"possible are {_FAMILY}",
    )


class _Fields:
    """Reads values from an untrusted config, and names the file and the field that is wrong."""

    def __init__(self, raw: Mapping[str, Any], source: Path | str) -> None:
        self.raw = raw
        self.source = source
        self._refuse_what_the_graph_lacks()

    def wrong(self, name: str, why: str) -> CheckpointError:
        return CheckpointError(f"{self.source}: {name}: {why}", hint="download the model again")

    def size(self, name: str, default: int | None = None, within: Mapping[str, Any] | None = None) -> int:
        value = (self.raw if within is None else within).get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LIMITS[name]:
            raise self.wrong(name, f"{shown(value)} is not a whole number from 1 to {_LIMITS[name]}")
        return value

    def number(
        self, name: str, default: float, within: Mapping[str, Any] | None = None, *, optional: bool = False
    ) -> float:
        """A positive number. With `optional`, null means that the default counts."""
        value = (self.raw if within is None else within).get(name, default)
        value = default if value is None and optional else value
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not 0.0 < value < 1e12:
            raise self.wrong(name, f"{shown(value)} is not a positive number")
        return float(value)

    def flag(self, name: str, *, default: bool) -> bool:
        value = self.raw.get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, f"{shown(value)} is neither true nor false")
        return value

    def mapping(self, name: str) -> Mapping[str, Any] | None:
        value = self.raw.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, f"{shown(value)} is not an object")
        return value

    def window(self) -> int | None:
        """The sliding window, or None where it is absent or covers the whole context."""
        value = self.raw.get("sliding_window")
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong("sliding_window", f"{shown(value)} is not a positive whole number")
        return value if value < self.size("max_position_embeddings") else None

    def heads(self, hidden_size: int) -> tuple[int, int, int]:
        """Attention heads, key/value heads, and the channels of a head."""
        heads = self.size("num_attention_heads")
        kv_heads = self.size("num_key_value_heads", default=heads)
        if hidden_size % heads or heads % kv_heads:
            raise self.wrong(
                "num_attention_heads",
                f"{heads} attention heads and {kv_heads} key/value heads do not divide "
                f"a hidden size of {hidden_size}",
            )
        head_size = hidden_size // heads
        if self.size("head_dim", default=head_size) != head_size:
            raise UnsupportedModelError(
                f"this config asks for heads of {self.raw['head_dim']} channels; a Phi-3 divides its hidden "
                f"size among its heads, {head_size} channels each"
            )
        return heads, kv_heads, head_size

    def rope(self, head_size: int) -> tuple[float, int, LongRope | None]:
        """The base of the rotation, how many channels of a head it turns, and what stretches it."""
        rope = self.mapping("rope_scaling") or self.mapping("rope_parameters") or {}
        # Where both name a value, the one inside counts, as in transformers.
        theta = self.number("rope_theta", default=self.number("rope_theta", default=1e4), within=rope)
        factor = self.number(
            "partial_rotary_factor",
            default=self.number("partial_rotary_factor", default=1.0),
            within=rope,
        )
        rotary_size = int(head_size * factor)
        if not 0.0 < factor <= 1.0 or rotary_size < 2 or rotary_size % 2:
            raise self.wrong(
                "partial_rotary_factor", f"{factor} of a head of {head_size} is not an even size"
            )
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind == "default":
            return theta, rotary_size, None
        if kind not in ROPE_TYPES:
            raise UnsupportedModelError(f"the RoPE type {shown(kind)} does not exist in the Phi-3 family")
        return theta, rotary_size, self.longrope(rope, rotary_size // 2)

    def longrope(self, rope: Mapping[str, Any], pairs: int) -> LongRope:
        """The factors of LongRoPE.

        pairs   of rotated channels in a head: each has a factor of its own
        source  transformers, with the scales of older configs ("short_mscale", "long_mscale") besides
        """
        place = "original_max_position_embeddings"
        inner = self.size(place, default=USUAL_BORDER, within=rope)
        border = self.size(place, default=inner)
        stretch = self.size("max_position_embeddings") / border
        stretch = self.number("factor", default=stretch, within=rope, optional=True)
        usual = math.sqrt(1 + math.log(stretch) / math.log(border)) if stretch > 1 and border > 1 else 1.0
        scale = self.number("attention_factor", default=usual, within=rope, optional=True)
        short, long = (
            FactorSet(
                self.factors(f"{word}_factor", rope, pairs),
                self.number(f"{word}_mscale", default=scale, within=rope, optional=True),
            )
            for word in ("short", "long")
        )
        return LongRope(border, short, long)

    def factors(self, name: str, rope: Mapping[str, Any], pairs: int) -> tuple[float, ...]:
        values = rope.get(name)
        if not isinstance(values, list) or len(values) != pairs:
            raise self.wrong(name, f"{shown(values)} is not a list of {pairs} numbers")
        return tuple(self.number(name, default=0.0, within={name: value}) for value in values)

    def _refuse_what_the_graph_lacks(self) -> None:
        activation = self.raw.get("hidden_act", "silu")
        if activation != "silu":
            raise UnsupportedModelError(f"the activation {shown(activation)} is not Phi-3's 'silu'")
        if self.raw.get("attention_bias", False):
            raise UnsupportedModelError("a Phi-3 has no attention bias, but this config asks for one")
