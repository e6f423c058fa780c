"""What a run made of its device: the samples between its start and its end, taken together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aipc.monitor.sample import DeviceSample, Sample

# A shorter interval is one step of some counters: good for a mean, not for a peak.
_PEAK_INTERVAL_S = 0.05
# Some drivers show the mean of the last second: what is shorter may be over before they show it.
_LONG_ENOUGH_S = 1.0
# A device that computes is busy for far more of the time.
_LEAST_SHARE = 0.005


@dataclass(frozen=True, slots=True)
class Usage:
    """What a device did during a run; the fields are those of Stats."""

    mean_utilisation: float | None = None
    peak_utilisation: float | None = None
    energy_j: float | None = None
    device_used: bool | None = None


class _Mean:
    """Of values that each hold for a time."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._sum = 0.0

    def add(self, value: float | None, seconds: float) -> None:
        if value is not None:
            self.seconds += seconds
            self._sum += value * seconds

    @property
    def value(self) -> float | None:
        return self._sum / self.seconds if self.seconds else None


class UsageMeter:
    """Takes the samples of a run one after the other; its memory doesn't grow with them.

    device, address   as `find_device` takes them
    """

    def __init__(self, device: str, address: str | None = None) -> None:
        self._device = device
        self._address = address
        self._started = False
        self._energy_at_start: float | None = None
        self._energy_j: float | None = None
        self._all = _Mean()
        self._own = _Mean()
        self._peak: float | None = None

    def start(self, sample: Sample) -> None:
        """The sample at the start: what it says of the time before is not of this run."""
        self._started = True
        self._energy_at_start = self._energy(sample)

    def add(self, sample: Sample) -> None:
        """The next sample; those before `start` are left out."""
        found = find_device(sample.devices, self._device, self._address)
        if not self._started or found is None:
            return
        self._all.add(found.utilisation, sample.interval_s)
        self._own.add(found.own_utilisation, sample.interval_s)
        self._energy_j = self._energy(sample)
        if found.utilisation is not None and sample.interval_s >= _PEAK_INTERVAL_S:
            self._peak = max(found.utilisation, self._peak or 0.0)

    def usage(self) -> Usage:
        """What was found so far."""
        mean = self._all.value
        peak = mean if mean is None else max(mean, self._peak or 0.0)
        energy_j = None
        if self._energy_at_start is not None and self._energy_j is not None:
            energy_j = self._energy_j - self._energy_at_start
        return Usage(mean, peak, energy_j, self._used())

    def _energy(self, sample: Sample) -> float | None:
        """What the device's own meter counted, or that of the processor package which holds the device."""
        found = find_device(sample.devices, self._device, self._address)
        if found is not None and found.energy_j is None and found.kind in {"NPU", "integrated GPU"}:
            found = find_device(sample.devices, "CPU")
        return found.energy_j if found else None

    def _used(self) -> bool | None:
        """Whether the counter rose. Where the processes are told apart, only the run's own count."""
        share = self._own if self._own.seconds else self._all
        if share.value is None:
            return None
        if share.value >= _LEAST_SHARE:
            return True
        return False if share.seconds >= _LONG_ENOUGH_S else None


def find_device(
    devices: Sequence[DeviceSample], word: str, address: str | None = None
) -> DeviceSample | None:
    """The device that a runtime's word means, or None where that is not certain.

    word      such as "NPU", "GPU.1", "CUDA:0"
    address   of PCI or the LUID, where the runtime says it; without it, a kind must be there once only
    """
    if address is not None:
        return next((device for device in devices if device.id.lower() == address.lower()), None)
    kind = word.upper().replace(":", ".").partition(".")[0]
    found = [device for device in devices if device.kind in _KINDS.get(kind, _GPUS)]
    return found[0] if len(found) == 1 else None


_GPUS = ("integrated GPU", "discrete GPU")
_KINDS = {"CPU": ("CPU",), "NPU": ("NPU",)}
