"""The check with DirectML, as far as it goes without Wine: what it sends, reads and calls wrong."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tool_program import run_tool

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the check runs Windows programs on Linux")

TOOL = Path(__file__).parents[1] / "tools" / "dml_check"
sys.path[:0] = [str(TOOL), str(TOOL.parent)]

if os.name != "nt":
    import check
    import directml
    import folders
    import generation
    import models
    import operators
    import placement
    from check import Verdict
    from generation import Answer, Comparison
    from operators import Operator, Outcome

    import windows

# What onnxruntime-directml 1.24.4 writes, shortened.
HEAD = "20:30:33.42 [V:onnxruntime:, session_state.cc:1313 onnxruntime::VerifyEachNodeIsAssignedToAnEp]"
LOG = "\n".join(
    f"{HEAD}{line}"
    for line in (
        " Node placements",
        "  Node(s) placed on [DmlExecutionProvider]. Number of nodes: 3",
        "   ReduceSum (mask/sum)",
        "   MatMulNBits (model.layers.0.self_attn.qkv_proj)",
        "   MatMulNBits (model.layers.0.self_attn.o_proj)",
        "  Node(s) placed on [CPUExecutionProvider]. Number of nodes: 2",
        "   Squeeze (mask/total)",
        "   Cast (total_sequence_length)",
    )
)
ALL = f"{HEAD} Node placements\n{HEAD}  All nodes placed on [DmlExecutionProvider]. Number of nodes: 7"
CAPTURE = (
    "FAILED session: This session cannot use the graph capture feature as requested by the user  as all "
    "compute graph nodes have not been partitioned to the DmlExecutionProvider"
)


def test_the_nodes_of_each_provider_are_counted() -> None:
    placed = placement.placement(LOG)
    assert placed.totals == {"DmlExecutionProvider": 3, "CPUExecutionProvider": 2}
    assert placed.kinds["DmlExecutionProvider"] == {"MatMulNBits": 2, "ReduceSum": 1}
    assert placed.kinds["CPUExecutionProvider"] == {"Cast": 1, "Squeeze": 1}
    assert placement.placement(ALL) == placement.Placement({"DmlExecutionProvider": 7}, {})
    # A Shape of known sizes is computed while the model is loaded.
    assert placement.placement(f"{HEAD} Node placements") == placement.Placement({}, {})


@pytest.mark.parametrize("log", ["", "no word of nodes", "\n".join(LOG.splitlines()[:-1])])
def test_a_log_that_was_cut_short_is_no_placement(log: str) -> None:
    with pytest.raises(ValueError, match="counts the nodes"):
        placement.placement(log)


def test_tensors_are_sent_as_the_program_reads_them() -> None:
    sent = directml.packed({"ids": np.array([[1, 2]], np.int64), "scalar": np.array(3, np.int32)})
    stream = io.BytesIO(sent)

    def number() -> int:
        return int(struct.unpack("<I", stream.read(4))[0])

    assert number() == 2
    assert stream.read(number()) == b"ids"
    assert (number(), number()) == (TensorProto.INT64, 2)
    assert struct.unpack("<4q", stream.read(32)) == (1, 2, 1, 2)
    assert stream.read(number()) == b"scalar"
    assert (number(), number()) == (TensorProto.INT32, 0)
    assert struct.unpack("<i", stream.read()) == (3,)


ECHO = """
import struct, sys
out = sys.stdout.buffer
out.write(struct.pack("<I", 1)); out.flush()
while True:
    head = sys.stdin.buffer.read(4)
    if not head: break
    size = struct.unpack("<I", sys.stdin.buffer.read(4))[0]
    name = sys.stdin.buffer.read(size)
    kind, rank = struct.unpack("<II", sys.stdin.buffer.read(8))
    shape = sys.stdin.buffer.read(8 * rank)
    data = sys.stdin.buffer.read(8)
    out.write(head + struct.pack("<I", size) + name + struct.pack("<II", kind, rank) + shape + data)
    out.flush()
"""
"""Answers with the one tensor that it was sent, of two float32."""


def start(script: str, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as err:
        return subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err
        )


def test_a_session_answers_with_what_the_program_says(tmp_path: Path) -> None:
    process = start(ECHO, tmp_path / "log")
    with process, (tmp_path / "log").open("rb") as log:
        session = directml.Session(process, log)
        for values in ([[1.5, -2.0]], [[0.0, np.inf]]):
            sent = np.array(values, np.float32)
            answer = session.run({"x": sent})
            assert list(answer) == ["x"]
            np.testing.assert_array_equal(answer["x"], sent)


def test_a_session_that_breaks_says_why(tmp_path: Path) -> None:
    script = f"import sys; sys.stderr.write('step\\n' + {CAPTURE!r} + '\\n'); sys.exit(1)"
    process = start(script, tmp_path / "log")
    with process, (tmp_path / "log").open("rb") as log:
        with pytest.raises(directml.SessionError, match="graph capture") as caught:
            directml.Session(process, log)
        assert caught.value.log.startswith("step")


def test_a_session_that_ends_without_a_word_says_its_code(tmp_path: Path) -> None:
    process = start("import sys; sys.exit(5)", tmp_path / "log")
    with process, (tmp_path / "log").open("rb") as log, pytest.raises(directml.SessionError, match="code 5"):
        directml.Session(process, log)


def test_the_obstacle_is_vkd3ds_own_word() -> None:
    log = (
        "vkd3d:0024:fixme:d3d12_command_queue_init Ignoring flags 0x1.\n"
        "vkd3d:0024:warn:spirv_compiler_emit_global_flags Unhandled global flags 0x1.\n"
        "vkd3d:0024:warn:sm6_parser_resources_load_common_info Byte stride 2 is not a multiple of 4.\n"
        "vkd3d:0024:warn:vsir_parse Failed to parse shader.\n"
    )
    words = "sm6_parser_resources_load_common_info: Byte stride 2 is not a multiple of 4."
    assert operators.obstacle(log) == words
    assert operators.obstacle("FAILED run: no memory") == ""


def answer(tokens: list[int], noise: float = 0.0) -> Answer:
    scores = np.zeros((len(tokens), 8), np.float32)
    scores[np.arange(len(tokens)), tokens] = 10.0
    return Answer(tokens, scores + np.float32(noise))


def test_answers_are_compared_up_to_the_first_other_token() -> None:
    right = answer([1, 2, 3])
    assert generation.compare(right, right) == Comparison(3, 3, 0.0, 10.0)
    other = generation.compare(answer([1, 4, 5]), right)
    assert (other.equal, other.tokens, other.error) == (1, 3, 10.0)
    assert generation.compare(answer([1, 2, 3], np.nan), right).error == np.inf


def verdict(**changes: object) -> Verdict:
    placed = placement.Placement({"DmlExecutionProvider": 85, "CPUExecutionProvider": 2}, {})
    return Verdict("demo", placed, **changes)  # type: ignore[arg-type]


def operator(error: float | None, words: str = "") -> Operator:
    half = Outcome("DmlExecutionProvider", 6e-4)
    return Operator("Mul", "mlp.product", Outcome("DmlExecutionProvider", error, words), half)


def test_what_is_right_has_nothing_wrong() -> None:
    found = verdict(
        comparison=Comparison(64, 64, 1e-5, 20.0),
        half=Comparison(64, 64, 0.03, 20.0),
        operators=[operator(1e-6)],
    )
    assert found.wrong == []


def test_a_fault_in_float16_alone_is_said() -> None:
    assert verdict(half=Comparison(3, 64, 0.03, 20.0)).wrong == [
        "in float16 token 4 is not the CPU provider's"
    ]
    assert verdict(half=Comparison(64, 64, 0.5, 20.0)).wrong == [
        "in float16 scores differ by 5.0e-01 where the largest is 20.0"
    ]
    fine = Outcome("DmlExecutionProvider", 1e-6)
    for half, words in (
        (Outcome("DmlExecutionProvider", 0.1), "float16 differs by 1.0e-01"),
        (Outcome("", None, "16-bit store of 4 to words, stride 2."), ""),
    ):
        assert Operator("Mul", "mlp.product", fine, half).wrong == words


def test_what_the_software_driver_refuses_is_shown_and_is_no_fault() -> None:
    found = verdict(comparison=Comparison(64, 64, 1e-5, 20.0), no_half="spirv_x: 16-bit store")
    assert found.wrong == []
    assert "in float16 not computed here: spirv_x: 16-bit store" in "\n".join(check.lines(found))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"refused": "nodes have not been partitioned"}, "not captured"),
        ({"broken": "CRASHED run: 0xc0000005"}, "did not compute it: CRASHED"),
        ({"comparison": "other token"}, "token 4 is not"),
        ({"comparison": "other scores"}, "scores differ by 1.0e-01"),
        ({"comparison": "no number"}, "scores differ by inf"),
        ({"operators": 0.5}, "mlp.product (Mul): float32 differs by 5.0e-01"),
        ({"operators": None}, "mlp.product (Mul): float32: Call failed"),
    ],
)
def test_each_thing_that_is_wrong_is_said(changes: dict[str, object], words: str) -> None:
    comparisons = {
        "other token": Comparison(3, 64, 5.0, 20.0),
        "other scores": Comparison(64, 64, 0.1, 20.0),
        "no number": Comparison(64, 64, float("inf"), 20.0),
    }
    if "comparison" in changes:
        changes = {"comparison": comparisons[str(changes["comparison"])]}
    if "operators" in changes:
        error = changes["operators"]
        changes = {"operators": [operator(error, "" if error else "Call failed")]}  # type: ignore[arg-type]
    (wrong,) = verdict(**changes).wrong
    assert words in wrong


def test_people_see_what_is_on_the_cpu_and_why_nothing_is_captured() -> None:
    placed = placement.placement(LOG)
    fallen = Operator("GatherBlockQuantized", "embed", *[Outcome("CPUExecutionProvider", 0.0)] * 2)
    found = Verdict("demo", placed, refused="no memory", operators=[operator(2e-7), fallen])
    text = "\n".join(check.lines(found))
    assert "GatherBlockQuantized (CPU) " in text
    assert "nodes on DirectML 3, on the CPU 2 (CPU: Cast 1, Squeeze 1)" in text
    assert "graph capture: no memory" in text
    assert "2.0e-07" in text
    assert "float16: 6.0e-04" in text


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.demo("demo-int4-group-128", tmp_path_factory.mktemp("dml"))


def test_the_twin_is_the_folder_in_float32(converted: Path, tmp_path: Path) -> None:
    model = onnx.load(converted / "model.onnx")
    twin = onnx.load(folders.save(folders.in_float32(model), tmp_path / "twin"))
    assert [node.SerializeToString() for node in twin.graph.node] == [
        node.SerializeToString() for node in model.graph.node
    ]
    types = {value.type.tensor_type.elem_type for value in [*twin.graph.input, *twin.graph.output]}
    assert TensorProto.FLOAT16 not in types | {tensor.data_type for tensor in twin.graph.initializer}
    widened = 0
    for one, other in zip(model.graph.initializer, twin.graph.initializer, strict=True):
        values, wide = numpy_helper.to_array(one), numpy_helper.to_array(other)
        np.testing.assert_array_equal(values, wide)
        widened += values.dtype == np.float16
    assert widened > 10
    # The model that it was made from stays as it was.
    assert TensorProto.FLOAT16 in {tensor.data_type for tensor in model.graph.initializer}


def test_the_request_fits_the_folder(converted: Path) -> None:
    shape = folders.shape_of(converted)
    inputs = {**generation.request(shape, [5, 6], 3), **generation.empty_cache(shape)}
    declared = {
        value.name for value in onnx.load(converted / "model.onnx", load_external_data=False).graph.input
    }
    assert set(inputs) == declared
    assert inputs["position_ids"].tolist() == [[3, 4]]
    assert inputs["attention_mask"].shape == (1, 5)
    for_cpu = folders.Shape(1, 1, 8, 32, takes_positions=False)
    assert "position_ids" not in generation.request(for_cpu, [1], 0)


def test_a_node_alone_computes_what_it_did_in_the_model(converted: Path, tmp_path: Path) -> None:
    import onnxruntime

    model = folders.in_float32(onnx.load(converted / "model.onnx"))
    hidden = np.random.default_rng(0).standard_normal((1, 3, 256), np.float32)
    node = next(each for each in model.graph.node if each.op_type == "MatMulNBits")
    alone = operators.single(model, node, {node.input[0]: hidden})
    session = onnxruntime.InferenceSession(str(folders.save(alone, tmp_path / "alone")))
    (result,) = session.run(None, {node.input[0]: hidden})
    assert result.shape == (1, 3, 3 * 256)
    assert np.abs(result).max() > 0
    kinds = [each.op_type for each in operators._distinct(model)]
    assert len(kinds) < len(model.graph.node) / 3
    assert {"GroupQueryAttention", "RotaryEmbedding", "SkipSimplifiedLayerNormalization"} <= set(kinds)


def test_a_differing_result_is_measured_by_its_largest_number() -> None:
    right = np.array([1.0, -4.0], np.float32)
    assert operators._difference(right + np.float32(0.4), right) == pytest.approx(0.1)
    assert operators._difference(right[:1], right) == float("inf")
    assert operators._difference(np.array([np.nan, 0], np.float32), right) == float("inf")
    assert operators._difference(np.empty((1, 0)), np.empty((1, 0))) == 0.0


def test_two_layers_have_phi3s_shape(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = models._PHI3_MINI | {"hidden_size": 256, "intermediate_size": 256, "vocab_size": 512}
    monkeypatch.setattr(models, "_PHI3_MINI", small | {"num_attention_heads": 4, "num_key_value_heads": 4})
    folder = models.two_layers(tmp_path)
    assert folders.shape_of(folder) == folders.Shape(2, 4, 64, 512, takes_positions=True)


def test_everything_that_is_downloaded_is_pinned() -> None:
    wheels = [line for line in directml.WHEELS.read_text(encoding="utf-8").splitlines() if "==" in line]
    assert [line.partition("==")[0] for line in wheels] == ["onnxruntime-directml", "msvc-runtime"]
    assert all("--hash=sha256:" in line for line in wheels)
    files = [
        line for line in directml.DEBIAN_SOURCES.read_text(encoding="utf-8").splitlines() if line[0] != "#"
    ]
    assert all(len(line.split()[1]) == 64 for line in files)


def test_a_download_that_is_not_the_pinned_one_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "found").write_bytes(b"something else")
    kept = tmp_path / "kept"
    with pytest.raises(RuntimeError, match="is not what is listed"):
        directml._download((tmp_path / "found").as_uri(), "0" * 64, kept)
    assert [path.name for path in tmp_path.iterdir()] == ["found"]


def test_a_download_that_fails_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(windows.NotHereError, match="could not be downloaded"):
        directml._download((tmp_path / "missing").as_uri(), "0" * 64, tmp_path / "kept")
    assert list(tmp_path.iterdir()) == []


def test_without_wine_and_without_apt_the_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(windows, "_find_loader", lambda: None)
    with pytest.raises(windows.NotHereError, match=r"Wine and .*sudo apt-get install .*wine64 .* xvfb"):
        windows.require_debian_packages(directml.NEEDS)


def test_a_machine_without_the_packages_gets_a_sentence_and_a_code_of_its_own(tmp_path: Path) -> None:
    # There is no apt-get on this path either.
    done = run_tool(TOOL, "--demo", path=tmp_path)
    assert done.returncode == 77
    assert "not checked with DirectML" in done.stderr
    assert "sudo apt-get install --no-install-recommends wine64" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "name folders, --demo or --two-layers"),
        (("missing",), "holds no model.onnx"),
        (("--demo", "--tokens", "0"), "--tokens must be at least 1"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_set_up(
    tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    done = run_tool(TOOL, *words, path=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_demo_for_the_cpu_is_another_graph(tmp_path: Path) -> None:
    # The control: it must have what DirectML does not take.
    folder = models.demo("demo-int4-group-128", tmp_path, "cpu")
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    attention = next(node for node in graph.node if node.op_type == "GroupQueryAttention")
    assert helper.get_node_attr_value(attention, "do_rotary") == 1
