"""See what else a GPU does while call times are measured, and how fast it runs: read from NVML, never from call times.

Reference: https://docs.nvidia.com/deploy/nvml-api, "Device Queries" and "Clocks Event Reasons".
"""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pynvml

from registry.host.gpu import nvml_gpu

# The share of the time for which other processes may keep the GPU busy; a choice.
MOST_OTHERS = 0.05
# NVML samples what processes use about once a second: over less than this it may have nothing new to say.
SAMPLED_SECONDS = 1.5
# Clocks below what was asked for because something is too hot or lacks power. That a load reaches the power limit
# (SwPowerCap) is how a GPU runs that load, so it is recorded and disturbs nothing.
_SLOWED: Mapping[int, str] = {
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: "the GPU slowed down because it was hot",
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: "the GPU slowed down because it was hot",
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "the GPU's supply of power slowed it down",
    pynvml.nvmlClocksEventReasonHwSlowdown: "the GPU's hardware slowed it down",
}


@dataclass(frozen=True)
class GpuState:
    """A GPU at one moment: its clock, power and temperature, and what disturbs it.

    `others` is the share of the last second or so for which other processes kept it busy.
    """

    sm_clock_mhz: float
    power_watts: float
    temperature_celsius: float
    power_capped: bool
    slowed: tuple[str, ...]
    others: float

    @property
    def disturbances(self) -> tuple[str, ...]:
        """What makes call times of now those of another GPU; empty: nothing."""
        return (*self.slowed, *(("other processes used the GPU",) if self.others > MOST_OTHERS else ()))


@dataclass(frozen=True)
class GpuProbe:
    """Reads a GPU by NVML's handle of it."""

    handle: Any

    def read(self) -> GpuState:
        """Return the state of this moment; it takes about 5 ms."""
        reasons = int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(self.handle))
        return GpuState(
            float(pynvml.nvmlDeviceGetClockInfo(self.handle, pynvml.NVML_CLOCK_SM)),
            pynvml.nvmlDeviceGetPowerUsage(self.handle) / 1000,
            float(pynvml.nvmlDeviceGetTemperature(self.handle, pynvml.NVML_TEMPERATURE_GPU)),
            bool(reasons & pynvml.nvmlClocksEventReasonSwPowerCap),
            tuple(sorted({words for reason, words in _SLOWED.items() if reasons & reason})),
            self._read_others(),
        )

    def _read_others(self) -> float:
        """Return the share that other processes used.

        In a container NVML lists processes by the numbers of the host, where ours is not known: the busiest one is
        taken for it.
        """
        busy: dict[int, float] = {}
        since = int(1e6 * (time.time() - SAMPLED_SECONDS))
        with suppress(pynvml.NVMLError):  # NOT_FOUND: nobody used it
            for sample in pynvml.nvmlDeviceGetProcessUtilization(self.handle, since):
                busy[sample.pid] = max(busy.get(sample.pid, 0.0), sample.smUtil / 100)
        known = {process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(self.handle)}
        ours = os.getpid() if os.getpid() in known else max(busy, key=busy.__getitem__, default=None)
        return sum(share for pid, share in busy.items() if pid != ours)


def open_gpu_probe() -> Callable[[], GpuState] | None:
    """Return what reads the GPU that CUDA takes first; None where NVML does not tell all of it."""
    try:
        probe = GpuProbe(nvml_gpu())
        probe.read()
    except pynvml.NVMLError:
        return None
    return probe.read
