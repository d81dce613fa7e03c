"""Scales are compared with those of the release before, and `enginery calibration` shows them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.commands import engines as command
from flows.release.graphs import Graphs
from flows.release.publish import moved_scales
from registry.errors import BadInput, NotFound
from registry.mlflow.runs.lineage import Lineage
from registry.mlflow.runs.releases import ReleaseLog
from registry.mlflow.store import MlflowStore
from registry.records import EngineManifest, OnnxArtifact, Precision, Verdict
from tasks.calibration.ranges import INT8_MAX, Method
from tasks.calibration.statistics import Outlier
from tasks.quantization.table import TABLE_FILE, CalibrationTable, TensorRange, read_table, to_json
from tests.support.mlflow_runs import make_entry

ManifestFactory = Callable[..., tuple[EngineManifest, Path]]


def table(scale: float) -> CalibrationTable:
    ranges = tuple(
        TensorRange(name, Method.MSE, 9.0, 3.0, clip=each * INT8_MAX, scale=each, error=0.01, histogram="a" * 64)
        for name, each in (("one", 0.5), ("two", scale))
    )
    return CalibrationTable("d" * 64, ranges, 64, (), Outlier(3, "one", 9.0, 3.0))


def graph(folder: Path, found: CalibrationTable) -> Graphs:
    folder.mkdir()
    (folder / TABLE_FILE).write_bytes(to_json(found))
    made = OnnxArtifact("model.onnx", (), "a" * 64, Precision.INT8, 18, (), (), directory=folder)
    return Graphs({Precision.INT8: made})


def log_engine(log: ReleaseLog, manifest: EngineManifest, release: str, file: Path, version: int | None = None) -> None:
    build = replace(manifest.build, precision=Precision.INT8)
    parent = log.start("sst2", release, {}, {})
    run_id, _ = log.engine_run("sst2", release, parent, build, Verdict.PASSED)
    log.log_engine(run_id, replace(make_entry(manifest), build=build, tables=(file,)))
    log.finish_engine(run_id, version, "")


@pytest.fixture
def log(mlflow_store: MlflowStore) -> ReleaseLog:
    return ReleaseLog(mlflow_store)


@pytest.fixture
def lineage(mlflow_store: MlflowStore) -> Lineage:
    return Lineage(mlflow_store)


def test_a_scale_that_moved_since_the_last_release_is_named(
    log: ReleaseLog, lineage: Lineage, manifest_factory: ManifestFactory, tmp_path: Path
) -> None:
    manifest, _ = manifest_factory()
    before = graph(tmp_path / "before", table(0.5)).by_precision[Precision.INT8].directory / TABLE_FILE
    log_engine(log, manifest, "a" * 12, before)
    now = graph(tmp_path / "now", table(0.75))
    found = moved_scales(lineage, "sst2", "b" * 12, now)
    assert found == {Precision.INT8: "since the last release 1 of 2 scales moved by more than 10%, farthest two by 50%"}
    assert moved_scales(lineage, "sst2", "b" * 12, graph(tmp_path / "same", table(0.52))) == {}


def test_a_release_is_not_compared_with_itself(
    log: ReleaseLog, lineage: Lineage, manifest_factory: ManifestFactory, tmp_path: Path
) -> None:
    manifest, _ = manifest_factory()
    file = graph(tmp_path / "before", table(0.5)).by_precision[Precision.INT8].directory / TABLE_FILE
    log_engine(log, manifest, "a" * 12, file)
    assert moved_scales(lineage, "sst2", "a" * 12, graph(tmp_path / "now", table(5.0))) == {}


def test_a_table_that_cannot_be_read_is_said_and_stops_nothing(
    log: ReleaseLog, lineage: Lineage, manifest_factory: ManifestFactory, tmp_path: Path
) -> None:
    manifest, _ = manifest_factory()
    broken = tmp_path / TABLE_FILE
    broken.write_bytes(b"{}")
    log_engine(log, manifest, "a" * 12, broken)
    found = moved_scales(lineage, "sst2", "b" * 12, graph(tmp_path / "now", table(0.5)))
    assert "not compared" in found[Precision.INT8]


@pytest.fixture
def two_versions(
    mlflow_store: MlflowStore,
    log: ReleaseLog,
    manifest_factory: ManifestFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Versions 1 and 2 of sst2, with tables of their own; 3 has none."""
    for number, scale in enumerate((0.5, 0.75, None), start=1):
        manifest, folder = manifest_factory(
            content=bytes([number]), release=f"{number:012x}", sequence=mlflow_store.take_sequence("sst2")
        )
        version = mlflow_store.publish(manifest, folder).version
        assert version == number
        if scale is not None:
            file = graph(tmp_path / f"v{number}", table(scale)).by_precision[Precision.INT8].directory / TABLE_FILE
            log_engine(log, manifest, f"{number:012x}", file, version)
    monkeypatch.setattr(command, "open_store", lambda: mlflow_store)


@pytest.mark.usefixtures("two_versions")
def test_two_versions_are_compared_and_a_table_is_kept(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    told = CliRunner().invoke(app, ["calibration", "sst2", "2", "--against", "1", "--save", str(kept), "--json"])
    document = json.loads(told.stdout)
    assert [(each["tensor"], each["old"], each["new"]) for each in document["moved"]] == [("two", 0.5, 0.75)]
    assert read_table(kept) == table(0.75)
    shown = CliRunner().invoke(app, ["calibration", "sst2", "2", "--against", "1"])
    assert "1 of 2 scales moved by more than 10%, farthest two by 50%" in shown.stdout


@pytest.mark.usefixtures("two_versions")
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("3", NotFound),
        ("9", NotFound),
        ("2 --against 3", NotFound),
        ("2 --save /nowhere/at/all.json", BadInput),
    ],
)
def test_what_is_not_there_is_said(arguments: str, error: type[Exception]) -> None:
    told = CliRunner().invoke(app, ["calibration", "sst2", *arguments.split()])
    assert isinstance(told.exception, error)
