"""The NPU compiler's check, as far as it goes without Wine: what it asks for, and how it reads the answer."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import aipc
from aipc.compiled import Build
from aipc.preflight import MODEL_FILE, WEIGHTS_FILE
from checkpoints import LONGROPE
from sessions import RandomModel
from tool_program import run_tool

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the check runs Windows programs on Linux")

TOOL = Path(__file__).parents[1] / "tools" / "npu_check"
sys.path[:0] = [str(TOOL), str(TOOL.parent)]

if os.name != "nt":
    import compiler
    import demo
    from compiler import Verdict, verdict

    import windows
    from windows import Finished

# What OpenVINO 2026.4.1 and its compiler print.
OPTIONAL = (
    "[ERROR] 16:46:07.850 [vpux-compiler] Debatcher failed : expects the batch position to be 0\n"
    '[ERROR] 16:46:07.851 [vpux-compiler] Failed Pass Debatcher on Operation loc(fused<{name = "module", '
    'type = "Module"}>["module"])\n'
)
NEEDED = (
    "[ERROR] 17:01:02.003 [vpux-compiler] Failed Pass ConvertLayers2VPU on Operation loc(fused<{name = "
    '"MatMul_12", type = "MatMul"}>["MatMul_12"])\n'
)
UNBOUNDED = (
    "[ERROR] 17:18:17.102 [IE::FrontEnd::importNetwork]   Upper bounds are not specified for node 'mm' "
    "(type 'MatMul'): input '0' bounds are '[9223372036854775807, 64]'\n"
)
DONE = '{"compile_s": 5.9, "peak_bytes": 187490304}\n'


def refusal(words: str) -> str:
    chain = (
        "Exception from src\\inference\\src\\dev\\plugin.cpp:54:\n"
        "Exception from src\\plugins\\intel_npu\\src\\compiler_adapter\\src\\compiler_impl.cpp:323:\n"
        "Compilation failed. vclAllocatedExecutableCreate4 result: 0x78000004 - [NPU_VCL] "
        f"Compiler returned msg:\n{words}\n\n\n"
    )
    return json.dumps({"failed": "compile", "words": chain}) + "\n"


def judged(code: int | None, stdout: str, stderr: str = "", blob_bytes: int = 0) -> Verdict:
    return verdict(Finished(code, stdout, stderr), "demo", "4000", blob_bytes)


def test_compiled_is_what_says_so_and_leaves_a_blob() -> None:
    # A pass that failed and was not needed is no refusal.
    done = judged(0, DONE, OPTIONAL, 6_186_633)
    assert (done.state, done.compile_s, done.peak_bytes, done.blob_bytes) == (
        "compiled",
        5.9,
        187_490_304,
        6_186_633,
    )
    assert judged(0, DONE, OPTIONAL, 0).state == "crashed"
    assert judged(0, "", "", 6_186_633).state == "crashed"
    assert judged(1, DONE, "", 6_186_633).state == "crashed"


def test_a_refusal_has_the_compilers_words_and_no_others() -> None:
    refused = judged(1, refusal("Unsupported data type 'nf4'"), OPTIONAL)
    assert (refused.state, refused.words) == ("refused", "Unsupported data type 'nf4'")
    assert (refused.node, refused.pass_name) == ("", "")


@pytest.mark.parametrize(
    ("log", "node", "pass_name"),
    [
        (OPTIONAL + NEEDED, "MatMul_12 (MatMul)", "ConvertLayers2VPU"),
        (OPTIONAL + UNBOUNDED, "mm (MatMul)", ""),
    ],
)
def test_a_refusal_names_the_node_and_the_pass(log: str, node: str, pass_name: str) -> None:
    refused = judged(1, refusal("Compilation failed"), log)
    assert (refused.state, refused.node, refused.pass_name) == ("refused", node, pass_name)


def test_a_file_that_cannot_be_read_says_so() -> None:
    words = "Exception from a.cpp:1:\nCheck 'x' failed at b.cpp:2:\nIncorrect weights in bin file!\n"
    refused = judged(1, json.dumps({"failed": "read", "words": words}))
    assert refused.words == "could not read it: Incorrect weights in bin file!"


@pytest.mark.parametrize(
    ("code", "stdout", "state", "words"),
    [
        (3, '{"failed": "compile", "crash": "0xc0000005"}\n', "crashed", "0xc0000005"),
        (-9, "", "crashed", "with code -9"),
        (0, "{half a line", "crashed", "with code 0"),
        (None, "", "out of time", ""),
    ],
)
def test_a_crash_and_the_limit_are_no_refusal(code: int | None, stdout: str, state: str, words: str) -> None:
    done = judged(code, stdout)
    assert done.state == state
    assert words in done.words


def test_a_control_holds_only_where_the_compiler_says_why(tmp_path: Path) -> None:
    control = demo.Control(tmp_path, "9999", "9999")
    assert control.wrong(judged(1, refusal("Unknown value for platform: 9999"))) == ""
    for other in (judged(1, refusal("no memory")), judged(0, DONE, "", 5), judged(None, ""), judged(3, "")):
        assert "must be refused because of 9999" in control.wrong(other)


def test_the_controls_are_the_demo_with_one_thing_wrong(tmp_path: Path) -> None:
    aipc.convert("demo", tmp_path / "demo-int4-group-128", group_size=128)
    platform, weights = demo.controls(tmp_path)
    assert platform.platform not in demo.PLATFORMS
    right = (platform.folder / "openvino_model.xml").read_text(encoding="utf-8")
    wrong = (weights.folder / "openvino_model.xml").read_text(encoding="utf-8")
    assert right.count('element_type="i4"') == wrong.count('element_type="nf4"') > 0
    assert wrong.replace("nf4", "i4").replace("NF4", "I4") == right


class Recorded:
    """A compiler that says of each folder what it is told to say."""

    def __init__(self, state: str, words: str = "") -> None:
        self.state, self.words = state, words
        self.asked: list[str] = []

    def compile(self, folder: Path, build: Build, *, limit_s: float) -> Verdict:
        self.asked.append(build.name)
        return Verdict(folder.name, build.platform, self.state, 1.0, 1, 1, self.words)  # type: ignore[arg-type]


def taken(monkeypatch: pytest.MonkeyPatch, recorded: Recorded, folder: Path, *words: str) -> int:
    """The exit code of `npu_check FOLDER`, with another compiler."""
    spec = importlib.util.spec_from_file_location("npu_check_main", TOOL / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    main = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(main)
    monkeypatch.setattr(main, "Compiler", lambda _cache: recorded)
    monkeypatch.setattr(sys, "argv", ["npu_check", str(folder), *words])
    code: int = main.main()
    return code


def test_longropes_sets_are_compiled_as_aipc_compile_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, recorded = RandomModel("openvino", tmp_path, LONGROPE, weight_format="fp16"), Recorded("compiled")
    assert taken(monkeypatch, recorded, model.folder, "--platform", "3720", "--answer-tokens", "128") == 0
    assert recorded.asked == ["3720-1024-128-short", "3720-1024-128-long"]
    config = model.folder / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("longrope", "no such"), encoding="utf-8")
    recorded.asked.clear()
    assert taken(monkeypatch, recorded, model.folder) == 0
    assert recorded.asked == ["4000-1024-1024"]


def test_a_set_of_factors_is_compiled_from_the_same_weights(tmp_path: Path) -> None:
    model = RandomModel("openvino", tmp_path, LONGROPE, weight_format="fp16")
    with compiler._told(model.folder, Build("4000", 1024, 1024, "long")) as told:
        assert (told / WEIGHTS_FILE).samefile(model.folder / WEIGHTS_FILE)
        assert (told / MODEL_FILE).read_bytes() != (model.folder / MODEL_FILE).read_bytes()
    with compiler._told(model.folder, Build("4000", 1024, 1024, None)) as told:
        assert told == model.folder


def test_what_compiles_and_is_refused_by_aipc_run_is_not_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = aipc.convert("demo", tmp_path / "demo", group_size=32)
    assert taken(monkeypatch, Recorded("compiled"), folder) == 1
    said = capsys.readouterr().err
    assert "aipc run --device NPU refuses it" in said
    assert "--group-size 128 demo-npu" in said


def test_what_helps_is_said_of_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = aipc.convert("demo", tmp_path / "demo", group_size=128)
    words = "could not read it: Incorrect weights in bin file!"
    assert taken(monkeypatch, Recorded("refused", words), folder) == 1
    assert "what helps: convert or download the model again" in capsys.readouterr().err


def test_every_wheel_is_pinned_by_version_and_hash() -> None:
    lines = compiler.WHEELS.read_text(encoding="utf-8").splitlines()
    wheels = [line for line in lines if line and not line.startswith("#")]
    assert [line.partition("==")[0] for line in wheels] == ["openvino", "msvc-runtime"]
    assert all("==" in line and "--hash=sha256:" in line for line in wheels)


def test_dlls_lie_side_by_side_and_nothing_leaves_the_folder(tmp_path: Path) -> None:
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("openvino/libs/openvino_c.dll", b"1")
        archive.writestr("msvc.data/data/Scripts/../../../../msvcp140.dll", b"2")
        archive.writestr("openvino/include/openvino/c/ov_core.h", b"3")
        archive.writestr("openvino/include/openvino/core/node.hpp", b"4")
        archive.writestr("openvino/__init__.py", b"5")
    windows._unpack(wheel, tmp_path / "out")
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert files == {"openvino_c.dll", "msvcp140.dll", "include/openvino/c/ov_core.h"}


def test_a_wheel_that_is_not_the_pinned_one_is_no_reason_to_go_on_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pip(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        words = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE."
        return subprocess.CompletedProcess([], 1, "", words)

    monkeypatch.setattr(windows.subprocess, "run", pip)
    with pytest.raises(RuntimeError, match="DO NOT MATCH"):
        windows.packages(tmp_path, compiler.WHEELS, [TOOL / "compile.c"], compiler._build)
    assert not list(tmp_path.glob("packages-*"))


@pytest.mark.skipif(Path("/usr/lib/wine/wine64").exists(), reason="Wine is here")
def test_a_machine_without_wine_gets_a_sentence_and_a_code_of_its_own(tmp_path: Path) -> None:
    done = run_tool(TOOL, "--demo", path=tmp_path)
    assert done.returncode == 77
    assert "sudo apt-get install --no-install-recommends wine64" in done.stderr
    assert done.stdout == ""


def test_without_wine_and_without_apt_the_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(windows, "_find_loader", lambda: None)
    with pytest.raises(windows.NotHereError, match=r"sudo apt-get install .*wine64 gcc-mingw-w64"):
        windows.require_debian_packages()


def test_a_folder_that_is_none_is_refused_before_anything_is_set_up(tmp_path: Path) -> None:
    done = run_tool(TOOL, str(tmp_path / "missing"), path=tmp_path)
    assert done.returncode == 2
    assert "holds no openvino_model.xml" in done.stderr
    assert list(tmp_path.iterdir()) == []
