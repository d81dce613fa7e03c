"""What an engine answered to each evaluation row, as numbers: a row's scores and, where it has one, its label.

Kept with the engine's run, so that two engines can be compared row by row on any machine. Never a row's text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import TypeAdapter, ValidationError

from calibration_data.reader import Rows
from registry.errors import EngineryError
from tasks.model_tasks.contract import Answers, Metric
from tasks.model_tasks.scores import score_labels
from tasks.verdicts.intervals import Numbers, PairedLoss, compare_scores, find_changed

ROW_RESULTS_FILE = "answers.json"
# More numbers of a row say nothing to a reader.
MOST_SHOWN = 6
RowScores = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class RowResults:
    """The scores [rows, numbers] of the judged metric, the engine's and its fp32 reference's; rows are as drawn.

    The labels are those of tasks with one label a row, as the model numbers them, and empty for other tasks.
    `evaluation_set` is the digest of the rows; `groups` number those that belong together, and are empty where none do.
    `first_set` and `first_rows` are the digest and the count of those that it was judged on first, where they left it
    undecided: the first of these rows.
    """

    evaluation_set: str
    scores: RowScores
    reference_scores: RowScores
    labels: tuple[int, ...] = ()
    reference_labels: tuple[int, ...] = ()
    truth: tuple[int, ...] = ()
    groups: tuple[int, ...] = ()
    first_set: str | None = None
    first_rows: int | None = None

    @property
    def numbers(self) -> Numbers:
        """The engine's scores as an array, float64 [rows, numbers]."""
        return np.array(self.scores, dtype=np.float64)


@dataclass(frozen=True)
class Flip:
    """A row that two engines answer differently; `truth` is "" where a row has no label."""

    row: int
    before: str
    after: str
    truth: str


@dataclass(frozen=True)
class ClassChange:
    """How many of the rows of a class were right before and after."""

    name: str
    rows: int
    before: int
    after: int


ROW_RESULTS: TypeAdapter[RowResults] = TypeAdapter(RowResults)


def make_row_results(metric: Metric, answers: Answers, exact: Answers, rows: Rows) -> RowResults:
    """Score an engine's answers and those of the fp32 graph, by the metric that is judged."""
    before, after = (_to_tuples(metric.score(each, rows.targets, exact)) for each in (exact, answers))
    groups = tuple(np.unique(np.asarray(rows.groups), return_inverse=True)[1].tolist())
    results = RowResults(rows.digest, after, before, groups=groups)
    if metric.score is not score_labels:
        return results
    truth = tuple(int(target) for target in rows.targets)
    return replace(results, labels=_first_labels(answers), reference_labels=_first_labels(exact), truth=truth)


def parse_row_results(raw: bytes, whose: str) -> RowResults:
    """Parse the file that a release kept of an engine; `whose` names it.

    Raises:
        EngineryError: it is another file.
    """
    try:
        return ROW_RESULTS.validate_json(raw)
    except ValidationError as error:
        raise EngineryError(
            f"{ROW_RESULTS_FILE} in the run of {whose} is not what a release writes: release it again"
        ) from error


def reference_of(results: RowResults) -> RowResults:
    """Return what the fp32 reference answered, as the results of an engine."""
    return replace(results, scores=results.reference_scores, labels=results.reference_labels)


def find_shared(before: RowResults, after: RowResults) -> tuple[RowResults, RowResults] | None:
    """Return both engines' answers to the rows that both answered; None where they are of other rows."""
    for one, other in ((before, after), (cut_to_first(before), after), (before, cut_to_first(after))):
        if one.evaluation_set == other.evaluation_set:
            return one, other
    first = cut_to_first(before), cut_to_first(after)
    return first if first[0].evaluation_set == first[1].evaluation_set else None


def cut_to_first(results: RowResults) -> RowResults:
    """Return an engine's answers to the rows that it was judged on first."""
    if results.first_set is None:
        return results
    lists = ("scores", "reference_scores", "labels", "reference_labels", "truth", "groups")
    cut = {name: getattr(results, name)[: results.first_rows] for name in lists}
    return replace(results, evaluation_set=results.first_set, first_set=None, first_rows=None, **cut)


def compare_results(metric: Metric, before: RowResults, after: RowResults) -> PairedLoss | None:
    """Return what `after` loses against `before` on the rows that both answered; None where there are none."""
    if (shared := find_shared(before, after)) is None:
        return None
    before, after = shared
    better, groups = metric.higher_is_better, [str(group) for group in after.groups]
    return compare_scores(
        before.numbers,
        after.numbers,
        metric.aggregate,
        higher_is_better=better,
        groups=groups,
        changes=metric.changes,
    )


def list_flips(metric: Metric, before: RowResults, after: RowResults, classes: Sequence[str]) -> tuple[Flip, ...]:
    """List the rows whose label changed, or whose scores did where rows have no label; both over the same rows."""
    if before.labels and after.labels:
        pairs = enumerate(zip(before.labels, after.labels, after.truth, strict=True))
        return tuple(
            Flip(row, *(_name_class(classes, label) for label in labels))
            for row, labels in pairs
            if labels[0] != labels[1]
        )
    old, new = before.numbers, after.numbers
    changed = np.flatnonzero((metric.changes or find_changed)(old, new))
    return tuple(Flip(int(row), _show(metric, old[row]), _show(metric, new[row]), "") for row in changed)


def count_by_class(before: RowResults, after: RowResults, classes: Sequence[str]) -> tuple[ClassChange, ...]:
    """Count the rows of each class that are right, the class that lost most first; nothing where rows have no label."""
    truth, old, new = (np.array(labels) for labels in (after.truth, before.labels, after.labels))
    if not truth.size or not old.size:
        return ()
    changes = [
        ClassChange(
            _name_class(classes, number),
            int((truth == number).sum()),
            int(((truth == number) & (old == number)).sum()),
            int(((truth == number) & (new == number)).sum()),
        )
        for number in np.unique(truth).tolist()
    ]
    return tuple(sorted(changes, key=lambda change: ((change.after - change.before) / change.rows, change.name)))


def _first_labels(answers: Answers) -> tuple[int, ...]:
    return tuple(int(label) for label in np.asarray(answers).reshape(len(answers), -1)[:, 0])


def _to_tuples(scores: Numbers) -> RowScores:
    return tuple(tuple(float(number) for number in row) for row in scores)


def _name_class(classes: Sequence[str], number: int) -> str:
    return classes[number] if 0 <= number < len(classes) else str(number)


def _show(metric: Metric, scores: Numbers) -> str:
    """Return a row's numbers, or where they are many the figure of this row alone."""
    if len(scores) > MOST_SHOWN:
        return f"{metric.name} {metric.figure(scores[None]):.4g}"
    return ", ".join(f"{number:.4g}" for number in scores)
