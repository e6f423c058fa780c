"""The written IR computes what the numpy reference does on the same dequantised weights."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino._offline_transformations import paged_attention_transformation

from aipc.conversion.checkpoint import Checkpoint
from aipc.conversion.convert import QUANTIZERS, write_weights
from aipc.conversion.openvino_ir import MODEL_FILE, WEIGHTS_FILE, OpenVINOWriter
from aipc.conversion.quantize import dequantize
from aipc.conversion.recipe import Recipe, make_recipe
from aipc.phi3 import Phi3Config
from aipc.runtimes.openvino_factors import folder_with_factors, has_factors
from aipc.runtimes.reference import ReferenceSession
from checkpoints import GQA, LONGROPE, PARTIAL, TIED, TINY, WINDOW, write_checkpoint

FLOAT32 = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}
RECIPES: dict[str, dict[str, Any]] = {
    "fp16": {"weight_format": "fp16"},
    "int8_sym": {"weight_format": "int8", "sym": True},
    "int8_asym": {"weight_format": "int8", "sym": False},
    "int4_sym_g64": {"group_size": 64},
    "int4_asym_g32": {"group_size": 32, "sym": False},
    "int4_sym_channel_wise": {"group_size": -1},
    "int4_asym_channel_wise": {"group_size": -1, "sym": False},
}
LONGROPE_PARTIAL = LONGROPE | {
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.5,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0, 1.1, 1.3, 2.6],
        "long_factor": [1.08, 3.2, 28.6, 64.8],
        "short_mscale": 1.1,
        "long_mscale": 1.3,
    },
}
SHAPES = {
    "mha": TINY,
    "gqa": GQA,
    "tied": TIED,
    "window": WINDOW,
    "partial": PARTIAL,
    "longrope": LONGROPE,
    "longrope_partial": LONGROPE_PARTIAL,
    "longrope_short_only": LONGROPE
    | {"original_max_position_embeddings": 512, "max_position_embeddings": 512},
}
PROMPT = [int(token) for token in np.random.default_rng(7).integers(3, 300, 24)]


class Written:
    """A model written to a folder, and the numbers that the folder stands for."""

    def __init__(self, folder: Path, shape: Mapping[str, Any], recipe_words: Mapping[str, Any]) -> None:
        self.weights = write_checkpoint(folder / "checkpoint", shape, dtype="F16")
        self.config = Phi3Config.read(folder / "checkpoint")
        self.recipe: Recipe = make_recipe(self.config, **recipe_words)
        self.folder = folder / "ir"
        self.folder.mkdir()
        with closing(OpenVINOWriter(self.folder, self.config, self.recipe)) as writer:
            write_weights(Checkpoint.open(folder / "checkpoint"), self.config, self.recipe, [writer])

    def reference(self) -> ReferenceSession:
        stored = {}
        for spec in self.config.weights():
            scheme = self.recipe.scheme_for(spec)
            weight = self.weights[spec.name]
            stored[spec.name] = dequantize(QUANTIZERS[self.recipe.quant_method](weight, scheme))
        return ReferenceSession(self.config, stored)

    def logits(self, *pieces: list[int]) -> np.ndarray:
        """Logits of every token, fed in pieces through the cache."""
        core = ov.Core()
        compiled = core.compile_model(core.read_model(self.folder / MODEL_FILE), "CPU", FLOAT32)
        request = compiled.create_infer_request()
        outputs, start = [], 0
        for piece in pieces:
            end = start + len(piece)
            inputs = {
                "input_ids": np.array([piece]),
                "attention_mask": np.ones((1, end), np.int64),
                "position_ids": np.arange(start, end)[None],
                "beam_idx": np.zeros(1, np.int32),
            }
            outputs.append(request.infer(inputs)["logits"][0])
            start = end
        return np.concatenate(outputs)


def assert_same_logits(got: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("words", RECIPES.values(), ids=RECIPES.keys())
def test_every_scheme_computes_what_its_codes_say(tmp_path: Path, words: dict[str, Any]) -> None:
    written = Written(tmp_path, TINY, words)
    assert_same_logits(written.logits(PROMPT), written.reference().logits(PROMPT))


@pytest.mark.parametrize("words", [RECIPES["fp16"], RECIPES["int4_sym_g64"]], ids=["fp16", "int4"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_every_shape_in_one_piece_and_through_the_cache(
    tmp_path: Path, shape: dict[str, Any], words: dict[str, Any]
) -> None:
    written = Written(tmp_path, shape, words)
    expected = written.reference().logits(PROMPT)
    assert_same_logits(written.logits(PROMPT), expected)
    assert_same_logits(written.logits(PROMPT[:10], PROMPT[10:13], *[[t] for t in PROMPT[13:]]), expected)


@pytest.mark.parametrize("shape", [LONGROPE, LONGROPE_PARTIAL], ids=["plain", "partial"])
def test_the_graph_takes_the_long_factors_for_what_is_longer_than_the_border(
    tmp_path: Path, shape: dict[str, Any]
) -> None:
    written = Written(tmp_path, shape, RECIPES["fp16"])
    reference = written.reference()
    for tokens in (63, 64, 65, 100):
        text = (PROMPT * 5)[:tokens]
        assert_same_logits(written.logits(text), reference.logits(text))


@pytest.mark.parametrize("shape", [LONGROPE, LONGROPE_PARTIAL], ids=["plain", "partial"])
def test_a_folder_with_one_set_of_factors_takes_it_for_every_text(
    tmp_path: Path, shape: dict[str, Any]
) -> None:
    written = Written(tmp_path, shape, RECIPES["fp16"])
    text = (PROMPT * 5)[:100]
    expected = written.reference().logits(text)
    assert has_factors(written.folder)
    with folder_with_factors(written.folder, long=True) as written.folder:
        assert_same_logits(written.logits(text[:50], *[[token] for token in text[50:]]), expected)
    assert not written.folder.exists()


def test_links_that_are_not_allowed_become_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1314, "A required privilege is not held by the client")

    written = Written(tmp_path, LONGROPE, RECIPES["fp16"])
    monkeypatch.setattr(Path, "symlink_to", refuse)
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    text = PROMPT * 3
    expected = written.reference().logits(text)
    with folder_with_factors(written.folder, long=True) as written.folder:
        assert not (written.folder / WEIGHTS_FILE).is_symlink()
        assert_same_logits(written.logits(text[:50], text[50:]), expected)


def test_what_processes_that_are_long_gone_have_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Written(tmp_path / "model", LONGROPE, RECIPES["fp16"])
    temporary, elsewhere = tmp_path / "temporary", tmp_path / "elsewhere"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = temporary / f"aipc-factors-{gone.pid}-abc"
    kept = [
        temporary / f"aipc-factors-{gone.pid}-young",
        temporary / f"aipc-factors-{os.getpid()}-abc",
        temporary / "aipc-factors-1e9-abc",
        temporary / f"aipc-factors-{'9' * 30}-abc",
        temporary / "aipc-another",
        elsewhere,
    ]
    for folder in (left, *kept):
        folder.mkdir(parents=True)
        (folder / WEIGHTS_FILE).write_bytes(b"weights")
        if folder != kept[0]:
            os.utime(folder, (0, 0))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with folder_with_factors(written.folder, long=True):
        assert not left.exists()
    assert all((folder / WEIGHTS_FILE).is_file() for folder in kept)


def test_sequences_of_a_batch_have_their_own_factors(tmp_path: Path) -> None:
    written = Written(tmp_path, LONGROPE, RECIPES["fp16"])
    text = (PROMPT * 5)[:100]
    mask = np.array([[1] * 100, [0] * 60 + [1] * 40])
    core = ov.Core()
    compiled = core.compile_model(core.read_model(written.folder / MODEL_FILE), "CPU", FLOAT32)
    inputs = {
        "input_ids": np.array([text, [0] * 60 + text[:40]]),
        "attention_mask": mask,
        "position_ids": np.maximum(np.cumsum(mask, axis=1) - 1, 0),
        "beam_idx": np.array([0, 1], np.int32),
    }
    got = compiled(inputs)["logits"]
    assert_same_logits(got[0], written.reference().logits(text))
    assert_same_logits(got[1, 60:], written.reference().logits(text[:40]))


def test_left_padding_changes_nothing(tmp_path: Path) -> None:
    """The NPU pipeline pads: positions, the window and the mask must not count the padding."""
    written = Written(tmp_path, WINDOW, RECIPES["fp16"])
    core = ov.Core()
    compiled = core.compile_model(core.read_model(written.folder / MODEL_FILE), "CPU", FLOAT32)
    padding = 5
    mask = np.array([[0] * padding + [1] * len(PROMPT)])
    inputs = {
        "input_ids": np.array([[0] * padding + PROMPT]),
        "attention_mask": mask,
        "position_ids": np.maximum(np.cumsum(mask, axis=1) - 1, 0),
        "beam_idx": np.zeros(1, np.int32),
    }
    got = compiled(inputs)["logits"][0, padding:]
    assert_same_logits(got, written.reference().logits(PROMPT))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_paged_attention_takes_the_graph(tmp_path: Path, shape: dict[str, Any]) -> None:
    written = Written(tmp_path, shape, RECIPES["fp16"])
    model = ov.Core().read_model(written.folder / MODEL_FILE)
    paged_attention_transformation(model)
    names = [node.get_type_name() for node in model.get_ordered_ops()]
    assert names.count("PagedAttentionExtension") == written.config.layers
    assert "ScaledDotProductAttention" not in names
    assert "attention_mask" not in {node.get_friendly_name() for node in model.get_parameters()}


@pytest.mark.parametrize("shape", [GQA, WINDOW, LONGROPE], ids=["gqa", "window", "longrope"])
def test_the_plugin_fuses_what_it_can(tmp_path: Path, shape: dict[str, Any]) -> None:
    written = Written(tmp_path, shape, RECIPES["int4_sym_g64"])
    core = ov.Core()
    compiled = core.compile_model(core.read_model(written.folder / MODEL_FILE), "CPU")
    # No node is kept: Windows unloads the plugin with the Core, and with it the code that frees a node.
    kinds = [
        node.get_rt_info()["layerType"].astype(str) for node in compiled.get_runtime_model().get_ordered_ops()
    ]
    layers = written.config.layers
    assert kinds.count("RMS") == 2 * layers + 1
    assert kinds.count("RoPE") == 2 * layers
    assert kinds.count("ScaledDotProductAttention") == layers
    assert kinds.count("FullyConnected") == 4 * layers + 1


def test_names_are_unique(tmp_path: Path) -> None:
    written = Written(tmp_path, TIED, RECIPES["int4_sym_g64"])
    names = [node.get_friendly_name() for node in ov.Core().read_model(written.folder / MODEL_FILE).get_ops()]
    assert len(names) == len(set(names))


def test_a_tied_matrix_is_stored_once(tmp_path: Path) -> None:
    tied = Written(tmp_path / "tied", TIED, RECIPES["fp16"])
    untied = Written(tmp_path / "untied", TINY, RECIPES["fp16"])
    head_bytes = 2 * tied.config.vocab_size * tied.config.hidden_size
    sizes = [(written.folder / WEIGHTS_FILE).stat().st_size for written in (untied, tied)]
    assert sizes[0] - sizes[1] >= head_bytes


def test_the_model_says_how_its_weights_are_compressed(tmp_path: Path) -> None:
    """The NPU pipeline reads the group size: -1 makes it quantise activations dynamically."""
    written = Written(tmp_path, TINY, RECIPES["int4_sym_channel_wise"])
    model = ov.Core().read_model(written.folder / MODEL_FILE)
    assert model.get_rt_info(["nncf", "weight_compression", "mode"]).astype(str) == "int4_sym"
    assert model.get_rt_info(["nncf", "weight_compression", "group_size"]).astype(str) == "-1"
