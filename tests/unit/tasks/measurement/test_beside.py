"""Which engines can be timed side by side, and what is said of those that cannot."""

from dataclasses import replace

import pytest

from registry.records import AxisRange, Backend, EngineBuild, Generation, GpuTarget, ShapeProfile, Tensor
from tasks.measurement.beside import explain_apart
from tests.support.manifests import ManifestFactory

SIZES = {"batch": 8, "sequence": 64}


@pytest.fixture
def build(manifest_factory: ManifestFactory) -> EngineBuild:
    """An engine that runs on any CPU."""
    manifest, _ = manifest_factory()
    return replace(manifest.build, backend=Backend.ONNXRUNTIME, target=GpuTarget("cpu", Backend.ONNXRUNTIME))


def test_engines_with_the_same_inputs_are_timed_side_by_side(build: EngineBuild) -> None:
    renamed = replace(build, inputs=(Tensor("input_ids", "int64", ("batch_size", "sequence_length")),))
    assert explain_apart(renamed, build, SIZES) == ""


def test_an_engine_that_this_machine_does_not_run_is_not(build: EngineBuild) -> None:
    gone = replace(build, backend=Backend.TENSORRT, target=GpuTarget("l4", Backend.TENSORRT, "8.9"))
    assert explain_apart(gone, build, SIZES).startswith("it does not run here: ")


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor("ids", "int64", ("batch", "sequence")),
        Tensor("input_ids", "int32", ("batch", "sequence")),
        Tensor("input_ids", "int64", ("batch", 128)),
        Tensor("input_ids", "int64", ("batch",)),
    ],
)
def test_other_inputs_are_named(build: EngineBuild, tensor: Tensor) -> None:
    reason = explain_apart(replace(build, inputs=(tensor,)), build, SIZES)
    assert reason.endswith("and the other's are input_ids int64[?x?]")


def test_calls_that_no_profile_holds_are_named(build: EngineBuild) -> None:
    small = replace(build, profiles=(ShapeProfile.of(batch=AxisRange(1, 2, 4), sequence=AxisRange(8, 64, 128)),))
    assert explain_apart(small, build, SIZES) == "it takes no batch 8, sequence 64, which the other is timed with"


def test_an_engine_that_writes_text_is_not_called_as_one_that_classifies(build: EngineBuild) -> None:
    writes = replace(build, generation=Generation((), (0,), (1,), 1))
    assert "writes text" in explain_apart(writes, build, SIZES)
