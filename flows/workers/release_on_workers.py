"""Release a recipe on a fleet: the shared stages are made here, each target's engines by the workers of its pool."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from calibration_data.reader import Rows
from calibration_data.rows_file import write_rows
from flows.inputs.fleet import Fleet, load_fleet
from flows.inputs.plan import why_not_supported
from flows.inputs.recipe import Recipe, load_recipe
from flows.prefect_server.pages import plan_engines, show_plan, show_release
from flows.release.check import check_recipe
from flows.release.context import ReleaseContext, ReleaseRun, open_workspace
from flows.release.identity import find_finished_release, identify_release, pin_recipe, read_pinned_recipe
from flows.release.measuring import graph_as_engine, make_evaluation
from flows.release.release_engines import abandon_on_error, make_shared, open_context, publish_release, start_release
from flows.release.scoring import SharedArtifacts
from flows.workers.build_requests import ROWS_FILE, BuildRequest, RowsFile, result_key
from flows.workers.fan_out import FanOut, FanOutResult, TargetJob, build_on_workers
from flows.workers.machine import list_toolchains, read_reports
from flows.workers.publishing_lock import publishing_lock
from flows.workers.stage_transfer import StageArchive, StageTransfer
from registry.digest import record_tree
from registry.errors import BadInput
from registry.host.clock import now
from registry.host.home import home
from registry.mlflow.runs.run_files import RunFiles
from registry.mlflow.store import MlflowStore
from registry.records import GpuTarget, Precision, SourceFiles
from tasks.bundle.toolchain import own_code
from tasks.execution.progress import Reporter
from tasks.execution.workspace import Workspace
from tasks.model_tasks import source_task
from tasks.report.rows import ReleaseIncomplete, ReleaseReport


@dataclass(frozen=True)
class ReleaseRequest:
    """What to release: a recipe, narrowed to some targets and precisions, or an earlier release by its id."""

    recipe: Path | None
    fleet: Path
    targets: tuple[str, ...] | None = None
    precisions: tuple[Precision, ...] | None = None
    resume: str | None = None


def release_on_workers(request: ReleaseRequest, store: MlflowStore, reporter: Reporter) -> ReleaseReport:
    """Release a recipe: make what all targets share, have workers build each target's engines, and publish those.

    Raises:
        ReleaseIncomplete: nothing was built, or a target gave no result; the results of the others are published.
    """
    workspace, fleet = open_workspace(), load_fleet(request.fleet)
    recipe, release_id = resolve_request(request, fleet, store)
    if (finished := find_finished_release(recipe.model, release_id, store)) is not None:
        show_release(finished, store)
        return finished
    targets = [fleet.target(name) for name in recipe.targets]
    engines = plan_engines(targets, recipe.precisions)
    reporter = show_plan((recipe.model, release_id), engines, store, reporter)
    context = open_context(recipe, store, workspace, reporter, now)
    release = start_on_fleet(context, release_id)
    with abandon_on_error(release):
        shared = make_shared(context, targets, is_supported)
        fan_out = FanOut(release, StageTransfer(RunFiles(store), workspace), shared)
        results = build_on_workers(fan_out, make_jobs(fan_out, fleet))
        report = publish_on_fleet(release, shared, results)
    show_release(report, store)
    if report.state != "complete":
        raise ReleaseIncomplete(report)
    return report


def resolve_request(request: ReleaseRequest, fleet: Fleet, store: MlflowStore) -> tuple[Recipe, str]:
    """Return the pinned recipe and the release's id: those of the release to resume, or new ones.

    Raises:
        BadInput: neither a recipe nor a release is named, the release's recipe cannot be read any more, or a release
            of the recipe would fail: all that is wrong with it.
        NotFound: the release to resume does not exist.
    """
    if request.resume is not None:
        return read_pinned_recipe(request.resume, store), request.resume
    if request.recipe is None:
        raise BadInput("name a recipe, or a release to resume with --resume")
    recipe = narrow_recipe(load_recipe(request.recipe), request.targets, request.precisions)
    check_recipe(recipe, fleet, why_not_supported, home()).require()
    recipe = pin_recipe(recipe)
    targets = [fleet.target(name) for name in recipe.targets]
    machines = [list_toolchains(read_reports(target.work_pool)) for target in targets]
    return recipe, identify_release(recipe, targets, ("workers", machines))


def narrow_recipe(recipe: Recipe, targets: Sequence[str] | None, precisions: Sequence[Precision] | None) -> Recipe:
    """Narrow a recipe to some of its targets and precisions; fp32, the reference, always stays.

    Raises:
        BadInput: the recipe does not have one of them.
    """
    for kind, chosen, available in (
        ("target", targets, recipe.targets),
        ("precision", precisions, recipe.precisions),
    ):
        if unknown := sorted(set(chosen or ()) - set(available)):
            raise BadInput(f"the recipe of {recipe.model} has no {kind} {', '.join(unknown)}: add it to the recipe")
    chosen_precisions = {Precision.FP32, *(precisions or recipe.precisions)}
    return recipe.model_copy(
        update={
            "targets": tuple(name for name in recipe.targets if name in (targets or recipe.targets)),
            "precisions": tuple(precision for precision in recipe.precisions if precision in chosen_precisions),
        }
    )


def start_on_fleet(context: ReleaseContext, release_id: str) -> ReleaseRun:
    """Start the release's run under the publishing lock."""
    with publishing_lock(context.recipe.model, release_id, context.reporter.say):
        return start_release(context, release_id)


def publish_on_fleet(release: ReleaseRun, shared: SharedArtifacts, results: FanOutResult) -> ReleaseReport:
    """Publish the workers' results under the model's publishing lock.

    A release that was started twice waits for the lock twice: the second finds what the first published.
    """
    context, model = release.context, release.context.recipe.model
    context.reporter("wait for the publishing lock", 0)
    with publishing_lock(model, release.id, context.reporter.say):
        if (finished := find_finished_release(model, release.id, context.store)) is not None:
            return finished
        return publish_release(release, shared, results.judged, results.missing)


def is_supported(precision: Precision, target: GpuTarget) -> bool:
    """Tell whether a target's backend has a precision; whether a worker can build it, the worker tells."""
    return why_not_supported(precision, target) is None


def make_jobs(fan_out: FanOut, fleet: Fleet) -> dict[str, TargetJob]:
    """Make each target's build request, and send what all of them share to the release's run."""
    release, graphs = fan_out.release, fan_out.shared.graphs
    recipe = release.context.recipe
    archives, more = _send_shared(fan_out), fan_out.shared.more
    rest = (
        None
        if more is None
        else _send_stage(fan_out, _make_rows_file(fan_out.release.context.workspace, more).directory)
    )
    graph_archives = {
        precision: _send_stage(fan_out, graph.directory) for precision, graph in graphs.by_precision.items()
    }
    jobs = {}
    for name in recipe.targets:
        spec, target = fleet.spec(name), fleet.target(name)
        request = BuildRequest(
            release=release.id,
            run_id=release.run_id,
            recipe=recipe,
            name=name,
            spec=spec,
            code=own_code(),
            graphs={
                precision: archive
                for precision, archive in graph_archives.items()
                if precision is Precision.FP32 or is_supported(precision, target)
            },
            refused=graphs.refused,
            failed=graphs.failed,
            remarks=graphs.remarks,
            more=rest,
            **archives,
        )
        jobs[name] = TargetJob(request, result_key(request, fan_out.shared), spec.patience_seconds)
    return jobs


def _send_shared(fan_out: FanOut) -> Mapping[str, StageArchive]:
    context, shared = fan_out.release.context, fan_out.shared
    exact = graph_as_engine(shared.graphs.by_precision[Precision.FP32], context.recipe.shape_profiles)
    reference = make_evaluation(context, shared.source, exact, shared.evaluation, shared.golden)
    return {
        "tokenizer": _send_stage(fan_out, _make_tokenizer(context.workspace, shared.source).directory),
        "evaluation": _send_stage(fan_out, _make_rows_file(context.workspace, shared.evaluation).directory),
        "golden": _send_stage(fan_out, _make_rows_file(context.workspace, shared.golden).directory),
        "calibration": _send_stage(fan_out, shared.calibration.directory),
        "reference": _send_stage(fan_out, reference.directory),
    }


def _send_stage(fan_out: FanOut, stage: Path) -> StageArchive:
    fan_out.release.context.reporter(f"send {stage.parent.name} {stage.name[:12]}", 0)
    return fan_out.transfer.send(fan_out.release.run_id, stage, "handover")


def _make_tokenizer(workspace: Workspace, source: SourceFiles) -> SourceFiles:
    """Copy the part of a checkpoint that workers read: the weights are in the graphs.

    It keeps the digest of the whole checkpoint, which stages are keyed by.
    """
    files = source_task(source).serving_files

    def make(into: Path) -> SourceFiles:
        for name in files:
            shutil.copyfile(source.directory / name, into / name)
        return SourceFiles(source.source, source.digest, record_tree(into), into)

    return workspace.stage("tokenizer", (source.digest, files), SourceFiles, make)[0]


def _make_rows_file(workspace: Workspace, rows: Rows) -> RowsFile:
    def make(into: Path) -> RowsFile:
        write_rows(rows, into / ROWS_FILE)
        return RowsFile(rows.digest, into)

    return workspace.stage("rows", (rows.digest, rows.classes), RowsFile, make)[0]
