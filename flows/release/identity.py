"""What a release is made of, and whether it is there already; light, because most releases are found finished."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from calibration_data.splits import split_revision
from flows.inputs.fleet import Fleet
from flows.inputs.recipe import Recipe
from registry.digest import digest_of, file_sha256, record_tree
from registry.mlflow.runs.releases import ReleaseLog
from registry.mlflow.store import MlflowStore
from registry.records import FileRecord, GpuTarget
from tasks.backends import BACKENDS
from tasks.bundle.toolchain import own_code, toolchain
from tasks.checkpoints.hub import dataset_commit
from tasks.checkpoints.source import resolve_revision
from tasks.measurement.machine import this_machine
from tasks.report.rows import ROWS, ReleaseReport, add_aliases


def pin(recipe: Recipe) -> Recipe:
    """The same recipe with hub revisions resolved to commits, so that one release sees one revision."""
    source, data = recipe.source, recipe.data
    if source.hub is not None:
        source = source.model_copy(update={"revision": resolve_revision(source.hub, str(source.revision))})
    if data.hub is not None:
        data = data.model_copy(update={"revision": dataset_commit(data.hub, str(data.revision))})
    return recipe.model_copy(update={"source": source, "data": data})


def source_content(recipe: Recipe) -> tuple[FileRecord, ...] | str:
    """The files of a folder, the weights of a module; a hub commit and a package version say it themselves."""
    if recipe.source.module is not None:
        from tasks.checkpoints.module import module_digest

        return module_digest(recipe.source.module)
    path = recipe.source.path
    return record_tree(Path(path)) if path is not None and Path(path).is_dir() else ()


def this_machines(targets: Sequence[GpuTarget]) -> object:
    """What of the targets this machine makes and measures, and what it is: the machines of a release made here."""
    here = [
        (target, BACKENDS[target.backend].can_build(target), BACKENDS[target.backend].can_run(target))
        for target in targets
    ]
    return here, this_machine()


def release_id(recipe: Recipe, targets: Sequence[GpuTarget], machines: object) -> str:
    """What a release is made of, as 12 hex digits: the same inputs on the same kind of machines, the same release."""
    ref = recipe.dataset
    head = [recipe.source.head.split] if recipe.source.head else []
    splits = [recipe.data.calibration.split, recipe.data.evaluation.split, *head]
    data = [split_revision(ref, split) for split in splits]
    asked, table = recipe.model_dump(mode="json"), recipe.data.calibration.table
    content = source_content(recipe), file_sha256(Path(table)) if table and Path(table).is_file() else None
    return digest_of((asked, targets, machines, content, data, toolchain(), own_code()))[:12]


def find_release(recipe: Recipe, fleet: Fleet, store: MlflowStore) -> tuple[Recipe, str, ReleaseReport | None]:
    """The pinned recipe, its release id, and the report where that release is already complete in the registry."""
    recipe = pin(recipe)
    targets = [fleet.target(name) for name in recipe.targets]
    release = release_id(recipe, targets, this_machines(targets))
    return recipe, release, finished_release(recipe.model, release, store)


def finished_release(model: str, release: str, store: MlflowStore) -> ReleaseReport | None:
    """The report of a release that is complete, and whose versions are all still there; else None."""
    finished = ReleaseLog(store).finished(model, release)
    if finished is None:
        return None
    run_id, report = finished
    rows = ROWS.validate_json(report)
    there = {(engine.version, engine.digest) for engine in store.versions(model)}
    if any(row.version is not None and (row.version, row.digest) not in there for row in rows):
        return None
    found = tuple(replace(row, state="found") if row.digest else row for row in rows)
    return ReleaseReport(release, model, add_aliases(found, store.aliases(model)), found=True, run_id=run_id)


def source_revision(recipe: Recipe) -> str:
    """What identifies a pinned recipe's weights without fetching them: a hub's commit, or a digest.

    The digest is of a folder's files, a module's weights or a package's pin; with a head, of what it is fitted on too.
    """
    spec, data = recipe.source, recipe.data
    if spec.hub is not None:
        revision = str(spec.revision)
    elif spec.package is not None:
        revision = digest_of((spec.package, spec.version, spec.folder, spec.sha256))
    else:
        revision = digest_of(source_content(recipe))
    if spec.head is None:
        return revision
    fitted_on = split_revision(recipe.dataset, spec.head.split), recipe.dataset.columns, data.max_length
    return digest_of((revision, spec.head.seed, fitted_on))
