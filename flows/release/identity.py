"""Identify a release by its inputs, and find it in the registry if it was made before.

Imports little, because most releases are found finished.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from calibration_data.columns import split_revision
from flows.inputs.fleet import Fleet
from flows.inputs.recipe import Recipe, SourceSpec
from registry.digest import digest_of, file_sha256, record_tree
from registry.errors import BadInput
from registry.mlflow.runs.releases import ReleaseLog
from registry.mlflow.store import MlflowStore
from registry.records import FileRecord, GpuTarget, Verdict
from tasks.backends import BACKENDS
from tasks.bundle.toolchain import own_code, toolchain
from tasks.checkpoints.hub import dataset_commit
from tasks.checkpoints.module import module_digest
from tasks.checkpoints.source import resolve_revision
from tasks.graphs.given.source import digest_graph
from tasks.measurement.machine import this_machine
from tasks.model_tasks.own.code import open_code
from tasks.report.rows import ROWS, ReleaseReport, add_aliases


def pin_recipe(recipe: Recipe) -> Recipe:
    """Resolve a recipe's hub revisions to commits, and a task module to its sha256: one release sees one revision."""
    source, data = recipe.source, recipe.data
    if source.hub is not None:
        source = source.model_copy(update={"revision": resolve_revision(source.hub, str(source.revision))})
    if data.hub is not None:
        data = data.model_copy(update={"revision": dataset_commit(data.hub, str(data.revision))})
    module = open_code(Path(recipe.module), digest=recipe.module_sha256).sha256 if recipe.module else None
    return recipe.model_copy(update={"source": source, "data": data, "module_sha256": module})


def read_pinned_recipe(release: str, store: MlflowStore) -> Recipe:
    """Return the pinned recipe that a release kept.

    Raises:
        BadInput: it cannot be read any more.
        NotFound: there is no such release.
    """
    pinned = ReleaseLog(store).recipe_of(release)
    try:
        return Recipe.model_validate_json(pinned)
    except ValidationError as error:
        raise BadInput(
            f"the recipe of release {release} was written by another version of Enginery: release it again"
        ) from error


def source_content(recipe: Recipe) -> tuple[FileRecord, ...] | tuple[str, str]:
    """Return a folder's files, or the digests of a module or a graph and of its processor.

    It is empty for a hub and for a package: a pinned recipe names their commit or version.
    """
    if recipe.source.is_bare:
        return _bare_digest(recipe.source), recipe.processor.digest()
    path = recipe.source.path
    return record_tree(Path(path)) if path is not None and Path(path).is_dir() else ()


def _bare_digest(source: SourceSpec) -> str:
    """Return the digest of a module's weights, or of a given graph's files."""
    if source.module is not None:
        return module_digest(source.module)
    return digest_graph(Path(str(source.onnx)))


def describe_machines(targets: Sequence[GpuTarget]) -> object:
    """Describe, per target, whether this machine builds and runs it, and the machine. Part of the release id."""
    abilities = [
        (target, BACKENDS[target.backend].can_build(target), BACKENDS[target.backend].can_run(target))
        for target in targets
    ]
    return abilities, this_machine()


def identify_release(recipe: Recipe, targets: Sequence[GpuTarget], machines: object) -> str:
    """Return a release's id, 12 hex digits.

    The same inputs on the same kind of machines give the same id.
    """
    ref = recipe.dataset
    head = [recipe.source.head.split] if recipe.source.head else []
    golden = [recipe.data.golden.split] if recipe.data.golden.split else []
    splits = [recipe.data.calibration.split, recipe.data.evaluation.split, *head, *golden]
    data = [split_revision(ref, split) for split in splits]
    entries, table = recipe.model_dump(mode="json"), recipe.data.calibration.table
    content = source_content(recipe), file_sha256(Path(table)) if table and Path(table).is_file() else None
    return digest_of((entries, targets, machines, content, data, toolchain(), own_code()))[:12]


def find_release(recipe: Recipe, fleet: Fleet, store: MlflowStore) -> tuple[Recipe, str, ReleaseReport | None]:
    """Return the pinned recipe, its release id, and the report if the registry has that release complete."""
    recipe = pin_recipe(recipe)
    targets = [fleet.target(name) for name in recipe.targets]
    release_id = identify_release(recipe, targets, describe_machines(targets))
    return recipe, release_id, find_finished_release(recipe.model, release_id, store)


def find_finished_release(model: str, release_id: str, store: MlflowStore) -> ReleaseReport | None:
    """Return the report of a complete and decided release all of whose versions still exist, else None."""
    finished = ReleaseLog(store).finished(model, release_id)
    if finished is None:
        return None
    run_id, report = finished
    rows = ROWS.validate_json(report)
    published = {(engine.version, engine.digest) for engine in store.versions(model)}
    if any(row.version is not None and (row.version, row.digest) not in published for row in rows):
        return None
    if any(row.verdict is Verdict.INCONCLUSIVE for row in rows):
        return None  # undecided is not finished: releasing again measures again
    rows = tuple(replace(row, state="found") if row.digest else row for row in rows)
    return ReleaseReport(release_id, model, add_aliases(rows, store.aliases(model)), found=True, run_id=run_id)


def source_revision(recipe: Recipe) -> str:
    """Identify a pinned recipe's weights without fetching them: by a hub's commit, or by a digest.

    The digest covers a folder's files, a module's weights, a graph's files or a package's pin, and the data that a
    head is fitted on.
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
