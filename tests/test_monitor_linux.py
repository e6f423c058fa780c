"""The counters of Linux, read from trees as the kernel's documentation describes them."""

from __future__ import annotations

import errno
import io
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

import machines
from aipc.monitor import COUNTERS, DeviceSample, Sample, counters, fdinfo, host
from aipc.monitor.host import WatchedProcesses
from aipc.monitor.probes import LinuxDevices
from aipc.monitor.usage import UsageMeter

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sysfs has colons in its names")

OWN, OTHER = 4242, 77
RAPL = "sys/class/powercap/intel-rapl:0"


class Watching(WatchedProcesses):
    """Two processes: the one that asks, and one more."""

    def __init__(self) -> None:
        pass

    def processes(self) -> list[psutil.Process]:
        return [psutil.Process()]

    def pids(self) -> frozenset[int]:
        return frozenset({OWN})


@dataclass
class Machine:
    """A tree, a clock, and files whose numbers rise with it.

    rising   for each file its text with {} for each number, and what each starts at and gains a second
    """

    root: Path
    now_s: float = 1000.0
    rising: dict[Path, tuple[str, list[tuple[int, float]]]] = field(default_factory=dict)

    def perf_counter(self) -> float:
        return self.now_s

    def add(self, path: str, text: str, *numbers: tuple[int, float]) -> None:
        if numbers:
            self.rising[self.root / path] = (text, list(numbers))
            self.write(self.root / path)
        else:
            self.rising.pop(self.root / path, None)
            machines.write(self.root / path, text)

    def write(self, path: Path) -> None:
        text, numbers = self.rising[path]
        since_s = self.now_s - 1000.0
        machines.write(path, text.format(*(round(start + gain * since_s) for start, gain in numbers)))

    def run(self, seconds: float, but: Path | None = None) -> None:
        self.now_s += seconds
        for path in self.rising:
            if path != but and path.parent.exists():
                self.write(path)

    def add_client(self, pid: int, fd: int, node: str, text: str, *numbers: tuple[int, float]) -> None:
        """A device that a process holds open."""
        link = self.root / f"proc/{pid}/fd/{fd}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"/dev/{node}")
        self.add(f"proc/{pid}/fdinfo/{fd}", text, *numbers)

    def devices(self) -> LinuxDevices:
        return LinuxDevices(Watching(), self.root)

    def remove(self, path: str) -> None:
        target = self.root / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        self.rising = {known: what for known, what in self.rising.items() if known.exists()}


def pci(address: str, name: str) -> str:
    return f"sys/bus/pci/devices/{address}/{name}"


def read(devices: LinuxDevices) -> dict[str, DeviceSample]:
    return {each.id: each for each in (probe.read() for probe in devices.probes())}


def after(machine: Machine, seconds: float = 2.0) -> dict[str, DeviceSample]:
    """What is read at the second of two times."""
    devices = machine.devices()
    read(devices)
    machine.run(seconds)
    return read(devices)


I915 = (
    "pos:\t0\nflags:\t02100002\ndrm-driver:\ti915\ndrm-client-id:\t{number}\ndrm-pdev:\t0000:00:02.0\n"
    "drm-total-system0:\t{total} KiB\ndrm-shared-system0:\t0\ndrm-resident-system0:\t{resident} KiB\n"
    "drm-engine-render:\t{{}} ns\ndrm-engine-copy:\t0 ns\ndrm-engine-video:\t{{}} ns\n"
    "drm-engine-capacity-video:\t2\n"
)
XE = (
    "drm-driver:\txe\ndrm-client-id:\t3\ndrm-pdev:\t{address}\ndrm-total-gtt:\t192 KiB\n"
    "drm-resident-gtt:\t192 KiB\ndrm-total-vram0:\t23992 KiB\ndrm-resident-vram0:\t20 MiB\n"
    "drm-cycles-rcs:\t{{}}\ndrm-total-cycles-rcs:\t{{}}\ndrm-cycles-ccs:\t{{}}\ndrm-total-cycles-ccs:\t{{}}\n"
    "drm-engine-capacity-ccs:\t4\n"
)
AMDGPU = (
    "drm-driver:\tamdgpu\ndrm-client-id:\t9\ndrm-pdev:\t0000:03:00.0\ndrm-memory-vram:\t2048 KiB\n"
    "drm-memory-gtt: \t100 KiB\ndrm-engine-gfx:\t{} ns\ndrm-engine-compute:\t{} ns\n"
)
XDNA = (
    "drm-driver:\tamdxdna_accel_driver\ndrm-client-id:\t76\ndrm-pdev:\t0000:c2:00.1\n"
    "drm-engine-npu-amdxdna:\t{} ns\ndrm-total-memory:\t65536\ndrm-shared-memory:\t0\ndrm-active-memory:\t0\n"
)


def add_npu(machine: Machine) -> None:
    machine.add(pci(machines.NPU, "npu_busy_time_us"), "{}\n", (5_000_000, 800_000))
    machine.add(pci(machines.NPU, "npu_memory_utilization"), "2147483648\n")


def add_package(machine: Machine, joules: float = 30.0) -> None:
    machine.add(f"{RAPL}/name", "package-0\n")
    machine.add(f"{RAPL}/max_energy_range_uj", "262143328850\n")
    machine.add(f"{RAPL}/energy_uj", "{}\n", (123_456_789, joules * 1e6))
    # Parts of the package, and the whole machine, are counted in no sum.
    machine.add("sys/class/powercap/intel-rapl:0:0/name", "core\n")
    machine.add("sys/class/powercap/intel-rapl:1/name", "psys\n")


def meteor_lake(root: Path) -> Machine:
    """Linux 6.15: i915 and intel_vpu."""
    machine = Machine(machines.meteor_lake(root))
    add_npu(machine)
    machine.add(pci(machines.NPU, "npu_current_frequency_mhz"), "1300\n")
    machine.add(pci(machines.IGPU, "drm/card1/gt/gt0/rps_act_freq_mhz"), "2250\n")
    machine.add(pci(machines.IGPU, "drm/card1/gt_act_freq_mhz"), "1\n")
    own = I915.format(number=1, total=8192, resident=4096)
    machine.add_client(OWN, 5, "dri/renderD128", own, (10**9, 5e8), (0, 1e9))
    # A descriptor that was inherited is the same client.
    machine.add_client(OWN, 6, "dri/renderD128", own, (10**9, 5e8), (0, 1e9))
    other = I915.format(number=2, total=1024, resident=1024)
    machine.add_client(OTHER, 9, "dri/card0", other, (7 * 10**9, 2.5e8), (0, 0))
    add_package(machine)
    return machine


def lunar_lake(root: Path) -> Machine:
    """Linux 7.2: xe, and intel_vpu with its folder of frequencies."""
    machine = Machine(machines.lunar_lake(root))
    add_npu(machine)
    machine.add(pci(machines.NPU, "freq/current_freq"), "1950\n")
    machine.add(pci(machines.NPU, "npu_current_frequency_mhz"), "1\n")
    machine.add(pci(machines.IGPU, "tile0/gt0/freq0/act_freq"), "1850\n")
    cycles = (0, 2e6), (1000, 2e7), (0, 4e7), (1000, 2e7)
    machine.add_client(OWN, 5, "dri/renderD128", XE.format(address=machines.IGPU), *cycles)
    add_package(machine)
    return machine


def amd_laptop(root: Path) -> Machine:
    """amdgpu twice, and AMD's own amdxdna, which counts its busy time."""
    machine = Machine(machines.amd_laptop(root))
    for name, text in {
        "gpu_busy_percent": "37\n",
        "mem_info_vram_used": "1073741824\n",
        "hwmon/hwmon3/freq1_input": "2100000000\n",
        "hwmon/hwmon3/power1_average": "55000000\n",
    }.items():
        machine.add(pci("0000:03:00.0", name), text)
    machine.add(pci("0000:c1:00.0", "gpu_busy_percent"), "5\n")
    machine.add(pci("0000:c1:00.0", "mem_info_vram_used"), "268435456\n")
    machine.add(pci("0000:c1:00.0", "pp_dpm_sclk"), "0: 800Mhz \n1: 1100Mhz *\n2: 2900Mhz \n")
    machine.add(pci("0000:c1:00.0", "hwmon/hwmon4/power1_input"), "15000000\n")
    machine.add_client(OWN, 3, "dri/renderD129", AMDGPU, (0, 1e8), (0, 3e8))
    machine.add_client(OWN, 4, "accel/accel0", XDNA, (0, 6e8))
    return machine


def arc_desktop(root: Path) -> Machine:
    """A card with memory and a meter of its own, and a GeForce whose library is not installed."""
    machine = Machine(machines.nvidia_desktop(root))
    machine.add(pci(machines.ARC, "tile0/gt0/freq0/act_freq"), "2850\n")
    machine.add(pci(machines.ARC, "hwmon/hwmon2/energy1_input"), "{}\n", (10**6, 120e6))
    cycles = (0, 1e6), (1000, 2e7), (0, 0), (1000, 2e7)
    machine.add_client(OWN, 5, "dri/renderD129", XE.format(address=machines.ARC), *cycles)
    return machine


ALL = (meteor_lake, lunar_lake, amd_laptop, arc_desktop)


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], Machine]], Machine]:
    monkeypatch.setitem(sys.modules, "pynvml", None)

    def built(maker: Callable[[Path], Machine]) -> Machine:
        machine = maker(tmp_path)
        for module in (counters, fdinfo, host):
            monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=machine.perf_counter))
        return machine

    return built


Build = Callable[[Callable[[Path], Machine]], Machine]


def test_intel_npu_and_i915(build: Build) -> None:
    found = after(build(meteor_lake))
    assert [(each.id, each.kind) for each in found.values()] == [
        (machines.IGPU, "integrated GPU"),
        (machines.NPU, "NPU"),
        ("CPU", "CPU"),
    ]
    npu, igpu, cpu = found[machines.NPU], found[machines.IGPU], found["CPU"]
    assert npu.utilisation == pytest.approx(0.8)
    assert (npu.memory_used_bytes, npu.frequency_mhz) == (2**31, 1300)
    assert (npu.own_utilisation, npu.power_w) == (None, None)
    assert "stands with the CPU" in npu.not_readable["power_w"].reason
    # Half a second of render each second by us, a quarter by another; of two video engines half was used.
    assert igpu.utilisation == pytest.approx(0.75)
    assert igpu.own_utilisation == pytest.approx(0.5)
    assert (igpu.memory_used_bytes, igpu.own_memory_bytes) == (5 * 2**20, 4 * 2**20)
    assert igpu.frequency_mhz == 2250
    assert "own processes" in igpu.note
    assert cpu.power_w == pytest.approx(30.0)
    assert cpu.energy_j == pytest.approx(60.0)
    assert cpu.name == "Intel(R) Core(TM) Ultra 7 155H"


def test_xe_counts_cycles_and_the_newest_npu_driver_has_a_folder(build: Build) -> None:
    found = after(build(lunar_lake))
    assert found[machines.NPU].frequency_mhz == 1950
    igpu = found[machines.IGPU]
    # 4e7 cycles of four engines that had 2e7 each are half; render had a tenth.
    assert igpu.utilisation == igpu.own_utilisation == pytest.approx(0.5)
    assert igpu.own_memory_bytes == 192 * 1024 + 20 * 2**20
    assert igpu.frequency_mhz == 1850


def test_amd(build: Build) -> None:
    found = after(build(amd_laptop))
    radeon, apu, npu = found["0000:03:00.0"], found["0000:c1:00.0"], found["0000:c2:00.1"]
    assert radeon.utilisation == pytest.approx(0.37)
    assert radeon.own_utilisation == pytest.approx(0.3)
    assert (radeon.memory_used_bytes, radeon.memory_total_bytes) == (2**30, 8_573_157_376)
    assert radeon.own_memory_bytes == 2 * 2**20
    assert radeon.frequency_mhz == pytest.approx(2100)
    assert (radeon.power_w, radeon.energy_j) == (pytest.approx(55.0), pytest.approx(110.0))
    assert apu.frequency_mhz == 1100
    assert apu.power_w == pytest.approx(15.0)
    assert npu.utilisation == pytest.approx(0.6)
    assert (npu.own_memory_bytes, npu.frequency_mhz) == (65536, None)


def test_a_card_of_intel_and_one_without_its_library(build: Build) -> None:
    found = after(build(arc_desktop))
    arc, geforce = found[machines.ARC], found["0000:01:00.0"]
    assert arc.utilisation == pytest.approx(0.05)
    # Of a card only its own memory counts.
    assert (arc.own_memory_bytes, arc.memory_total_bytes) == (20 * 2**20, 12 * 2**30)
    assert (arc.power_w, arc.energy_j) == (pytest.approx(120.0), pytest.approx(240.0))
    assert {geforce.not_readable[name].remedy for name in COUNTERS} == {'pip install "aipc[nvidia]"'}


@pytest.mark.parametrize(("busy", "used", "mean"), [(True, True, 0.8), (False, False, 0.0)])
def test_a_run_on_the_npu(build: Build, busy: bool, used: bool, mean: float) -> None:
    machine = build(meteor_lake)
    if not busy:
        machine.add(pci(machines.NPU, "npu_busy_time_us"), "5000000\n")
    devices, meter = machine.devices(), UsageMeter("NPU", machines.NPU)
    read(devices)

    def sample(seconds: float) -> Sample:
        machine.run(seconds)
        return Sample(0, 0.0, seconds, tuple(read(devices).values()))

    meter.start(sample(1.0))
    for seconds in (1.0, 1.0, 0.5):
        meter.add(sample(seconds))
    usage = meter.usage()
    assert usage.device_used is used
    assert usage.mean_utilisation == pytest.approx(mean)
    # Its energy is in that of the package: 30 W.
    assert usage.energy_j == pytest.approx(75.0)


def test_an_older_kernel_has_fewer_counters(build: Build) -> None:
    machine = build(meteor_lake)
    for name in ("npu_busy_time_us", "npu_memory_utilization", "npu_current_frequency_mhz"):
        machine.remove(pci(machines.NPU, name))
    machine.remove(pci(machines.IGPU, "drm/card1/gt"))
    for pid, fd in ((OWN, 5), (OWN, 6), (OTHER, 9)):
        # Before Linux 5.19 i915 had no fdinfo, and others have one without engines.
        machine.add(
            f"proc/{pid}/fdinfo/{fd}", "drm-driver:\ti915\ndrm-client-id:\t1\ndrm-pdev:\t0000:00:02.0\n"
        )
    found = after(machine)
    npu, igpu = found[machines.NPU], found[machines.IGPU]
    assert npu.utilisation is None
    assert "npu_busy_time_us" in npu.not_readable["utilisation"].reason
    assert "Linux 6.11" in npu.not_readable["utilisation"].remedy
    assert (igpu.utilisation, igpu.own_memory_bytes, igpu.frequency_mhz) == (None, None, 1)
    assert "Linux 5.19 for i915" in igpu.not_readable["utilisation"].remedy


def test_energy_that_starts_again_at_0_and_a_driver_that_does(build: Build) -> None:
    machine = build(meteor_lake)
    devices = machine.devices()
    machine.add(f"{RAPL}/energy_uj", "262143328850\n")
    read(devices)
    machine.now_s += 2
    machine.add(f"{RAPL}/energy_uj", "59999999\n")
    machine.add(pci(machines.NPU, "npu_busy_time_us"), "100\n")
    found = read(devices)
    assert found["CPU"].energy_j == pytest.approx(60.0)
    assert found["CPU"].power_w == pytest.approx(30.0)
    assert found[machines.NPU].utilisation is None
    assert found[machines.NPU].not_readable["utilisation"].reason == "the counter started anew"
    machine.now_s += 2
    machine.add(pci(machines.NPU, "npu_busy_time_us"), "1000100\n")
    assert read(devices)[machines.NPU].utilisation == pytest.approx(0.5)


def test_a_device_that_vanishes_between_two_samples(build: Build) -> None:
    machine = build(meteor_lake)
    devices = machine.devices()
    read(devices)
    for path in (pci(machines.NPU, ""), pci(machines.IGPU, ""), f"proc/{OWN}"):
        machine.remove(path)
    machine.run(2)
    found = read(devices)
    assert {found[machines.NPU].not_readable[name].reason for name in ("utilisation", "frequency_mhz")} == {
        "the device is gone, or its driver was unloaded"
    }
    assert found[machines.IGPU].own_utilisation == 0
    assert found["CPU"].power_w == pytest.approx(30.0)


def test_a_process_that_opens_the_device_later_is_seen(build: Build) -> None:
    machine = build(meteor_lake)
    devices = machine.devices()
    read(devices)
    machine.add_client(
        OWN, 8, "dri/renderD128", I915.format(number=8, total=0, resident=0), (10**12, 2.5e8), (0, 0)
    )
    machine.run(1)
    # What a new client did before it was seen belongs to no interval.
    assert read(devices)[machines.IGPU].own_utilisation == pytest.approx(0.5)
    machine.run(1)
    assert read(devices)[machines.IGPU].own_utilisation == pytest.approx(0.75)


def test_without_a_driver_every_counter_has_a_reason(build: Build) -> None:
    machine = build(meteor_lake)
    machines.add_pci(machine.root, machines.NPU, "8086:7d1d", "120000")
    machines.add_pci(machine.root, machines.IGPU, "8086:7d55", "30000", "vfio-pci")
    found = after(machine)
    for name in COUNTERS:
        assert found[machines.NPU].not_readable[name].reason == "the kernel has no driver for it"
        assert "vfio-pci" in found[machines.IGPU].not_readable[name].reason


def empty(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"")


def non_numeric(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"<unknown> \xff\xb2 ns\n-1\n\x00")


def gone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.unlink()


def forbidden(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_to_open(path, errno.EACCES, monkeypatch)


def switched_off(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_to_open(path, errno.ENODEV, monkeypatch)


def fail_to_open(path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for anyone but root, whom no permission stops."""
    opened = io.open

    def open_unless(file: Any, *arguments: Any, **options: Any) -> Any:
        if Path(file) == path and "w" not in "".join(map(str, arguments[:1])):
            raise OSError(number, "simulated", str(file))
        return opened(file, *arguments, **options)

    monkeypatch.setattr(io, "open", open_unless)


@pytest.fixture
def files(build: Build) -> Callable[[Callable[[Path], Machine]], Iterator[tuple[Machine, Path]]]:
    def each(maker: Callable[[Path], Machine]) -> Iterator[tuple[Machine, Path]]:
        """The machine once for each of its files, whole each time."""
        machine = build(maker)
        tree = [*(machine.root / "sys").rglob("*"), *(machine.root / "proc").rglob("*")]
        everything = [path for path in tree if path.is_file() and not path.is_symlink()]
        assert len(everything) > 10
        for path in everything:
            content = path.read_bytes()
            yield machine, path
            path.write_bytes(content)

    return each


@pytest.mark.parametrize("fault", [empty, non_numeric, gone, forbidden, switched_off])
@pytest.mark.parametrize("maker", ALL)
def test_any_file_may_fail_at_any_time(
    maker: Callable[[Path], Machine],
    fault: Callable[[Path, pytest.MonkeyPatch], None],
    files: Any,
) -> None:
    for machine, path in files(maker):
        devices = machine.devices()
        read(devices)
        machine.run(1)
        whole = read(devices)
        with pytest.MonkeyPatch.context() as patch:
            fault(path, patch)
            machine.run(1, but=path)
            # Between two samples, and before the first.
            check(read(devices), whole, path)
            late = machine.devices()
            read(late)
            machine.run(1, but=path)
            check(read(late), whole, path)


# What psutil reads of this machine is not in the tree. An fdinfo file that is gone is a closed device.
REAL = {("CPU", "utilisation"), ("CPU", "own_utilisation")}


def check(now: dict[str, DeviceSample], whole: dict[str, DeviceSample], path: Path) -> None:
    """Nothing that was readable is 0 now, and what is not readable has a reason."""
    assert "CPU" in now
    for device in now.values():
        for name in COUNTERS:
            value = getattr(device, name)
            assert (value is None) == (name in device.not_readable)
            if value is None:
                assert device.not_readable[name].reason
            elif value == 0 and "fdinfo" not in str(path) and (device.id, name) not in REAL:
                assert device.id in whole, (path, device)
                assert getattr(whole[device.id], name) == 0, (path, device.id, name)


def test_a_right_that_is_missing_is_told_with_its_remedy(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = build(meteor_lake)
    forbidden(machine.root / RAPL / "energy_uj", monkeypatch)
    cpu = after(machine)["CPU"]
    assert (cpu.power_w, cpu.energy_j) == (None, None)
    assert cpu.not_readable["energy_j"].reason.startswith("there is no right to read")
    assert cpu.not_readable["energy_j"].remedy.startswith("sudo chmod a+r ")
    assert cpu.memory_used_bytes is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pos:\t0\nflags:\t02\n",
        "drm-pdev:\t0000:00:02.0\n",
        "drm-client-id:\t1\n",
        "drm-client-id 1\ndrm-pdev 2\n",
    ],
)
def test_a_file_that_is_of_no_device(text: str) -> None:
    assert fdinfo.parse(text) is None


def test_lines_that_make_no_sense_are_left_out() -> None:
    client = fdinfo.parse(
        "drm-client-id:\t1\ndrm-pdev:\t0000:00:02.0\ndrm-engine-render: -5 ns\ndrm-engine-copy:\n"
        "drm-engine-video: 99999999999999999999999 ns\ndrm-engine-compute: 5 parsecs\ndrm-total-x: 3 MiB\n"
    )
    assert client is not None
    assert (client.busy, client.memory) == ({"compute": 5}, {"x": 3 * 2**20})
