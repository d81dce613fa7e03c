"""A worker takes work for a target only on the machine that the target asks for."""

import json
from dataclasses import replace

import pytest

from flows.inputs.fleet import Fleet
from flows.workers.machine import WorkerReport, check_machine, list_pool_targets, list_toolchains, make_worker_name
from registry.errors import BadInput, Incompatible
from registry.host.compatibility import Host
from registry.records import Backend, GpuTarget
from tasks.backends.trt.builder import TensorRT

L4 = GpuTarget("l4", Backend.TENSORRT, "8.9", "NVIDIA L4", "gpu-l4")
HOST = Host("8.9", "NVIDIA L4", "580.95.05", "13.0", "11.4.0.106")


@pytest.fixture(autouse=True)
def _a_gpu_of_that_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    # No GPU in these tests: what the vendor's library would say is given, and what is made of it is tested.
    monkeypatch.setattr(TensorRT, "can_build", lambda _self, _target: None)
    monkeypatch.setattr(TensorRT, "version", lambda _self: "11.4.0.106")


def test_the_machine_that_the_target_names_may_take_its_work() -> None:
    check_machine(L4, None, HOST)
    check_machine(L4, "11.4", HOST)


@pytest.mark.parametrize("gpu", ["NVIDIA L40S", "NVIDIA L40", "NVIDIA GeForce RTX 4090", None])
def test_another_gpu_of_the_same_capability_is_refused(gpu: str | None) -> None:
    with pytest.raises(Incompatible, match="is a NVIDIA L4, and this machine's GPU is"):
        check_machine(L4, None, Host("8.9", gpu, "580.95.05", "13.0", "11.4.0.106"))


def test_a_gpu_is_known_by_the_first_words_of_its_name() -> None:
    a100 = GpuTarget("a100", Backend.TENSORRT, "8.0", "NVIDIA A100", "gpu-a100")
    check_machine(a100, None, Host("8.0", "NVIDIA A100-SXM4-40GB", "580.95.05", "13.0", "11.4.0.106"))


def test_another_version_than_the_serving_hosts_have_is_refused() -> None:
    with pytest.raises(Incompatible, match=r"l4 serves with 10\.13: install that version here"):
        check_machine(L4, "10.13", HOST)


@pytest.mark.parametrize("driver", ["470.10", None])
def test_a_driver_older_than_the_library_needs_is_refused(driver: str | None) -> None:
    with pytest.raises(Incompatible, match="needs driver 580"):
        check_machine(L4, None, Host("8.9", "NVIDIA L4", driver, "13.0", "11.4.0.106"))


def test_a_machine_that_cannot_build_is_refused_in_the_backends_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorRT, "can_build", lambda _self, _target: "needs the tensorrt package")
    with pytest.raises(Incompatible, match="cannot build for l4: needs the tensorrt package"):
        check_machine(L4, None, HOST)


def test_a_cpu_target_asks_for_no_gpu() -> None:
    check_machine(GpuTarget("cpu", Backend.ONNXRUNTIME, work_pool="cpu"), None, Host())


def fleet(**backends: str) -> Fleet:
    entries = {
        name: {"backend": backend, "work_pool": "one"} | ({} if name == "cpu" else {"compute_capability": "8.9"})
        for name, backend in backends.items()
    }
    return Fleet.model_validate_json(json.dumps({"targets": entries}))


def test_a_worker_answers_for_every_target_of_its_pool() -> None:
    found = list_pool_targets(fleet(a="tensorrt_rtx", b="tensorrt_rtx"), "a")
    assert [target.name for target in found] == ["a", "b"]


def test_a_pool_of_two_backends_is_refused() -> None:
    with pytest.raises(BadInput, match="mixes backends"):
        list_pool_targets(fleet(cpu="onnxruntime", b="tensorrt_rtx"), "cpu")


def report(host: str, version: str, at: str) -> WorkerReport:
    return WorkerReport("gpu-l4", host, ("l4",), Backend.TENSORRT, version, "0" * 64, at, "NVIDIA L4", "8.9", "580")


def test_more_machines_of_one_kind_are_one_toolchain() -> None:
    same = [report("a", "11.4", "2026-11-24"), report("b", "11.4", "2026-11-25")]
    assert list_toolchains(same) == list_toolchains(same[:1])
    assert list_toolchains([*same, report("c", "11.5", "2026-11-24")]) != list_toolchains(same)


def test_workers_of_one_host_are_told_apart_by_the_gpus_that_they_are_shown() -> None:
    on_gpu = report("ada", "11.4", "2026-11-25")
    on_cpu = replace(on_gpu, gpu_name=None)
    assert make_worker_name(on_gpu, "0") != make_worker_name(on_gpu, "1")
    assert "/" not in make_worker_name(on_gpu, "MIG-GPU-8932f937/1/2")
    assert {make_worker_name(on_cpu, "0"), make_worker_name(on_cpu, None), make_worker_name(on_gpu, None)} == {"ada"}
