"""aipc doctor: what it finds wrong, and what its report does not tell."""

from __future__ import annotations

import functools
import getpass
import json
import platform
import re
import shutil
import sys
from collections import namedtuple
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import machines
from aipc import cache, doctor, hardware, inventory
from aipc.cli import main
from aipc.doctor import model, processors, software
from aipc.errors import MissingExtraError, ModelNotFoundError
from aipc.hardware import drivers, instructions, linux
from aipc.inventory import Candidate
from aipc.model_size import model_size
from aipc.runtimes.base import ONNXRUNTIME, OPENVINO, Device
from aipc.types import Check
from machines import CPU_DEVICE, IGPU_DEVICE, NPU_DEVICE

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="trees of Linux")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIPC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache"


def by_name(checks: Sequence[Check]) -> dict[str, Check]:
    assert all(bool(check.fix) == (check.state == "failed") for check in checks), checks
    return {check.name: check for check in checks}


Machine = Callable[[Path], Path]
OnMachine = Callable[..., dict[str, Check]]


@pytest.fixture
def on_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnMachine:
    """The checks of the processors of a machine, of which OpenVINO reaches some."""

    def checked(machine: Machine, reached: Sequence[Device]) -> dict[str, Check]:
        root = machine(tmp_path / "root")
        found = [Candidate(OPENVINO, device) for device in reached]
        for place in (inventory, processors):
            monkeypatch.setattr(place, "driver_checks", functools.partial(drivers.driver_checks, root=root))
        monkeypatch.setattr(hardware, "processors", lambda: linux.processors(root))
        monkeypatch.setattr(hardware, "has_wsl_gpu", (root / "dev/dxg").exists)
        monkeypatch.setattr(inventory, "candidates", lambda infos: (found, []))
        monkeypatch.setattr(processors, "instruction_sets", lambda: instructions.instruction_sets(root))
        return by_name(list(processors.processor_checks()))

    return checked


@on_linux
def test_a_sound_laptop_passes(on_machine: OnMachine) -> None:
    checks = on_machine(machines.meteor_lake, [CPU_DEVICE, IGPU_DEVICE, NPU_DEVICE])
    assert checks["NPU"].found == "Intel(R) AI Boost is reached by --device NPU, driver 1755"
    assert {check.state for name, check in checks.items() if "CPU" not in name} == {"passed"}
    assert "WSL" not in checks
    assert checks["CPU VNNI"].state == "passed"
    assert checks["CPU AMX"].state == "note"


@on_linux
def test_a_library_in_an_unusual_place_fails_only_where_the_device_is_not_reached(
    on_machine: OnMachine, tmp_path: Path
) -> None:
    def bare(root: Path) -> Path:
        shutil.rmtree(machines.meteor_lake(root) / "usr")
        return root

    assert on_machine(bare, [CPU_DEVICE, IGPU_DEVICE, NPU_DEVICE])["NPU Level Zero loader"].state == "note"
    shutil.rmtree(tmp_path / "root")
    checks = on_machine(bare, [CPU_DEVICE])
    assert checks["NPU Level Zero loader"].fix == "sudo apt install libze1"
    assert checks["NPU kernel module"].state == "passed"
    assert checks["integrated GPU OpenCL loader"].state == "failed"


@on_linux
def test_wsl_lends_gpus_and_no_npu(
    on_machine: OnMachine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(platform, "release", lambda: "5.15.167.4-microsoft-standard-WSL2")
    checks = on_machine(machines.wsl, [CPU_DEVICE, Device("GPU.0", "Intel(R) Graphics", "integrated GPU")])
    assert checks["WSL"].state == "note"
    assert "no NPU" in checks["WSL"].found
    assert checks["integrated GPU"].state == "passed"
    (tmp_path / "root/dev/dxg").unlink()
    assert on_machine(lambda root: root, [CPU_DEVICE])["WSL"].fix == "in Windows: wsl --update"


@on_linux
def test_instruction_sets_of_an_old_and_a_foreign_cpu(tmp_path: Path) -> None:
    machines.add_cpu(tmp_path, "GenuineIntel", "Pentium", "sse4_2")
    assert set(instructions.instruction_sets(tmp_path).values()) == {False}
    machines.write(tmp_path / "proc/cpuinfo", "processor: 0\nFeatures: asimd i8mm bf16\n")
    assert instructions.instruction_sets(tmp_path) == {}


@on_linux
def test_numpy_and_linux_agree_about_this_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    here = instructions.instruction_sets()
    monkeypatch.setattr(sys, "platform", "win32")
    there = instructions.instruction_sets()
    assert here.keys() == there.keys()
    assert all(there[name] in {here[name], None} for name in here)
    if here:
        assert there["AVX2"] == here["AVX2"]


def test_no_runtime_fails_and_one_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "installed_runtimes", list)
    (check,) = software.runtime_checks()
    assert (check.state, check.fix) == ("failed", 'pip install "aipc[openvino]"')
    monkeypatch.setattr(inventory, "installed_runtimes", lambda: [OPENVINO])
    openvino, onnx = software.runtime_checks()
    assert openvino.state == "passed"
    assert openvino.found.startswith("openvino-genai 20")
    assert onnx.state == "note"
    assert "aipc[onnx]" in onnx.found


def test_a_mixture_of_packages_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def mixture() -> None:
        raise MissingExtraError("two lie over each other", hint="pip uninstall both")

    monkeypatch.setattr(software.packages, "installed_flavour", mixture)
    monkeypatch.setattr(inventory, "installed_runtimes", lambda: [ONNXRUNTIME])
    check = by_name(list(software.runtime_checks()))[ONNXRUNTIME.title]
    assert (check.state, check.fix) == ("failed", "pip uninstall both")


def test_a_package_that_cannot_be_imported_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "openvino_genai.py").write_text("raise ImportError('libtbb.so.12 is gone')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(inventory, "installed_runtimes", lambda: [OPENVINO])
    check = next(software.runtime_checks())
    assert check.state == "failed"
    assert "libtbb.so.12 is gone" in check.found
    assert "--force-reinstall" in check.fix


def test_a_damaged_cache_fails(own_cache: Path) -> None:
    (check,) = software.cache_checks()
    assert check.state == "passed"
    assert check.found.startswith("0 converted models")
    folder = own_cache / "models/demo/openvino-int4-12345678"
    folder.mkdir(parents=True)
    (folder / "aipc.json").write_text("{", encoding="utf-8")
    (check,) = software.cache_checks()
    assert check.state == "failed"
    assert check.fix.startswith("aipc models remove demo/openvino-int4-12345678")


def test_a_converted_model_of_another_size_fails(own_cache: Path) -> None:
    from aipc import demo, prepare

    folder = own_cache / "models/demo/openvino-int4-12345678"
    prepare.convert(demo.path(), folder)
    assert next(software.cache_checks()).state == "passed"
    assert cache.verify(folder, contents=False) == []
    with (folder / "openvino_model.bin").open("ab") as file:
        file.write(b"more")
    (check,) = software.cache_checks()
    assert "openvino_model.bin has" in check.found


def test_a_cache_that_is_a_file_fails(own_cache: Path) -> None:
    own_cache.write_text("", encoding="utf-8")
    (check,) = software.cache_checks()
    assert check.state == "failed"
    assert "AIPC_CACHE_DIR" in check.fix


Usage = namedtuple("Usage", "free")
Memory = namedtuple("Memory", "available total")


def with_room(monkeypatch: pytest.MonkeyPatch, memory_gb: float, disk_gb: float) -> None:
    monkeypatch.setattr(
        model.psutil, "virtual_memory", lambda: Memory(int(memory_gb * 1e9), int(memory_gb * 2e9))
    )
    monkeypatch.setattr(model.shutil, "disk_usage", lambda path: Usage(int(disk_gb * 1e9)))


@pytest.mark.parametrize(
    ("memory_gb", "disk_gb", "states"),
    [
        (16, 60, ["passed", "passed"]),
        (9, 60, ["failed", "passed"]),
        (16, 30, ["passed", "failed"]),
    ],
)
def test_phi_4_before_it_is_downloaded(
    monkeypatch: pytest.MonkeyPatch, memory_gb: float, disk_gb: float, states: list[str]
) -> None:
    with_room(monkeypatch, memory_gb, disk_gb)
    memory, disk = by_name(doctor.model_checks("phi-4")).values()
    assert [memory.state, disk.state] == states
    # 14.66 billion parameters: 29.3 GB as bfloat16, and a good half byte each as int4.
    assert memory.found.startswith("about 10.2 GB needed")
    assert "8.1 GB are weights, 1.7 GB a conversation of 4096 tokens" in memory.found
    assert disk.found.startswith("37.4 GB needed")


def test_a_small_gpu_is_checked_by_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_room(monkeypatch, 64, 100)
    small = hardware.Processor("discrete GPU", "NVIDIA", "GeForce", memory_bytes=8 * 10**9)
    monkeypatch.setattr(hardware, "processors", lambda: [small])
    checks = by_name(doctor.model_checks("phi-4"))
    assert checks["phi-4 memory"].state == "passed"
    assert checks["phi-4 GPU memory"].state == "failed"
    assert by_name(doctor.model_checks("phi-3-mini"))["phi-3-mini GPU memory"].state == "passed"


def test_the_sizes_of_aliases_are_those_of_the_models() -> None:
    billions = {
        "phi-3-mini": 3.82,
        "phi-3-medium": 13.96,
        "phi-3.5-mini": 3.82,
        "phi-4-mini": 3.84,
        "phi-4": 14.66,
    }
    for name, expected in billions.items():
        size = model_size(name)
        assert size is not None
        assert size.download_bytes / 2e9 == pytest.approx(expected, abs=0.005), name


def test_a_model_that_is_here_needs_no_download(tmp_path: Path) -> None:
    from aipc import demo, prepare

    checks = by_name(doctor.model_checks("demo"))
    assert " 2 MB are weights" in checks["demo memory"].found
    assert "needed" in checks["demo disk"].found
    prepare.convert(demo.path(), tmp_path / "converted")
    (memory, disk) = doctor.model_checks(str(tmp_path / "converted"))
    assert memory.state == "passed"
    assert disk.found == "nothing is left to download or to convert"


def test_a_model_that_is_unknown() -> None:
    (check,) = doctor.model_checks("someone/phi-3-finetuned")
    assert check.state == "note"
    with pytest.raises(ModelNotFoundError):
        doctor.model_checks("nope")
    with pytest.raises(ModelNotFoundError, match="there is no folder"):
        doctor.model_checks("./nope")


def test_the_command_ends_with_1_where_something_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [Check("NPU", "passed", "fine"), Check("cache", "failed", "full", "free space")]
    monkeypatch.setattr(doctor, "checkup", lambda name: checks)
    assert main(["doctor"]) == 1
    said = capsys.readouterr()
    assert said.out == "passed  NPU: fine\nfailed  cache: full\n        free space\n"
    assert said.err == "1 of 2 checks failed\n"
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[1] == {
        "name": "cache",
        "state": "failed",
        "found": "full",
        "fix": "free space",
    }
    checks.pop()
    assert main(["doctor", "phi-3-mini"]) == 0


HOSTILE = [
    ("jane", "jane-laptop.example.org", "/home/jane", "/home/jane/My Models (2)/aipc"),
    ("Jane Doe", "DESKTOP-JD", "/srv/Jane Doe's files", "/data/[a-z]+/$(id)/cache"),
    ("j", "h", "/h/j", "/h/j/c"),
    ("o'brien; rm", "a.b", "/Users/o'brien; rm", "/tmp/\\E.*/x y"),
    ("жанна", "хост", "/home/жанна", "/home/жанна/кэш"),
    ("admin", "localhost", "/var/admin", "/var/admin/.cache/aipc"),
]


@on_linux
@pytest.mark.parametrize(("user", "host", "home", "place"), HOSTILE)
def test_the_report_tells_neither_who_nor_where(
    monkeypatch: pytest.MonkeyPatch, user: str, host: str, home: str, place: str
) -> None:
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, user)
    monkeypatch.setenv("HOSTNAME", host)
    monkeypatch.setenv("HOME", home)
    monkeypatch.setenv("AIPC_CACHE_DIR", place)
    monkeypatch.setenv("SECRETS", f"{home}/keys and more:relative/path:/dev:/")
    monkeypatch.setattr(platform, "node", lambda: host)
    monkeypatch.setattr(getpass, "getuser", lambda: user)
    text = "\n".join([
        *doctor.header(),
        f"failed  cache: {place}/models/phi-3-mini is damaged",
        f"        rm -r '{home}/keys and more/SECRET-1'; on {host.upper()} as {user}",
        f"failed  OpenVINO: cannot be imported: {home}/.venv/lib/SECRET-2.so: no such file",
        "failed  weights: /mnt/SECRET-3 disk/SECRET-4/model.bin is missing",
        r"failed  weights: C:\Users\SECRET-5 6\x.bin, \\server\SECRET-7\x",
        f"failed  NPU device node: /dev/accel/accel0 may not be opened by {user}",
        f"        see {drivers.NPU_RELEASES} and/or docs/directml.md\x1b[31m",
    ])  # fmt: skip
    told = doctor.anonymous(text)
    assert "SECRET" not in told
    assert "<cache>/models/phi-3-mini is damaged" in told
    assert "/dev/accel/accel0" in told
    assert "https://github.com/" in told
    assert "and/or docs/directml.md" in told
    assert "\x1b" not in told
    for name in (user, host, host.partition(".")[0]):
        whole_word = rf"(?<!\w){re.escape(name)}(?!\w)"
        assert not re.search(whole_word if len(name) < 4 else re.escape(name), told, re.IGNORECASE)


@on_linux
def test_the_report_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HOSTNAME", "kitchen-pc")
    assert main(["doctor", "demo", "--report"]) in (0, 1)
    said = capsys.readouterr().out
    assert said.startswith("aipc ")
    assert "openvino-genai" in said
    assert "CPU" in said
    assert "demo memory" in said
    assert str(tmp_path) not in said
    assert platform.node() not in said
