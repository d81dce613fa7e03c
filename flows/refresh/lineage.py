"""Read what a recipe would be made from now and what its newest engines were made from, for staleness.py to judge."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict

from pydantic import ValidationError

from calibration_data.reader import FEWEST_CALIBRATION_ROWS, FEWEST_EVALUATION_ROWS, load_split
from flows.inputs.fleet import Fleet
from flows.inputs.recipe import Recipe
from flows.refresh.staleness import Combination, Engine, Facts, Toolchain
from flows.release.graphs import INSTEAD_OF_INT8
from flows.release.identity import source_revision
from registry.bundle.manifest import FORMAT_VERSION
from registry.host.compatibility import read_host
from registry.mlflow.runs.lineage import EngineRun, Lineage
from registry.mlflow.store import MlflowStore
from registry.records import Precision
from tasks.backends import BACKENDS
from tasks.report.rows import ROWS, EngineRow

# A pair that no release of the last twenty tried is new enough to be tried again.
REPORTS = 20


def read_facts(recipe: Recipe, fleet: Fleet) -> Facts:
    """What a pinned recipe would be released from now.

    Raises:
        BadInput: the source or a split cannot be read, or the fleet lacks a target.
    """
    ref, task, data = recipe.dataset, recipe.model_task, recipe.data
    evaluation = load_split(
        ref,
        task,
        data.evaluation.split,
        samples=data.evaluation.samples,
        seed=data.evaluation.seed,
        fewest=FEWEST_EVALUATION_ROWS,
    )
    calibration = load_split(
        ref,
        task,
        data.calibration.split,
        samples=data.calibration.samples,
        seed=data.calibration.seed,
        fewest=FEWEST_CALIBRATION_ROWS,
    )
    targets = [fleet.target(name) for name in recipe.targets]
    return Facts(
        model=recipe.model,
        source_revision=source_revision(recipe),
        calibration_set=calibration.digest,
        evaluation_set=evaluation.digest,
        profiles=json.dumps([asdict(profile) for profile in recipe.shape_profiles]),
        wanted=tuple(
            (target.name, precision)
            for target in targets
            for precision in recipe.precisions
            if BACKENDS[target.backend].supports(precision, target) is None
        ),
        format_version=FORMAT_VERSION,
        standing_in=INSTEAD_OF_INT8 if Precision.INT8 in recipe.precisions else (),
    )


def read_engines(store: MlflowStore, facts: Facts) -> tuple[Engine, ...]:
    """The newest engine of each target and precision of a model.

    Raises:
        EngineryError: the registry does not answer.
    """
    lineage, formats = Lineage(store), {each.version: each.format_version for each in store.versions(facts.model)}
    targets = dict.fromkeys(target for target, _ in facts.wanted)
    known = set(Precision)
    return tuple(
        _engine(target, run, formats)
        for target in targets
        for run in lineage.engine_runs(facts.model, target)
        if run.precision in known
    )


def _engine(target: str, run: EngineRun, formats: Mapping[int, int]) -> Engine:
    made = run.parameters
    return Engine(
        target=target,
        precision=Precision(run.precision),
        version=run.version,
        source_revision=made.get("source_revision", ""),
        calibration_set=_unless_none(made.get("calibration_set")),
        evaluation_set=made.get("evaluation_set", ""),
        profiles=made.get("profiles", ""),
        backend_version=made.get("backend_version", ""),
        driver=_unless_none(made.get("driver")),
        format_version=formats.get(run.version) if run.version else None,
        in_registry=run.version is None or run.version in formats,
    )


def _unless_none(text: str | None) -> str | None:
    return None if text in (None, "", "none") else text


def read_tried(store: MlflowStore, model: str, missing: Iterable[Combination]) -> frozenset[Combination]:
    """Those of the pairs without an engine that a release had a machine for, and made nothing of all the same."""
    left, tried = set(missing), set[Combination]()
    reports = Lineage(store).reports(model, newest=REPORTS)
    while left and (report := next(reports, None)) is not None:
        found = _tried(report) & left
        left, tried = left - found, tried | found
    return frozenset(tried)


def _tried(report: str) -> set[Combination]:
    try:
        rows = ROWS.validate_json(report)
    except ValidationError:
        return set()  # of another Enginery: it says nothing that can be relied on
    served = {row.target for row in rows if _had_a_machine(row)}
    return {(row.target, row.precision) for row in rows if row.target in served}


def _had_a_machine(row: EngineRow) -> bool:
    # Without a machine all precisions of a target are skipped, fp32 too.
    return row.precision is Precision.FP32 and row.state not in ("skipped", "lost")


def local_toolchains(recipe: Recipe, fleet: Fleet) -> Mapping[str, Toolchain]:
    """What this machine would build each target's engines with; targets that it cannot build are left out."""
    host, found = read_host(), {}
    for target in map(fleet.target, recipe.targets):
        backend = BACKENDS[target.backend]
        if backend.can_build(target) is None:
            driver = host.driver if backend.can_run(target) is None else None
            found[target.name] = Toolchain("this machine", backend.version(), driver)
    return found
