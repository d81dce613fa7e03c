"""A release whose shared stages are made here, and whose engines are made by the workers of each target's pool."""

import shutil
from asyncio import CancelledError
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists
from pydantic import TypeAdapter, ValidationError

from calibration_data.reader import Rows
from flows.commands.console import now
from flows.inputs.recipe import Fleet, Recipe, load_fleet, load_recipe
from flows.prefect_server.pages import release_artifacts
from flows.release.identity import finished_release, pin, release_id
from flows.release.publish import Made
from flows.release.release_engines import abandoned_on_error, make_shared, open_bench, publish_release, start_release
from flows.release.stages import Report, graph_as_engine, make_evaluation
from flows.workers.fan_out import Errand, Office, fan_out
from flows.workers.machine import read_reports, toolchains
from flows.workers.orders import Order
from flows.workers.parcels import Parcel, send
from registry.digest import digest_of, record_tree
from registry.errors import BadInput, EngineryError
from registry.host.home import home
from registry.mlflow.runs.releases import ReleaseLog
from registry.mlflow.runs.run_files import RunFiles
from registry.mlflow.store import MlflowStore
from registry.records import PLACE, GpuTarget, Precision, SourceFiles
from tasks.backends import BACKENDS
from tasks.bundle.assemble import SERVING_FILES, own_code
from tasks.execution.workspace import Workspace
from tasks.report.rows import ReleaseIncomplete, ReleaseReport

ROWS_FILE = "rows.json"
# A publisher that was killed keeps the others waiting for this long, and at most 15 s more until Prefect looks. Renewed
# after three quarters of it: a Prefect server may be away for the last one.
LEASE_SECONDS = 90.0
# Who waits for longer is told what may be wrong.
TURN_SECONDS = 300.0


@dataclass(frozen=True)
class Asked:
    """What is to be released: a recipe, narrowed to some targets and precisions, or an earlier release by its id."""

    recipe: Path | None
    fleet: Path
    targets: tuple[str, ...] | None = None
    precisions: tuple[Precision, ...] | None = None
    resume: str | None = None


@dataclass(frozen=True)
class RowsFile:
    """Evaluation rows as a file that can be handed over."""

    digest: str
    directory: Path = field(default=Path(), compare=False, metadata=PLACE)

    def read(self) -> Rows:
        """The rows."""
        return TypeAdapter(Rows).validate_json((self.directory / ROWS_FILE).read_bytes())


def release_on_workers(asked: Asked, store: MlflowStore, report: Report, say: Callable[[str], None]) -> ReleaseReport:
    """Make what all targets share, have each target's workers do the rest, and publish what they brought.

    Raises:
        ReleaseIncomplete: nothing was published, or a target gave no result; what the others gave is published.
    """
    workspace, fleet = Workspace(home() / "stages"), load_fleet(asked.fleet)
    workspace.sweep()
    recipe, release = _identify(asked, fleet, store)
    if (found := finished_release(recipe.model, release, store)) is not None:
        return found
    bench, log = open_bench(recipe, store, workspace, report, say, now), ReleaseLog(store)
    with one_at_a_time(recipe.model, release, say):
        run_id = start_release(bench, log, release)
        log.keep_recipe(run_id, recipe.model_dump_json())
    with abandoned_on_error(log, run_id):
        made = make_shared(bench, [fleet.target(name) for name in recipe.targets], _exists)
        office = Office(bench, log, RunFiles(store), run_id, made)
        results = fan_out(office, _errands(office, fleet, release))
        report("wait for its turn to publish", 0)
        with one_at_a_time(recipe.model, release, say):
            # Whoever was started twice waits here, and finds what the other published.
            if (found := finished_release(recipe.model, release, store)) is not None:
                return found
            result = publish_release(bench, log, release, run_id, made, results.judged, results.missing)
    release_artifacts(result, store)
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


@contextmanager
def one_at_a_time(model: str, release: str, say: Callable[[str], None]) -> Iterator[None]:
    """One release of a model writes to the registry at a time, among all that this Prefect server knows of.

    Raises:
        EngineryError: the turn was lost in the middle: this process or Prefect stood still for longer than the lease.
    """
    name = f"enginery-release-{model}"
    # Prefect looks whether it is there and then makes it: another release of the model may have been in between.
    with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):
        client.upsert_global_concurrency_limit_by_name(name, 1)
    try:
        with ExitStack() as turn:
            while not _is_taken(turn, name):
                say(
                    f"still waiting for another release of {model} to publish: if none runs, a Prefect server that "
                    f"keeps leases in memory was restarted; `prefect gcl update {name} --active-slots 0` frees it"
                )
            yield
    except CancelledError as error:  # Prefect throws it into whatever is going on here
        raise EngineryError(
            f"this release of {model} lost its turn to publish, since it or the Prefect server stood still for too "
            f"long: what is published is whole; go on with `enginery release --resume {release}`"
        ) from error


def _is_taken(turn: ExitStack, name: str) -> bool:
    """Whether the only slot of a limit came free within TURN_SECONDS; it is held until `turn` ends."""
    try:
        turn.enter_context(concurrency(name, 1, TURN_SECONDS, lease_duration=LEASE_SECONDS, strict=True))
    except TimeoutError:
        return False
    return True


def _identify(asked: Asked, fleet: Fleet, store: MlflowStore) -> tuple[Recipe, str]:
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


def _errands(office: Office, fleet: Fleet, release: str) -> dict[str, Errand]:
    """An order for each target, with what all share sent to the release's run."""
    made, recipe = office.made, office.bench.recipe
    shared = _send_shared(office)
    graphs = {precision: _send(office, graph.directory) for precision, graph in made.graphs.made.items()}
    errands = {}
    for name in recipe.targets:
        target = fleet.target(name)
        wanted = [p for p in made.graphs.made if p is Precision.FP32 or _exists(p, target)]
        order = Order(
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
        errands[name] = Errand(order, outcome_key(order, made, target), fleet.spec(name).patience_seconds)
    return errands


def outcome_key(order: Order, made: Made, target: GpuTarget) -> str:
    """What a target's outcome is made of: equal keys, the same engines, measured alike on the same machines."""
    recipe = order.recipe.model_dump(
        mode="json", include={"precisions", "profiles", "gates", "latency", "workspace_mb", "reproducible_builds"}
    )
    graphs = {precision: made.graphs.made[precision].digest for precision in order.graphs}, order.refused, order.remarks
    rows = (made.evaluation.digest, made.calibration.digest, order.recipe.data.max_length)
    machines = toolchains(read_reports(target.work_pool))
    return digest_of((target, order.spec.serving, recipe, graphs, made.source.digest, rows, machines, order.code))


def _send_shared(office: Office) -> Mapping[str, Parcel]:
    bench, made = office.bench, office.made
    reference = make_evaluation(bench, made.source, graph_as_engine(made.graphs.made[Precision.FP32]), made.evaluation)
    return {
        "tokenizer": _send(office, _tokenizer(bench.workspace, made.source).directory),
        "evaluation": _send(office, _rows(bench.workspace, made.evaluation).directory),
        "calibration": _send(office, made.calibration.directory),
        "reference": _send(office, reference.directory),
    }


def _send(office: Office, stage: Path) -> Parcel:
    office.bench.report(f"hand over {stage.parent.name} {stage.name[:12]}", 0)
    return send(office.files, office.bench.workspace, office.run_id, stage, "handover")


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

    return workspace.stage("rows", (rows.digest, rows.label_names), RowsFile, make)[0]
