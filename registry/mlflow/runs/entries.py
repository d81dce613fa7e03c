"""What an engine's run in MLflow holds: few parameters to compare, figures, rows, a note, its identity as a file."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from registry.bundle.description import describe_engine
from registry.mlflow.rows import LONGEST
from registry.records import EngineBuild, GateResult, Measurement, Verdict

# What an engine was made from: digests and profiles, which identify and are not compared by eye.
IDENTITY = "identity.json"
# MLflow's own limit on a dataset's digest.
_LONGEST_DIGEST = 36


@dataclass(frozen=True)
class UsedRows:
    """Rows of one split; `name` says to a person whose they are, `use` what for: evaluation or calibration."""

    name: str
    digest: str
    rows: int
    use: str


@dataclass(frozen=True)
class EngineEntry:
    """What an engine's run records.

    `tables` are files that record how its graph was quantized, `files` what it answered; `links` are tags that lead to
    its Prefect run; `exporter` is what exported its fp32 graph. `drawn_first` is the digest of the rows that the recipe
    draws, where the engine was judged on more.
    """

    build: EngineBuild
    measurements: tuple[Measurement, ...]
    gates: tuple[GateResult, ...]
    verdict: Verdict
    evaluation: UsedRows
    calibration: UsedRows | None
    source_revision: str
    figures: Mapping[str, Path] = field(default_factory=dict)
    tables: tuple[Path, ...] = ()
    files: tuple[Path, ...] = ()
    macs_share: float | None = None
    remark: str = ""
    exporter: str | None = None
    links: Mapping[str, str] = field(default_factory=dict)
    drawn_first: str = ""


def describe_entry(entry: EngineEntry) -> str:
    """Return the note of an engine's run, in Markdown."""
    note = describe_engine(entry.build, entry.measurements, entry.gates, entry.verdict)
    return f"{note}\n\n{entry.remark}" if entry.remark else note


def compared(entry: EngineEntry) -> dict[str, str]:
    """Return what a person compares engines by; MLflow's compare page takes its axes from parameters and metrics."""
    build, machine = entry.build, _find_machine(entry)
    exporter = {"exporter": entry.exporter} if entry.exporter else {}
    return exporter | {
        "target": build.target.name,
        "precision": build.precision.value,
        "backend": build.backend.value,
        "backend_version": build.backend_version,
        "verdict": entry.verdict.value,
        "measured_on": machine.label if machine else "not measured",
    }


def identity(entry: EngineEntry) -> dict[str, Any]:
    """Return what identifies an engine, as JSON values; refresh compares it with what a recipe would use now."""
    build, machine = entry.build, _find_machine(entry)
    return {
        "engine_digest": build.digest,
        "build_key": build.build_key,
        "onnx_digest": build.onnx_digest,
        "calibration_set": entry.calibration.digest if entry.calibration else None,
        "evaluation_set": entry.drawn_first or entry.evaluation.digest,
        "source_revision": entry.source_revision,
        "compute_capability": build.target.compute_capability,
        "backend_version": build.backend_version,
        "driver": machine.driver if machine else None,
        "profiles": [asdict(profile) for profile in build.profiles],
    }


def engine_metrics(entry: EngineEntry) -> Iterator[Metric]:
    """Yield an engine's figures; those of the ONNX graph under its name."""
    now = int(time.time() * 1000)
    yield Metric("size_mb", entry.build.size_bytes / 1e6, now, 0)
    yield Metric("build_seconds", entry.build.build_seconds, now, 0)
    if entry.macs_share is not None:
        yield Metric("macs_share", entry.macs_share, now, 0)
    for measurement in entry.measurements:
        bounds = {"": measurement.value, "_low": measurement.low, "_high": measurement.high}
        for end, value in bounds.items():
            if value is not None:
                yield Metric(f"{measurement.name}{end}", value, now, 0)


def dataset_inputs(*used: UsedRows | None) -> list[DatasetInput]:
    """Return MLflow's datasets of the rows that were used."""
    return [
        DatasetInput(
            Dataset(
                name=rows.name,
                digest=rows.digest[:_LONGEST_DIGEST],
                source_type="enginery",
                source=json.dumps({"sha256": rows.digest}),
                profile=json.dumps({"num_rows": rows.rows}),
            ),
            [InputTag("mlflow.data.context", rows.use)],
        )
        for rows in used
        if rows is not None
    ]


def make_params(parameters: Mapping[str, str]) -> list[Param]:
    """Return MLflow's parameters, cut at their greatest length."""
    return [Param(key, value[:LONGEST]) for key, value in parameters.items()]


def make_tags(tags: Mapping[str, str]) -> list[RunTag]:
    """Return MLflow's tags of a run."""
    return [RunTag(key, value) for key, value in tags.items()]


def _find_machine(entry: EngineEntry) -> Any:
    return next((figure.measured_on for figure in entry.measurements if figure.subject == "engine"), None)
