"""Linux machines as trees of files, written from the kernel's documentation. None was read from hardware."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from aipc.runtimes.base import Device

NPU = "0000:00:0b.0"
IGPU = "0000:00:02.0"
ARC = "0000:03:00.0"
GEFORCE = "0000:01:00.0"

FIRMWARE = ("intel/vpu/vpu_37xx_v1.bin", "intel/vpu/vpu_40xx_v1.bin.zst", "intel/vpu/vpu_50xx_v1.bin.xz")


# What runtimes say of them.
CPU_DEVICE = Device("CPU", "a name of OpenVINO's", "CPU")
NPU_DEVICE = Device("NPU", "Intel(R) AI Boost", "NPU", "1755", NPU)
IGPU_DEVICE = Device("GPU.0", "Intel(R) Arc(TM) Graphics (iGPU)", "integrated GPU", "25.13", IGPU)
ARC_DEVICE = Device("GPU.0", "Intel(R) Arc(TM) B580", "discrete GPU", "25.13", ARC, 12 * 2**30)
GEFORCE_DEVICE = Device(
    "CUDA:0", "NVIDIA GeForce RTX 5060 Ti", "discrete GPU", "CUDA 13.2", "0000:01:00.0", 2**34
)


def write(path: Path, content: str | bytes = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def add_pci(
    root: Path,
    address: str,
    pci_id: str,
    pci_class: str,
    driver: str | None = None,
    *,
    files: Mapping[str, str | bytes] | None = None,
    nodes: Sequence[str] = (),
) -> Path:
    """A PCI device.

    files   by their names in its folder
    nodes   its subfolders that stand for a file in /dev, such as "drm/renderD128"
    """
    folder = root / "sys/bus/pci/devices" / address
    lines = [f"DRIVER={driver}"] if driver else []
    lines += [f"PCI_CLASS={pci_class}", f"PCI_ID={pci_id.upper()}", f"PCI_SLOT_NAME={address}"]
    write(folder / "uevent", "\n".join(lines) + "\n")
    for name, content in (files or {}).items():
        write(folder / name, content)
    for name in nodes:
        device = name.replace("drm/", "dri/")
        write(folder / name / "uevent", f"DEVNAME={device}\n")
        write(root / "dev" / device)
    if driver:
        (root / "sys/module" / driver).mkdir(parents=True, exist_ok=True)
    return folder


def add_cpu(root: Path, vendor: str, name: str, flags: str, memory_kb: int = 32_000_000) -> None:
    core = f"vendor_id\t: {vendor}\nmodel name\t: {name}\nflags\t\t: {flags}\n\n"
    write(root / "proc/cpuinfo", f"processor\t: 0\n{core}processor\t: 1\n{core}")
    write(root / "proc/meminfo", f"MemTotal:       {memory_kb} kB\nMemAvailable:   {memory_kb // 2} kB\n")
    # A bridge and a sound card, which are no processors, and a display that no runtime computes on.
    add_pci(root, "0000:00:00.0", "8086:7d01", "60000")
    add_pci(root, "0000:00:1f.3", "8086:7e28", "40100", "snd_hda_intel")
    add_pci(root, "0000:07:00.0", "1a03:2000", "30000", "ast")


def add_user_mode_drivers(root: Path, npu: str = "1.28.0") -> None:
    """Level Zero's loader, Intel's NPU and GPU drivers as Ubuntu's packages lay them, and the firmware."""
    libraries = root / "usr/lib/x86_64-linux-gnu"
    for name in (
        "libze_loader.so.1",
        f"libze_intel_npu.so.{npu}",
        "libnpu_driver_compiler.so",
        "libOpenCL.so.1",
    ):
        write(libraries / name)
    (libraries / "libze_intel_npu.so.1").symlink_to(f"libze_intel_npu.so.{npu}")
    write(root / "etc/OpenCL/vendors/intel.icd", "/usr/lib/x86_64-linux-gnu/intel-opencl/libigdrcl.so\n")
    for name in FIRMWARE:
        write(root / "lib/firmware" / name)


def meteor_lake(root: Path) -> Path:
    """A laptop: intel_vpu and i915."""
    add_cpu(root, "GenuineIntel", "Intel(R) Core(TM) Ultra 7 155H", "sse4_2 avx avx2 fma avx_vnni")
    add_pci(root, NPU, "8086:7d1d", "120000", "intel_vpu", nodes=["accel/accel0"])
    add_pci(root, IGPU, "8086:7d55", "30000", "i915", nodes=["drm/renderD128"])
    add_user_mode_drivers(root)
    return root


def lunar_lake(root: Path) -> Path:
    """A laptop: intel_vpu and xe, with the list of PCI devices."""
    add_cpu(root, "GenuineIntel", "Intel(R) Core(TM) Ultra 7 258V", "sse4_2 avx avx2 fma avx_vnni")
    add_pci(root, NPU, "8086:643e", "120000", "intel_vpu", nodes=["accel/accel0"])
    add_pci(root, IGPU, "8086:64a0", "30000", "xe", nodes=["drm/renderD128"])
    add_user_mode_drivers(root)
    write(
        root / "usr/share/misc/pci.ids",
        "# a comment\n8085  Wrong\n\t64a0  Not this\n"
        "8086  Intel Corporation\n\t1234  Other\n\t\t8086 64a0  Nor this\n"
        "\t64a0  Lunar Lake [Intel Arc Graphics 130V / 140V]\n8087  Next\n\t64a0  Nor that\n",
    )
    return root


def amd_laptop(root: Path) -> Path:
    """Strix Point: amdxdna, amdgpu on an APU, and a Radeon beside it."""
    add_cpu(root, "AuthenticAMD", "AMD Ryzen AI 9 HX 370", "avx2 fma avx512f avx512_vnni avx512_bf16")
    apu = {"gpu_metrics": bytes([0x80, 0, 3, 0]), "mem_info_vram_total": "536870912\n"}
    radeon = {"gpu_metrics": bytes([0x78, 0, 1, 3]), "mem_info_vram_total": "8573157376\n"}
    add_pci(
        root,
        "0000:03:00.0",
        "1002:7480",
        "30000",
        "amdgpu",
        files=radeon,
        nodes=["drm/renderD129"],
    )
    add_pci(
        root,
        "0000:c1:00.0",
        "1002:150e",
        "38000",
        "amdgpu",
        files=apu,
        nodes=["drm/renderD128"],
    )
    add_pci(root, "0000:c2:00.1", "1022:17f0", "118000", "amdxdna", nodes=["accel/accel0"])
    # The same class, and no NPU: AMD's audio processor.
    add_pci(root, "0000:c1:00.5", "1022:15e2", "118000", "snd_pci_ps")
    return root


def nvidia_desktop(root: Path) -> Path:
    """A GeForce and an Arc B580 in a desktop whose CPU has no graphics."""
    add_cpu(root, "AuthenticAMD", "AMD Ryzen 7 5800X", "avx2 fma")
    add_pci(root, "0000:01:00.0", "10de:2d04", "30000", "nvidia", nodes=["drm/renderD128"])
    write(root / "sys/module/nvidia/version", "580.82.07\n")
    write(
        root / "proc/driver/nvidia/gpus/0000:01:00.0/information",
        "Model: \t\t NVIDIA GeForce RTX 5060 Ti\nIRQ:   \t\t 85\nDevice Minor: \t 0\n",
    )
    write(root / "dev/nvidia0")
    write(root / "dev/nvidiactl")
    vram = {"tile0/physical_vram_size_bytes": "12884901888\n"}
    add_pci(root, ARC, "8086:e20b", "30000", "xe", files=vram, nodes=["drm/renderD129"])
    return root


def wsl(root: Path) -> Path:
    """Windows' kernel for Linux: a paravirtual GPU without a vendor."""
    add_cpu(root, "GenuineIntel", "Intel(R) Core(TM) Ultra 7 155H", "avx2 fma avx_vnni")
    add_pci(root, "0000:a0:00.0", "1414:008e", "30200", "dxgkrnl")
    write(root / "dev/dxg")
    write(root / "proc/sys/kernel/osrelease", "5.15.167.4-microsoft-standard-WSL2\n")
    return root


MACHINES = (meteor_lake, lunar_lake, amd_laptop, nvidia_desktop, wsl)
