"""On a machine with GPUs: NVML's name and CUDA's capability are of the same one, whichever is visible."""

import os
import subprocess
import sys

import pynvml
import pytest

from registry.host.gpu import local_compute_capability

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(local_compute_capability() is None, reason="this machine has no CUDA GPU"),
]
_DESCRIBE = """
import pynvml
from registry.host.compatibility import read_host
from registry.host.gpu import local_compute_capability, nvml_gpu
from tasks.measurement.machine import this_machine
host = read_host()
bus = pynvml.nvmlDeviceGetPciInfo(nvml_gpu()).busId if host.gpu_name else None
print([bus, host.compute_capability == local_compute_capability(), host.gpu_name == this_machine().gpu])
"""


def describe_gpu(visible: str) -> str:
    environ = {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": visible}
    return subprocess.run(
        [sys.executable, "-c", _DESCRIBE], env=environ, capture_output=True, text=True, check=True
    ).stdout


def test_the_visible_gpu_is_the_one_that_is_named() -> None:
    pynvml.nvmlInit()
    for index in range(pynvml.nvmlDeviceGetCount()):
        bus = pynvml.nvmlDeviceGetPciInfo(pynvml.nvmlDeviceGetHandleByIndex(index)).busId
        assert describe_gpu(str(index)).strip() == str([bus, True, True])


@pytest.mark.parametrize("visible", ["", "-1", "99"])
def test_hidden_gpus_are_not_named(visible: str) -> None:
    assert describe_gpu(visible).strip() == str([None, True, True])
