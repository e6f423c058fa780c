"""What the NPU's compiler would refuse after minutes is refused from the description alone."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aipc import preflight
from aipc.errors import CheckpointError, SchemeError
from aipc.preflight import Constant, check_npu, constants, int4_group, weight_format

LAYER = (
    '<layer id="{id}" name="layers.{id}.weight" type="Const" version="opset1">'
    '<data element_type="{kind}" shape="{shape}" offset="0" size="8" /></layer>'
)


def describe(folder: Path, *weights: tuple[str, str], name: str | None = None) -> Path:
    """A folder whose model has these constants: OpenVINO's word for the type, and the shape."""
    folder.mkdir(exist_ok=True)
    layers = "".join(LAYER.format(id=i, kind=kind, shape=shape) for i, (kind, shape) in enumerate(weights))
    other = '<layer id="99" name="x" type="Add"><data element_type="u4" shape="64,64" /></layer>'
    text = f'<?xml version="1.0"?><net name="m" version="11"><layers>{layers}{other}</layers></net>'
    (folder / "openvino_model.xml").write_text(text, encoding="utf-8")
    if name is not None:
        (folder / "config.json").write_text(json.dumps({"_name_or_path": name}), encoding="utf-8")
    return folder


def write(folder: Path, text: str) -> Path:
    (folder / "openvino_model.xml").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([("u8", "704,64"), ("i4", "64,1,64"), ("f16", "64,1,1")], "int4"),
        ([("u8", "704,64"), ("f32", "64")], "int8"),
        ([("f16", "704,64"), ("f32", "64")], "fp16"),
        ([("f32", "64")], "unknown"),
    ],
)
def test_the_weight_format_is_that_of_the_smallest_numbers(
    tmp_path: Path, weights: list[tuple[str, str]], expected: str
) -> None:
    assert weight_format(describe(tmp_path, *weights)) == expected


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([("i4", "3072,24,128"), ("f16", "3072,24,1"), ("u8", "32064,3072"), ("u8", "32064,1")], 128),
        ([("u4", "3072,24,128"), ("u4", "3072,24,1"), ("i4", "3072,48,64")], 64),
        ([("i4", "3072,8192"), ("f16", "3072,1")], 8192),
        ([("i8", "3072,8192"), ("f16", "3072,1")], None),
    ],
)
def test_the_int4_group_is_that_of_the_matrix_where_it_is_smallest(
    tmp_path: Path, weights: list[tuple[str, str]], expected: int | None
) -> None:
    assert int4_group(describe(tmp_path, *weights)) == expected


def test_constants_are_read_in_order(tmp_path: Path) -> None:
    folder = describe(tmp_path, ("i4", "3072, 24, 128"), ("f16", "3072,24,1"), ("f32", ""))
    assert list(constants(folder / "openvino_model.xml")) == [
        Constant("layers.0.weight", "i4", (3072, 24, 128)),
        Constant("layers.1.weight", "f16", (3072, 24, 1)),
        Constant("layers.2.weight", "f32", ()),
    ]


@pytest.mark.parametrize(
    "weights",
    [
        [("i4", "3072,24,128"), ("f16", "3072,24,1"), ("u8", "32064,3072"), ("u8", "32064,1")],
        [("i4", "3072,8192"), ("f16", "3072,1"), ("i8", "32064,3072")],
        [("f16", "3072,3072"), ("f32", "1,1,3072"), ("f32", "1,48,1"), ("i64", "3")],
        [("bf16", "3072,3000")],
    ],
    ids=["int4 g128, int8 head", "int4 channel-wise", "fp16", "bf16, any width"],
)
def test_what_fits_is_let_through(tmp_path: Path, weights: list[tuple[str, str]]) -> None:
    assert check_npu(describe(tmp_path, *weights)) == ()


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (("i4", "3072,96,32"), "groups of 32"),
        (("u4", "3072,96,32"), "groups of 32"),
        (("i4", "3072,1000"), "1000 wide"),
        (("i8", "3072,1000"), "1000 wide"),
        (("u8", "3072,24,128"), "int8 in groups of 128"),
        (("nf4", "3072,24,128"), "nf4"),
        (("f8e4m3", "3072,3072"), "f8e4m3"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(
    tmp_path: Path, weight: tuple[str, str], words: str
) -> None:
    name = "microsoft/Phi-3-mini-4k-instruct"
    folder = describe(tmp_path / "phi", ("i4", "3072,24,128"), weight, name=name)
    with pytest.raises(SchemeError, match=words) as caught:
        check_npu(folder)
    assert "layers.1.weight" in caught.value.message
    assert caught.value.hint.endswith(
        f"aipc convert {name} --weight-format int4 --sym --group-size 128 phi-npu"
    )


@pytest.mark.parametrize(
    ("weight", "words"),
    [(("u4", "3072,24,128"), "asymmetric int4"), (("i4", "3072,48,64"), "int4 in groups of 64")],
)
def test_what_compiles_against_the_guide_is_let_through_with_a_note(
    tmp_path: Path, weight: tuple[str, str], words: str
) -> None:
    (note,) = check_npu(describe(tmp_path / "phi", ("i4", "3072,24,128"), weight))
    assert f"the weights are {words}" in note
    assert note.endswith("--weight-format int4 --sym --group-size 128 phi-npu")


@pytest.mark.parametrize("name", ["a\nb", "x" * 200, ""])
def test_a_strange_name_is_not_repeated(tmp_path: Path, name: str) -> None:
    with pytest.raises(SchemeError) as caught:
        check_npu(describe(tmp_path, ("nf4", "64,64"), name=name))
    assert "aipc convert MODEL --weight-format" in caught.value.hint


def test_large_models_are_told_of_channel_wise_weights(tmp_path: Path) -> None:
    grouped = describe(tmp_path / "g", *[("i4", "50000,1000,128")])
    (note,) = check_npu(grouped)
    assert "6 billion" in note
    assert "--group-size -1" in note
    assert check_npu(describe(tmp_path / "c", ("i4", "50000,128000"))) == ()
    assert check_npu(describe(tmp_path / "s", ("i4", "3072,24,128"))) == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no element found"),
        ("hello", "syntax error"),
        ("<html></html>", "begins with <html>"),
        ("<net><layers>", "no element found"),
        ("<net>" + "<a>" * 100, "too deeply"),
        ('<!DOCTYPE net [<!ENTITY a "b">]><net>&a;</net>', "document type"),
        ('<net><layer type="Const" name="w"><data element_type="i4" shape="-1,3"/></layer></net>', "-1,3"),
        ('<net><layer type="Const" name="w"><data shape="' + "9" * 30 + '"/></layer></net>', "999"),
        ('<net><layer type="Const" name="w"><data shape="' + "1," * 30 + '"/></layer></net>', "1,1,"),
    ],
)
def test_a_damaged_description_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        check_npu(write(tmp_path, text))


def test_a_missing_or_endless_description_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        check_npu(tmp_path)
    monkeypatch.setattr(preflight, "_MAX_XML_BYTES", 100)
    with pytest.raises(CheckpointError, match="larger than"):
        check_npu(describe(tmp_path, ("i4", "64,64")))


@given(st.binary(max_size=400), st.integers(0, 600))
def test_no_bytes_bring_it_down(tmp_path_factory: pytest.TempPathFactory, junk: bytes, place: int) -> None:
    folder = tmp_path_factory.mktemp("junk")
    path = describe(folder, ("i4", "64,64"), ("f16", "64,1")) / "openvino_model.xml"
    good = path.read_bytes()
    path.write_bytes(good[:place] + junk + good[place + len(junk) :])
    with contextlib.suppress(CheckpointError, SchemeError):
        check_npu(folder)
