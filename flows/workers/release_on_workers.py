"""A release whose shared stages are made here, and whose engines are made by the workers of each target's pool."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from calibration_data.reader import Rows
from flows.inputs.fleet import Fleet, load_fleet
from flows.inputs.recipe import Recipe, load_recipe
from flows.prefect_server.pages import show_release
from flows.release.context import now
from flows.release.identity import finished_release, pin, release_id
from flows.release.measuring import graph_as_engine, make_evaluation
from flows.release.release_engines import abandoned_on_error, make_shared, open_context, publish_release, start_release
from flows.workers.fan_out import FanOut, TargetJob, fan_out
from flows.workers.machine import read_reports, toolchains
from flows.workers.orders import ROWS_FILE, BuildRequest, RowsFile, outcome_key
from flows.workers.parcels import StageArchive, send
from flows.workers.turn import one_at_a_time
from registry.digest import record_tree
from registry.errors import BadInput
from registry.host.home import home
from registry.mlflow.runs.releases import ReleaseLog
from registry.mlflow.runs.run_files import RunFiles
from registry.mlflow.store import MlflowStore
from registry.records import GpuTarget, Precision, SourceFiles
from tasks.backends import BACKENDS
from tasks.bundle.toolchain import SERVING_FILES, own_code
from tasks.execution.progress import OnProgress
from tasks.execution.workspace import Workspace
from tasks.report.rows import ReleaseIncomplete, ReleaseReport


@dataclass(frozen=True)
class ReleaseRequest:
    """What is to be released: a recipe, narrowed to some targets and precisions, or an earlier release by its id."""

    recipe: Path | None
    fleet: Path
    targets: tuple[str, ...] | None = None
    precisions: tuple[Precision, ...] | None = None
    resume: str | None = None


def release_on_workers(
    asked: ReleaseRequest, store: MlflowStore, report: OnProgress, say: Callable[[str], None]
) -> ReleaseReport:
    """Make what all targets share, have each target's workers do the rest, and publish what they brought.

    Raises:
        ReleaseIncomplete: nothing was published, or a target gave no result; what the others gave is published.
    """
    workspace, fleet = Workspace(home() / "stages"), load_fleet(asked.fleet)
    workspace.sweep()
    recipe, release = _identify(asked, fleet, store)
    if (found := finished_release(recipe.model, release, store)) is not None:
        return found
    context, log = open_context(recipe, store, workspace, report, say, now), ReleaseLog(store)
    with one_at_a_time(recipe.model, release, say):
        run_id = start_release(context, log, release)
        log.keep_recipe(run_id, recipe.model_dump_json())
    with abandoned_on_error(log, run_id):
        made = make_shared(context, [fleet.target(name) for name in recipe.targets], _exists)
        office = FanOut(context, log, RunFiles(store), run_id, made)
        results = fan_out(office, _errands(office, fleet, release))
        report("wait for its turn to publish", 0)
        with one_at_a_time(recipe.model, release, say):
            # Whoever was started twice waits here, and finds what the other published.
            if (found := finished_release(recipe.model, release, store)) is not None:
                return found
            result = publish_release(context, log, release, run_id, made, results.judged, results.missing)
    show_release(result, store)
    if result.state != "complete":
        raise ReleaseIncomplete(result)
    return result


def narrow(recipe: Recipe, targets: Sequence[str] | None, precisions: Sequence[Precision] | None) -> Recipe:
    """The recipe with only these of its targets and precisions; fp32, the reference, always stays.

    Raises:
        BadInput: the recipe does not have one of them.
    """
    for what, asked, there in (
        ("target", targets, recipe.targets),
        ("precision", precisions, recipe.precisions),
    ):
        if strange := sorted(set(asked or ()) - set(there)):
            raise BadInput(f"the recipe of {recipe.model} has no {what} {', '.join(strange)}: add it there first")
    kept = {Precision.FP32, *(precisions or recipe.precisions)}
    return recipe.model_copy(
        update={
            "targets": tuple(each for each in recipe.targets if each in (targets or recipe.targets)),
            "precisions": tuple(each for each in recipe.precisions if each in kept),
        }
    )


def _identify(asked: ReleaseRequest, fleet: Fleet, store: MlflowStore) -> tuple[Recipe, str]:
    """The pinned recipe and the release's id: the one that is resumed, or what it is made of on these workers."""
    if asked.resume is not None:
        kept = ReleaseLog(store).recipe_of(asked.resume)
        try:
            return Recipe.model_validate_json(kept), asked.resume
        except ValidationError as error:
            raise BadInput(f"the recipe of release {asked.resume} is of another Enginery: release it again") from error
    if asked.recipe is None:
        raise BadInput("name a recipe, or a release to resume with --resume")
    recipe = pin(narrow(load_recipe(asked.recipe), asked.targets, asked.precisions))
    targets = [fleet.target(name) for name in recipe.targets]
    machines = [toolchains(read_reports(target.work_pool)) for target in targets]
    return recipe, release_id(recipe, targets, ("workers", machines))


def _exists(precision: Precision, target: GpuTarget) -> bool:
    return BACKENDS[target.backend].supports(precision, target) is None


def _errands(office: FanOut, fleet: Fleet, release: str) -> dict[str, TargetJob]:
    """An order for each target, with what all share sent to the release's run."""
    made, recipe = office.made, office.context.recipe
    shared = _send_shared(office)
    graphs = {precision: _send(office, graph.directory) for precision, graph in made.graphs.by_precision.items()}
    errands = {}
    for name in recipe.targets:
        target = fleet.target(name)
        wanted = [p for p in made.graphs.by_precision if p is Precision.FP32 or _exists(p, target)]
        order = BuildRequest(
            release=release,
            run_id=office.run_id,
            recipe=recipe,
            name=name,
            spec=fleet.spec(name),
            code=own_code(),
            graphs={precision: graphs[precision] for precision in wanted},
            refused=made.graphs.refused,
            remarks=made.graphs.remarks,
            **shared,
        )
        errands[name] = TargetJob(order, outcome_key(order, made, target), fleet.spec(name).patience_seconds)
    return errands


def _send_shared(office: FanOut) -> Mapping[str, StageArchive]:
    context, made = office.context, office.made
    reference = make_evaluation(
        context, made.source, graph_as_engine(made.graphs.by_precision[Precision.FP32]), made.evaluation
    )
    return {
        "tokenizer": _send(office, _tokenizer(context.workspace, made.source).directory),
        "evaluation": _send(office, _rows(context.workspace, made.evaluation).directory),
        "calibration": _send(office, made.calibration.directory),
        "reference": _send(office, reference.directory),
    }


def _send(office: FanOut, stage: Path) -> StageArchive:
    office.context.on_progress(f"hand over {stage.parent.name} {stage.name[:12]}", 0)
    return send(office.files, office.context.workspace, office.run_id, stage, "handover")


def _tokenizer(workspace: Workspace, source: SourceFiles) -> SourceFiles:
    """The part of a checkpoint that workers read: its weights are in the graphs. The digest stays the whole one's."""

    def make(into: Path) -> SourceFiles:
        for name in SERVING_FILES:
            shutil.copyfile(source.directory / name, into / name)
        return SourceFiles(source.source, source.digest, record_tree(into), into)

    return workspace.stage("tokenizer", (source.digest, SERVING_FILES), SourceFiles, make)[0]


def _rows(workspace: Workspace, rows: Rows) -> RowsFile:
    def make(into: Path) -> RowsFile:
        (into / ROWS_FILE).write_bytes(TypeAdapter(Rows).dump_json(rows))
        return RowsFile(rows.digest, into)

    return workspace.stage("rows", (rows.digest, rows.classes), RowsFile, make)[0]
