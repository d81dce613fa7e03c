"""Describe the machine that measurements are taken on."""

import os
import platform
from pathlib import Path

import pynvml

from registry.host.gpu import nvml_gpu
from registry.records import Machine


def this_machine() -> Machine:
    """The CPU of this machine, and the GPU that CUDA takes first, with its driver."""
    gpu, driver = _gpu()
    return Machine(_cpu_model(), _cores(), gpu, driver)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _cpu_model() -> str:
    try:
        with Path("/proc/cpuinfo").open() as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _gpu() -> tuple[str | None, str | None]:
    try:
        return pynvml.nvmlDeviceGetName(nvml_gpu()), pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError:
        return None, None
