"""What a GPU does meanwhile is read from NVML: a hot one, another process, and which process is ours."""

import os
import time
from types import SimpleNamespace

import pynvml
import pytest

from tasks.measurement import gpu_load
from tasks.measurement.gpu_load import GpuProbe, open_gpu_probe


class Nvml:
    """An NVML that answers what it is told: `busy` is (process, share of the time in percent)."""

    def __init__(self, reasons: int = 0, busy: tuple[tuple[int, int], ...] = (), idle: tuple[int, ...] = ()) -> None:
        self.busy, self.asked = busy, list[int]()
        self.values = {
            "nvmlDeviceGetCurrentClocksEventReasons": reasons,
            "nvmlDeviceGetClockInfo": 1980,
            "nvmlDeviceGetPowerUsage": 312_500,
            "nvmlDeviceGetTemperature": 51,
            "nvmlDeviceGetComputeRunningProcesses": [
                SimpleNamespace(pid=pid) for pid in (*idle, *(pid for pid, _ in busy))
            ],
        }

    def __getattr__(self, name: str) -> object:
        if name == "nvmlDeviceGetProcessUtilization":
            return self.list_samples
        return (lambda *_: self.values[name]) if name in self.values else getattr(pynvml, name)

    def list_samples(self, _: object, since: int) -> list[SimpleNamespace]:
        self.asked.append(since)
        if not self.busy:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return [SimpleNamespace(pid=pid, smUtil=share) for pid, share in self.busy]


def probe(monkeypatch: pytest.MonkeyPatch, nvml: Nvml) -> GpuProbe:
    monkeypatch.setattr(gpu_load, "pynvml", nvml)
    return GpuProbe(object())


def test_a_quiet_gpu_disturbs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    state = probe(monkeypatch, Nvml()).read()
    assert (state.sm_clock_mhz, state.power_watts, state.temperature_celsius) == (1980, 312.5, 51)
    assert not state.disturbances
    assert not state.power_capped


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (pynvml.nvmlClocksEventReasonSwThermalSlowdown, ["the GPU slowed down because it was hot"]),
        (pynvml.nvmlClocksEventReasonHwThermalSlowdown, ["the GPU slowed down because it was hot"]),
        (pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown, ["the GPU's supply of power slowed it down"]),
        (pynvml.nvmlClocksEventReasonSwPowerCap, []),
        (pynvml.nvmlClocksEventReasonGpuIdle, []),
    ],
)
def test_clocks_that_heat_or_supply_pull_down_are_named(
    reason: int, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = probe(monkeypatch, Nvml(reason)).read()
    assert list(state.disturbances) == words
    assert state.power_capped == (reason == pynvml.nvmlClocksEventReasonSwPowerCap)


@pytest.mark.parametrize(
    ("busy", "idle", "others"),
    [
        (((os.getpid(), 90),), (), 0.0),
        (((os.getpid(), 20), (1, 70)), (), 0.7),
        (((1, 70),), (os.getpid(),), 0.7),
        (((1, 70),), (), 0.0),  # a container, whose own number on the host is not known
        (((1, 70), (2, 30)), (), 0.3),
        (((1, 0), (2, 70)), (), 0.0),
    ],
)
def test_other_processes_are_all_but_ours(
    busy: tuple[tuple[int, int], ...], idle: tuple[int, ...], others: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = probe(monkeypatch, Nvml(busy=busy, idle=idle)).read()
    assert state.others == pytest.approx(others)
    assert bool(state.disturbances) == (others > 0)


def test_no_more_than_the_last_moments_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml(busy=((1, 50),))
    probe(monkeypatch, nvml).read()
    assert 0 < time.time() - nvml.asked[0] / 1e6 < 60


def test_a_machine_without_nvml_has_no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gpu() -> object:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(gpu_load, "nvml_gpu", no_gpu)
    assert open_gpu_probe() is None
