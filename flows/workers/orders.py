"""What a release asks of a worker, and what the worker answers: two JSON documents, checked when they are read."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from calibration_data.reader import Rows
from flows.inputs.fleet import TargetSpec
from flows.inputs.recipe import Recipe
from flows.inputs.strict_yaml import Name, Part, Sha256
from flows.release.build_target import JudgedEngine
from flows.release.publish import SharedArtifacts
from flows.workers.machine import read_reports, toolchains
from flows.workers.parcels import StageArchive, receive, send
from registry.digest import digest_of
from registry.errors import TornBundle
from registry.mlflow.runs.run_files import RunFiles
from registry.records import PLACE, EngineBuild, GateResult, GpuTarget, OnnxArtifact, Precision, Verdict
from tasks.execution.workspace import Workspace
from tasks.report.rows import EngineRow

# Rows, gates and raw call times of one target: a few MB where latency is measured a hundred thousand times.
LARGEST_OUTCOME = 256 * 2**20
P = TypeVar("P", bound=Part)


def _by_json(kind: type[P]) -> BeforeValidator:
    # Strict models take lists for tuples and texts for enums from JSON only; Prefect hands over parsed JSON.
    def parse(value: Any) -> Any:
        return kind.model_validate_json(json.dumps(value)) if isinstance(value, dict) else value

    return BeforeValidator(parse)


class BuildRequest(BaseModel):
    """One target of a release, with everything that a worker needs to build, measure and judge its engines.

    `run_id` is the release's MLflow run, `code` the digest of the Enginery that made the parcels: another one may read
    them otherwise, and keys its stages otherwise. `reference` is the fp32 graph's evaluation, `refused` says
    why a precision has no graph, `remarks` what is to be known of one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    release: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    run_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    recipe: Annotated[Recipe, _by_json(Recipe)]
    name: Name
    spec: Annotated[TargetSpec, _by_json(TargetSpec)]
    code: Sha256
    tokenizer: StageArchive
    evaluation: StageArchive
    calibration: StageArchive
    reference: StageArchive
    graphs: dict[Precision, StageArchive]
    refused: dict[Precision, str]
    remarks: dict[Precision, str]

    @property
    def target(self) -> GpuTarget:
        """The target as a domain value."""
        return self.spec.target(self.name)


class Entry(BaseModel):
    """One precision of an outcome; `call_seconds` are raw call times [windows, iterations] by precision."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    row: EngineRow
    gates: tuple[GateResult, ...]
    verdict: Verdict
    engine: StageArchive | None
    call_seconds: dict[str, list[list[float]]]


class BuildResult(BaseModel):
    """All that a flow run found out about its target; `host` is where it ran."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: Name
    flow_run: str
    host: str
    entries: tuple[Entry, ...]


class BuildResultRef(BaseModel):
    """Where the outcome of one flow run lies, as that run's final state says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    flow_run: Annotated[str, Field(pattern=r"^[0-9a-f-]{36}$")]
    uri: Annotated[str, Field(min_length=1, max_length=4096)]
    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0, le=LARGEST_OUTCOME)]


def make_entry(judged: JudgedEngine, files: RunFiles, workspace: Workspace, run_id: str, folder: str) -> Entry:
    """The entry of one precision, its engine's stage sent."""
    build = judged.build
    return Entry(
        row=judged.row,
        gates=judged.gates,
        verdict=judged.verdict,
        engine=send(files, workspace, run_id, build.directory, folder) if build else None,
        call_seconds={name: times.tolist() for name, times in judged.call_seconds.items()},
    )


def read_outcome(files: RunFiles, workspace: Workspace, ref: BuildResultRef, target: str) -> BuildResult:
    """The outcome that `ref` points at.

    Raises:
        TornBundle: it is another target's or flow run's, or no outcome at all.
        DigestMismatch, NotFound, Interrupted: as `RunFiles.get`.
    """
    scratch = workspace.scratch("outcome")
    file = scratch / "outcome.json"
    try:
        files.get(ref.uri, ref.sha256, ref.size_bytes, file)
        outcome = BuildResult.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise TornBundle(f"{ref.uri} is no outcome of a target: do not trust the worker that sent it") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if (outcome.target, outcome.flow_run) != (target, ref.flow_run):
        raise TornBundle(f"{ref.uri} is of {outcome.target}, flow run {outcome.flow_run}: it is not taken")
    return outcome


def take_outcome(
    outcome: BuildResult,
    model: str,
    target: GpuTarget,
    graphs: Mapping[Precision, OnnxArtifact],
    files: RunFiles,
    workspace: Workspace,
) -> list[JudgedEngine]:
    """The judged engines of an outcome, their files fetched and verified.

    Raises:
        TornBundle: a row is of another model, target or graph than was ordered.
    """
    return [_take(entry, outcome, model, target, graphs, files, workspace) for entry in outcome.entries]


def _take(
    entry: Entry,
    outcome: BuildResult,
    model: str,
    target: GpuTarget,
    graphs: Mapping[Precision, OnnxArtifact],
    files: RunFiles,
    workspace: Workspace,
) -> JudgedEngine:
    row = entry.row
    if (row.model, row.target) != (model, target.name):
        raise TornBundle(f"flow run {outcome.flow_run} sent a row of {row.model} {row.target}: it is not taken")
    calls = {name: np.asarray(times, dtype=np.float64) for name, times in entry.call_seconds.items()}
    build = receive(files, workspace, entry.engine, EngineBuild) if entry.engine else None
    if build is not None:
        if (build.digest, build.onnx_digest) != (row.digest, graphs[row.precision].digest):
            raise TornBundle(f"flow run {outcome.flow_run} sent another {row.precision} engine than it judged")
        build = replace(build, target=target, precision=row.precision)
    return JudgedEngine(row, build, entry.gates, entry.verdict, calls, flow_run=outcome.flow_run)


def write_outcome(
    outcome: BuildResult, files: RunFiles, workspace: Workspace, run_id: str, folder: str
) -> BuildResultRef:
    """Log an outcome last of all that it speaks of."""
    raw = outcome.model_dump_json().encode()
    scratch = workspace.scratch("outcome")
    file = scratch / f"outcome-{sha256(raw).hexdigest()[:16]}.json"
    try:
        file.write_bytes(raw)
        uri = files.put(run_id, file, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return BuildResultRef(flow_run=outcome.flow_run, uri=uri, sha256=sha256(raw).hexdigest(), size_bytes=len(raw))


def outcome_folder(target: str, flow_run: str) -> str:
    """Where a flow run logs what it made: no other run writes there."""
    return f"targets/{target}/{flow_run}"


ROWS_FILE = "rows.json"


@dataclass(frozen=True)
class RowsFile:
    """Evaluation rows as a file that can be handed over."""

    digest: str
    directory: Path = field(default=Path(), compare=False, metadata=PLACE)

    def read(self) -> Rows:
        """The rows."""
        return TypeAdapter(Rows).validate_json((self.directory / ROWS_FILE).read_bytes())


def outcome_key(order: BuildRequest, made: SharedArtifacts, target: GpuTarget) -> str:
    """What a target's outcome is made of: equal keys, the same engines, measured alike on the same machines."""
    recipe = order.recipe.model_dump(
        mode="json", include={"precisions", "profiles", "gates", "latency", "workspace_mb", "reproducible_builds"}
    )
    graphs = (
        {precision: made.graphs.by_precision[precision].digest for precision in order.graphs},
        order.refused,
        order.remarks,
    )
    rows = (made.evaluation.digest, made.calibration.digest, order.recipe.data.max_length)
    machines = toolchains(read_reports(target.work_pool))
    return digest_of((target, order.spec.serving, recipe, graphs, made.source.digest, rows, machines, order.code))
