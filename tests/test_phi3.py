"""The shape of a Phi-3, from the family's real configs and from ones that nobody should trust."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aipc.errors import AipcError, CheckpointError, UnsupportedModelError
from aipc.longrope import border_in
from aipc.phi3 import Phi3Config, Role, read_json_object, token_ids
from checkpoints import PARTIAL, TIED, TINY

# The published config.json of each model, without the keys that say nothing about its shape.
COMMON = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "model_type": "phi3",
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
}
MINI_4K = COMMON | {
    "eos_token_id": 32000,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "sliding_window": 2047,
    "vocab_size": 32064,
}
MEDIUM_4K = MINI_4K | {
    "hidden_size": 5120,
    "intermediate_size": 17920,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 10,
}
PHI_4 = MEDIUM_4K | {
    "eos_token_id": 100265,
    "max_position_embeddings": 16384,
    "original_max_position_embeddings": 16384,
    "rope_theta": 250000.0,
    "sliding_window": None,
    "vocab_size": 100352,
}
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.08] * 48}
MINI_35 = MINI_4K | {
    "max_position_embeddings": 131072,
    "rope_scaling": LONGROPE,
    "sliding_window": 262144,
}
PHI_4_MINI = MINI_35 | {
    "eos_token_id": 199999,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "partial_rotary_factor": 0.75,
    "tie_word_embeddings": True,
    "vocab_size": 200064,
}


@pytest.mark.parametrize(
    ("raw", "parameters", "head_size", "qkv_size", "window"),
    [
        (MINI_4K, 3_821_079_552, 96, 9216, 2047),
        (MEDIUM_4K, 13_960_238_080, 128, 7680, 2047),
        (PHI_4, 14_659_507_200, 128, 7680, None),
    ],
    ids=["phi-3-mini-4k", "phi-3-medium-4k", "phi-4"],
)
def test_the_family(
    raw: dict[str, Any], parameters: int, head_size: int, qkv_size: int, window: int | None
) -> None:
    config = Phi3Config.parse(raw)
    assert config.parameters == parameters
    assert config.head_size == config.rotary_size == head_size
    assert config.qkv_size == qkv_size
    assert config.sliding_window == window
    assert config.eos_ids == (raw["eos_token_id"],)
    assert config.context_length == raw["max_position_embeddings"]


def test_weights_of_phi_3_mini_in_order() -> None:
    specs = list(Phi3Config.parse(MINI_4K).weights())
    assert len(specs) == 3 + 32 * 6
    layer = "model.layers.0"
    assert [(spec.name, spec.shape, spec.role, spec.layer) for spec in [*specs[:7], *specs[-2:]]] == [
        ("model.embed_tokens.weight", (32064, 3072), Role.EMBEDDING, None),
        (f"{layer}.input_layernorm.weight", (3072,), Role.NORM, 0),
        (f"{layer}.self_attn.qkv_proj.weight", (9216, 3072), Role.QKV, 0),
        (f"{layer}.self_attn.o_proj.weight", (3072, 3072), Role.ATTENTION_OUTPUT, 0),
        (f"{layer}.post_attention_layernorm.weight", (3072,), Role.NORM, 0),
        (f"{layer}.mlp.gate_up_proj.weight", (16384, 3072), Role.GATE_UP, 0),
        (f"{layer}.mlp.down_proj.weight", (3072, 8192), Role.DOWN, 0),
        ("model.norm.weight", (3072,), Role.NORM, None),
        ("lm_head.weight", (32064, 3072), Role.HEAD, None),
    ]
    assert len({spec.name for spec in specs}) == len(specs)


def test_grouped_queries_make_the_fused_projection_smaller() -> None:
    shapes = {spec.role: spec.shape for spec in Phi3Config.parse(MEDIUM_4K).weights()}
    assert shapes[Role.QKV] == (5120 + 2 * 10 * 128, 5120)
    assert shapes[Role.ATTENTION_OUTPUT] == (5120, 5120)


def test_a_tied_model_has_no_head() -> None:
    roles = [spec.role for spec in Phi3Config.parse(TIED).weights()]
    assert Role.HEAD not in roles
    assert roles.count(Role.EMBEDDING) == 1


def test_partial_rotary() -> None:
    config = Phi3Config.parse(PARTIAL)
    assert (config.head_size, config.rotary_size) == (16, 8)
    np.testing.assert_allclose(config.inverse_frequencies(), 10000.0 ** -(np.arange(0, 8, 2) / 8), rtol=1e-6)


def test_inverse_frequencies_are_float32() -> None:
    frequencies = Phi3Config.parse(MINI_4K).inverse_frequencies()
    assert frequencies.dtype == np.float32
    assert frequencies.shape == (48,)
    assert frequencies[0] == 1.0
    np.testing.assert_allclose(frequencies[-1], 10000.0 ** -(94 / 96), rtol=1e-6)


@pytest.mark.parametrize(
    ("raw", "theta", "rotary_size"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5, 16),
        ({"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 0.5}}, 5e5, 8),
        ({"rope_theta": 7.0, "rope_parameters": {"rope_theta": 5e5}}, 5e5, 16),
        ({"rope_theta": 7.0, "partial_rotary_factor": 0.25, "rope_parameters": {}}, 7.0, 4),
        ({"rope_scaling": {"type": "default"}, "rope_theta": 5e5}, 5e5, 16),
        ({}, 10000.0, 16),
    ],
)
def test_both_spellings_of_rope(raw: dict[str, Any], theta: float, rotary_size: int) -> None:
    plain = {key: value for key, value in TINY.items() if not key.startswith("rope")}
    config = Phi3Config.parse(plain | raw)
    assert (config.rope_theta, config.rotary_size) == (theta, rotary_size)


@pytest.mark.parametrize("kind", ["longrope", "su", "yarn"])
@pytest.mark.parametrize("word", ["type", "rope_type"])
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_longrope_by_each_of_its_names(key: str, word: str, kind: str) -> None:
    raw = {name: value for name, value in MINI_35.items() if name != "rope_scaling"}
    rope = {name: value for name, value in LONGROPE.items() if name != "type"}
    assert Phi3Config.parse(raw | {key: rope | {word: kind}}) == Phi3Config.parse(MINI_35)


@pytest.mark.parametrize(
    ("raw", "pairs"), [(MINI_35, 48), (PHI_4_MINI, 48)], ids=["phi-3.5-mini", "phi-4-mini"]
)
def test_the_longrope_models(raw: dict[str, Any], pairs: int) -> None:
    config = Phi3Config.parse(raw)
    assert config.rope_border == 4096
    assert config.sliding_window is None
    short, long = config.inverse_frequencies(), config.inverse_frequencies(long=True)
    assert len(short) == len(long) == pairs
    np.testing.assert_allclose(short / long, 1.08, rtol=1e-6)
    # sqrt(1 + ln 32 / ln 4096), as Microsoft's code has it.
    assert config.rope_scale() == config.rope_scale(long=True) == pytest.approx(1.190238, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "inner", "border"),
    [
        ({"original_max_position_embeddings": 64}, {}, 64),
        ({"original_max_position_embeddings": None}, {"original_max_position_embeddings": 64}, 64),
        ({"original_max_position_embeddings": 128}, {"original_max_position_embeddings": 64}, 128),
        ({"original_max_position_embeddings": None}, {}, 4096),
        ({"original_max_position_embeddings": 4096, "max_position_embeddings": 4096}, {}, None),
    ],
)
def test_where_the_factors_change(change: dict[str, Any], inner: dict[str, Any], border: int | None) -> None:
    raw = MINI_35 | change | {"rope_scaling": LONGROPE | inner}
    assert Phi3Config.parse(raw).rope_border == border
    assert border_in(raw) == border


@pytest.mark.parametrize(
    ("inner", "scales"),
    [
        ({"short_mscale": 1.1, "long_mscale": 1.3}, (1.1, 1.3)),
        ({"long_mscale": 1.3, "attention_factor": 1.5}, (1.5, 1.3)),
        ({"attention_factor": None, "factor": None}, (1.190238, 1.190238)),
        ({"factor": 1.0}, (1.0, 1.0)),
        ({"factor": 64.0}, (1.224745, 1.224745)),
    ],
)
def test_a_scale_that_the_config_names(inner: dict[str, Any], scales: tuple[float, float]) -> None:
    config = Phi3Config.parse(MINI_35 | {"rope_scaling": LONGROPE | inner})
    assert (config.rope_scale(), config.rope_scale(long=True)) == pytest.approx(scales, abs=1e-6)


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        ({"short_factor": None}, "short_factor.*list of 48"),
        ({"long_factor": [1.0] * 47}, "long_factor.*list of 48"),
        ({"long_factor": [1.0] * 47 + [0.0]}, "long_factor: 0.0"),
        ({"long_factor": [1.0] * 47 + ["2"]}, "long_factor"),
        ({"long_factor": {"0": 1.0}}, "long_factor"),
        ({"long_mscale": -1.0}, "long_mscale"),
        ({"attention_factor": "big"}, "attention_factor"),
        ({"original_max_position_embeddings": 0}, "original_max_position_embeddings"),
    ],
    ids=str,
)
def test_factors_that_are_none(inner: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        Phi3Config.parse(MINI_35 | {"rope_scaling": LONGROPE | inner})
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Phi3VForCausalLM", "Phi-3-vision reads images"),
        ("Phi4MMForCausalLM", "Phi-4-multimodal reads images and speech"),
        ("Phi3SmallForCausalLM", "blocksparse"),
        ("PhiMoEForCausalLM", "experts"),
    ],
)
def test_a_relative_is_refused_by_its_own_name(name: str, words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        Phi3Config.parse(TINY | {"architectures": [name]})
    assert name in caught.value.message
    assert "Phi-4-mini" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"architectures": ["Phi3SmallForCausalLM"], "model_type": "phi3small"}, "Phi3SmallForCausalLM"),
        ({"architectures": ["PhiForCausalLM"], "model_type": "phi"}, "PhiForCausalLM"),
        ({"architectures": None, "model_type": "qwen2"}, "qwen2"),
        ({"architectures": [], "model_type": None}, "None"),
        ({"architectures": [["Phi3ForCausalLM"]]}, "Phi3ForCausalLM"),
        ({"architectures": {"0": "Phi3ForCausalLM"}, "model_type": {}}, "{}"),
        ({"architectures": ["x" * 100_000]}, "xxx"),
    ],
)
def test_other_architectures_are_refused_by_name(change: dict[str, Any], name: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        Phi3Config.parse(TINY | change)
    assert name in caught.value.message
    assert "Phi3ForCausalLM" in caught.value.message
    assert "Phi-4" in caught.value.hint
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("names", [None, [], ["Phi3ForCausalLM"]])
def test_a_phi_by_its_model_type(names: object) -> None:
    assert Phi3Config.parse(TINY | {"architectures": names}).layers == 2


DEEP: list[Any] = []
for _ in range(500):
    DEEP = [DEEP]

HOSTILE_SIZES = [None, 0, -1, 1.5, 64.0, "64", True, [64], {}, 2**63, 10**400, float("nan"), DEEP]
SIZES = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
]


@pytest.mark.parametrize("value", HOSTILE_SIZES, ids=range(len(HOSTILE_SIZES)))
@pytest.mark.parametrize("key", SIZES)
def test_a_size_that_is_none(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=key) as caught:
        Phi3Config.parse(TINY | {key: value}, "somewhere/config.json")
    assert "somewhere/config.json" in caught.value.message
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_attention_heads": 3}, "do not divide"),
        ({"num_key_value_heads": 3}, "do not divide"),
        ({"num_key_value_heads": 8}, "do not divide"),
        ({"num_key_value_heads": 0}, "num_key_value_heads"),
        ({"partial_rotary_factor": 0}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.2}, "partial_rotary_factor"),
        ({"partial_rotary_factor": float("inf")}, "partial_rotary_factor"),
        ({"partial_rotary_factor": "half"}, "partial_rotary_factor"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"rope_theta": 10**400}, "rope_theta"),
        ({"rope_theta": True}, "rope_theta"),
        ({"rope_theta": DEEP}, "rope_theta"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps"),
        ({"rope_scaling": "default"}, "rope_scaling"),
        ({"rope_parameters": [1]}, "rope_parameters"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"sliding_window": 8.0}, "sliding_window"),
        ({"sliding_window": True}, "sliding_window"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings"),
        ({"eos_token_id": -1}, "eos_token_id"),
        ({"eos_token_id": "2"}, "eos_token_id"),
        ({"eos_token_id": [2, None]}, "eos_token_id"),
        ({"eos_token_id": [DEEP]}, "eos_token_id"),
    ],
    ids=str,
)
def test_an_impossible_value_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        Phi3Config.parse(TINY | change)
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "gelu"}, "gelu"),
        ({"hidden_act": None}, "None"),
        ({"hidden_act": DEEP}, "activation"),
        ({"attention_bias": True}, "attention bias"),
        ({"head_dim": 32}, "heads of 32 channels"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "linear"),
        ({"rope_scaling": {"type": ["longrope"]}}, "RoPE type"),
        ({"rope_scaling": {"rope_type": DEEP}}, "RoPE type"),
    ],
    ids=str,
)
def test_what_the_graph_lacks_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        Phi3Config.parse(TINY | change)


@pytest.mark.parametrize("window", [None, 512, 10**9])
def test_a_window_that_covers_everything_is_none(window: int | None) -> None:
    assert Phi3Config.parse(TINY | {"sliding_window": window}).sliding_window is None


def test_several_ends_of_text() -> None:
    assert token_ids([32000, 32007], "here") == (32000, 32007)
    assert token_ids(None, "here") == ()


def test_a_config_is_read_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY), encoding="utf-8")
    assert Phi3Config.read(tmp_path) == Phi3Config.parse(TINY)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "list instead of an object"),
        (b"[" * 100_000, "not JSON"),
        (b'{"hidden_size": ' + b"9" * 100_000 + b"}", "not JSON"),
        (b'{"eos_token": "\\uD800"}', "not JSON"),
        (b" " * (4 * 2**20 + 1), "larger than"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
    ids=range(9),
)
def test_a_file_that_is_no_config(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_json_object(tmp_path / "config.json")
    assert str(tmp_path / "config.json") in caught.value.message


def test_a_whole_surrogate_pair_is_text(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(rb'{"eos_token": "\ud83d\ude00"}')
    assert read_json_object(tmp_path / "config.json") == {"eos_token": "\U0001f600"}


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        Phi3Config.read(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="only POSIX has named pipes")
def test_a_pipe_in_place_of_a_config_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(AipcError, match="not a regular file"):
        Phi3Config.read(tmp_path)
