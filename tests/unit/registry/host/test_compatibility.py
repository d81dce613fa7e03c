"""Which target a serving host is, and what it refuses before a byte is downloaded: never a guess."""

from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from registry.errors import BadInput, Incompatible
from registry.host import compatibility
from registry.host.compatibility import (
    Host,
    check_compatible,
    find_incompatibility,
    local_target,
    production_engines,
    read_host,
)
from registry.records import Backend, EngineVersion, Precision, Verdict
from tests.support.memory_store import MemoryStore
from tests.support.publisher import HOST, Publisher


def engine(target: str, capability: str | None, *aliases: str) -> EngineVersion:
    """An engine in production on its own target, unless `aliases` say otherwise."""
    return EngineVersion(
        model="sst2",
        version=1,
        target=target,
        precision=Precision.FP16,
        backend=Backend.TENSORRT if capability else Backend.ONNXRUNTIME,
        verdict=Verdict.PASSED,
        reason="",
        aliases=aliases or (f"production-{target}",),
        digest="d" * 64,
        build_key="k",
        release="r",
        sequence=1,
        size_bytes=1,
        metrics=(),
        measured_on="",
        compute_capability=capability,
        backend_version="10.13.3.9",
        minimum_driver="580" if capability else None,
        format_version=1,
        complete=True,
    )


CPU, L4, RTX, H100 = engine("cpu", None), engine("l4", "8.9"), engine("rtx-4090", "8.9"), engine("h100", "9.0")
CUDA = replace(engine("cuda", None), backend=Backend.ONNXRUNTIME_CUDA)
NO_GPU = Host()


def gpu(capability: str = "8.9", driver: str | None = "580.95.05", tensorrt: str | None = "10.13.3.9") -> Host:
    return Host(capability, "NVIDIA L4", driver, "13.0", tensorrt)


@pytest.mark.parametrize(("here", "expected"), [(gpu("8.9"), "l4"), (gpu("9.0"), "h100"), (NO_GPU, "cpu")])
def test_the_target_is_the_one_of_this_machines_gpu(here: Host, expected: str) -> None:
    assert local_target([CPU, L4, H100], "sst2", here) == expected


@pytest.mark.parametrize("here", ["8.6", "8.90", "12.0"])
def test_gpu_without_a_target_gets_no_other_engine(here: str) -> None:
    with pytest.raises(Incompatible) as caught:
        local_target([CPU, L4], "sst2", gpu(here))
    message = str(caught.value)
    assert f"this machine has compute capability {here} " in message
    assert "no target in production fits" in message
    assert "cpu (any machine)" in message
    assert "l4 (compute capability 8.9, tensorrt 10.13.3.9, driver 580 or newer)" in message


def test_a_machine_without_a_gpu_gets_no_gpus_engine() -> None:
    with pytest.raises(Incompatible, match="this machine has no GPU; no target in production fits"):
        local_target([L4, H100], "sst2", NO_GPU)
    with pytest.raises(
        Incompatible, match="no target in production fits"
    ):  # not even one of unknown compute capability
        local_target([replace(L4, compute_capability=None)], "sst2", NO_GPU)


def test_two_targets_that_fit_are_not_guessed_between() -> None:
    with pytest.raises(Incompatible, match="several targets fit"):
        local_target([L4, RTX], "sst2", gpu())


def test_of_two_targets_the_one_with_the_installed_tensorrt_is_chosen() -> None:
    assert local_target([replace(L4, backend_version="11.0"), RTX], "sst2", gpu()) == "rtx-4090"


@pytest.mark.parametrize("aliases", [("candidate-l4",), ("production-l40",), ("production-h100",), ("production",)])
def test_only_what_is_in_production_on_its_own_target_counts(aliases: tuple[str, ...]) -> None:
    with pytest.raises(Incompatible, match="nothing in production"):
        local_target([engine("l4", "8.9", *aliases)], "sst2", gpu())
    assert local_target([engine("l4", "8.9", *aliases), RTX], "sst2", gpu()) == "rtx-4090"


def test_reason_why_this_gpus_target_does_not_fit_is_given() -> None:
    with pytest.raises(Incompatible, match=r"no target in production fits \(it needs driver 580 or newer\)"):
        local_target([L4], "sst2", gpu(driver="550.54.14"))


@pytest.mark.parametrize(
    ("here", "reason"),
    [
        (gpu("8.6"), "compute capability 8.9"),
        (NO_GPU, "compute capability 8.9"),
        (gpu(tensorrt=None), "--tensorrt"),
        (gpu(tensorrt="10.14"), "10.14 does not load"),
        (gpu(tensorrt="11.13.3.9"), "11.13.3.9 does not load"),
        (gpu(tensorrt="10.13.3.8"), "10.13.3.8 does not load"),
        (gpu(driver="579.99"), "driver 580"),
        (gpu(driver=None), "driver 580"),
    ],
)
def test_incompatible_engine_is_refused_with_the_alternatives(here: Host, reason: str) -> None:
    with pytest.raises(Incompatible) as caught:
        check_compatible(L4, here, [CPU, L4])
    assert reason in str(caught.value)
    assert "in production: cpu (any machine), l4 (" in str(caught.value)
    assert "--any-host" in str(caught.value)


@pytest.mark.parametrize("here", [gpu(), gpu(tensorrt="10.13"), gpu(driver="580"), gpu(driver="1000.1")])
def test_compatible_engine_is_not_refused(here: Host) -> None:
    check_compatible(L4, here)
    check_compatible(replace(L4, minimum_driver=None), replace(here, driver=None))


@pytest.mark.parametrize("here", [gpu(), gpu("7.5", None, None), NO_GPU])
def test_an_onnx_engine_loads_everywhere(here: Host) -> None:
    check_compatible(CPU, here)


@pytest.mark.parametrize("capability", ["7.5", "9.0", "12.1"])
def test_an_engine_for_any_gpu_is_the_target_of_every_gpu_but_for_one_built_for_it(capability: str) -> None:
    assert local_target([CPU, CUDA], "sst2", gpu(capability, tensorrt=None)) == "cuda"
    own = replace(L4, compute_capability=capability)
    assert local_target([CPU, CUDA, own], "sst2", gpu(capability)) == "l4"
    assert local_target([CPU, CUDA, own], "sst2", gpu(capability, tensorrt="11.0")) == "cuda"


def test_an_engine_for_any_gpu_is_refused_without_one() -> None:
    assert local_target([CPU, CUDA], "sst2", NO_GPU) == "cpu"
    with pytest.raises(Incompatible, match=r"it needs an NVIDIA GPU.*cuda \(any NVIDIA GPU\)"):
        check_compatible(CUDA, NO_GPU, [CUDA])


def test_an_rtx_engine_needs_tensorrt_rtx_and_not_tensorrt() -> None:
    rtx = replace(RTX, backend=Backend.TENSORRT_RTX, backend_version="1.7.1.116")
    assert "tensorrt_rtx" in (find_incompatibility(rtx, gpu(tensorrt="1.7.1.116")) or "")
    assert find_incompatibility(rtx, replace(gpu(), tensorrt_rtx="1.7.1.116")) is None


def on(monkeypatch: pytest.MonkeyPatch, **nvml: Any) -> None:
    fake = {
        "NVMLError": pynvml.NVMLError,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: f"gpu{index}",
        "nvmlDeviceGetCudaComputeCapability": lambda handle: {"gpu0": (12, 0)}[handle],
        "nvmlDeviceGetName": lambda handle: {"gpu0": "NVIDIA RTX PRO 6000"}[handle],
        "nvmlSystemGetDriverVersion": lambda: "580.95.05",
        "nvmlSystemGetCudaDriverVersion_v2": lambda: 13010,
    }
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("registry.host.gpu.pynvml", SimpleNamespace(**(fake | nvml)))


def test_the_host_is_what_nvml_says_of_the_first_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch)
    expected = Host("12.0", "NVIDIA RTX PRO 6000", "580.95.05", "13.1", "10.13", "10.13")
    assert read_host("10.13") == expected


def test_the_installed_tensorrt_counts_where_none_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch)
    installed = {"tensorrt-cu12": "10.9.0.34", "tensorrt-rtx-cu13": "1.7.1.116"}

    def version(package: str) -> str:
        if package not in installed:
            raise PackageNotFoundError
        return installed[package]

    monkeypatch.setattr(compatibility, "version", version)
    assert (read_host().tensorrt, read_host().tensorrt_rtx) == ("10.9.0.34", "1.7.1.116")
    installed.clear()
    assert (read_host().tensorrt, read_host().tensorrt_rtx) == (None, None)


@pytest.mark.parametrize("step", ["nvmlInit", "nvmlDeviceGetHandleByIndex", "nvmlSystemGetDriverVersion"])
def test_no_driver_or_no_gpu_is_a_host_without_one(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def absent(*_: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    on(monkeypatch, **{step: absent})
    assert read_host("10.13") == Host(tensorrt="10.13", tensorrt_rtx="10.13")


@pytest.mark.parametrize("declared", ["10", "ten", "10.13;", "", "10.13\n", "1.2.3.4.5.6"])
def test_malformed_declared_version_is_refused(declared: str) -> None:
    with pytest.raises(BadInput, match="--tensorrt"):
        read_host(declared)


def test_what_is_in_production_is_read_alias_by_alias(
    memory_store: MemoryStore, manifest_factory: Any, publisher: Publisher
) -> None:
    for number in (1, 2, 3):
        publisher.publish(memory_store, manifest_factory(bytes([number]), sequence=number))
    memory_store.set_alias("sst2", "production-l4", 2)
    memory_store.set_alias("sst2", "production-other", 3)  # by hand: version 3 is not for `other`
    memory_store.set_alias("sst2", "candidate-l4", 3)
    (engine,) = production_engines(memory_store, "sst2")
    assert (engine.version, engine.target) == (2, "l4")
    del memory_store.rows["sst2", 2]
    assert production_engines(memory_store, "sst2") == ()
    check_compatible(engine, HOST)
