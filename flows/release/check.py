"""Check a recipe before its release: what is wrong is told in seconds, all of it at once, and nothing is built.

`check_recipe` reads what a release would read first: config.json, the tokenizer, the rows and their labels.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibration_data.reader import FEWEST_CALIBRATION_ROWS, FEWEST_EVALUATION_ROWS, Rows, load_split, refuse_overlap
from flows.inputs.fleet import Fleet
from flows.inputs.plan import TargetPlan, WhyNot, list_steps, plan_target
from flows.inputs.recipe import Recipe
from flows.inputs.rows import evaluation_rows, head_rows, read_table_of
from registry.errors import BadInput, EngineryError
from registry.records import ModelSource
from tasks.checkpoints.architectures import NEWER_TOOL, explain_newer
from tasks.checkpoints.config import read_classes, read_config
from tasks.checkpoints.encoder import try_encoder
from tasks.checkpoints.source import download_texts, list_checkpoint, locate_package
from tasks.execution.step_times import StepTimes
from tasks.execution.tools.catalog import find_tool
from tasks.execution.tools.install import is_installed
from tasks.graphs.given.source import CHECKED_ROWS, Trial, describe_graph, list_graph_files, run_admission
from tasks.model_tasks.contract import CLASS_AXES
from tasks.quantization.holdout import rows_to_prove

# MLflow's and Prefect's, a key, locks and records: what a release writes whatever its model is.
DATABASES_BYTES = 16 * 10**6
# Of each split.
TRIED_ROWS = 500


@dataclass(frozen=True)
class Check:
    """One thing that was checked; `problem` says in a sentence why a release would fail, `warning` what to know."""

    what: str
    found: str = ""
    problem: str = ""
    warning: str = ""


@dataclass(frozen=True)
class RecipeCheck:
    """What a check found, the engines and steps that a release will have, and its seconds on this machine.

    `timed_steps` of the steps were timed here before; the time of the others is the sample model's, by size.
    """

    recipe: Recipe
    checks: tuple[Check, ...]
    plans: tuple[TargetPlan, ...]
    step_seconds: dict[str, float] = field(default_factory=dict)
    timed_steps: int = 0

    @property
    def problems(self) -> tuple[str, ...]:
        """What a release would fail on."""
        return tuple(check.problem for check in self.checks if check.problem)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before a release that will work."""
        return tuple(f"{check.what}: {check.warning}" for check in self.checks if check.warning)

    @property
    def engine_count(self) -> int:
        """How many engines will be built."""
        return sum(len(plan.precisions) for plan in self.plans)

    def require(self) -> None:
        """Raise where a release would fail.

        Raises:
            BadInput: all problems in one sentence.
        """
        if self.problems:
            raise BadInput("; ".join(self.problems))


@dataclass(frozen=True)
class _Checkpoint:
    """What a checkpoint's small files tell; `weights_bytes` is 0 for a module, and all of a given graph."""

    config: dict[str, Any]
    folder: Path
    weights_bytes: int


@dataclass(frozen=True)
class _TriedRows:
    """Some inputs of both splits, and some evaluation rows as (input, target)."""

    inputs: tuple[Any, ...] = ()
    evaluation: tuple[tuple[Any, Any], ...] = ()


def check_recipe(recipe: Recipe, fleet: Fleet, why_not: WhyNot, home: Path) -> RecipeCheck:
    """Check a recipe, and plan its release; `why_not` says which engines will not be built, and why.

    A recipe of a hub's model downloads its small files. Rows of a hub's dataset are not read: that is a download of
    its own, which the release does.
    """
    checks, times = _Checks(), StepTimes(home / "stages", recipe.model)
    plans = checks.run("targets", lambda: _plan_targets(recipe, fleet, why_not)) or ()
    with _open_checkpoint(checks, recipe) as checkpoint:
        weights_bytes = checkpoint.weights_bytes if checkpoint else 0
        classes = checks.run("labels", lambda: _read_class_names(recipe, checkpoint)) if checkpoint else None
        rows = _check_rows(checks, recipe, classes, checkpoint.folder if checkpoint else None)
        checks.run("golden inputs", lambda: _check_golden(checks, recipe))
        if checkpoint:
            sizes = checks.run("encoder", lambda: _try_encoder(recipe, checkpoint, rows.inputs))
            if recipe.module is not None and sizes is not None:
                checks.run("module", lambda: _try_module(checks, recipe, checkpoint, rows))
            checks.done.extend(_describe_exporter(recipe, checkpoint.config, home))
    checks.run("table", lambda: read_table_of(recipe))
    steps = list_steps(recipe, plans)
    seconds = {step: times.estimate(step, weights_bytes) for step in steps}
    if plans and weights_bytes:
        checks.add(_check_disk(home, weights_bytes, plans))
        checks.add(_check_memory(weights_bytes))
    return RecipeCheck(recipe, tuple(checks.done), plans, seconds, sum(map(times.is_known, steps)))


@dataclass
class _Checks:
    """Collects checks, and goes on behind one that found a problem."""

    done: list[Check] = field(default_factory=list)

    def add(self, check: Check) -> None:
        self.done.append(check)

    def run(self, what: str, check: Callable[[], Any]) -> Any:
        """Return what a check returns; where it raises, note the problem and return None."""
        try:
            return check()
        except EngineryError as error:
            self.add(Check(what, problem=str(error)))
            return None


def _plan_targets(recipe: Recipe, fleet: Fleet, why_not: WhyNot) -> tuple[TargetPlan, ...]:
    plans = tuple(plan_target(recipe, fleet.target(name), why_not) for name in recipe.targets)
    if not any(plan.precisions for plan in plans):
        reasons = "; ".join(dict.fromkeys(reason for plan in plans for _, reason in plan.skipped))
        raise BadInput(f"no engine of {recipe.model} can be built: {reasons}")
    return plans


@contextmanager
def _open_checkpoint(checks: _Checks, recipe: Recipe) -> Iterator[_Checkpoint | None]:
    """Yield what the checkpoint's small files tell; None where it cannot be used."""
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint: _Checkpoint | None = checks.run("source", lambda: _read_checkpoint(recipe, Path(scratch)))
        if checkpoint is not None and (found := checks.run("source", lambda: _fit_task(recipe, checkpoint))):
            checks.add(Check("source", found))
        yield checkpoint


def _read_checkpoint(recipe: Recipe, scratch: Path) -> _Checkpoint:
    spec = recipe.source
    if spec.is_bare:
        folder = recipe.processor.folder
        recipe.processor.list_files()
        graph_files = list_graph_files(Path(spec.onnx)) if spec.onnx is not None else ()
        return _Checkpoint({}, folder, sum(file.stat().st_size for file in graph_files))
    if spec.hub is not None:
        _, weights = download_texts(spec.hub, str(spec.revision), into=scratch)
        return _Checkpoint(read_config(scratch), scratch, sum(file.size_bytes or 0 for file in weights.values()))
    if spec.package is not None:
        folder = locate_package(spec.package, str(spec.version), str(spec.folder))
    else:
        folder = Path(str(spec.path))
    weights_bytes = sum(
        (folder / name).stat().st_size for name in list_checkpoint(folder) if name.endswith(".safetensors")
    )
    return _Checkpoint(read_config(folder), folder, weights_bytes)


def _fit_task(recipe: Recipe, checkpoint: _Checkpoint) -> str:
    """Check that a checkpoint is one of the recipe's task and takes its shapes; return what it is."""
    task, source = recipe.model_task, recipe.source
    if source.module is not None:
        return f"module {source.module}"
    if source.onnx is not None:
        folder, weights_bytes = checkpoint.folder, checkpoint.weights_bytes
        return describe_graph(Path(source.onnx), task, folder, weights_bytes, recipe.shape_profiles)
    if source.head is None:
        task.check_checkpoint(checkpoint.config)
    task.check_shapes(checkpoint.config, recipe.largest)
    kind = next(iter(checkpoint.config.get("architectures") or ()), str(checkpoint.config.get("model_type", "model")))
    head = ", and a head that is fitted once" if source.head else ""
    origin = source.hub or source.package or source.path
    return f"{origin}: {kind}, {checkpoint.weights_bytes / 1e6:.1f} MB of weights{head}"


def _describe_exporter(recipe: Recipe, config: Mapping[str, Any], home: Path) -> tuple[Check, ...]:
    """Say why a checkpoint is exported by transformers 5; nothing where Optimum does it, as usual."""
    if recipe.source.is_bare or not (reason := explain_newer(config)):
        return ()
    tool = find_tool(NEWER_TOOL)
    there = "is installed" if is_installed(tool, home) else "is installed first, which needs a package index once"
    return (Check("export", f"by transformers {tool.version}, since {reason}; the tool {tool.name} {there}"),)


def _read_class_names(recipe: Recipe, checkpoint: _Checkpoint) -> tuple[str, ...]:
    if recipe.source.labels is not None:
        return recipe.source.labels
    if recipe.source.head is not None:
        if recipe.dataset.is_hub:
            return ()
        return head_rows(recipe, recipe.source.head).classes or ()
    return read_classes(checkpoint.config)


def _try_encoder(recipe: Recipe, checkpoint: _Checkpoint, rows: Sequence[Any]) -> tuple[int, ...]:
    task = recipe.model_task
    return try_encoder(task, checkpoint.folder, rows or task.example_inputs, recipe.largest, checkpoint.config)


def _try_module(checks: _Checks, recipe: Recipe, checkpoint: _Checkpoint, rows: _TriedRows) -> None:
    """Run a given graph on real rows through a user's own task, as a release will."""
    if recipe.source.onnx is None or not rows.evaluation:
        return
    inputs, targets = zip(*rows.evaluation, strict=True)
    with tempfile.TemporaryDirectory() as scratch:
        trial = Trial(inputs, recipe.largest, (), targets)
        run_admission(Path(recipe.source.onnx), recipe.model_task, checkpoint.folder, trial, into=Path(scratch))
    checks.add(Check("module", f"{recipe.module} answers and scores the first {len(inputs)} evaluation rows"))


def _check_rows(checks: _Checks, recipe: Recipe, classes: tuple[str, ...] | None, folder: Path | None) -> _TriedRows:
    """Read the rows as a release will, and return some of them; without known classes labels are not compared."""
    if recipe.dataset.is_hub:
        checks.add(Check("data", f"{recipe.dataset.origin}, whose rows are read when the release starts"))
        return _TriedRows()
    spec = recipe.data.calibration
    source = ModelSource(recipe.model, "", "", recipe.task, classes or ())

    has_classes = not CLASS_AXES.isdisjoint(recipe.model_task.answer_axes)

    def read_evaluation() -> Rows:
        if classes or not has_classes:
            return evaluation_rows(recipe, source, folder)
        split = recipe.data.evaluation.split
        return load_split(recipe.dataset, recipe.model_task, split, fewest=FEWEST_EVALUATION_ROWS)

    evaluation: Rows | None = checks.run("evaluation rows", read_evaluation)
    calibration: Rows | None = checks.run(
        "calibration rows",
        lambda: load_split(recipe.dataset, recipe.model_task, spec.split, fewest=FEWEST_CALIBRATION_ROWS),
    )
    if evaluation is not None:
        named = f", {len(classes)} classes" if classes and has_classes else ""
        named += f", {len({*evaluation.groups})} groups" if evaluation.groups else ""
        found = f"{len(evaluation.inputs)} of {recipe.data.evaluation.split}{named}"
        checks.add(Check("evaluation rows", found, warning=_describe_unusable(evaluation)))
    inputs = tuple(row for rows in (evaluation, calibration) if rows for row in rows.inputs[:TRIED_ROWS])
    pairs = zip(evaluation.inputs, evaluation.targets, strict=True) if evaluation else ()
    tried = _TriedRows(inputs, tuple(pairs)[:CHECKED_ROWS])
    if calibration is None or evaluation is None:
        return tried
    drawn = load_split(recipe.dataset, recipe.model_task, spec.split, samples=spec.samples, seed=spec.seed)
    checks.run("calibration rows", lambda: refuse_overlap(recipe.model_task, drawn.inputs, evaluation.inputs))
    checks.add(_describe_calibration(recipe, len(drawn.inputs), calibration))
    return tried


def _check_golden(checks: _Checks, recipe: Recipe) -> None:
    """Say which rows travel with each bundle; those of a split of their own are read as a release will."""
    split = recipe.data.golden.split
    if recipe.golden_samples and split and not recipe.dataset.is_hub:
        load_split(recipe.dataset, recipe.model_task, split)
    rows = f"{recipe.golden_samples} of {split or recipe.data.evaluation.split}" if recipe.golden_samples else "none"
    checks.add(Check("golden inputs", f"{rows} travel with each bundle"))


def _describe_calibration(recipe: Recipe, drawn: int, calibration: Rows) -> Check:
    spec, limit, there = recipe.data.calibration, recipe.gates.loss_max, len(calibration.inputs)
    left, needed = min(there - drawn, spec.holdout), rows_to_prove(limit)
    proving = left * len(set(calibration.groups)) // there if calibration.groups else left
    warning = ""
    if spec.holdout and proving < needed:
        of_groups = f" of about {proving} groups" if calibration.groups else ""
        warning = (
            f"{left} further rows{of_groups} can be held out, {needed} could prove a loss of at most {limit:.2%}: int8 "
            "is built without that proof"
        )
    warning = "; ".join(filter(None, (_describe_unusable(calibration), warning)))
    return Check("calibration rows", f"{drawn} of the {there} of {spec.split}", warning=warning)


def _describe_unusable(rows: Rows) -> str:
    if not rows.quarantined:
        return ""
    return f"{rows.quarantined} rows are left out; {rows.first_unusable}"


def _check_disk(home: Path, weights_bytes: int, plans: Sequence[TargetPlan]) -> Check:
    """Compare the free disk with what a release keeps at most.

    Those are the checkpoint, its head's and its export; a graph per precision; each engine as a stage and as an
    artifact. The sample release keeps 2.0 GB where this says 2.8.
    """
    graphs = len({precision for plan in plans for precision in plan.precisions})
    engines = sum(len(plan.precisions) for plan in plans)
    needed = weights_bytes * (3 + graphs + 2 * engines)
    existing = next(folder for folder in (home.absolute(), *home.absolute().parents) if folder.exists())
    free, least = shutil.disk_usage(existing).free, weights_bytes + DATABASES_BYTES
    advice = "free some, or set ENGINERY_HOME to a folder on another disk"
    if free < least:
        problem = f"{existing} has {free / 1e6:.0f} MB free, a release needs {least / 1e6:.0f} MB at least: {advice}"
        return Check("disk", problem=problem)
    found = f"at most {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free"
    return Check("disk", found, warning=f"{found}: {advice}" if free < needed else "")


def _check_memory(weights_bytes: int) -> Check:
    """Compare the free memory with what a release takes at its peak, all processes together.

    The sample release (91 MB of weights) takes 2.6 GB, most of it libraries; an export holds the weights four times.
    """
    needed = 2.2e9 + 4 * weights_bytes
    free = _read_free_memory()
    found = f"about {needed / 1e9:.1f} GB needed" + ("" if free is None else f", {free / 1e9:.1f} GB free")
    short = free is not None and free < needed
    return Check("memory", found, warning=f"{found}: close other programs, or release elsewhere" if short else "")


def _read_free_memory() -> int | None:
    """Return MemAvailable of /proc/meminfo in bytes (man 5 proc_meminfo), or None where there is no such file."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
