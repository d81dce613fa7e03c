"""Describe the machine that measurements are taken on."""

import os
import platform
from pathlib import Path

from registry.host.gpu import read_gpu
from registry.records import Machine


def this_machine() -> Machine:
    """Describe this machine's CPU, and the GPU that CUDA takes first with its driver."""
    gpu = read_gpu()
    return Machine(_cpu_model(), _cores(), gpu.name if gpu else None, gpu.driver if gpu else None)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _cpu_model() -> str:
    try:
        with Path("/proc/cpuinfo").open() as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
