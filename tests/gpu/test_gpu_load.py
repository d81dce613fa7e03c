"""A GPU is seen as quiet while we alone use it, and as used by others while they do."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tasks.measurement.gpu_load import GpuState, open_gpu_probe

READ = open_gpu_probe()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(READ is None, reason="this machine has no GPU that NVML tells of")]

# Copies within the GPU, without a pause, until somebody kills it.
BUSY = """
from cuda.bindings import runtime
size = 1 << 30
_, one = runtime.cudaMalloc(size)
_, other = runtime.cudaMalloc(size)
print("busy", flush=True)
while True:
    for _ in range(50):
        runtime.cudaMemcpyAsync(other, one, size, runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice, 0)
    runtime.cudaDeviceSynchronize()
"""


@pytest.fixture
def read() -> Callable[[], GpuState]:
    found = open_gpu_probe()
    assert found is not None
    return found


@contextmanager
def run_busy() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "busy\n"
            yield
        finally:
            process.kill()


@pytest.fixture
def two_busy_processes() -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(run_busy())
        yield


def test_an_idle_gpu_tells_plausible_values(read: Callable[[], GpuState]) -> None:
    state = read()
    assert 100 < state.sm_clock_mhz < 5000
    assert 5 < state.power_watts < 2000
    assert 0 < state.temperature_celsius < 110


@pytest.mark.usefixtures("two_busy_processes")
def test_others_are_told_from_us(read: Callable[[], GpuState]) -> None:
    """Two of them: in a container, where our own number is not known, the busiest is taken for us."""
    read()
    shares = []
    for _ in range(8):
        time.sleep(0.5)
        shares.append(read().others)
    assert max(shares) > 0.05
