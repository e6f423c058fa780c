"""Error feedback: what it promises for the outputs, the order of things, and bad input."""

from __future__ import annotations

import json
import threading
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aipc
from aipc import demo
from aipc.conversion import convert, gptq
from aipc.conversion.calibration import read_calibration
from aipc.conversion.checkpoint import Checkpoint
from aipc.conversion.convert import calibration_for, write_weights
from aipc.conversion.gptq import feedback_of, feedback_within, quantize_with_feedback
from aipc.conversion.quantize import Packed, Scheme, dequantize
from aipc.conversion.recipe import Recipe, make_recipe
from aipc.conversion.scale_search import quantize_least_squares
from aipc.decoder import ArrayWeights, Decoder, forward
from aipc.errors import AipcError, CheckpointError, SchemeError, UsageError
from aipc.manifest import Manifest
from aipc.phi3 import Phi3Config, Role, WeightSpec
from aipc.text import Text
from aipc.types import Progress
from aipc.verification.losses import log_softmax
from aipc.verification.passages import read_text
from checkpoints import TINY, write_checkpoint, write_safetensors
from family import FAMILY
from tokenizers_for_tests import write_llama_style

SCHEMES = [Scheme(4, symmetric, size) for symmetric in (True, False) for size in (64, -1)]
by_name = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)


def correlated(tokens: int, columns: int, seed: int) -> np.ndarray:
    """Inputs as a layer has them: some directions and some columns are much larger than others."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((tokens, columns)) @ rng.standard_normal((columns, columns))
    return (mixed * np.exp(rng.standard_normal(columns))).astype(np.float32)


@by_name
def test_outputs_on_other_inputs_lose_less(scheme: Scheme) -> None:
    weight = np.random.default_rng(0).standard_normal((96, 128), np.float32)
    x = correlated(2000, 128, seed=1)
    packed = quantize_with_feedback(weight, scheme, feedback_of(x[:1000]))
    lost, plain = (
        np.linalg.norm(x[1000:] @ (dequantize(p) - weight).T)
        for p in (packed, quantize_least_squares(weight, scheme))
    )
    assert lost < 0.7 * plain


@by_name
def test_without_correlation_it_is_rounding_to_nearest(scheme: Scheme) -> None:
    weight = np.random.default_rng(2).standard_normal((32, 128), np.float32)
    packed = quantize_with_feedback(weight, scheme, feedback_of(np.eye(128, dtype=np.float32)))
    error = np.abs(dequantize(packed) - weight).reshape(packed.scale.size, -1)
    scale = np.abs(packed.scale.astype(np.float32)).reshape(-1, 1)
    codes = packed.codes.reshape(error.shape)
    inside = (codes > scheme.code_range[0]) & (codes < scheme.code_range[1])
    assert (error <= scale * 0.501)[inside].all()


def test_each_column_is_rounded_where_the_error_of_the_outputs_is_least() -> None:
    """The recursion written plainly: minimise over one code at a time, later columns free to mend it."""
    weight = np.random.default_rng(3).standard_normal((4, 8), np.float32)
    x = correlated(50, 8, seed=4)
    scheme = Scheme(4, True, -1)
    feedback = feedback_of(x)
    packed = quantize_with_feedback(weight, scheme, feedback)
    assert packed.scale is not None

    gram = (x.T @ x).astype(np.float64)
    gram += np.eye(8) * np.diag(gram).mean() * (0.01 + 0.2 * 8 / 50)
    order = feedback.order[::-1]
    assert (np.diff(np.diag(gram)[order]) <= 0).all()
    for row, codes, scale in zip(weight.astype(np.float64), packed.codes, packed.scale, strict=True):
        error = np.zeros(8)
        for place, column in enumerate(order):
            costs = [
                least_error(error, column, row[column] - code * float(scale[0]), order[place + 1 :], gram)
                for code in range(-8, 8)
            ]
            assert costs[codes[column] + 8] == pytest.approx(min(costs), rel=1e-4)
            error[column] = row[column] - codes[column] * float(scale[0])


def least_error(error: np.ndarray, column: int, value: float, later: np.ndarray, gram: np.ndarray) -> float:
    """Of the outputs, if a column's error is `value` and the later columns may have any."""
    tried = error.copy()
    tried[column] = value
    if len(later):
        done = np.setdiff1d(np.arange(len(gram)), later)
        tried[later] = -np.linalg.solve(gram[np.ix_(later, later)], gram[np.ix_(later, done)] @ tried[done])
    return float(tried @ gram @ tried)


@pytest.mark.parametrize("panel", [64, 100, 512])
def test_the_factor_is_choleskys(panel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "_PANEL", panel)
    for tokens in (90, 2000):
        x = correlated(tokens, 300, seed=8)
        gram = x.T.astype(np.float64) @ x
        added = 0.01 * np.diag(gram).mean()
        expected = np.linalg.cholesky(gram + added * np.eye(300))
        factor = gptq.factor_of_gram(x, added)
        np.testing.assert_allclose(np.tril(factor), expected, atol=2e-5 * expected.max())
    with pytest.raises(np.linalg.LinAlgError):
        gptq.factor_of_gram(np.ones((2, 300), np.float32), -1.0)


@by_name
@pytest.mark.parametrize(("panel", "columns"), [(512, 64), (100, 7), (64, 1)])
def test_panels_and_halves_are_the_recursion_in_float64(
    scheme: Scheme, panel: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the work is cut, and though it is done in float32: codes differ only where two are as good."""
    monkeypatch.setattr(gptq, "_PANEL", panel)
    monkeypatch.setattr(gptq, "_COLUMNS", columns)
    weight = np.random.default_rng(9).standard_normal((64, 320), np.float32)
    x = correlated(240, 320, seed=10)
    found = quantize_with_feedback(weight, scheme, feedback_of(x))
    expected = in_float64(weight, scheme, x)
    assert np.mean(found.codes != expected.codes) < 2e-3
    lost, least = (np.linalg.norm(x @ (dequantize(packed) - weight).T) for packed in (found, expected))
    assert lost == pytest.approx(least, rel=1e-3)


def in_float64(weight: np.ndarray, scheme: Scheme, x: np.ndarray) -> Packed:
    """Error feedback one column after the other, by the inverse of H, as in the paper."""
    searched = quantize_least_squares(weight, scheme)
    assert searched.scale is not None
    tokens, columns = x.shape
    gram = x.T.astype(np.float64) @ x
    gram += np.eye(columns) * np.diag(gram).mean() * (0.01 + 0.2 * columns / tokens)
    order = np.argsort(np.einsum("tc,tc->c", x, x), kind="stable")[::-1]
    upper = np.linalg.cholesky(np.linalg.inv(gram[np.ix_(order, order)])).T
    rest = weight.T[order].astype(np.float64)
    groups = order // (columns // scheme.groups(columns))
    codes = np.empty(weight.shape, searched.codes.dtype)
    for place, (column, group) in enumerate(zip(order, groups, strict=True)):
        scale = searched.scale[:, group].astype(np.float64)
        zero = 0 if searched.zero_point is None else searched.zero_point[:, group].astype(np.float64)
        code = np.clip(np.rint(rest[place] / scale + zero), *scheme.code_range)
        codes[:, column] = code
        error = (rest[place] - (code - zero) * scale) / upper[place, place]
        rest[place:] -= np.outer(upper[place, place:], error)
    return Packed(codes, searched.scale, searched.zero_point, scheme)


def test_parts_of_the_columns_are_rounded_each_for_itself() -> None:
    weight = np.random.default_rng(11).standard_normal((96, 320), np.float32)
    x = correlated(2000, 320, seed=12)
    for scheme in (Scheme(4, True, 64), Scheme(4, False, 32)):
        found = quantize_with_feedback(weight, scheme, *feedback_within(x[:1000], 128))
        alone = [
            quantize_with_feedback(weight[:, part], scheme, feedback_of(x[:1000, part])).codes
            for part in (slice(0, 128), slice(128, 256), slice(256, 320))
        ]
        assert np.mean(found.codes != np.concatenate(alone, axis=1)) < 1e-3
        whole = quantize_with_feedback(weight, scheme, feedback_of(x[:1000]))
        nearest = quantize_least_squares(weight, scheme)
        losses = [np.linalg.norm(x[1000:] @ (dequantize(p) - weight).T) for p in (whole, found, nearest)]
        assert losses == sorted(losses)


@by_name
def test_one_part_of_all_columns_is_the_whole(scheme: Scheme) -> None:
    weight = np.random.default_rng(13).standard_normal((8, 128), np.float32)
    x = correlated(300, 128, seed=14)
    found = quantize_with_feedback(weight, scheme, *feedback_within(x, 1024))
    np.testing.assert_array_equal(found.codes, quantize_with_feedback(weight, scheme, feedback_of(x)).codes)


def test_format_and_scales_are_those_of_the_search() -> None:
    weight = np.random.default_rng(5).standard_normal((6, 256), np.float32)
    for scheme in (Scheme(4, True, 128), Scheme(4, False, 32)):
        ours = quantize_with_feedback(weight, scheme, feedback_of(correlated(300, 256, seed=6)))
        searched = quantize_least_squares(weight, scheme)
        np.testing.assert_array_equal(ours.scale, searched.scale)
        assert ours.codes.dtype == searched.codes.dtype
        assert (ours.zero_point is None) == scheme.symmetric


@pytest.mark.parametrize("x", [np.zeros((300, 64)), np.ones((300, 64)), np.eye(300, 64) * 1e-20])
def test_inputs_that_say_nothing(x: np.ndarray) -> None:
    weight = np.random.default_rng(7).standard_normal((4, 64), np.float32)
    packed = quantize_with_feedback(weight, Scheme(4, True, 64), feedback_of(x.astype(np.float32)))
    assert np.isfinite(dequantize(packed)).all()


class Kept:
    """A writer that keeps what it is given."""

    def __init__(self, config: Phi3Config) -> None:
        self.weights = {spec.name: np.full(spec.shape, np.nan, np.float32) for spec in config.weights()}

    def add(self, spec: WeightSpec, first_row: int, packed: Packed) -> None:
        part = self.weights[spec.name][first_row : first_row + len(packed.codes)]
        assert np.isnan(part).all(), "no row comes twice"
        part[:] = dequantize(packed)

    def close(self) -> None:
        """Nothing to finish."""


def stored(recipe: Recipe, folder: Path = demo.path()) -> dict[str, np.ndarray]:  # noqa: B008 - a constant
    """A model's weights as a conversion stores them."""
    config = Phi3Config.read(folder)
    kept = Kept(config)
    calibration = calibration_for(recipe, folder, config, None)
    write_weights(Checkpoint.open(folder), config, recipe, [kept], calibration=calibration)
    assert all(np.isfinite(weight).all() for weight in kept.weights.values())
    return kept.weights


def test_blocks_of_rows_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Phi3Config.read(demo.path())
    recipe = make_recipe(config, quant_method="gptq")
    whole = stored(recipe)
    monkeypatch.setattr(gptq, "_BLOCK_ELEMENTS", 20_000)
    first = "model.layers.0.self_attn.qkv_proj.weight"
    # Products in other blocks differ in their last bits, which may turn a code, and then all later layers.
    assert np.mean(stored(recipe)[first] != whole[first]) < 1e-3


def test_on_a_text_that_it_has_not_seen_the_demo_loses_at_most_six_tenths() -> None:
    """And eight without any text: KL divergence from the original, as a share of plain rounding's."""
    folder = demo.path()
    config, checkpoint = Phi3Config.read(folder), Checkpoint.open(folder)
    ids = Text.load(folder).encode(read_text(None))[:1500]

    def scores(weights: dict[str, np.ndarray]) -> np.ndarray:
        decoder = Decoder(config, ArrayWeights(weights))
        *_, (_, x) = forward(decoder, [ids[:750], ids[750:]])
        return log_softmax(decoder.head(decoder.last_norm(x)))

    original = scores({spec.name: checkpoint.read(spec.name) for spec in config.weights()})

    def divergence(method: str) -> float:
        other = scores(stored(make_recipe(config, quant_method=method)))
        return float((np.exp(original) * (original - other)).sum(axis=-1).mean())

    plain = divergence("rtn")
    assert divergence("mse") < plain
    assert divergence("gptq") <= 0.6 * plain
    assert divergence("gptq-random") <= 0.8 * plain


@pytest.mark.parametrize(
    ("method", "group_size", "share"), [("gptq", 32, 0.8), ("gptq", -1, 0.8), ("gptq-random", 32, 0.95)]
)
@pytest.mark.parametrize("member", FAMILY)
def test_every_member_computes_nearer_to_the_original(
    member: str, method: str, group_size: int, share: float, tmp_path: Path
) -> None:
    """Fused and grouped projections, partial rotation, tied embeddings, both sets of LongRoPE's factors."""
    folder = tmp_path / "checkpoint"
    write_checkpoint(
        folder, FAMILY[member], tokenizer_from=write_llama_style(tmp_path / "tokenizer"), vocab_size=704
    )
    config, checkpoint = Phi3Config.read(folder), Checkpoint.open(folder)
    ids = Text.load(folder).encode(read_text(None))[:1000]

    def hidden(weights: dict[str, np.ndarray]) -> np.ndarray:
        decoder = Decoder(config, ArrayWeights(weights))
        *_, (_, x) = forward(decoder, [ids[:500], ids[500:]])
        return decoder.last_norm(x)

    original = hidden({spec.name: checkpoint.read(spec.name) for spec in config.weights()})
    calibrated, plain = (
        np.linalg.norm(hidden(stored(recipe, folder)) - original)
        for recipe in (make_recipe(config, group_size=group_size, quant_method=m) for m in (method, "rtn"))
    )
    assert calibrated < share * plain


# The words of a user


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    write_checkpoint(folder, TINY, tokenizer_from=write_llama_style(tmp_path / "tokenizer"), vocab_size=704)
    return folder


def test_the_manifest_says_which_text(checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("The tide comes in. " * 500, encoding="utf-8")
    recipe = Manifest.read(
        aipc.convert(checkpoint, tmp_path / "out", quant_method="gptq", dataset=text)
    ).recipe
    assert (recipe["quant_method"], recipe["dataset"]) == ("gptq", "mine.txt")
    assert 0 < recipe["calibration_tokens"] <= 8192
    json.dumps(recipe)


def test_both_formats_and_a_mixture_come_from_one_pass(checkpoint: Path, tmp_path: Path) -> None:
    out = aipc.convert(
        checkpoint, tmp_path / "out", to="openvino,onnx", quant_method="gptq", ratio=0.6, group_size=32
    )
    recipes = [Manifest.read(out / name).recipe for name in ("openvino", "onnx")]
    assert recipes[0]["int8_weights"] == recipes[1]["int8_weights"] != []


def test_random_tokens_need_no_text(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a tokenizer to have them; and they are the same each time, so the bytes are too."""

    def read(*_: Any) -> None:
        raise AssertionError("a text was read")

    monkeypatch.setattr(convert, "read_calibration", read)
    config = Phi3Config.read(checkpoint)
    recipe = make_recipe(config, quant_method="gptq-random")
    calibration = calibration_for(recipe, tmp_path / "nothing", config, None)
    assert calibration is not None
    assert all(0 <= token < config.vocab_size for ids in calibration.sequences for token in ids)
    folders = [aipc.convert(checkpoint, tmp_path / n, quant_method="gptq-random") for n in ("a", "b")]
    first, second = ((folder / "openvino_model.bin").read_bytes() for folder in folders)
    assert first == second
    described = Manifest.read(folders[0]).recipe
    assert (described["quant_method"], described["dataset"]) == ("gptq-random", "random")
    assert described["calibration_tokens"] == sum(map(len, calibration.sequences))
    assert "dataset_sha256" not in described


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"quant_method": "gptq", "weight_format": "int8"}, "int8 has no 4-bit weights"),
        (
            {"quant_method": "gptq-random", "weight_format": "int8"},
            "gptq-random quantises to 4 bits",
        ),
        ({"quant_method": "gptq-random", "weight_format": "fp16"}, "fp16 has no 4-bit weights"),
        ({"quant_method": "gptq-random", "dataset": "x.txt"}, "a text is for gptq; gptq-random reads none"),
        ({"dataset": "x.txt"}, "a text is for gptq; rtn reads none"),
        ({"quant_method": "gptq", "dataset": "wikitext2"}, "wikitext2 cannot be read"),
        ({"quant_method": "gptq", "dataset": "short.txt"}, "at least 256 are needed"),
        ({"quant_method": "gptq", "dataset": "blank.txt"}, "the text has 0 tokens"),
        ({"quant_method": "gptq", "dataset": "latin.txt"}, "no UTF-8 text: .* at byte 1"),
        ({"quant_method": "gptq", "dataset": "utf16.txt"}, "no text: byte 1 is 0"),
        ({"quant_method": "gptq", "dataset": "."}, "cannot be read"),
    ],
)
def test_bad_words_are_refused_before_anything_is_written(
    checkpoint: Path, tmp_path: Path, words: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("A few words.", encoding="utf-8")
    Path("blank.txt").write_bytes(b" \r\n\t" * 2000)
    Path("latin.txt").write_bytes("Käse".encode("latin-1") * 300)
    Path("utf16.txt").write_bytes(("A few words. " * 300).encode("utf-16-le"))
    with pytest.raises(UsageError, match=message):
        aipc.convert(checkpoint, tmp_path / "out", **words)
    assert not list(tmp_path.glob("*out*"))


def test_what_is_damaged_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    tokenizer = write_llama_style(tmp_path / "tokenizer")
    sound = write_checkpoint(folder, TINY, tokenizer_from=tokenizer, vocab_size=704)
    gate_up = "model.layers.1.mlp.gate_up_proj.weight"
    cases: list[tuple[str, float, type[AipcError], str]] = [
        (gate_up, np.nan, CheckpointError, f"{gate_up}.*NaN"),
        (gate_up, 1e30, SchemeError, f"{gate_up}.*scale would be"),
        ("model.layers.1.post_attention_layernorm.weight", 3e38, CheckpointError, "infinite before"),
    ]
    for name, value, error, message in cases:
        weights = {key: weight.copy() for key, weight in sound.items()}
        weights[name][:3] = value
        write_safetensors(folder / "model.safetensors", weights, "BF16")
        with pytest.raises(error, match=message):
            aipc.convert(folder, tmp_path / "out", quant_method="gptq")
        assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_an_interrupted_calibration_leaves_nothing(checkpoint: Path, tmp_path: Path, share: float) -> None:
    def interrupt(now: Progress) -> None:
        if now.total_bytes == calibrated_bytes(checkpoint) and now.done_bytes >= share * now.total_bytes:
            assert list(tmp_path.glob("*out*"))
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        aipc.convert(checkpoint, tmp_path / "out", quant_method="gptq", progress=interrupt)
    assert not list(tmp_path.glob("*out*"))
    assert threading.active_count() == before


def test_what_is_calibrated_is_a_piece_of_work_of_its_own(checkpoint: Path, tmp_path: Path) -> None:
    """So that the time left is not foretold from the weights that take none."""
    reports: list[Progress] = []
    aipc.convert(checkpoint, tmp_path / "out", quant_method="gptq", progress=reports.append)
    alone, calibrated = (list(group) for _, group in groupby(reports, lambda now: now.total_bytes))
    assert calibrated[-1].total_bytes == calibrated_bytes(checkpoint)
    for piece in (alone, calibrated):
        done = [now.done_bytes for now in piece]
        assert done == sorted(done)
        assert done[-1] == piece[-1].total_bytes


def calibrated_bytes(checkpoint: Path) -> int:
    """Of the bfloat16 matrices in the layers."""
    specs = [spec for spec in Phi3Config.read(checkpoint).weights() if spec.layer is not None]
    return sum(2 * spec.elements for spec in specs if spec.role is not Role.NORM)


def test_the_same_text_gives_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    """With the line ends of either system, though threads take the blocks in any order."""
    text = "\n\n".join(f"The tide comes in at {n}, and it goes out again." for n in range(300))
    folders = []
    for name, line_end in (("unix", "\n"), ("windows", "\r\n")):
        (tmp_path / name).write_bytes(text.replace("\n", line_end).encode())
        out, dataset = tmp_path / f"out-{name}", tmp_path / name
        folders.append(aipc.convert(checkpoint, out, quant_method="gptq", dataset=dataset))
    first, second = ((folder / "openvino_model.bin").read_bytes() for folder in folders)
    assert first == second


def test_a_text_in_letters_that_the_tokenizer_lacks(checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "tide.txt"
    text.write_text("潮は満ち、潮は引く。\n\nприлив и отлив 🌊\n\n" * 60, encoding="utf-8")
    out = aipc.convert(checkpoint, tmp_path / "out", quant_method="gptq", dataset=text)
    assert Manifest.read(out).recipe["calibration_tokens"] > 256


def test_a_long_text_is_taken_in_pieces_from_all_of_it(checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text("first " * 20_000 + "middle " * 20_000 + "last " * 20_000, encoding="utf-8")
    config = Phi3Config.read(checkpoint)
    sequences = read_calibration(checkpoint, config, text).sequences
    assert 4000 < sum(map(len, sequences)) <= 8192
    assert all(len(ids) <= config.context_length for ids in sequences)
    ids = [token for sequence in sequences for token in sequence]
    encode = Text.load(checkpoint).encode
    middle = range(len(ids) // 2 - 100, len(ids) // 2 + 100)
    for places, word in ((range(50, 250), " first"), (middle, " middle"), (range(-100, -50), " last")):
        assert set(encode(word)) & {ids[place] for place in places}


def test_a_text_is_read_as_the_models_chats_are() -> None:
    text = Text.load(demo.path())
    (first, *_) = read_calibration(demo.path(), Phi3Config.read(demo.path()), None).sequences
    assert first[:1] == tuple(text.encode("<|user|>"))[-1:]
    assert set(text.encode("<|assistant|>")) & set(first)


def test_the_shipped_texts_share_no_sentence() -> None:
    """Else aipc verify would praise what was calibrated on its own text."""
    calibration = (Path(gptq.__file__).with_name("calibration.txt")).read_text(encoding="utf-8")
    lines = {line for line in read_text(None).splitlines() if len(line) > 20}
    assert not lines & set(calibration.splitlines())
