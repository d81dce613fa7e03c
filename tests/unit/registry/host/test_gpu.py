"""NVML's GPU is the one that CUDA takes, also where a machine has several or hides some."""

from types import SimpleNamespace

import pynvml
import pytest

from registry.host import gpu
from registry.host.compatibility import read_host
from registry.host.gpu import CudaGpu, NoCudaLibrary, local_compute_capability, nvml_gpu, read_gpu

SECOND = CudaGpu("8.0", "0000:65:00.0")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """NVML's view of a machine whose faster GPU sits on the later bus."""
    nvml = SimpleNamespace(
        NVMLError=pynvml.NVMLError,
        NVML_ERROR_NOT_FOUND=pynvml.NVML_ERROR_NOT_FOUND,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: ("0000:17:00.0", "0000:65:00.0")[index],
        nvmlDeviceGetHandleByPciBusId=lambda bus_id: bus_id.decode(),
    )
    monkeypatch.setattr(gpu, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return nvml


def cuda_takes(monkeypatch: pytest.MonkeyPatch, answer: CudaGpu | Exception | None) -> None:
    def first_cuda_gpu() -> CudaGpu | None:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(gpu, "first_cuda_gpu", first_cuda_gpu)


def test_of_several_gpus_it_is_the_one_that_cuda_takes(
    monkeypatch: pytest.MonkeyPatch, two_gpus: SimpleNamespace
) -> None:
    cuda_takes(monkeypatch, SECOND)
    assert nvml_gpu() == "0000:65:00.0"


def test_a_lone_gpu_is_found_without_starting_cuda(monkeypatch: pytest.MonkeyPatch, two_gpus: SimpleNamespace) -> None:
    cuda_takes(monkeypatch, AssertionError("CUDA was started"))
    two_gpus.nvmlDeviceGetCount = lambda: 1
    assert nvml_gpu() == "0000:17:00.0"


@pytest.mark.parametrize("visible", ["", "1", "GPU-8f3c"])
def test_hidden_gpus_do_not_count(monkeypatch: pytest.MonkeyPatch, two_gpus: SimpleNamespace, visible: str) -> None:
    cuda_takes(monkeypatch, None)
    two_gpus.nvmlDeviceGetCount = lambda: 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert read_gpu() is None
    assert read_host().gpu_name is None
    assert local_compute_capability() is None


def test_without_libcuda_nvml_counts(monkeypatch: pytest.MonkeyPatch, two_gpus: SimpleNamespace) -> None:
    cuda_takes(monkeypatch, NoCudaLibrary("no libcuda"))
    assert nvml_gpu() == "0000:17:00.0"
    assert local_compute_capability() is None
