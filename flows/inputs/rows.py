"""What a recipe names beside its checkpoint: rows to judge on, rows to fit a head on, and a calibration table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calibration_data.reader import FEWEST_EVALUATION_ROWS, Rows, draw_behind, join_rows, load_split
from flows.inputs.recipe import HeadSpec, Recipe
from registry.errors import BadInput
from registry.records import ModelSource
from tasks.model_tasks.texts.text_regression import ONE_RELEVANCE
from tasks.quantization.table import CalibrationTable, read_table

# Intervals from fewer clusters are too narrow (Cameron and Miller 2015: "few" is less than 20 to 50).
FEWEST_GROUPS = 20


def head_rows(recipe: Recipe, head: HeadSpec) -> Rows:
    """Return the rows that a head is fitted on.

    Raises:
        BadInput: no such split or column, or one that does not name its classes.
    """
    rows = load_split(recipe.dataset, recipe.model_task, head.split)
    if rows.classes is None:
        origin = recipe.dataset.origin
        raise BadInput(f"{origin} split {head.split!r} does not name its classes: store a ClassLabel column")
    return rows


def evaluation_rows(recipe: Recipe, source: ModelSource, processor: Path | None = None) -> Rows:
    """Return the rows that engines are judged on; they are compared with what the folder of the `processor` says.

    Raises:
        BadInput: too few rows, or targets that are not the model's, or so few groups that nothing can be proven.
    """
    spec, task = recipe.data.evaluation, recipe.model_task
    rows = load_split(
        recipe.dataset,
        task,
        spec.split,
        samples=spec.samples,
        seed=spec.seed,
        fewest=FEWEST_EVALUATION_ROWS,
    )
    rows = task.align_rows(rows, source)
    if processor is not None:
        task.check_rows(rows, source, processor)
    if rows.groups and (groups := len({*rows.groups} - {ONE_RELEVANCE})) < FEWEST_GROUPS:
        named = f"groups (data.group: {recipe.data.group})" if recipe.data.group else "queries that differ in relevance"
        raise BadInput(
            f"the evaluation rows are of {groups} {named}, and at least {FEWEST_GROUPS} are needed: name a column that "
            "tells more of them apart, or give more rows"
        )
    return rows


def more_evaluation_rows(recipe: Recipe, source: ModelSource, first: Rows, apart_from: Sequence[Any]) -> Rows | None:
    """Return the rows that engines are judged on which the first leave undecided: those, and the rows behind them.

    No input of `apart_from` is among the new ones. None where the recipe wants no more, or the split has not half as
    many again: a second look at so few rows would cost more than it proves.

    Raises:
        BadInput: as `evaluation_rows`.
    """
    spec, task = recipe.data.evaluation, recipe.model_task
    if spec.samples is None or spec.most is None or spec.most <= spec.samples:
        return None
    rest = draw_behind(
        recipe.dataset,
        task,
        spec.split,
        after=spec.samples,
        samples=spec.most - spec.samples,
        seed=spec.seed,
        apart_from=apart_from,
    )
    if 2 * len(rest.inputs) < len(first.inputs):
        return None
    return join_rows(first, task.align_rows(rest, source))


def golden_rows(recipe: Recipe, evaluation: Rows) -> Rows:
    """Return the rows of which some travel with each bundle: those that engines are judged on, or a split's.

    Raises:
        BadInput: no such split or column.
    """
    split = recipe.data.golden.split
    return evaluation if split is None else load_split(recipe.dataset, recipe.model_task, split)


def read_table_of(recipe: Recipe) -> CalibrationTable | None:
    """Read the table that the recipe reuses.

    Raises:
        BadInput: it cannot be read, or is not a calibration table.
    """
    name = recipe.data.calibration.table
    if name is None:
        return None
    try:
        return read_table(Path(name))
    except OSError as error:
        raise BadInput(f"data.calibration.table: {name} cannot be read: {error.strerror}; check the path") from error
