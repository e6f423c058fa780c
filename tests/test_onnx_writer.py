"""The written ONNX graph computes what the numpy reference does on the same dequantised weights."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import onnxruntime as ort
import onnxruntime_genai as og
import pytest

from aipc.conversion import convert as conversion
from aipc.conversion import openvino_ir
from aipc.conversion.checkpoint import Checkpoint
from aipc.conversion.convert import QUANTIZERS, convert_checkpoint, write_weights
from aipc.conversion.genai_config import CONFIG_FILE, write_genai_config
from aipc.conversion.onnx_genai import DATA_FILE, MODEL_FILE, OnnxWriter
from aipc.conversion.onnx_graph import OPSET
from aipc.conversion.onnx_weights import TARGETS, stored_nbytes
from aipc.conversion.quantize import dequantize, quantize, unpack_nibbles
from aipc.conversion.recipe import Recipe, make_recipe
from aipc.errors import SchemeError, UsageError
from aipc.manifest import Manifest
from aipc.phi3 import ONNX_FACTORS_MODEL_FILE, ONNX_LONG_FACTORS, Phi3Config, Role
from aipc.runtimes.reference import ReferenceSession
from aipc.types import Progress, Sampling
from checkpoints import GQA, LONGROPE, PARTIAL, TIED, TINY, WINDOW, write_checkpoint
from golden import CASES, load_golden
from tokenizers_for_tests import write_gpt_style, write_llama_style

RECIPES: dict[str, dict[str, Any]] = {
    "fp16": {"weight_format": "fp16"},
    "int8_sym": {"weight_format": "int8", "sym": True},
    "int8_asym": {"weight_format": "int8", "sym": False},
    "int4_sym_g32": {"group_size": 32},
    "int4_sym_g64": {"group_size": 64},
    "int4_asym_g32": {"group_size": 32, "sym": False},
    "int4_asym_g64": {"group_size": 64, "sym": False},
    "int4_sym_channel_wise": {"group_size": -1},
    "int4_asym_channel_wise": {"group_size": -1, "sym": False},
}
SHAPES = {
    "mha": TINY,
    "gqa": GQA,
    "tied": TIED,
    "window": WINDOW,
    "wide_window": TINY | {"sliding_window": 100},
    "partial": PARTIAL,
    "partial_gqa": GQA | {"partial_rotary_factor": 0.75},
    "heads_of_24": TINY | {"hidden_size": 96},
    "longrope": LONGROPE,
}
TWO_RECIPES = {name: RECIPES[name] for name in ("fp16", "int4_sym_g32")}
PROMPT = [int(token) for token in np.random.default_rng(7).integers(3, 300, 24)]
PIECES = [PROMPT[:10], PROMPT[10:13], *[[token] for token in PROMPT[13:]]]

# Relative to the largest logit. int8 is what accuracy_level 4 makes of activations.
FLOAT32, FLOAT16, INT8 = 1e-5, 3e-3, 4e-2

# Room for every id of the small tokenizers.
VOCAB = {"vocab_size": 704, "hidden_size": 128, "intermediate_size": 256}


class Written:
    """A model written to a folder, and the numbers that the folder stands for."""

    def __init__(
        self, folder: Path, shape: Mapping[str, Any], recipe_words: Mapping[str, Any], target: str = "cpu"
    ) -> None:
        self.weights = write_checkpoint(folder / "checkpoint", shape, dtype="F16")
        self.config = Phi3Config.read(folder / "checkpoint")
        self.recipe: Recipe = make_recipe(self.config, **recipe_words)
        self.target = TARGETS[target]
        self.folder = folder / "onnx"
        self.folder.mkdir()
        with closing(OnnxWriter(self.folder, self.config, self.recipe, self.target)) as writer:
            write_weights(Checkpoint.open(folder / "checkpoint"), self.config, self.recipe, [writer])

    @property
    def model(self) -> onnx.ModelProto:
        return onnx.load(self.folder / MODEL_FILE, load_external_data=False)

    def reference(self) -> ReferenceSession:
        stored = {}
        for spec in self.config.weights():
            scheme = self.recipe.scheme_for(spec)
            weight = self.weights[spec.name]
            stored[spec.name] = dequantize(QUANTIZERS[self.recipe.quant_method](weight, scheme))
        return ReferenceSession(self.config, stored)

    def exact(self) -> None:
        """Let the products keep float32 activations."""
        model = self.model
        for attribute in chain.from_iterable(node.attribute for node in model.graph.node):
            if attribute.name == "accuracy_level":
                attribute.i = 1
        (self.folder / MODEL_FILE).write_bytes(model.SerializeToString())

    def logits(self, *pieces: Sequence[int], long: bool | None = None) -> np.ndarray:
        """Logits of every token, fed in pieces through the cache.

        long   which of LongRoPE's factors to take; None leaves it to the graph
        """
        name = MODEL_FILE if long is None else ONNX_FACTORS_MODEL_FILE
        session = ort.InferenceSession(self.folder / name, providers=["CPUExecutionProvider"])
        outputs = [output.name for output in session.get_outputs()]
        config, tokens, logits = self.config, 0, []
        empty = np.zeros((1, config.kv_heads, 0, config.head_size), self.target.float_type)
        names = [i.name for i in session.get_inputs() if i.name.startswith("past_key_values.")]
        cache = dict.fromkeys(names, empty)
        for piece in pieces:
            positions = np.arange(tokens, tokens + len(piece))[None]
            tokens += len(piece)
            feed = {"input_ids": np.array([piece]), "attention_mask": np.ones((1, tokens), np.int64)} | cache
            if self.target.needs_positions(config):
                feed["position_ids"] = positions
            if long is not None:
                feed[ONNX_LONG_FACTORS] = np.array([[int(long)]])
            got = dict(zip(outputs, session.run(None, feed), strict=True))
            logits.append(got.pop("logits")[0])
            cache = {name.replace("present", "past_key_values"): value for name, value in got.items()}
        return np.concatenate(logits).astype(np.float32)


def assert_same_logits(got: np.ndarray, expected: np.ndarray, bound: float) -> None:
    assert np.abs(got - expected).max() <= bound * np.abs(expected).max()


@pytest.mark.parametrize("words", RECIPES.values(), ids=RECIPES.keys())
def test_every_scheme_computes_what_its_codes_say(tmp_path: Path, words: dict[str, Any]) -> None:
    written = Written(tmp_path, TINY, words)
    expected = written.reference().logits(PROMPT)
    assert_same_logits(written.logits(PROMPT), expected, INT8)
    written.exact()
    assert_same_logits(written.logits(PROMPT), expected, FLOAT32)


@pytest.mark.parametrize(
    ("target", "block", "bound"), [("cpu", 256, INT8), ("cuda", 128, FLOAT16), ("dml", 128, FLOAT16)]
)
@pytest.mark.parametrize("group_size", [256, -1])
def test_long_groups_are_cut_into_the_longest_blocks_of_the_target(
    tmp_path: Path, group_size: int, target: str, block: int, bound: float
) -> None:
    shape = TINY | {"hidden_size": 256, "intermediate_size": 512}
    written = Written(tmp_path, shape, {"group_size": group_size}, target)
    products = [node for node in written.model.graph.node if node.op_type == "MatMulNBits"]
    assert {onnx.helper.get_node_attr_value(node, "block_size") for node in products} == {block}
    expected = written.reference().logits(PROMPT)
    assert_same_logits(written.logits(PROMPT), expected, bound)
    if target == "cpu":
        written.exact()
        assert_same_logits(written.logits(PROMPT), expected, FLOAT32)


@pytest.mark.parametrize("words", TWO_RECIPES.values(), ids=TWO_RECIPES.keys())
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_every_shape_in_one_piece_and_through_the_cache(
    tmp_path: Path, shape: dict[str, Any], words: dict[str, Any]
) -> None:
    written = Written(tmp_path, shape, words)
    expected = written.reference().logits(PROMPT)
    written.exact()
    assert_same_logits(written.logits(PROMPT), expected, FLOAT32)
    assert_same_logits(written.logits(*PIECES), expected, FLOAT32)


@pytest.mark.parametrize("target", ["cuda", "dml"])
@pytest.mark.parametrize("words", RECIPES.values(), ids=RECIPES.keys())
def test_every_scheme_in_float16(tmp_path: Path, words: dict[str, Any], target: str) -> None:
    written = Written(tmp_path, TIED, words, target)
    assert_same_logits(written.logits(PROMPT), written.reference().logits(PROMPT), FLOAT16)


@pytest.mark.parametrize("target", ["cuda", "dml"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_every_shape_in_float16(tmp_path: Path, shape: dict[str, Any], target: str) -> None:
    written = Written(tmp_path, shape, RECIPES["int4_sym_g32"], target)
    assert_same_logits(written.logits(*PIECES), written.reference().logits(PROMPT), FLOAT16)


# LongRoPE's two sets of factors

LONG_TEXT = [int(token) for token in np.random.default_rng(8).integers(3, 300, 100)]
# Scales, partial rotation, grouped queries and the tied matrix at once.
LONG_SHAPES = {
    "longrope": LONGROPE,
    "like_phi_4_mini": LONGROPE
    | {
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.5,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.1, 1.3, 2.6],
            "long_factor": [1.08, 3.2, 28.6, 64.8],
            "short_mscale": 1.1,
            "long_mscale": 1.3,
        },
        "tie_word_embeddings": True,
    },
}


@pytest.mark.parametrize("shape", LONG_SHAPES.values(), ids=LONG_SHAPES)
def test_the_graph_takes_the_long_factors_for_what_is_longer_than_the_border(
    tmp_path: Path, shape: dict[str, Any]
) -> None:
    written = Written(tmp_path, shape, RECIPES["fp16"])
    reference = written.reference()
    for tokens in (63, 64, 65, 100):
        text = LONG_TEXT[:tokens]
        assert_same_logits(written.logits(text), reference.logits(text), FLOAT32)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", LONG_SHAPES.values(), ids=LONG_SHAPES)
def test_a_caller_chooses_the_long_factors_for_the_whole_of_a_text(
    tmp_path: Path, shape: dict[str, Any], target: str
) -> None:
    """By pieces across the border: nothing of the short factors is left in the cache."""
    written = Written(tmp_path, shape, RECIPES["fp16"], target)
    expected = written.reference().logits(LONG_TEXT)
    pieces = [LONG_TEXT[:30], LONG_TEXT[30:62], *[[token] for token in LONG_TEXT[62:]]]
    bound = FLOAT32 if target == "cpu" else FLOAT16
    assert_same_logits(written.logits(*pieces, long=True), expected, bound)
    with pytest.raises(AssertionError):
        assert_same_logits(written.logits(*pieces), expected, 10 * FLOAT16)
    short = LONG_TEXT[:64]
    assert_same_logits(written.logits(short, long=False), written.reference().logits(short), bound)


def test_sequences_of_a_batch_have_their_own_factors(tmp_path: Path) -> None:
    written = Written(tmp_path, LONGROPE, RECIPES["fp16"])
    session = ort.InferenceSession(
        written.folder / ONNX_FACTORS_MODEL_FILE, providers=["CPUExecutionProvider"]
    )
    short = LONG_TEXT[:40]
    mask = np.array([[1] * 100, [1] * 40 + [0] * 60, [1] * 40 + [0] * 60])
    empty = np.zeros((3, written.config.kv_heads, 0, written.config.head_size), np.float32)
    feed = {
        "input_ids": np.array([LONG_TEXT, short + [0] * 60, short + [0] * 60]),
        "attention_mask": mask,
        "position_ids": np.maximum(np.cumsum(mask, axis=1) - 1, 0),
        ONNX_LONG_FACTORS: np.array([[0], [0], [1]]),
    }
    feed |= {i.name: empty for i in session.get_inputs() if i.name.startswith("past_key_values.")}
    got = session.run(["logits"], feed)[0]
    reference = written.reference()
    assert_same_logits(got[0], reference.logits(LONG_TEXT), FLOAT32)
    assert_same_logits(got[1, :40], reference.logits(short), FLOAT32)
    assert_same_logits(got[2, :40], written.logits(short, long=True), FLOAT32)
    assert np.abs(got[2, :40] - got[1, :40]).max() > 0.1


def test_both_graphs_of_a_folder_read_the_same_data(tmp_path: Path) -> None:
    written = Written(tmp_path, LONGROPE, RECIPES["int4_sym_g32"])
    chooses, asks = (
        onnx.load(written.folder / name, load_external_data=False).graph
        for name in (MODEL_FILE, ONNX_FACTORS_MODEL_FILE)
    )
    assert list(chooses.initializer) == list(asks.initializer)
    assert {item.name for item in asks.input} - {item.name for item in chooses.input} == {ONNX_LONG_FACTORS}


# What is in the files


def stored(folder: Path, tensor: onnx.TensorProto) -> np.ndarray:
    """A tensor of the data file."""
    place = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    data = (folder / place["location"]).read_bytes()
    start, size = int(place["offset"]), int(place["length"])
    return np.frombuffer(data[start : start + size], dtype).reshape(tensor.dims)


def onnx_weights(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every matrix that MatMulNBits or GatherBlockQuantized reads, by the operators' definition."""
    model = onnx.load(folder / MODEL_FILE, load_external_data=False)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in {"MatMulNBits", "GatherBlockQuantized"}:
            continue
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        is_product = node.op_type == "MatMulNBits"
        names = [name for name in node.input if name in tensors]
        codes, scale = (stored(folder, tensors[name]) for name in names[:2])
        rows, blocks = scale.shape
        bits, block = attributes["bits"], attributes["block_size"]
        values = codes if bits == 8 else unpack_nibbles(codes.reshape(-1), (codes.size * 2,), signed=False)
        zero: Any = 2 ** (bits - 1)
        if len(names) == 3:
            zero = stored(folder, tensors[names[2]])
            if bits == 4:
                zero = np.stack([zero & 15, zero >> 4], axis=-1).reshape(rows, -1)[:, :blocks]
            zero = zero[..., None].astype(np.float32)
        values = values.reshape(rows, blocks, block).astype(np.float32)
        weight = (values - zero) * scale[..., None].astype(np.float32)
        if is_product:
            assert (attributes["N"], attributes["K"]) == (rows, blocks * block)
        yield names[0].partition("/")[0], weight.reshape(rows, -1)


def openvino_weights(folder: Path) -> dict[str, np.ndarray]:
    """Every quantised matrix of an IR, dequantised by the chain that stands in it."""
    data = (folder / openvino_ir.WEIGHTS_FILE).read_bytes()
    parts: dict[str, dict[str, np.ndarray]] = {}
    for layer in ET.parse(folder / openvino_ir.MODEL_FILE).iterfind("./layers/layer[@type='Const']"):
        weight, _, part = layer.get("name", "").partition("/")
        place = layer.find("data")
        if part not in {"codes", "scale", "zero_point"} or place is None:
            continue
        shape = tuple(int(size) for size in place.get("shape", "").split(","))
        start, size = int(place.get("offset", "")), int(place.get("size", ""))
        kind = place.get("element_type", "")
        raw = np.frombuffer(data[start : start + size], np.uint8)
        if kind in {"i4", "u4"}:
            values = unpack_nibbles(raw, shape, signed=kind == "i4")
        else:
            values = raw.view({"f16": np.float16, "i8": np.int8, "u8": np.uint8}[kind]).reshape(shape)
        parts.setdefault(weight, {})[part] = values.astype(np.float32)
    found = {name: (it["codes"] - it.get("zero_point", 0)) * it["scale"] for name, it in parts.items()}
    return {name: value.reshape(len(value), -1) for name, value in found.items()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    tokenizer = write_llama_style(folder / "tokenizer")
    write_checkpoint(folder / "checkpoint", TINY, tokenizer_from=tokenizer, **VOCAB)
    return folder / "checkpoint"


def convert(checkpoint: Path, out: Path, **words: Any) -> Path:
    convert_checkpoint(checkpoint, out, name="test", **words)
    return out


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "words",
    [
        {},
        {"sym": False, "group_size": 64},
        {"group_size": -1},
        {"sym": False, "group_size": -1, "ratio": 0.6},
        {"weight_format": "int8", "sym": True},
        {"quant_method": "gptq-random"},
    ],
    ids=lambda words: "_".join(map(str, words.values())) or "default",
)
def test_both_runtimes_compute_from_the_same_codes_and_scales(
    checkpoint: Path, tmp_path: Path, words: dict[str, Any], target: str
) -> None:
    out = convert(checkpoint, tmp_path / "out", to=("openvino", "onnx"), target=target, **words)
    expected = openvino_weights(out / "openvino")
    matrices = [spec.name for spec in Phi3Config.read(checkpoint).weights() if spec.role is not Role.NORM]
    assert sorted(expected) == sorted(matrices)
    seen = set()
    for name, weight in onnx_weights(out / "onnx"):
        np.testing.assert_array_equal(weight, expected[name])
        seen.add(name)
    # DirectML has no kernel that reads a quantised embedding: there it is float16.
    assert set(matrices) - seen == ({"model.embed_tokens.weight"} if target == "dml" else set())


@pytest.mark.parametrize("recipe", ["int4_sym_g64", "int4_asym_g64", "int8_sym", "int8_asym"])
def test_directml_finds_an_even_number_of_zero_points_in_each_row(tmp_path: Path, recipe: str) -> None:
    """Its kernel's versions differ in what they make of an odd number; down_proj has 3 blocks of 64 else."""
    written = Written(tmp_path, TINY | {"intermediate_size": 192}, RECIPES[recipe], "dml")
    nodes = [node for node in written.model.graph.node if node.op_type == "MatMulNBits"]
    tensors = {tensor.name: tensor for tensor in written.model.graph.initializer}
    for node in nodes:
        scale, zero_point = (tensors[name] for name in node.input[2:4])
        bits = onnx.helper.get_node_attr_value(node, "bits")
        assert scale.dims[1] % 2 == 0
        assert 8 * zero_point.dims[1] == bits * scale.dims[1]
        if "sym" in recipe.split("_") and bits == int(recipe[3]):
            assert (stored(written.folder, zero_point) == (0x88 if bits == 4 else 0x80)).all()
    assert len(nodes) == 4 * written.config.layers + 1


@pytest.mark.parametrize("words", [RECIPES["fp16"], RECIPES["int8_asym"]], ids=["fp16", "int8"])
def test_a_tied_matrix_is_stored_once(tmp_path: Path, words: dict[str, Any]) -> None:
    tied = Written(tmp_path / "tied", TIED, words)
    untied = Written(tmp_path / "untied", TINY, words)
    sizes = [(written.folder / DATA_FILE).stat().st_size for written in (untied, tied)]
    bits = 16 if words["weight_format"] == "fp16" else 8
    assert sizes[0] - sizes[1] >= tied.config.vocab_size * tied.config.hidden_size * bits // 8


@pytest.mark.parametrize("target", TARGETS)
def test_the_size_is_known_before_anything_is_written(tmp_path: Path, target: str) -> None:
    written = Written(tmp_path, TIED, RECIPES["int4_asym_g64"], target)
    size = (written.folder / DATA_FILE).stat().st_size
    announced = stored_nbytes(written.config, written.recipe.scheme_for, written.target)
    assert announced <= size <= announced + 64 * len(written.model.graph.initializer)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", [TIED, PARTIAL], ids=["tied", "partial"])
def test_the_description_is_sound(tmp_path: Path, shape: dict[str, Any], target: str) -> None:
    written = Written(tmp_path, shape, RECIPES["int4_sym_g32"], target)
    model = written.model
    for names in (
        [node.name for node in model.graph.node],
        [output for node in model.graph.node for output in node.output if output],
        [tensor.name for tensor in model.graph.initializer],
    ):
        assert len(names) == len(set(names))
        assert "" not in names
    # The checker knows the operators of ONNX; RMS norm bears its domain without being one of them.
    for node in model.graph.node:
        if node.op_type == "SimplifiedLayerNormalization":
            node.domain = "com.microsoft"
    (written.folder / MODEL_FILE).write_bytes(model.SerializeToString())
    onnx.checker.check_model(written.folder / MODEL_FILE)


def test_the_operators_of_each_target(tmp_path: Path) -> None:
    operators: dict[str, list[str]] = {}
    for target in TARGETS:
        written = Written(tmp_path / target, TINY, RECIPES["int4_sym_g32"], target)
        operators[target] = [node.op_type for node in written.model.graph.node]
        assert {opset.domain: opset.version for opset in written.model.opset_import}[""] == OPSET == 21
        levels = [a.i for n in written.model.graph.node for a in n.attribute if a.name == "accuracy_level"]
        assert levels == ([4] * 9 if target == "cpu" else [])
    assert operators["cuda"] == operators["cpu"]
    assert operators["cpu"].count("GroupQueryAttention") == operators["dml"].count("GroupQueryAttention") == 2
    assert "RotaryEmbedding" not in operators["cpu"]
    assert operators["dml"].count("RotaryEmbedding") == 4
    assert not {"If", "GatherBlockQuantized"} & set(operators["dml"])


def test_rotation_tables_do_not_suffer_from_float16_angles(tmp_path: Path) -> None:
    written = Written(tmp_path, TINY | {"max_position_embeddings": 4096}, RECIPES["fp16"], "cuda")
    tensors = {tensor.name: tensor for tensor in written.model.graph.initializer}
    angles = np.arange(4096, dtype=np.float64)[:, None] * written.config.inverse_frequencies()
    for name, table in (("cos_cache", np.cos(angles)), ("sin_cache", np.sin(angles))):
        np.testing.assert_allclose(stored(written.folder, tensors[name]), table, atol=1e-3)


def test_rows_that_no_block_divides_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemeError, match="rows of 72 numbers"):
        Written(tmp_path, TINY | {"hidden_size": 72}, RECIPES["int8_sym"])


# In plain onnxruntime_genai, with no help from aipc


def generate(folder: Path, prompt: Sequence[int], tokens: int) -> list[int]:
    model = og.Model(str(folder))
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + tokens)
    generator = og.Generator(model, params)
    generator.append_tokens(np.array([prompt], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[len(prompt) :]]


@pytest.mark.parametrize("case", CASES)
def test_the_tokens_of_transformers(tmp_path: Path, case: str) -> None:
    golden = load_golden(case)
    golden.write_checkpoint(tmp_path)
    config = Phi3Config.read(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2]}', encoding="utf-8")
    recipe = make_recipe(config, weight_format="fp16")
    with closing(OnnxWriter(tmp_path, config, recipe, TARGETS["cpu"])) as writer:
        write_weights(Checkpoint.open(tmp_path), config, recipe, [writer])
    write_genai_config(tmp_path, config, TARGETS["cpu"], MODEL_FILE)
    assert generate(tmp_path, golden.prompt, len(golden.tokens)) == list(golden.tokens)


@pytest.mark.parametrize(
    ("write_tokenizer", "kind"), [(write_llama_style, "LlamaTokenizer"), (write_gpt_style, "GPT2Tokenizer")]
)
def test_text_in_and_text_out(tmp_path: Path, write_tokenizer: Any, kind: str) -> None:
    source = tmp_path / "checkpoint"
    tokenizer_folder = write_tokenizer(tmp_path / "tokenizer", tokenizer_class=kind, add_bos_token=False)
    weights = write_checkpoint(source, TINY, dtype="F16", tokenizer_from=tokenizer_folder, **VOCAB)
    folder = convert(source, tmp_path / "out", to=("onnx",), weight_format="fp16")
    tokenizer = og.Tokenizer(og.Model(str(folder)))
    chat = json.dumps([{"role": "user", "content": "What is an NPU?"}])
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    assert "What is an NPU?" in text
    prompt = [int(token) for token in tokenizer.encode(text)]
    answer = generate(folder, prompt, 12)
    sampling = Sampling(max_new_tokens=12, stop_ids=frozenset(stop_ids(folder)))
    reference = ReferenceSession(Phi3Config.read(source), weights)
    assert answer == list(reference.generate(prompt, sampling))
    assert isinstance(tokenizer.decode(np.array(answer)), str)


def stop_ids(folder: Path) -> list[int]:
    content = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    return list(content["eos_token_id"])


@pytest.mark.parametrize("target", TARGETS)
def test_the_genai_config(checkpoint: Path, tmp_path: Path, target: str) -> None:
    folder = convert(checkpoint, tmp_path / "out", to=("onnx",), target=target)
    content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    model, decoder = content["model"], content["model"]["decoder"]
    assert model["eos_token_id"] == stop_ids(folder)
    assert model["bos_token_id"] == 1
    assert model["context_length"] == content["search"]["max_length"] == 512
    assert ("position_ids" in decoder["inputs"]) is (target == "dml")
    providers = decoder["session_options"]["provider_options"]
    assert [next(iter(options)) for options in providers] == ([] if target == "cpu" else [target])
    assert all(
        isinstance(value, str) for options in providers for value in next(iter(options.values())).values()
    )


def test_the_context_ends_with_the_window_where_no_kernel_heeds_it(tmp_path: Path) -> None:
    """DirectML's attention sees everything: right up to the window, and wrong beyond it."""
    lengths = {}
    for target in TARGETS:
        folder = tmp_path / target
        write_checkpoint(folder, WINDOW)
        (folder / "generation_config.json").write_text("{}", encoding="utf-8")
        write_genai_config(folder, Phi3Config.read(folder), TARGETS[target], MODEL_FILE)
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        lengths[target] = content["model"]["context_length"]
    assert lengths == {"cpu": 512, "cuda": 512, "dml": 8}


# Conversions


def test_one_format_is_the_folder_and_two_are_folders_in_it(checkpoint: Path, tmp_path: Path) -> None:
    alone = convert(checkpoint, tmp_path / "alone", to=("onnx",), target="dml")
    assert {path.name for path in alone.iterdir()} == {
        "aipc.json",
        "config.json",
        "genai_config.json",
        "generation_config.json",
        "model.onnx",
        "model.onnx.data",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    manifest = Manifest.read(alone)
    assert (manifest.runtime, manifest.recipe["target"]) == ("onnxruntime", "dml")
    assert manifest.files[DATA_FILE].bytes == (alone / DATA_FILE).stat().st_size

    both = convert(checkpoint, tmp_path / "both", to=("openvino", "onnx"), target="dml")
    assert {path.name for path in both.iterdir()} == {"openvino", "onnx"}
    assert Manifest.read(both / "onnx").files == manifest.files
    just_openvino = convert(checkpoint, tmp_path / "just")
    files, expected = (Manifest.read(folder).files for folder in (both / "openvino", just_openvino))
    assert files.keys() == expected.keys()
    assert files[openvino_ir.WEIGHTS_FILE] == expected[openvino_ir.WEIGHTS_FILE]


def test_blocks_in_any_order_give_the_same_bytes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: dict[str, Any] = {"to": ("onnx",), "sym": False, "group_size": 32, "ratio": 0.5}
    whole = convert(checkpoint, tmp_path / "whole", **words)
    monkeypatch.setattr(conversion, "BLOCK_ELEMENTS", 1_000)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    blocks = convert(checkpoint, tmp_path / "blocks", **words)
    for name in (MODEL_FILE, DATA_FILE):
        assert (whole / name).read_bytes() == (blocks / name).read_bytes()

    config, read = Phi3Config.read(checkpoint), Checkpoint.open(checkpoint).read
    recipe = make_recipe(config, sym=False, group_size=32)
    folders = [tmp_path / "forwards", tmp_path / "backwards"]
    for folder in folders:
        folder.mkdir()
        pieces = [(spec, row) for spec in config.weights() for row in range(0, spec.shape[0], 50)]
        with closing(OnnxWriter(folder, config, recipe, TARGETS["cpu"])) as writer:
            for spec, row in pieces if folder is folders[0] else reversed(pieces):
                weight = read(spec.name, slice(row, row + 50))
                writer.add(spec, row, quantize(weight, recipe.scheme_for(spec)))
    assert (folders[0] / DATA_FILE).read_bytes() == (folders[1] / DATA_FILE).read_bytes()


@pytest.mark.parametrize("to", [("onnx",), ("openvino", "onnx")])
def test_an_interrupted_conversion_leaves_nothing(
    checkpoint: Path, tmp_path: Path, to: Sequence[str]
) -> None:
    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, tmp_path / "out", to=to, progress=interrupt)
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"to": ("coreml",)}, "openvino, onnx"),
        ({"to": ()}, "name one"),
        ({"to": ("onnx", "onnx")}, "once each"),
        ({"to": ("onnx",), "target": "npu"}, "cpu, cuda, dml"),
    ],
)
def test_impossible_words_name_the_possible_ones(
    checkpoint: Path, tmp_path: Path, words: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UsageError, match=expected):
        convert(checkpoint, tmp_path / "out", **words)
    assert list(tmp_path.iterdir()) == []
