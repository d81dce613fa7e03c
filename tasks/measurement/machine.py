"""Describe the machine that measurements are taken on."""

import os

from registry.host.cpu import read_cpu
from registry.host.gpu import read_gpu
from registry.records import Machine


def this_machine() -> Machine:
    """Describe this machine's CPU, and the GPU that CUDA takes first with its driver."""
    cpu, gpu = read_cpu(), read_gpu()
    return Machine(
        host_cpu=cpu.model,
        cores=len(os.sched_getaffinity(0)),
        gpu=gpu.name if gpu else None,
        driver=gpu.driver if gpu else None,
        instruction_set=cpu.instruction_set,
    )
