"""What the samples of a run come to, and which device's they are."""

from __future__ import annotations

from typing import Any

import pytest

from aipc.monitor import COUNTERS, DeviceSample, NotReadable, Sample
from aipc.monitor.usage import Usage, UsageMeter, find_device
from aipc.types import DeviceKind

NPU, IGPU, CARD = "0000:00:0b.0", "0000:00:02.0", "0000:03:00.0"


def device(address: str, kind: DeviceKind, **values: Any) -> DeviceSample:
    fields = dict.fromkeys(COUNTERS) | values
    missing = {name: NotReadable("no") for name, value in fields.items() if value is None}
    return DeviceSample(address, address, kind, **fields, not_readable=missing)


def sample(interval_s: float, *devices: DeviceSample) -> Sample:
    return Sample(0, 0.0, interval_s, devices)


def npu(busy: float | None, interval_s: float, **values: Any) -> Sample:
    return sample(interval_s, device(NPU, "NPU", utilisation=busy, **values))


def measured(start: Sample, *later: Sample, word: str = "NPU", address: str | None = None) -> Usage:
    meter = UsageMeter(word, address)
    for each in (npu(1.0, 100.0), start):
        meter.add(each)
    meter.start(start)
    for each in later:
        meter.add(each)
    return meter.usage()


def test_a_mean_over_time_and_a_peak_that_is_no_splinter() -> None:
    usage = measured(npu(1.0, 1.0), npu(0.2, 1.0), npu(0.8, 2.0), npu(1.0, 0.02))
    assert usage.mean_utilisation == pytest.approx((0.2 + 1.6 + 0.02) / 3.02)
    assert usage.peak_utilisation == pytest.approx(0.8)
    assert usage.device_used is True


def test_a_short_run_has_no_other_peak_than_its_mean() -> None:
    usage = measured(npu(0.0, 1.0), npu(0.9, 0.03))
    assert usage.mean_utilisation == usage.peak_utilisation == pytest.approx(0.9)


def test_energy_is_that_of_the_device_or_of_the_package_that_holds_it() -> None:
    def at(card: float | None, package: float | None) -> Sample:
        return sample(
            1.0,
            device(NPU, "NPU", utilisation=1.0),
            device(CARD, "discrete GPU", utilisation=1.0, energy_j=card),
            device("CPU", "CPU", energy_j=package),
        )

    assert measured(at(5.0, 100.0), at(65.0, 130.0)).energy_j == pytest.approx(30.0)
    assert measured(at(5.0, 100.0), at(65.0, 130.0), word="CUDA:0").energy_j == pytest.approx(60.0)
    # A card is not in the package; and a difference to what was not readable is not known.
    assert measured(at(None, 100.0), at(None, 130.0), word="CUDA:0").energy_j is None
    assert measured(at(5.0, None), at(65.0, 130.0)).energy_j is None


@pytest.mark.parametrize(
    ("later", "used"),
    [
        ([npu(0.0, 1.0), npu(0.001, 1.0)], False),
        ([npu(0.0, 0.4)], None),
        ([npu(None, 5.0)], None),
        ([npu(0.0, 0.1), npu(0.9, 0.1)], True),
        ([], None),
        # Where the processes are told apart, the work of others proves nothing.
        ([npu(0.9, 2.0, own_utilisation=0.0)], False),
        ([npu(0.9, 2.0, own_utilisation=0.3)], True),
        ([npu(0.0, 2.0), sample(1.0)], False),
    ],
)
def test_whether_the_device_was_used(later: list[Sample], used: bool | None) -> None:
    assert measured(npu(1.0, 1.0), *later).device_used is used


def test_what_was_before_the_start_or_never_started_counts_not() -> None:
    meter = UsageMeter("NPU")
    meter.add(npu(1.0, 5.0))
    assert meter.usage() == Usage()


def test_a_device_is_found_by_its_address_and_else_only_if_it_is_certain() -> None:
    laptop = [device(IGPU, "integrated GPU"), device(NPU, "NPU"), device("CPU", "CPU")]
    both = [*laptop, device(CARD, "discrete GPU")]
    luid = [device("0x00000000_0x0000C9A5", "integrated GPU"), device("0x00000000_0x0000BB15", "NPU")]

    def found(devices: list[DeviceSample], word: str, address: str | None = None) -> str | None:
        each = find_device(devices, word, address)
        return each.id if each else None

    assert [found(laptop, word) for word in ("NPU", "GPU", "GPU.0", "DML:0", "CPU")] == [
        NPU,
        IGPU,
        IGPU,
        IGPU,
        "CPU",
    ]
    assert [found(both, word) for word in ("GPU.0", "GPU.1", "CUDA:0")] == [None, None, None]
    assert found(both, "GPU.1", CARD) == CARD
    assert found(luid, "GPU", "0x00000000_0x0000c9a5") == "0x00000000_0x0000C9A5"
    assert found(both, "GPU.1", "0000:99:00.0") is None
    assert found([device("CPU", "CPU")], "NPU") is None
