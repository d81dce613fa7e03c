"""Build requests and results: they survive Prefect's JSON, and what was not requested is not accepted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate
from pydantic import ValidationError

from flows.deployments import build_target, release_engines
from flows.inputs.fleet import TargetSpec, load_fleet
from flows.inputs.recipe import Recipe, load_recipe
from flows.workers.build_requests import (
    BuildRequest,
    BuildResult,
    BuildResultRef,
    EngineResult,
    read_result,
    receive_engines,
    write_result,
)
from flows.workers.release_on_workers import narrow_recipe
from flows.workers.stage_transfer import StageArchive, StageTransfer
from registry.digest import digest_of, record_tree
from registry.errors import BadInput, TornBundle
from registry.mlflow.runs.run_files import RunFiles
from registry.mlflow.store import MlflowStore
from registry.records import Backend, EngineBuild, GpuTarget, Machine, OnnxArtifact, Precision, Verdict
from tasks.bundle.golden import FedTensor, GivenOutput, Golden, GoldenRow, Tolerance
from tasks.execution.workspace import Workspace
from tasks.measurement.sweep import SizeTimes
from tasks.report.rows import EngineRow
from tests.support.manifests import make_manifest

ROOT = Path(__file__).parents[4]
TARGET = GpuTarget("l4", Backend.TENSORRT, "8.9", "NVIDIA L4", "gpu-l4")
L4 = TargetSpec(backend=Backend.TENSORRT, compute_capability="8.9", gpu_name="NVIDIA L4", work_pool="gpu-l4")
FLOW_RUN = "0" * 8 + "-0000-4000-8000-" + "0" * 12
GOLDEN = Golden(
    "engine",
    "a" * 64,
    Machine("x86", 2, instruction_set="avx2"),
    Tolerance(1e-5, 1e-4, 0.02),
    (GoldenRow("a text", (FedTensor("input_ids", "int64", (1, 3), "b" * 64),), (GivenOutput("y", (1,), (0.5,)),)),),
)
GRAPH = OnnxArtifact("model.onnx", (), "a" * 64, Precision.FP32, 18, (), ())


def recipe() -> Recipe:
    return load_recipe(ROOT / "recipes" / "quickstart.yaml")


def archive(kind: str = "build") -> StageArchive:
    return StageArchive(uri="mlflow-artifacts:/1/x.tar", sha256="b" * 64, size_bytes=1, kind=kind, key="c" * 64)


def request() -> BuildRequest:
    stage = archive()
    fleet = load_fleet(ROOT / "recipes" / "fleet.yaml")
    return BuildRequest(
        release="0123456789ab",
        run_id="d" * 32,
        recipe=recipe(),
        name="cpu",
        spec=fleet.spec("cpu"),
        code="e" * 64,
        tokenizer=stage,
        evaluation=stage,
        more=None,
        golden=stage,
        calibration=stage,
        reference=stage,
        graphs={Precision.FP32: stage, Precision.INT8_DYNAMIC: stage},
        refused={Precision.INT8: "no mix passes"},
        failed={},
        remarks={Precision.FP16: "in place of int8"},
    )


def test_a_request_is_the_same_after_prefect_has_carried_it() -> None:
    carried = request().model_dump(mode="json")
    assert BuildRequest.model_validate(carried) == request()
    assert request().target == load_fleet(ROOT / "recipes" / "fleet.yaml").target("cpu")


def test_prefect_takes_a_request_by_the_schema_that_its_deployment_enforces() -> None:
    schema = parameter_schema(build_target.fn).model_dump_for_openapi()
    carried = {"request": request().model_dump(mode="json")}
    validate(carried, schema, raise_on_error=True)
    assert build_target.validate_parameters(carried) == {"request": request()}


def test_the_form_of_a_release_offers_the_targets_and_precisions() -> None:
    schema = parameter_schema(release_engines.fn).model_dump_for_openapi()
    chosen = {"recipe": "recipes/quickstart.yaml", "targets": ["cpu"], "precisions": ["int8"]}
    validate(chosen, schema, raise_on_error=True)
    fleet = load_fleet(ROOT / "recipes" / "fleet.yaml")
    menus = {"targets": list(fleet.targets), "precisions": [precision.value for precision in Precision]}
    for field, menu in menus.items():
        # A list of an enum, and nothing else: with None as a second type, Prefect's form hides the menu.
        assert schema["properties"][field]["type"] == "array"
        assert schema["properties"][field]["items"]["enum"] == menu
        assert schema["properties"][field]["default"] == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("release", "../../etc"),
        ("run_id", "x"),
        ("name", "../l4"),
        ("code", ""),
        ("recipe", {"model": "x"}),
        ("graphs", {"fp31": {}}),
        ("surprise", 1),
    ],
)
def test_a_request_that_no_release_writes_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        BuildRequest.model_validate(request().model_dump(mode="json") | {field: value})


@pytest.mark.parametrize("change", [{"kind": "../x"}, {"key": "short"}, {"size_bytes": -1}, {"sha256": "x"}])
def test_an_archive_cannot_name_a_place_outside_the_workspace(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        StageArchive.model_validate(archive().model_dump() | change)


def test_a_narrowed_recipe_keeps_fp32_and_its_own_request() -> None:
    found = narrow_recipe(recipe(), ("rtx-5090", "cpu"), (Precision.INT8,))
    assert (found.targets, found.precisions) == (("cpu", "rtx-5090"), (Precision.FP32, Precision.INT8))
    assert narrow_recipe(recipe(), None, None) == recipe()


def test_what_the_recipe_does_not_have_cannot_be_chosen() -> None:
    with pytest.raises(BadInput, match="has no target h100"):
        narrow_recipe(recipe(), ("h100",), None)
    with pytest.raises(BadInput, match="has no precision fp8"):
        narrow_recipe(recipe(), None, (Precision.FP8,))


class Shop:
    """A worker's side and a release's side of one MLflow run."""

    def __init__(self, store: MlflowStore, folder: Path) -> None:
        files = RunFiles(store)
        self.worker = StageTransfer(files, Workspace(folder / "worker"))
        self.release = StageTransfer(files, Workspace(folder / "release"))
        self.run_id = str(store.client.create_run(store.experiment("sst2")).info.run_id)
        self.build = self.worker.workspace.stage("build", "inputs", EngineBuild, self._make)[0]

    def _make(self, into: Path) -> EngineBuild:
        (into / "engine.plan").write_bytes(b"plan")
        files = record_tree(into)
        return replace(make_manifest(files).build, files=files, digest=digest_of(files), onnx_digest=GRAPH.digest)

    def entry(self, **changes: Any) -> EngineResult:
        row = EngineRow(
            recipe().model, "l4", Precision.FP32, Backend.TENSORRT, "built", "", Verdict.PASSED, self.build.digest
        )
        engine = self.worker.send(self.run_id, self.build.directory, f"targets/l4/{FLOW_RUN}")
        times = {"fp32": [[0.25, 0.5]]}
        return EngineResult(
            row=replace(row, **changes),
            gates=(),
            verdict=Verdict.PASSED,
            engine=engine,
            call_seconds=times,
            answered=None,
            golden=GOLDEN,
            sizes=(SizeTimes((("batch", 8),), 10, 1.5),),
        )

    def result(self, entry: EngineResult) -> BuildResult:
        return BuildResult(target="l4", flow_run=FLOW_RUN, host="gpu-1", entries=(entry,))

    def write(self) -> BuildResultRef:
        return write_result(self.result(self.entry()), self.worker, self.run_id, f"targets/l4/{FLOW_RUN}")

    def receive(self, entry: EngineResult) -> Any:
        requested = request().model_copy(update={"name": "l4", "spec": L4})
        return receive_engines(self.result(entry), requested, {Precision.FP32: GRAPH}, self.release)


@pytest.fixture
def shop(mlflow_store: MlflowStore, tmp_path: Path) -> Shop:
    return Shop(mlflow_store, tmp_path)


def test_a_result_arrives_with_its_engine_and_its_raw_times(shop: Shop) -> None:
    ref = shop.write()
    assert read_result(shop.release, ref, "l4") == shop.result(shop.entry())
    (judged,) = shop.receive(shop.entry())
    assert judged.build.path.read_bytes() == b"plan"
    assert (judged.build.target, judged.flow_run) == (TARGET, FLOW_RUN)
    assert judged.call_seconds["fp32"].tolist() == [[0.25, 0.5]]
    assert judged.golden == GOLDEN


def test_a_result_of_another_target_or_flow_run_is_not_accepted(shop: Shop) -> None:
    ref = shop.write()
    with pytest.raises(TornBundle, match="it is not accepted"):
        read_result(shop.release, ref, "h100")
    with pytest.raises(TornBundle, match="it is not accepted"):
        read_result(shop.release, ref.model_copy(update={"flow_run": FLOW_RUN[:-1] + "1"}), "l4")
    assert list((shop.release.workspace.root / ".tmp").iterdir()) == []


@pytest.mark.parametrize("changes", [{"model": "other"}, {"target": "h100"}])
def test_a_row_of_something_else_is_not_accepted(shop: Shop, changes: dict[str, str]) -> None:
    with pytest.raises(TornBundle, match="it is not accepted"):
        shop.receive(shop.entry(**changes))


def test_an_engine_that_was_not_judged_is_not_accepted(shop: Shop) -> None:
    with pytest.raises(TornBundle, match="sent another fp32 engine"):
        shop.receive(shop.entry(digest="f" * 64))
