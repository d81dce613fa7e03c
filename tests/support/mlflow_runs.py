"""What a release writes about an engine to its run in MLflow, of an engine that was never built."""

from registry.mlflow.runs.entries import EngineEntry, UsedRows
from registry.records import EngineManifest


def make_entry(manifest: EngineManifest) -> EngineEntry:
    return EngineEntry(
        manifest.build,
        manifest.measurements,
        manifest.gates,
        manifest.verdict,
        evaluation=UsedRows("glue validation", "e" * 64, 872, "evaluation"),
        calibration=UsedRows("glue train", "c" * 64, 128, "calibration"),
        source_revision=manifest.source.revision,
        exporter=manifest.exporter,
    )
