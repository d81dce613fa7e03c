"""Which target a serving host is: the one in production that fits its GPU, and never a guess."""

from dataclasses import replace
from types import SimpleNamespace

import pynvml
import pytest

from registry import targets
from registry.errors import Incompatible
from registry.records import Backend, EngineVersion, Precision, Verdict
from registry.targets import local_compute_capability, local_target


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
        backend_version="11",
        minimum_driver=None,
        complete=True,
    )


CPU, L4, RTX, H100 = engine("cpu", None), engine("l4", "8.9"), engine("rtx-4090", "8.9"), engine("h100", "9.0")


def on(monkeypatch: pytest.MonkeyPatch, capability: str | None) -> None:
    monkeypatch.setattr(targets, "local_compute_capability", lambda: capability)


@pytest.mark.parametrize(("here", "expected"), [("8.9", "l4"), ("9.0", "h100"), (None, "cpu")])
def test_the_target_is_the_one_of_this_machines_gpu(
    monkeypatch: pytest.MonkeyPatch, here: str | None, expected: str
) -> None:
    on(monkeypatch, here)
    assert local_target([CPU, L4, H100], "sst2") == expected


@pytest.mark.parametrize("here", ["8.6", "8.90", "12.0"])
def test_a_gpu_that_no_target_fits_gets_neither_another_gpus_engine_nor_the_cpus(
    monkeypatch: pytest.MonkeyPatch, here: str
) -> None:
    on(monkeypatch, here)
    with pytest.raises(Incompatible) as caught:
        local_target([CPU, L4], "sst2")
    message = str(caught.value)
    assert f"this machine has compute capability {here} and none fits: name one with --target" in message
    assert "cpu (compute capability None)" in message
    assert "l4 (compute capability 8.9)" in message


def test_a_machine_without_a_gpu_gets_no_gpus_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, None)
    with pytest.raises(Incompatible, match="this machine has no GPU and none fits"):
        local_target([L4, H100], "sst2")
    with pytest.raises(Incompatible, match="none fits"):  # not even one that does not say which
        local_target([replace(L4, compute_capability=None)], "sst2")


def test_two_targets_that_fit_are_not_guessed_between(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, "8.9")
    with pytest.raises(Incompatible, match="several targets fit"):
        local_target([L4, RTX], "sst2")


@pytest.mark.parametrize("aliases", [("candidate-l4",), ("production-l40",), ("production-h100",), ("production",)])
def test_only_what_is_in_production_on_its_own_target_counts(
    monkeypatch: pytest.MonkeyPatch, aliases: tuple[str, ...]
) -> None:
    on(monkeypatch, "8.9")
    with pytest.raises(Incompatible, match="none fits"):
        local_target([engine("l4", "8.9", *aliases)], "sst2")
    assert local_target([engine("l4", "8.9", *aliases), RTX], "sst2") == "rtx-4090"


def test_other_versions_of_the_same_target_are_no_second_target(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, "8.9")
    assert local_target([engine("l4", "8.9", "candidate-l4"), L4, L4], "sst2") == "l4"


def test_nothing_in_production_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, "8.9")
    with pytest.raises(Incompatible, match=r"sst2 in production: nothing; this machine has .* 8\.9"):
        local_target([], "sst2")


def test_the_compute_capability_is_the_first_gpus_by_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(
        NVMLError=pynvml.NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: f"gpu{index}",
        nvmlDeviceGetCudaComputeCapability=lambda handle: {"gpu0": (12, 0)}[handle],
    )
    monkeypatch.setattr(targets, "pynvml", fake)
    assert local_compute_capability() == "12.0"


@pytest.mark.parametrize("step", ["nvmlInit", "nvmlDeviceGetHandleByIndex"])
def test_no_driver_or_no_gpu_is_no_compute_capability(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def absent(*_: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, step, absent)
    assert local_compute_capability() is None
