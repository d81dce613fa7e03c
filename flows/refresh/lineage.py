"""Read what a recipe would be released from now, and what its newest engines were made from, for staleness.py."""

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

# A combination that none of the last twenty releases tried is worth trying again.
REPORTS = 20


def read_facts(recipe: Recipe, fleet: Fleet) -> Facts:
    """Read what a pinned recipe would be released from now.

    Raises:
        BadInput: the source or a split cannot be read, or the fleet lacks a target.
    """
    calibration, evaluation = (
        load_split(recipe.dataset, recipe.model_task, spec.split, samples=spec.samples, seed=spec.seed, fewest=fewest)
        for spec, fewest in (
            (recipe.data.calibration, FEWEST_CALIBRATION_ROWS),
            (recipe.data.evaluation, FEWEST_EVALUATION_ROWS),
        )
    )
    targets = [fleet.target(name) for name in recipe.targets]
    return Facts(
        model=recipe.model,
        source_revision=source_revision(recipe),
        calibration_set=calibration.digest,
        evaluation_set=evaluation.digest,
        profiles=json.dumps([asdict(profile) for profile in recipe.shape_profiles]),
        combinations=tuple(
            (target.name, precision)
            for target in targets
            for precision in recipe.precisions
            if BACKENDS[target.backend].supports(precision, target) is None
        ),
        format_version=FORMAT_VERSION,
        stand_ins=INSTEAD_OF_INT8 if Precision.INT8 in recipe.precisions else (),
    )


def read_engines(store: MlflowStore, facts: Facts) -> tuple[Engine, ...]:
    """Read the newest engine of each target and precision of a model.

    Raises:
        EngineryError: the registry does not answer.
    """
    lineage, formats = Lineage(store), {engine.version: engine.format_version for engine in store.versions(facts.model)}
    targets = dict.fromkeys(target for target, _ in facts.combinations)
    precisions = set(Precision)  # a later Enginery may have logged others
    return tuple(
        _make_engine(target, run, formats)
        for target in targets
        for run in lineage.engine_runs(facts.model, target)
        if run.precision in precisions
    )


def _make_engine(target: str, run: EngineRun, formats: Mapping[int, int]) -> Engine:
    made_from = run.identity
    return Engine(
        target=target,
        precision=Precision(run.precision),
        version=run.version,
        source_revision=made_from.get("source_revision", ""),
        calibration_set=made_from.get("calibration_set"),
        evaluation_set=made_from.get("evaluation_set", ""),
        profiles=json.dumps(made_from.get("profiles")),
        backend_version=made_from.get("backend_version", ""),
        driver=made_from.get("driver"),
        format_version=formats.get(run.version) if run.version else None,
        in_registry=run.version is None or run.version in formats,
    )


def read_tried(store: MlflowStore, model: str, missing: Iterable[Combination]) -> frozenset[Combination]:
    """Read which missing combinations a release tried in vain.

    It had a machine for their target, and yet made no engine of them.
    """
    remaining, tried = set(missing), set[Combination]()
    reports = Lineage(store).reports(model, newest=REPORTS)
    while remaining and (report := next(reports, None)) is not None:
        tried_now = _parse_tried(report) & remaining
        remaining, tried = remaining - tried_now, tried | tried_now
    return frozenset(tried)


def _parse_tried(report: str) -> set[Combination]:
    try:
        rows = ROWS.validate_json(report)
    except ValidationError:
        return set()  # written by another version of Enginery: nothing in it can be relied on
    served = {row.target for row in rows if _had_a_machine(row)}
    return {(row.target, row.precision) for row in rows if row.target in served}


def _had_a_machine(row: EngineRow) -> bool:
    # Without a machine all precisions of a target are skipped, fp32 too.
    return row.precision is Precision.FP32 and row.state not in ("skipped", "lost")


def local_toolchains(recipe: Recipe, fleet: Fleet) -> Mapping[str, Toolchain]:
    """Return what this machine would build each target's engines with; without the targets that it cannot build."""
    host, toolchains = read_host(), {}
    for target in map(fleet.target, recipe.targets):
        backend = BACKENDS[target.backend]
        if backend.can_build(target) is None:
            driver = host.driver if backend.can_run(target) is None else None
            toolchains[target.name] = Toolchain("this machine", backend.version(), driver)
    return toolchains
