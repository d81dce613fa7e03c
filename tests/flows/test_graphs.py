"""Graphs of a recipe: int8 is chosen without the evaluation split, and what takes its place where no mix passes."""

import errno
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from calibration_data.reader import Rows, read_calibration_inputs
from flows.inputs.fleet import load_fleet
from flows.inputs.recipe import ProfileSpec, load_recipe
from flows.inputs.rows import evaluation_rows
from flows.release import stages
from flows.release.context import ReleaseContext
from flows.release.graphs import Graphs, Material, gather, make_graph, make_graphs
from registry.errors import BadInput, EngineryError
from registry.records import GpuTarget, Precision
from tasks.backends import BACKENDS
from tasks.execution.progress import Reporter
from tasks.execution.steps import Step
from tasks.execution.workspace import Workspace
from tasks.quantization.autopilot import CHOICE_FILE
from tasks.quantization.holdout import Holdout, MetricGate, Outputs, Score, run_holdout
from tasks.quantization.quantize import METHODS
from tasks.quantization.request import QuantizationRequest, QuantizedGraph
from tasks.quantization.table import TABLE_FILE
from tests.support.reporters import Told
from tests.support.tiny import WORDS
from tests.support.tiny_recipe import RECIPE, TinyRecipe, write_split

pytestmark = pytest.mark.slow
SPARE_ROWS = 300


@pytest.fixture
def reported() -> list[str]:
    return []


@pytest.fixture
def context(
    tiny_recipe: TinyRecipe, tmp_path: Path, reported: list[str], monkeypatch: pytest.MonkeyPatch
) -> ReleaseContext:
    """The tiny recipe with rows to spare for a holdout; stages without Prefect."""

    def stage(workspace: Workspace, step: Step[Any], _reporter: Reporter) -> Any:
        return workspace.stage(step.kind, step.inputs, step.value_type, step.make)

    monkeypatch.setattr("flows.release.context.run_stage", stage)
    draw, words = random.Random(3), [word for word in WORDS if not word.startswith("##")]  # noqa: S311  # rows
    evaluation = set(tiny_recipe.rows("evaluation"))
    texts = {" ".join(draw.choices(words, k=draw.randint(4, 12))): None for _ in range(SPARE_ROWS + 60)}
    write_split(
        tiny_recipe.folder / "rows", "calibration", [text for text in texts if text not in evaluation][:SPARE_ROWS]
    )
    return make_context(tiny_recipe, tmp_path / "stages", reported, {"loss_max": 0.02})


def make_context(
    tiny: TinyRecipe, folder: Path, reported: list[str], gates: dict[str, float], **more: Any
) -> ReleaseContext:
    document = RECIPE | {"gates": gates}
    document["data"] = RECIPE["data"] | {"calibration": {"samples": 16, **more}}  # type: ignore[operator]
    tiny.recipe.write_text(yaml.safe_dump(document), encoding="utf-8")
    nothing: Any = None
    return ReleaseContext(Workspace(folder), load_recipe(tiny.recipe), Told(reported.append), nothing, nothing, nothing)


def collect(context: ReleaseContext, change: Callable[[Rows], Rows] = lambda rows: rows) -> Material:
    source = stages.make_source(context)
    evaluation = evaluation_rows(context.recipe, source.source)
    calibration = stages.make_calibration_set(context, evaluation)
    return gather(context, source, stages.make_onnx(context, source, evaluation), calibration, change(evaluation))


def test_the_evaluation_split_takes_no_part_in_the_choice(
    context: ReleaseContext, tiny_recipe: TinyRecipe, tmp_path: Path, reported: list[str]
) -> None:
    def chosen(name: str) -> tuple[str, bytes]:
        fresh = replace(context, workspace=Workspace(tmp_path / name))
        graph = make_graph(fresh, collect(fresh), Precision.INT8)
        return graph.digest, (graph.directory / CHOICE_FILE).read_bytes()

    first = chosen("first")
    evaluation = tiny_recipe.rows("evaluation")
    write_split(tiny_recipe.folder / "rows", "evaluation", ["good " + text for text in evaluation][::-1])
    assert chosen("second") == first


def test_the_holdout_has_no_row_of_calibration_or_evaluation(context: ReleaseContext, tiny_recipe: TinyRecipe) -> None:
    evaluation = tiny_recipe.rows("evaluation")
    write_split(tiny_recipe.folder / "rows", "calibration", [*tiny_recipe.rows("calibration"), *evaluation[:3]])
    material = collect(context)
    held, gate = material.holdout, None if material.holdout is None else material.holdout.gate
    assert held is not None
    assert isinstance(gate, MetricGate)
    assert len(gate.targets) == held.rows == SPARE_ROWS - len(read_calibration_inputs(material.calibration))


def test_too_few_rows_for_a_proof_turn_the_autopilot_off_and_say_so(
    context: ReleaseContext, tiny_recipe: TinyRecipe, tmp_path: Path, reported: list[str]
) -> None:
    strict = make_context(tiny_recipe, tmp_path / "strict", reported, {"loss_max": 0.001})
    material = collect(strict)
    assert material.holdout is None
    graphs = make_graphs(strict, material, [Precision.FP32, Precision.INT8], cpu(tiny_recipe), takes)
    assert "could prove a loss of at most 0.10%" in graphs.remarks[Precision.INT8]
    assert not (graphs.by_precision[Precision.INT8].directory / CHOICE_FILE).exists()


@dataclass(frozen=True)
class OnlyThis:
    """Passes the answers of one graph and no others."""

    expected: tuple[Outputs, ...]
    limit: float = 0.0
    digest: str = "only this"

    def keep(self, _at: int, outputs: Outputs) -> Outputs:
        return outputs

    def score(self, _exact: Sequence[Outputs], outputs: Sequence[Outputs]) -> Score:
        same = all(np.allclose(a[0], b[0], atol=1e-6) for a, b in zip(self.expected, outputs, strict=True))
        return Score(float(not same), float(not same), same)

    def damage(self, _at: int, exact: Outputs, outputs: Outputs) -> float:
        return float(np.square(outputs[0] - exact[0]).sum())


def run_outputs(file: Path, holdout: Holdout) -> tuple[Outputs, ...]:
    return tuple(run_holdout(file, replace(holdout, gate=OnlyThis(()))))


@pytest.mark.parametrize("stands_in", [Precision.INT8_WEIGHT_ONLY, Precision.FP16])
def test_where_no_mix_passes_the_first_that_does_stands_in(
    context: ReleaseContext, tiny_recipe: TinyRecipe, stands_in: Precision
) -> None:
    material, targets = collect(context), rtx(tiny_recipe)
    assert material.holdout is not None
    graph = make_graph(context, material, stands_in)
    gate = OnlyThis(run_outputs(graph.path, material.holdout))
    judged = replace(material, holdout=Holdout(material.holdout.feeds, gate))
    graphs = make_graphs(context, judged, [Precision.FP32, Precision.INT8], targets, takes)
    assert set(graphs.by_precision) == {Precision.FP32, stands_in}
    assert stands_in.value in graphs.refused[Precision.INT8]
    assert "no mix" in graphs.refused[Precision.INT8]
    assert "in place of int8" in graphs.remarks[stands_in]
    assert graphs.with_stand_ins([Precision.FP32, Precision.INT8]) == (Precision.FP32, Precision.INT8, stands_in)


def test_where_nothing_passes_nothing_stands_in(context: ReleaseContext, tiny_recipe: TinyRecipe) -> None:
    material = collect(context)
    assert material.holdout is not None
    gate = OnlyThis(tuple([outputs[0] + 1] for outputs in run_outputs(material.onnx.path, material.holdout)))
    judged = replace(material, holdout=Holdout(material.holdout.feeds, gate))
    graphs = make_graphs(context, judged, [Precision.FP32, Precision.INT8], rtx(tiny_recipe), takes)
    assert set(graphs.by_precision) == {Precision.FP32}
    assert "nothing" in graphs.refused[Precision.INT8]


def test_a_table_is_used_again_without_a_calibration(
    context: ReleaseContext, tiny_recipe: TinyRecipe, tmp_path: Path, reported: list[str]
) -> None:
    once = make_context(tiny_recipe, tmp_path / "once", reported, {"loss_max": 1.0}, holdout=0)
    graph = make_graph(once, collect(once), Precision.INT8)
    table_file = tmp_path / "table.json"
    table_file.write_bytes((graph.directory / TABLE_FILE).read_bytes())
    assert any("calibrate" in what for what in reported)
    reported.clear()
    again = make_context(
        tiny_recipe, tmp_path / "again", reported, {"loss_max": 1.0}, holdout=0, table=os.fspath(table_file)
    )
    assert make_graph(again, collect(again), Precision.INT8).digest == graph.digest
    assert not any("calibrate" in what for what in reported)


@pytest.mark.parametrize("content", [None, b"{}", b"\xff" * 10])
def test_what_is_no_table_is_refused(
    context: ReleaseContext, tiny_recipe: TinyRecipe, tmp_path: Path, reported: list[str], content: bytes | None
) -> None:
    table = tmp_path / "table.json"
    if content is not None:
        table.write_bytes(content)
    broken = make_context(tiny_recipe, tmp_path / "s", reported, {"loss_max": 1.0}, table=os.fspath(table))
    material = collect(context)
    with pytest.raises(BadInput):
        make_graph(broken, material, Precision.INT8)


def test_rows_cut_elsewhere_are_calibrated_anew(
    context: ReleaseContext, tiny_recipe: TinyRecipe, tmp_path: Path, reported: list[str]
) -> None:
    material = collect(context)
    make_graph(context, material, Precision.INT8)
    reported.clear()
    make_graph(context, material, Precision.INT8)
    assert not any("calibrate" in what for what in reported)
    data = context.recipe.data.model_copy(update={"max_length": 8})
    profile = ProfileSpec.model_validate({axis: {"min": 1, "opt": 4, "max": 8} for axis in ("batch", "sequence")})
    shorter = context.recipe.model_copy(update={"data": data, "profiles": (profile,)})
    make_graph(replace(context, recipe=shorter), material, Precision.INT8)
    assert any("calibrate" in what for what in reported)


def test_nothing_is_left_of_a_calibration_that_ended(context: ReleaseContext) -> None:
    make_graph(context, collect(context), Precision.INT8)
    assert list((context.workspace.root / ".partial").iterdir()) == []


def takes(precision: Precision, target: GpuTarget) -> bool:
    return BACKENDS[target.backend].supports(precision, target) is None


def cpu(tiny: TinyRecipe) -> list[GpuTarget]:
    return [load_fleet(tiny.fleet).target("cpu")]


def rtx(tiny: TinyRecipe) -> list[GpuTarget]:
    return [load_fleet(tiny.fleet).target("rtx-4090")]


def test_what_is_asked_for_comes_first() -> None:
    nothing: Any = None
    graphs = Graphs({Precision.FP32: nothing, Precision.FP16: nothing})
    assert graphs.with_stand_ins([Precision.FP32, Precision.INT8]) == (Precision.FP32, Precision.INT8, Precision.FP16)


def fail_to_quantize(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def cast(_: QuantizationRequest) -> QuantizedGraph:
        raise error

    monkeypatch.setitem(METHODS, Precision.FP16, cast)


@pytest.mark.parametrize("error", [KeyError("/embeddings/Cast"), BadInput("no layer to quantize")])
def test_a_precision_whose_graph_cannot_be_made_fails_alone(
    context: ReleaseContext, tiny_recipe: TinyRecipe, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    material = collect(context)
    fail_to_quantize(monkeypatch, error)
    found = make_graphs(context, material, [Precision.FP32, Precision.FP16], rtx(tiny_recipe), takes)
    assert set(found.by_precision) == {Precision.FP32}
    assert error.args[0] in found.failed[Precision.FP16]
    assert len(found.failed[Precision.FP16].splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (EngineryError("stopped"), EngineryError),
        (OSError(errno.ENOSPC, "No space left on device"), EngineryError),
        (MemoryError("no memory"), MemoryError),
    ],
)
def test_a_machine_that_fails_is_no_failure_of_one_precision(
    context: ReleaseContext,
    tiny_recipe: TinyRecipe,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    raised: type[Exception],
) -> None:
    material = collect(context)
    fail_to_quantize(monkeypatch, error)
    with pytest.raises(raised, match=str(error.args[-1])) as refusal:
        make_graphs(context, material, [Precision.FP32, Precision.FP16], rtx(tiny_recipe), takes)
    assert not isinstance(refusal.value, BadInput)
