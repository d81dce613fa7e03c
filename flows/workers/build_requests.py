"""What a release requests from a worker, and the result that the worker sends back.

Both are JSON documents, checked when they are read. `result_key` says when an earlier result still holds.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from calibration_data.reader import Rows
from calibration_data.rows_file import read_rows
from flows.inputs.fleet import TargetSpec
from flows.inputs.recipe import Recipe
from flows.inputs.strict_yaml import Name, Part, Sha256
from flows.release.build_target import JudgedEngine
from flows.release.scoring import SharedArtifacts
from flows.workers.machine import list_toolchains, read_reports
from flows.workers.stage_transfer import StageArchive, StageTransfer
from registry.digest import digest_of
from registry.errors import TornBundle
from registry.records import PLACE, EngineBuild, GateResult, GpuTarget, OnnxArtifact, Precision, Verdict
from tasks.bundle.golden import Golden
from tasks.measurement.row_results import RowResults
from tasks.measurement.sweep import SizeTimes
from tasks.report.rows import EngineRow

# Rows, gates and raw call times of one target: a few MB where latency is measured a hundred thousand times.
LARGEST_RESULT = 256 * 2**20
P = TypeVar("P", bound=Part)


def _parse_as_json(kind: type[P]) -> BeforeValidator:
    # Strict models take lists for tuples and texts for enums from JSON only; Prefect hands over parsed JSON.
    def parse(value: Any) -> Any:
        return kind.model_validate_json(json.dumps(value)) if isinstance(value, dict) else value

    return BeforeValidator(parse)


class BuildRequest(BaseModel):
    """One target of a release, with everything that a worker needs to build, measure and judge its engines.

    `run_id` is the release's MLflow run. `code` is the digest of the Enginery that made the archives: another version
    may read them differently, and keys its stages differently. `reference` is the fp32 graph's evaluation; `refused`
    and `failed` say why a precision has no graph, and `remarks` are notes on graphs for the report. `more` are the rows
    for engines that the evaluation rows leave undecided.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    release: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    run_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    recipe: Annotated[Recipe, _parse_as_json(Recipe)]
    name: Name
    spec: Annotated[TargetSpec, _parse_as_json(TargetSpec)]
    code: Sha256
    tokenizer: StageArchive
    evaluation: StageArchive
    more: StageArchive | None
    golden: StageArchive
    calibration: StageArchive
    reference: StageArchive
    graphs: dict[Precision, StageArchive]
    refused: dict[Precision, str]
    failed: dict[Precision, str]
    remarks: dict[Precision, str]

    @property
    def target(self) -> GpuTarget:
        """The target that the engines are for."""
        return self.spec.target(self.name)


class EngineResult(BaseModel):
    """One precision of a build result; `call_seconds` are raw call times [windows, iterations] by precision.

    `answered` is what the engine answered row by row, None where it did not run. `sizes` are call times by size.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    row: EngineRow
    gates: tuple[GateResult, ...]
    verdict: Verdict
    engine: StageArchive | None
    call_seconds: dict[str, list[list[float]]]
    answered: RowResults | None
    golden: Golden | None
    sizes: tuple[SizeTimes, ...]


class BuildResult(BaseModel):
    """The engines that a flow run built and judged for its target; `host` is where it ran."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: Name
    flow_run: str
    host: str
    entries: tuple[EngineResult, ...]


class BuildResultRef(BaseModel):
    """Where the result of one flow run is stored: the message of that run's final state."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    flow_run: Annotated[str, Field(pattern=r"^[0-9a-f-]{36}$")]
    uri: Annotated[str, Field(min_length=1, max_length=4096)]
    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0, le=LARGEST_RESULT)]


def make_entry(judged: JudgedEngine, transfer: StageTransfer, run_id: str, folder: str) -> EngineResult:
    """Make the entry of one precision, and send its engine's stage."""
    build = judged.build
    return EngineResult(
        row=judged.row,
        gates=judged.gates,
        verdict=judged.verdict,
        engine=transfer.send(run_id, build.directory, folder) if build else None,
        call_seconds={name: times.tolist() for name, times in judged.call_seconds.items()},
        answered=judged.answered,
        golden=judged.golden,
        sizes=judged.sizes,
    )


def write_result(result: BuildResult, transfer: StageTransfer, run_id: str, folder: str) -> BuildResultRef:
    """Log a result, after the engines that it refers to; return where it is stored."""
    raw = result.model_dump_json().encode()
    scratch = transfer.workspace.scratch("result")
    file = scratch / f"result-{sha256(raw).hexdigest()[:16]}.json"
    try:
        file.write_bytes(raw)
        uri = transfer.files.put(run_id, file, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return BuildResultRef(flow_run=result.flow_run, uri=uri, sha256=sha256(raw).hexdigest(), size_bytes=len(raw))


def read_result(transfer: StageTransfer, ref: BuildResultRef, target: str) -> BuildResult:
    """Fetch the result that `ref` refers to, and check that it is of that target and flow run.

    Raises:
        TornBundle: it is not a result, or of another target or flow run.
        DigestMismatch, NotFound, Interrupted: as `RunFiles.get`.
    """
    scratch = transfer.workspace.scratch("result")
    file = scratch / "result.json"
    try:
        transfer.files.get(ref.uri, ref.sha256, ref.size_bytes, file)
        result = BuildResult.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise TornBundle(f"{ref.uri} is not a build result: do not trust the worker that sent it") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if (result.target, result.flow_run) != (target, ref.flow_run):
        raise TornBundle(
            f"{ref.uri} is the result of {result.target}, flow run {result.flow_run}, and that of {target}, flow run "
            f"{ref.flow_run}, was expected: it is not accepted"
        )
    return result


def receive_engines(
    result: BuildResult, request: BuildRequest, graphs: Mapping[Precision, OnnxArtifact], transfer: StageTransfer
) -> list[JudgedEngine]:
    """Return the judged engines of a result, their files fetched and verified.

    Raises:
        TornBundle: a row is of another model, target or graph than was requested.
    """
    return [_receive_engine(entry, result.flow_run, request, graphs, transfer) for entry in result.entries]


def _receive_engine(
    entry: EngineResult,
    flow_run: str,
    request: BuildRequest,
    graphs: Mapping[Precision, OnnxArtifact],
    transfer: StageTransfer,
) -> JudgedEngine:
    row, model = entry.row, request.recipe.model
    if (row.model, row.target) != (model, request.name):
        raise TornBundle(
            f"flow run {flow_run} sent a row of {row.model} on {row.target}, and {model} on {request.name} was "
            "requested: it is not accepted"
        )
    calls = {name: np.asarray(times, dtype=np.float64) for name, times in entry.call_seconds.items()}
    build = transfer.receive(entry.engine, EngineBuild) if entry.engine else None
    if build is not None:
        if (build.digest, build.onnx_digest) != (row.digest, graphs[row.precision].digest):
            raise TornBundle(f"flow run {flow_run} sent another {row.precision} engine than it judged: do not trust it")
        build = replace(build, target=request.target, precision=row.precision)
    return JudgedEngine(
        row, build, entry.gates, entry.verdict, calls, entry.answered, flow_run, entry.golden, entry.sizes
    )


def result_folder(target: str, flow_run: str) -> str:
    """Return the artifact folder of a flow run's engines and result, which no other run writes to."""
    return f"targets/{target}/{flow_run}"


ROWS_FILE = "rows.parquet"


@dataclass(frozen=True)
class RowsFile:
    """Evaluation rows or golden inputs as a stage, which can be sent."""

    digest: str
    directory: Path = field(default=Path(), compare=False, metadata=PLACE)

    def read(self) -> Rows:
        """Read the rows."""
        return read_rows(self.directory / ROWS_FILE)


def result_key(request: BuildRequest, shared: SharedArtifacts) -> str:
    """Return the digest of all that a target's result depends on: graphs, rows, limits, machines and code."""
    recipe = request.recipe.model_dump(
        mode="json",
        include={"precisions", "profiles", "gates", "latency", "auto_promote", "workspace_mb", "reproducible_builds"},
    )
    graphs = (
        {precision: shared.graphs.by_precision[precision].digest for precision in request.graphs},
        request.refused,
        request.failed,
        request.remarks,
    )
    more = shared.more.digest if shared.more else None
    digests = (shared.evaluation.digest, more, shared.golden.digest, shared.calibration.digest)
    rows = (*digests, request.recipe.data.max_length)
    target, source = request.target, shared.source.digest
    machines = list_toolchains(read_reports(target.work_pool))
    return digest_of((target, request.spec.serving, recipe, graphs, source, rows, machines, request.code))
