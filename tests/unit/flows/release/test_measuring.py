"""An engine in production that fails beside the new ones stops no release."""

from dataclasses import replace
from typing import Any

import pytest

from flows.inputs.recipe import Recipe
from flows.release import measuring
from flows.release.engines import InProduction
from flows.release.measuring import TimedEngines, benchmark_engines
from registry.errors import MeasurementError
from registry.records import Backend, EngineBuild, GpuTarget, Precision
from tests.support.manifests import ManifestFactory
from tests.support.tiny_recipe import RECIPE


@pytest.fixture
def build(manifest_factory: ManifestFactory) -> EngineBuild:
    """An fp32 engine that runs on any CPU."""
    target = GpuTarget("cpu", Backend.ONNXRUNTIME)
    return replace(manifest_factory()[0].build, precision=Precision.FP32, backend=target.backend, target=target)


class Context:
    """Only a recipe."""

    recipe = Recipe.model_validate(RECIPE, strict=False)


def time_with(
    monkeypatch: pytest.MonkeyPatch, build: EngineBuild, production: EngineBuild | None
) -> tuple[list[TimedEngines], str]:
    """Time an engine, where every benchmark with a guest fails; return what was tried, and what is said."""
    tried: list[TimedEngines] = []

    def make(_context: Any, _source: Any, engines: TimedEngines, _calibration: Any) -> str:
        tried.append(engines)
        if engines.guest is not None:
            raise MeasurementError("the process died")
        return "measured"

    monkeypatch.setattr(measuring, "make_benchmark", make)
    monkeypatch.setattr(measuring, "find_production", lambda *_: InProduction(production))
    unused: Any = None
    context: Any = Context()
    found, remark = benchmark_engines(context, unused, [build], unused)
    assert str(found) == "measured"
    return tried, remark


def test_what_fails_beside_production_is_timed_without_it(monkeypatch: pytest.MonkeyPatch, build: EngineBuild) -> None:
    tried, remark = time_with(monkeypatch, build, replace(build, digest="p" * 64))
    assert [engines.guest is None for engines in tried] == [False, True]
    assert remark == "not timed beside the engine in production, with which it failed: the process died"


def test_production_that_is_one_of_the_builds_is_no_guest(monkeypatch: pytest.MonkeyPatch, build: EngineBuild) -> None:
    (engines,), remark = time_with(monkeypatch, build, build)
    assert engines.together == (build,)
    assert engines.production == build
    assert remark == ""


def test_engines_without_an_fp32_baseline_are_not_timed(build: EngineBuild) -> None:
    unused: Any = None
    context: Any = Context()
    assert benchmark_engines(context, unused, [replace(build, precision=Precision.INT8)], unused) == (None, "")
