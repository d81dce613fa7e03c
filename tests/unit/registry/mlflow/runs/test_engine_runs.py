"""What a person finds on an engine's run in MLflow, and what a machine finds in its files."""

from dataclasses import replace
from typing import Any

import pytest
from mlflow.entities import Run

from registry.mlflow.runs.lineage import EngineRun, Lineage
from registry.mlflow.runs.releases import ReleaseLog
from registry.mlflow.store import MlflowStore
from registry.records import Precision, Verdict
from tests.support.mlflow_runs import make_entry


@pytest.fixture
def run(mlflow_store: MlflowStore, manifest_factory: Any) -> Run:
    """The finished run of an engine that became version 7."""
    manifest, _ = manifest_factory()
    log = ReleaseLog(mlflow_store)
    parent = log.start("sst2", "r1", {"model": "sst2"}, {})
    run_id, is_finished = log.engine_run("sst2", "r1", parent, manifest.build, manifest.verdict)
    assert not is_finished
    log.log_engine(run_id, replace(make_entry(manifest), remark="two blocks stay in fp32"))
    log.finish_engine(run_id, 7, "Promote it: `enginery promote sst2`.")
    return mlflow_store.client.get_run(run_id)


def test_parameters_are_the_few_that_a_person_compares(run: Run) -> None:
    assert run.data.params == {
        "target": "l4",
        "precision": "fp16",
        "backend": "tensorrt",
        "backend_version": "11.0",
        "verdict": "passed",
        "measured_on": "NVIDIA L4",
    }


def test_tags_that_are_no_link_are_enginerys_or_mlflows(run: Run) -> None:
    assert {name.partition(".")[0] for name in run.data.tags} == {"enginery", "mlflow"}


def test_note_has_gates_figures_verdict_and_the_next_command(run: Run) -> None:
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("fp16 for l4: passed, p50 1.25 ms\n\nBuilt with tensorrt 11.0. Measured on NVIDIA L4.")
    assert "| latency | passed | every gate passed |" in note
    assert "| latency_p50_ms | 1.25 ms | 1.2 ms to 1.3 ms |" in note
    assert "two blocks stay in fp32" in note
    assert note.endswith("Promote it: `enginery promote sst2`.")


def test_rows_source_and_user_are_set(run: Run, mlflow_store: MlflowStore) -> None:
    inputs = mlflow_store.client.get_run(run.info.run_id).inputs
    assert inputs is not None
    used = {each.dataset.name: each.tags[0].value for each in inputs.dataset_inputs}
    assert used == {"glue validation": "evaluation", "glue train": "calibration"}
    for one in (run, mlflow_store.client.get_run(run.data.tags["mlflow.parentRunId"])):
        assert one.data.tags["mlflow.source.name"] == "enginery release"
        assert one.data.tags["mlflow.source.type"] == "LOCAL"
        assert one.data.tags["mlflow.user"]


def test_lineage_reads_what_an_engine_was_made_from(run: Run, mlflow_store: MlflowStore, manifest_factory: Any) -> None:
    (found,) = Lineage(mlflow_store).engine_runs("sst2", "l4")
    build = manifest_factory()[0].build
    assert (found.precision, found.version) == ("fp16", 7)
    assert found.identity == {
        "engine_digest": build.digest,
        "build_key": build.build_key,
        "onnx_digest": build.onnx_digest,
        "calibration_set": "c" * 64,
        "evaluation_set": "e" * 64,
        "source_revision": "b" * 40,
        "compute_capability": "8.9",
        "backend_version": "11.0",
        "driver": "580.10",
        "profiles": [
            {"axes": [["batch", {"min": 1, "opt": 8, "max": 32}], ["sequence", {"min": 8, "opt": 64, "max": 128}]]}
        ],
    }


def test_run_without_an_identity_tells_nothing(run: Run, mlflow_store: MlflowStore, tmp_path: Any) -> None:
    (path,) = tmp_path.rglob("identity.json")
    path.unlink()
    assert Lineage(mlflow_store).engine_runs("sst2", "l4") == (EngineRun("fp16", 7, {}),)


@pytest.mark.parametrize("edited", ["[1]", "not JSON", "[" * 100_000, "\xff"], ids=["list", "text", "deep", "bytes"])
def test_an_identity_that_was_edited_tells_nothing(
    edited: str, run: Run, mlflow_store: MlflowStore, tmp_path: Any
) -> None:
    (path,) = tmp_path.rglob("identity.json")
    path.write_bytes(edited.encode("latin-1"))
    assert Lineage(mlflow_store).engine_runs("sst2", "l4") == (EngineRun("fp16", 7, {}),)


def test_run_is_found_by_its_release_and_by_target_and_precision(
    run: Run, mlflow_store: MlflowStore, manifest_factory: Any
) -> None:
    build, parent = manifest_factory()[0].build, run.data.tags["mlflow.parentRunId"]
    log = ReleaseLog(mlflow_store)
    assert log.engine_run("sst2", "r1", parent, build, Verdict.PASSED) == (run.info.run_id, True)
    assert Lineage(mlflow_store).run_ids("sst2", parent) == {("l4", "fp16"): run.info.run_id}
    # Measured again, with another verdict: parameters never change, so that is a run of its own.
    other, is_finished = log.engine_run("sst2", "r1", parent, build, Verdict.INCONCLUSIVE)
    assert other != run.info.run_id
    assert not is_finished


def test_machine_that_did_not_run_the_engine_is_not_named(mlflow_store: MlflowStore, manifest_factory: Any) -> None:
    manifest, _ = manifest_factory(verdict=Verdict.UNMEASURED)
    graph = replace(manifest.measurements[0], subject="onnx-graph")
    log = ReleaseLog(mlflow_store)
    build = replace(manifest.build, precision=Precision.INT8)
    run_id, _ = log.engine_run("sst2", "r1", log.start("sst2", "r1", {}, {}), build, Verdict.UNMEASURED)
    log.log_engine(run_id, replace(make_entry(manifest), build=build, measurements=(graph,), calibration=None))
    data = mlflow_store.client.get_run(run_id).data
    assert data.params["measured_on"] == "not measured"
    assert "The engine itself has not run." in data.tags["mlflow.note.content"]
    assert {name for name in data.metrics if "latency" in name} == {
        f"onnx-graph.latency_p50_ms{end}" for end in ("", "_low", "_high")
    }


@pytest.mark.parametrize("exporter", [None, "transformers 5.24.0"])
def test_what_exported_the_graph_is_a_parameter_where_it_is_known(
    exporter: str | None, mlflow_store: MlflowStore, manifest_factory: Any
) -> None:
    log, (manifest, _) = ReleaseLog(mlflow_store), manifest_factory()
    run_id, _ = log.engine_run("sst2", "r1", log.start("sst2", "r1", {}, {}), manifest.build, Verdict.PASSED)
    log.log_engine(run_id, replace(make_entry(manifest), exporter=exporter))
    assert mlflow_store.client.get_run(run_id).data.params.get("exporter") == exporter
