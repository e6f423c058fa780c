"""The reader gives back exactly what was written, and takes nothing from a hostile file."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aipc.conversion.checkpoint import Checkpoint
from aipc.conversion.safetensors import MAX_JSON_BYTES
from aipc.errors import CheckpointError, UnsupportedModelError
from aipc.phi3 import Phi3Config
from checkpoints import (
    INDEX_FILE,
    SINGLE_FILE,
    TIED,
    TINY,
    describe,
    encode,
    random_weights,
    write_checkpoint,
    write_index,
    write_parts,
    write_safetensors,
)

NORM = "model.norm.weight"
QKV = "model.layers.0.self_attn.qkv_proj.weight"
HEAD = "lm_head.weight"


def tiny_weights() -> dict[str, np.ndarray]:
    return random_weights(Phi3Config.parse(TINY))


def open_and_require(folder: Path, config: dict[str, Any] = TINY) -> Checkpoint:
    checkpoint = Checkpoint.open(folder)
    checkpoint.require(Phi3Config.parse(config).weights())
    return checkpoint


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_every_number_comes_back(tmp_path: Path, dtype: str, shards: int) -> None:
    weights = write_checkpoint(tmp_path, dtype=dtype, shards=shards)
    checkpoint = open_and_require(tmp_path)
    assert checkpoint.source.name == (SINGLE_FILE if shards == 1 else INDEX_FILE)
    assert checkpoint.total_bytes == sum(len(encode(array, dtype)) for array in weights.values())
    assert list(checkpoint.tensors) == list(weights)
    for name, array in weights.items():
        read = checkpoint.read(name)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize(
    "rows", [slice(0, 1), slice(5, 64), slice(60, 900), slice(None, 7), slice(-3, None), slice(9, 9)]
)
def test_some_rows_equal_those_of_the_whole(tmp_path: Path, dtype: str, rows: slice) -> None:
    weights = write_checkpoint(tmp_path, dtype=dtype)
    checkpoint = Checkpoint.open(tmp_path)
    np.testing.assert_array_equal(checkpoint.read(QKV, rows), weights[QKV][rows])
    np.testing.assert_array_equal(checkpoint.read(NORM, rows), weights[NORM][rows])


def test_rows_are_not_read_in_steps(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="steps of 1"):
        Checkpoint.open(tmp_path).read(QKV, slice(0, 8, 2))


def test_extreme_numbers_come_back(tmp_path: Path) -> None:
    values = np.array([0.0, -0.0, 2.0**-126, -(2.0**-133), 3.3895314e38, -1.0], np.float32)
    write_safetensors(tmp_path / SINGLE_FILE, {"x": values}, "BF16")
    read = Checkpoint.open(tmp_path).read("x")
    np.testing.assert_array_equal(read.view(np.uint32), values.view(np.uint32))


def test_threads_read_side_by_side(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path, shards=2)
    checkpoint = open_and_require(tmp_path)
    jobs = [(name, slice(row, row + 8)) for name in weights for row in range(0, len(weights[name]), 8)]
    with ThreadPoolExecutor(8) as pool:
        blocks = pool.map(lambda job: checkpoint.read(*job), jobs)
        for (name, rows), block in zip(jobs, blocks, strict=True):
            np.testing.assert_array_equal(block, weights[name][rows])


def test_a_single_file_counts_before_an_index(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2, seed=1)
    weights = write_checkpoint(tmp_path, seed=2)
    np.testing.assert_array_equal(open_and_require(tmp_path).read(QKV), weights[QKV])


def test_links_into_a_cache_are_followed(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    try:
        (tmp_path / "snapshot" / SINGLE_FILE).symlink_to(Path("..") / "blobs" / SINGLE_FILE)
    except OSError:
        pytest.skip("this system lets no ordinary user make links")
    np.testing.assert_array_equal(Checkpoint.open(tmp_path / "snapshot").read(NORM), weights[NORM])


@pytest.mark.parametrize("extra", ["model.layers.0.self_attn.rotary_emb.inv_freq", HEAD])
def test_harmless_surplus_is_left_unread(tmp_path: Path, extra: str) -> None:
    weights = random_weights(Phi3Config.parse(TIED)) | {extra: np.ones(4, np.float32)}
    write_safetensors(tmp_path / SINGLE_FILE, weights, "F32")
    open_and_require(tmp_path, TIED)


# What an attacker, a broken download or a wrong model may put into the header of a file.

Header = dict[str, Any]


def put(field: str, value: object) -> Callable[[Header], None]:
    def edit(header: Header) -> None:
        header[QKV][field] = value

    return edit


def replace(value: object) -> Callable[[Header], None]:
    def edit(header: Header) -> None:
        header[QKV] = value

    return edit


def move(start: int, end: int) -> Callable[[Header], None]:
    """Shift where the tensor begins and ends, by bytes."""

    def edit(header: Header) -> None:
        offsets = header[QKV]["data_offsets"]
        header[QKV]["data_offsets"] = [offsets[0] + start, offsets[1] + end]

    return edit


BROKEN_ENTRIES = {
    "entry is a list": (replace([1]), "not by an object"),
    "entry is null": (replace(None), "not by an object"),
    "entry is empty": (replace({}), "dtype None"),
    "dtype unknown": (put("dtype", "Q4_0"), "dtype 'Q4_0'"),
    "dtype not a word": (put("dtype", ["BF16"]), "dtype"),
    "dtype too small": (put("dtype", "U8"), "does not fill"),
    "dtype too large": (put("dtype", "F64"), "does not fill"),
    "shape missing": (put("shape", None), "impossible shape"),
    "shape not a list": (put("shape", "192, 64"), "impossible shape"),
    "shape negative": (put("shape", [-192, -64]), "impossible shape"),
    "shape fractional": (put("shape", [192.0, 64]), "impossible shape"),
    "shape true": (put("shape", [192, 64, True]), "impossible shape"),
    "shape nested": (put("shape", [[192], [64]]), "impossible shape"),
    "shape absurd": (put("shape", [2**70, 2**70]), "impossible shape"),
    "shape overflowing to its size": (put("shape", [2**32 + 192, 2**32, 64]), "does not fill"),
    "shape of a thousand axes": (put("shape", [1] * 1000), "impossible shape"),
    "shape zero": (put("shape", [0, 64]), "does not fill"),
    "offsets missing": (put("data_offsets", None), "data_offsets"),
    "offsets not numbers": (put("data_offsets", ["0", "8"]), "data_offsets"),
    "offsets fractional": (put("data_offsets", [0.0, 24576.0]), "data_offsets"),
    "offsets negative": (put("data_offsets", [-24576, 0]), "data_offsets"),
    "offsets three": (put("data_offsets", [0, 1, 2]), "data_offsets"),
    "offsets reversed": (put("data_offsets", [24576, 0]), "data_offsets"),
    "offsets huge": (put("data_offsets", [10**400, 10**400 + 24576]), "data_offsets"),
    "offsets too narrow": (move(0, -2), "does not fill"),
    "offsets overlap": (move(-2, -2), "overlaps"),
    "offsets leave a hole": (move(2, 2), "undescribed bytes"),
    "offsets far beyond the file": (move(2**50, 2**50), "undescribed bytes"),
}


@pytest.mark.parametrize("case", BROKEN_ENTRIES)
def test_a_broken_entry_is_named(tmp_path: Path, case: str) -> None:
    edit, words = BROKEN_ENTRIES[case]
    header, data = describe(tiny_weights(), "BF16")
    edit(header)
    write_parts(tmp_path / SINGLE_FILE, header, data)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(tmp_path)
    assert str(tmp_path / SINGLE_FILE) in caught.value.message
    assert QKV in caught.value.message or NORM in caught.value.message or "layers.0" in caught.value.message
    assert words in caught.value.message
    assert len(caught.value.message) < 1000


def sound_bytes() -> bytes:
    header, data = describe({"x": np.ones((2, 3), np.float32)}, "F32")
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def with_header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


def pickled(protocol: int) -> bytes:
    return pickle.dumps({"model.norm.weight": [1.0] * 100}, protocol)


TENSOR = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'

BROKEN_FILES = {
    "empty": (b"", "is empty"),
    "shorter than a length": (b"\x10\0\0", "truncated"),
    "only a length": ((64).to_bytes(8, "little"), "truncated"),
    "length zero": (bytes(8) + b"{}" + bytes(64), "header would have 0 bytes"),
    "length huge": (b"\xff" * 8 + b"{}", "header would have 18446744073709551615 bytes"),
    "length above the cap": ((MAX_JSON_BYTES + 1).to_bytes(8, "little") + b"{}", f"{MAX_JSON_BYTES} are"),
    "length beyond the file": ((500).to_bytes(8, "little") + b"{}" + bytes(64), "truncated"),
    "header cut off": (sound_bytes()[:40], "truncated"),
    "data cut off": (sound_bytes()[:-1], "tensor 'x' ends at byte"),
    "data missing": (sound_bytes()[:-24], "tensor 'x' ends at byte"),
    "data too long": (sound_bytes() + b"\0", "1 bytes after the data"),
    "header not UTF-8": (with_header(b'{"\xff\xfe": 1}'), "not UTF-8"),
    "header not JSON": (with_header(b'{"x": '), "not sound JSON"),
    "header a list": (with_header(b"[1, 2, 3]"), "not a JSON object"),
    "header two objects": (with_header(b"{} {}"), "not sound JSON"),
    "header with a duplicate": (
        with_header(b'{"x":' + TENSOR + b',"x":' + TENSOR + b"}"),
        "'x' stands twice",
    ),
    "entry with a duplicate": (with_header(b'{"x":{"dtype":"F32","dtype":"BF16"}}'), "'dtype' stands twice"),
    "header too deep": (with_header(b'{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}"), "nested too deeply"),
    "number of a million digits": (with_header(b'{"x":' + b"9" * 1_000_000 + b"}"), "not sound JSON"),
    "number not a number": (with_header(b'{"x":{"dtype":"F32","shape":[NaN]}}'), "impossible shape"),
    "metadata a list": (with_header(b'{"__metadata__":["pt"]}'), "__metadata__"),
    "metadata with numbers": (with_header(b'{"__metadata__":{"format":1}}'), "__metadata__"),
    "LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "Git LFS pointer",
    ),
    "pickle 2": (pickled(2), "pickle"),
    "pickle 4": (pickled(4), "pickle"),
    "pickle 5": (pickled(5), "pickle"),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(64), "GGUF"),
    "web page": (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
}


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_a_broken_file_is_named(tmp_path: Path, case: str) -> None:
    content, words = BROKEN_FILES[case]
    (tmp_path / SINGLE_FILE).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(tmp_path)
    assert str(tmp_path / SINGLE_FILE) in caught.value.message
    assert words in caught.value.message
    assert caught.value.hint


def test_a_header_as_long_as_a_pickle_begins_is_no_pickle(tmp_path: Path) -> None:
    header, data = describe({"x": np.ones(1, np.float32)}, "F32")
    write_parts(tmp_path / SINGLE_FILE, json.dumps(header).encode().ljust(0x280), data)
    assert (tmp_path / SINGLE_FILE).read_bytes().startswith(b"\x80\x02")
    assert Checkpoint.open(tmp_path).read("x") == 1.0


def test_a_torch_zip_is_never_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / SINGLE_FILE, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(2))
    with pytest.raises(CheckpointError, match="zip archive"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "holds neither"),
        (["pytorch_model.bin"], "a pickle can run any code"),
        (
            ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"],
            "a pickle can run any code",
        ),
        (["consolidated.00.pth"], "a pickle can run any code"),
        (["model-00001-of-00002.safetensors"], "neither model.safetensors nor"),
        (["adapter_model.safetensors"], "adapter_model.safetensors"),
        (["phi-3.gguf"], "phi-3.gguf"),
    ],
)
def test_a_folder_without_weights_says_what_it_holds(tmp_path: Path, files: list[str], words: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(pickled(2))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(tmp_path)
    assert str(tmp_path) in caught.value.message
    assert words in caught.value.message
    assert all(name in caught.value.message for name in files)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        Checkpoint.open(tmp_path / "absent")


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / SINGLE_FILE).mkdir()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a regular file"):
        Checkpoint.open(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="only POSIX has named pipes")
def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / SINGLE_FILE)
    with pytest.raises(CheckpointError, match="not a regular file"):
        Checkpoint.open(tmp_path)
    (tmp_path / SINGLE_FILE).unlink()
    os.mkfifo(tmp_path / INDEX_FILE)
    with pytest.raises(CheckpointError, match="not a regular file"):
        Checkpoint.open(tmp_path)


# What an index may say.

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def two_shards(folder: Path) -> dict[str, Any]:
    """Write a sound checkpoint in two files, and return its weight_map for a test to spoil."""
    write_checkpoint(folder, shards=2)
    index: dict[str, Any] = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
    return index["weight_map"]


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors",
        "..",
        "",
        "/etc/passwd",
        "/model.safetensors",
        "C:model.safetensors",
        "C:\\model.safetensors",
        "..\\model.safetensors",
        "sub/model.safetensors",
        "model.safetensors:stream",
        "model\0.safetensors",
        "model\n.safetensors",
        "\ud800.safetensors",
        "a" * 5000 + ".safetensors",
        "pytorch_model.bin",
        None,
        7,
        [FIRST],
    ],
)
def test_an_index_does_not_lead_out_of_its_folder(tmp_path: Path, shard: object) -> None:
    folder = tmp_path / "model"
    weight_map = two_shards(folder)
    write_safetensors(tmp_path / SINGLE_FILE, {NORM: tiny_weights()[NORM]}, "BF16")
    write_index(folder, weight_map | {NORM: shard})
    with pytest.raises(CheckpointError, match="not the plain name") as caught:
        Checkpoint.open(folder)
    assert str(folder / INDEX_FILE) in caught.value.message
    assert NORM in caught.value.message
    caught.value.message.encode("utf-8")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not sound JSON"),
        (b"\xff", "not UTF-8"),
        (b"[]", "holds a JSON list"),
        (b"[" * 200_000, "nested too deeply"),
        (b"{}", "no weight_map"),
        (b'{"weight_map": {}}', "no weight_map"),
        (b'{"weight_map": ["model.norm.weight"]}', "no weight_map"),
        (b'{"weight_map": {"x": "a.safetensors", "x": "b.safetensors"}}', "'x' stands twice"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b" " * (MAX_JSON_BYTES + 1), "no index"),
    ],
)
def test_a_broken_index_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / INDEX_FILE).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(tmp_path)
    assert str(tmp_path / INDEX_FILE) in caught.value.message
    assert words in caught.value.message


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    two_shards(tmp_path)
    (tmp_path / SECOND).unlink()
    with pytest.raises(CheckpointError, match=f"{SECOND} is missing"):
        Checkpoint.open(tmp_path)


def test_a_broken_link_is_named(tmp_path: Path) -> None:
    try:
        (tmp_path / SINGLE_FILE).symlink_to("nowhere")
    except OSError:
        pytest.skip("this system lets no ordinary user make links")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        Checkpoint.open(tmp_path)


def test_a_tensor_that_the_index_promises_in_vain(tmp_path: Path) -> None:
    write_index(tmp_path, two_shards(tmp_path) | {"ghost": FIRST})
    with pytest.raises(CheckpointError, match=f"{FIRST}: tensor 'ghost' is missing"):
        Checkpoint.open(tmp_path)


def test_a_tensor_in_another_shard_than_the_index_says(tmp_path: Path) -> None:
    write_index(tmp_path, two_shards(tmp_path) | {HEAD: FIRST})
    with pytest.raises(CheckpointError, match=f"{FIRST}: tensor '{HEAD}' is missing"):
        Checkpoint.open(tmp_path)


def test_a_tensor_that_the_index_does_not_list(tmp_path: Path) -> None:
    weight_map = two_shards(tmp_path)
    del weight_map[HEAD]
    write_index(tmp_path, weight_map)
    with pytest.raises(CheckpointError, match=f"{SECOND}: tensor '{HEAD}' is not listed"):
        Checkpoint.open(tmp_path)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    two_shards(tmp_path)
    (tmp_path / SECOND).write_bytes((tmp_path / FIRST).read_bytes())
    with pytest.raises(CheckpointError, match=f"{SECOND}: tensor .* stands in {FIRST} too"):
        Checkpoint.open(tmp_path)


# What a sound file may hold that is not the model of the config.


def without(name: str) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda weights: weights.__delitem__(name)


def with_tensor(name: str, shape: tuple[int, ...] = (4,)) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda weights: weights.__setitem__(name, np.ones(shape, np.float32))


WRONG_MODELS = {
    "missing": (without(QKV), CheckpointError, QKV, "lacks"),
    "missing head": (without(HEAD), CheckpointError, HEAD, "lacks"),
    "surplus": (with_tensor("model.extra.weight"), CheckpointError, "model.extra.weight", "does not have"),
    "surplus layer": (
        with_tensor("model.layers.2.mlp.down_proj.weight"),
        CheckpointError,
        "model.layers.2.mlp.down_proj.weight",
        "does not have",
    ),
    "bias": (with_tensor(QKV.replace("weight", "bias")), CheckpointError, "qkv_proj.bias", "does not have"),
    "transposed": (with_tensor(QKV, (64, 192)), CheckpointError, QKV, "[192, 64]"),
    "flat": (with_tensor(QKV, (192 * 64,)), CheckpointError, QKV, "[192, 64]"),
    "empty matrix": (with_tensor(QKV, (0, 64)), CheckpointError, QKV, "[192, 64]"),
    "scalar": (with_tensor(NORM, ()), CheckpointError, NORM, "[64]"),
    "GPTQ": (
        with_tensor(QKV.replace("weight", "qweight")),
        UnsupportedModelError,
        "qweight",
        "quantised already",
    ),
    "FP8 scale": (with_tensor(QKV + "_scale_inv"), UnsupportedModelError, "scale_inv", "quantised already"),
}


@pytest.mark.parametrize("case", WRONG_MODELS)
def test_another_model_than_the_config_says(tmp_path: Path, case: str) -> None:
    edit, error, tensor, words = WRONG_MODELS[case]
    weights = tiny_weights()
    edit(weights)
    write_safetensors(tmp_path / SINGLE_FILE, weights, "BF16")
    with pytest.raises(error) as caught:
        open_and_require(tmp_path)
    assert str(tmp_path / SINGLE_FILE) in caught.value.message
    assert tensor in caught.value.message
    assert words in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("dtype", "error", "words"),
    [
        ("I16", CheckpointError, "possible are BF16, F16, F32"),
        ("U16", CheckpointError, "possible are BF16, F16, F32"),
        ("F8_E4M3", UnsupportedModelError, "quantised already"),
    ],
)
def test_a_dtype_that_holds_no_weights(
    tmp_path: Path, dtype: str, error: type[Exception], words: str
) -> None:
    header, data = describe(tiny_weights(), "BF16")
    last = list(header)[-1]
    rows, columns = header[last]["shape"]
    header[last] |= {"dtype": dtype, "shape": [rows, columns * (2 if dtype.startswith("F8") else 1)]}
    write_parts(tmp_path / SINGLE_FILE, header, data)
    with pytest.raises(error, match=words) as caught:
        open_and_require(tmp_path)
    assert last in str(caught.value)
    with pytest.raises(CheckpointError, match="possible are"):
        Checkpoint.open(tmp_path).read(last)


def test_many_surplus_tensors_are_counted(tmp_path: Path) -> None:
    extra = {f"other.{number}": np.ones(1, np.float32) for number in range(20)}
    write_safetensors(tmp_path / SINGLE_FILE, tiny_weights() | extra, "F32")
    with pytest.raises(CheckpointError, match=r"'other\.0', 'other\.1', 'other\.2' and 17 more"):
        open_and_require(tmp_path)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none(tmp_path: Path, dtype: str, value: float) -> None:
    weights = tiny_weights()
    weights[QKV][100, 3] = value
    header, data = describe(weights, dtype)
    write_parts(tmp_path / SINGLE_FILE, header, data)
    checkpoint = open_and_require(tmp_path)
    checkpoint.read(QKV, slice(0, 100))
    with pytest.raises(CheckpointError, match="NaN or Inf") as caught:
        checkpoint.read(QKV, slice(100, 101))
    assert str(tmp_path / SINGLE_FILE) in caught.value.message
    assert QKV in caught.value.message


def test_a_file_cut_off_after_it_was_opened(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    checkpoint = open_and_require(tmp_path)
    os.truncate(tmp_path / SINGLE_FILE, checkpoint.tensors[QKV].offset + 100)
    with pytest.raises(CheckpointError, match="cut off") as caught:
        checkpoint.read(QKV)
    assert QKV in caught.value.message


def test_a_file_removed_after_it_was_opened(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    checkpoint = open_and_require(tmp_path)
    (tmp_path / SINGLE_FILE).unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read(QKV)


def test_an_unknown_name(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="'ghost' is missing"):
        Checkpoint.open(tmp_path).read("ghost")
