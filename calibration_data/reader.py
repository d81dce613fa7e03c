"""Read splits with `datasets`, draw calibration rows, and refuse rows that would poison a figure.

`datasets` is imported where rows are read: it brings pandas, a second that a worker, who gets its rows, does not pay.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from calibration_data.columns import UnreadFile, flatten_columns, read_column
from calibration_data.forms import read_parquet, read_quietly, read_split
from calibration_data.splits import DatasetRef, check_rows, find_split
from registry.digest import digest_of, record_tree
from registry.errors import BadInput
from registry.records import CalibrationSet

if TYPE_CHECKING:
    from datasets import Dataset

# Fewer rows cannot tell a good scale from a lucky one.
FEWEST_CALIBRATION_ROWS = 8
FEWEST_EVALUATION_ROWS = 50
# The name of the column that says which rows belong together; no task reads it.
GROUP = "group"
# Above this share of unusable rows the column, and not the row, is wrong.
MOST_QUARANTINED = 0.2


@dataclass(frozen=True)
class Rows:
    """Usable rows of one split, as (input, target); `quarantined` rows were unusable.

    `classes` are the names that the dataset gives to its targets, where it does. `groups` say which rows belong
    together, such as the questions of one document; empty where the recipe names no column for it. `first_unusable`
    says of the first row that was unusable which it is, and why.
    """

    inputs: tuple[Any, ...]
    targets: tuple[Any, ...]
    classes: tuple[str, ...] | None
    quarantined: int
    digest: str
    source: str = field(compare=False, default="")
    groups: tuple[str, ...] = ()
    first_unusable: str = field(compare=False, default="")


class RowReader(Protocol):
    """How a model task reads a dataset's rows (tasks/model_tasks/contract.py)."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The task's names for the columns, the target's last."""

    @property
    def row_needs(self) -> str:
        """What a usable row has, for an error."""

    def read_row(self, row: Mapping[str, Any], classes: Sequence[str] | None) -> tuple[Any, Any] | None:
        """Return (input, target) of a row by the task's names of columns, or None where it is unusable."""

    def explain_row(self, row: Mapping[str, Any]) -> str:
        """Return what is wrong with a row that `read_row` refused, and what to do."""

    def identify(self, row_input: Any) -> str:
        """Return what two inputs that are the same row have in common."""


def load_split(
    ref: DatasetRef, reader: RowReader, split: str, *, samples: int | None = None, seed: int = 0, fewest: int = 1
) -> Rows:
    """Return the usable rows of a split; with `samples`, that many drawn with `seed` (shuffle, then the first).

    Rows that are drawn together (`ref.drawn_by`) are groups too; only the last that is drawn may lack some of its rows.

    Raises:
        BadInput: no such dataset, split or column; too few rows; more than a fifth of the rows unusable.
    """
    usable, about = _read_usable(ref, reader, split)
    if samples is not None and samples < len(usable):
        usable = _shuffle(ref, usable, seed)[:samples]
    if len(usable) < fewest:
        raise BadInput(f"{ref.origin} split {split!r} gives {len(usable)} usable rows; at least {fewest} are needed")
    return _make_rows(ref, usable, about)


def draw_behind(
    ref: DatasetRef,
    reader: RowReader,
    split: str,
    *,
    after: int,
    samples: int,
    seed: int,
    apart_from: Sequence[Any],
) -> Rows:
    """Return up to `samples` rows behind the first `after` that `load_split` draws with `seed`; perhaps none.

    No input of `apart_from` is among them: a choice is not made on rows that it was made with, or is judged on.

    Raises:
        BadInput: no such dataset, split or column; more than a fifth of the rows unusable.
    """
    usable, about = _read_usable(ref, reader, split)
    known = {reader.identify(row_input) for row_input in apart_from}
    rest = _shuffle(ref, usable, seed)[after:] if after < len(usable) else []
    rows = [row for row in rest if reader.identify(row.input) not in known][:samples]
    return _make_rows(ref, rows, about)


class _Row(NamedTuple):
    """A usable row."""

    input: Any
    target: Any
    group: str | None


class _About(NamedTuple):
    """What is known of a split beside its usable rows."""

    classes: Sequence[str] | None
    quarantined: int
    first_unusable: str


def _read_usable(ref: DatasetRef, reader: RowReader, split: str) -> tuple[list[_Row], _About]:
    """Return the usable rows, and what is known beside them."""
    table = _flatten(_open(ref, split), [column for _, column in ref.columns])
    if missing := [column for _, column in ref.columns if column not in table.column_names]:
        raise BadInput(
            f"{ref.origin} split {split!r} has no column {', '.join(missing)}: it has {', '.join(table.column_names)}"
        )
    check_rows(f"{ref.origin} split {split!r}", table.num_rows)
    classes = _read_class_names(table.features[ref.columns[-1][1]])
    names = [name for name, _ in ref.columns]
    folder = None if ref.is_hub else Path(ref.origin)
    columns = [read_column(table, name, column, folder) for name, column in ref.columns]
    every = [dict(zip(names, values, strict=True)) | dict(ref.constants) for values in zip(*columns, strict=True)]
    rows = [_read_row(row, reader, classes, ref.drawn_by) for row in every]
    usable = [row for row in rows if row is not None]
    quarantined = len(every) - len(usable)
    first = rows.index(None) if quarantined else 0
    why = f"in row {first} {_explain(every[first], reader)}" if quarantined else ""
    if quarantined > MOST_QUARANTINED * len(every):
        raise BadInput(
            f"{quarantined} of {len(every)} rows of {ref.origin} split {split!r} lack {reader.row_needs}; {why}"
        )
    return usable, _About(classes, quarantined, why)


def _flatten(table: "Dataset", columns: Sequence[str]) -> "Dataset":
    """Give a column of mappings a column for each of their fields, where one of `columns` is not there as it is."""
    return table if {*columns} <= {*table.column_names} else flatten_columns(table)


def _read_row(
    row: dict[str, Any], reader: RowReader, classes: Sequence[str] | None, drawn_by: str | None
) -> _Row | None:
    group = row.pop(GROUP, None) if drawn_by is None else row[drawn_by]
    pair = reader.read_row(row, classes)
    return None if pair is None else _Row(*pair, None if group is None else str(group))


def _explain(row: Mapping[str, Any], reader: RowReader) -> str:
    unread = next((value for value in row.values() if isinstance(value, UnreadFile)), None)
    return reader.explain_row(row) if unread is None else unread.problem


def _read_class_names(feature: Any) -> Sequence[str] | None:
    """Return the names of a ClassLabel, or of a list of them."""
    names: Sequence[str] | None = getattr(getattr(feature, "feature", feature), "names", None)
    return names


def _shuffle(ref: DatasetRef, rows: Sequence[_Row], seed: int) -> list[_Row]:
    """Return the rows in another order; those that are drawn together stay beside each other."""
    from datasets import Dataset

    together: dict[Any, list[_Row]] = {}
    for at, row in enumerate(rows):
        together.setdefault(at if ref.drawn_by is None else row.group, []).append(row)
    parts = list(together.values())
    order = Dataset.from_dict({"part": range(len(parts))}).shuffle(seed=seed)["part"]
    return [row for at in order for row in parts[at]]


def _make_rows(ref: DatasetRef, rows: Sequence[_Row], about: _About) -> Rows:
    """Make rows with their digest; a row without a group is one of its own."""
    inputs, targets = tuple(row.input for row in rows), tuple(row.target for row in rows)
    groups: tuple[str, ...] = ()
    if ref.drawn_by or GROUP in dict(ref.columns):
        groups = tuple(f"row {at}" if row.group is None else f"group {row.group}" for at, row in enumerate(rows))
    digest = digest_of((inputs, targets, groups) if groups else (inputs, targets))
    classes = tuple(about.classes) if about.classes else None
    return Rows(inputs, targets, classes, about.quarantined, digest, ref.origin, groups, about.first_unusable)


def join_rows(first: Rows, rest: Rows) -> Rows:
    """Return the rows of both draws of one split, in this order."""
    names = [*first.groups, *rest.groups]
    groups = tuple(name if name.startswith("group ") else f"row {at}" for at, name in enumerate(names))
    return replace(
        first,
        inputs=(*first.inputs, *rest.inputs),
        targets=(*first.targets, *rest.targets),
        digest=digest_of((first.digest, rest.digest)),
        groups=groups,
    )


def _open(ref: DatasetRef, split: str) -> "Dataset":
    import datasets

    if not ref.is_hub:
        found = find_split(Path(ref.origin), split)
        return read_quietly(lambda: read_split(found))
    return read_quietly(lambda: datasets.load_dataset(ref.origin, ref.subset, split=split, revision=ref.revision))


def refuse_overlap(reader: RowReader, calibration: Sequence[Any], evaluation: Sequence[Any]) -> None:
    """Refuse calibration rows that are also in the evaluation split.

    Raises:
        BadInput: some are, with how many and one of them.
    """
    shared = sorted({*map(reader.identify, calibration)} & {*map(reader.identify, evaluation)})
    if shared:
        raise BadInput(
            f"{len(shared)} calibration rows also stand in the evaluation split (as {shared[0][:60]!r}): an engine "
            "may not be judged on what it was calibrated with; draw from another split"
        )


def draw_calibration_set(
    ref: DatasetRef, reader: RowReader, split: str, *, samples: int, seed: int, evaluation: Rows, into: Path
) -> CalibrationSet:
    """Draw `samples` rows and keep them as rows.parquet under `into`.

    Raises:
        BadInput: too few rows, or overlap with the evaluation rows.
    """
    rows = load_split(ref, reader, split, samples=samples, seed=seed, fewest=FEWEST_CALIBRATION_ROWS)
    refuse_overlap(reader, rows.inputs, evaluation.inputs)
    read_quietly(lambda: _write(rows, into / "rows.parquet"))
    return CalibrationSet(
        name=f"{split}-{len(rows.inputs)}-{seed}",
        dataset=ref.origin,
        revision=ref.revision or rows.digest,
        split=split,
        columns=tuple(column for _, column in ref.columns),
        seed=seed,
        samples=len(rows.inputs),
        quarantined=rows.quarantined,
        digest=rows.digest,
        files=record_tree(into),
        directory=into,
    )


def _write(rows: Rows, file: Path) -> "Dataset":
    from datasets import Dataset

    table = Dataset.from_dict({"input": rows.inputs, "target": rows.targets})
    table.to_parquet(file)
    return table


def read_calibration_inputs(calibration: CalibrationSet) -> tuple[Any, ...]:
    """Return the inputs of a drawn calibration set, in the order drawn."""
    table = read_quietly(lambda: read_parquet(calibration.directory / "rows.parquet"))
    return tuple(table[table.column_names[0]])
