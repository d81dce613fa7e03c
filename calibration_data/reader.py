"""Read splits with `datasets`, draw calibration rows, and refuse rows that would poison a figure.

`datasets` is imported where rows are read: it brings pandas, a second that a worker, who gets its rows, does not pay.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from calibration_data.splits import DatasetRef, split_file
from registry.digest import digest_of, record_tree
from registry.errors import BadInput
from registry.records import CalibrationSet

if TYPE_CHECKING:
    from datasets import Dataset

# Fewer rows cannot tell a good scale from a lucky one.
FEWEST_CALIBRATION_ROWS = 8
FEWEST_EVALUATION_ROWS = 50
# Above this share of unusable rows the column, and not the row, is wrong.
MOST_QUARANTINED = 0.2


@dataclass(frozen=True)
class Rows:
    """Usable rows of one split; `quarantined` rows were empty, not text, or had no label of the dataset's classes."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    label_names: tuple[str, ...] | None
    quarantined: int
    digest: str
    source: str = field(compare=False, default="")


def load_split(ref: DatasetRef, split: str, *, samples: int | None = None, seed: int = 0, fewest: int = 1) -> Rows:
    """The usable rows of a split; with `samples`, that many drawn with `seed` (shuffle, then the first).

    Raises:
        BadInput: no such dataset, split or column; too few rows; more than a fifth of the rows unusable.
    """
    usable, names, quarantined = _usable(ref, split)
    if samples is not None and samples < len(usable):
        usable = _shuffled(usable, seed)[:samples]
    if len(usable) < fewest:
        raise BadInput(f"{ref.origin} split {split!r} gives {len(usable)} usable rows; at least {fewest} are needed")
    return _rows(ref, usable, names, quarantined)


def draw_holdout(
    ref: DatasetRef, split: str, *, after: int, samples: int, seed: int, apart_from: Sequence[str]
) -> Rows:
    """Up to `samples` rows behind the first `after` that `load_split` draws with `seed`; perhaps none.

    No text of `apart_from` is among them: a choice is not made on rows that it was made with, or is judged on.

    Raises:
        BadInput: no such dataset, split or column; more than a fifth of the rows unusable.
    """
    usable, names, quarantined = _usable(ref, split)
    known = {_plain(text) for text in apart_from}
    rest = _shuffled(usable, seed)[after:] if after < len(usable) else []
    return _rows(ref, [row for row in rest if _plain(row[0]) not in known][:samples], names, quarantined)


def _usable(ref: DatasetRef, split: str) -> tuple[list[tuple[str, int]], Sequence[str] | None, int]:
    """Rows with a text and a label, the names of the classes, and how many rows were refused."""
    table = _open(ref, split)
    missing = [column for column in (ref.text, ref.label) if column not in table.column_names]
    if missing:
        raise BadInput(
            f"{ref.origin} split {split!r} has no column {', '.join(missing)}: it has {', '.join(table.column_names)}"
        )
    names = getattr(table.features[ref.label], "names", None)
    classes = range(len(names) if names else 2**31)
    usable = [
        (text, label)
        for text, label in zip(table[ref.text], table[ref.label], strict=True)
        if isinstance(text, str) and text.strip() and isinstance(label, int) and label in classes
    ]
    quarantined = len(table) - len(usable)
    if quarantined > MOST_QUARANTINED * len(table):
        raise BadInput(
            f"{quarantined} of {len(table)} rows of {ref.origin} split {split!r} have no text or no label: "
            f"check the columns {ref.text!r} and {ref.label!r}"
        )
    return usable, names, quarantined


def _shuffled(rows: Sequence[tuple[str, int]], seed: int) -> list[tuple[str, int]]:
    from datasets import Dataset

    return [rows[at] for at in Dataset.from_dict({"row": range(len(rows))}).shuffle(seed=seed)["row"]]


def _rows(ref: DatasetRef, rows: Sequence[tuple[str, int]], names: Sequence[str] | None, quarantined: int) -> Rows:
    texts, labels = tuple(text for text, _ in rows), tuple(label for _, label in rows)
    return Rows(texts, labels, tuple(names) if names else None, quarantined, digest_of((texts, labels)), ref.origin)


def _open(ref: DatasetRef, split: str) -> "Dataset":
    import datasets

    if not ref.is_hub:
        file = split_file(ref, split)
        return _quietly(lambda: _parquet(file))
    return _quietly(lambda: datasets.load_dataset(ref.origin, split=split, revision=ref.revision))


def _parquet(file: Path) -> "Dataset":
    import pyarrow.parquet
    from datasets import Dataset

    # Not Dataset.from_parquet: its cache goes by path and mtime, and gives the old rows of a file replaced in place.
    return Dataset(pyarrow.parquet.read_table(file, partitioning=None))


def _quietly(read: Callable[[], "Dataset"]) -> "Dataset":
    import datasets

    datasets.disable_progress_bars()
    try:
        return read()
    except Exception as error:
        raise BadInput(f"the dataset cannot be read: {error.__class__.__name__}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def refuse_overlap(calibration: Sequence[str], evaluation: Sequence[str]) -> None:
    """Refuse calibration rows that also stand in the evaluation split.

    Raises:
        BadInput: some do, with how many and one of them.
    """
    if shared := sorted({_plain(text) for text in calibration} & {_plain(text) for text in evaluation}):
        raise BadInput(
            f"{len(shared)} calibration rows also stand in the evaluation split (as {shared[0][:60]!r}): an engine "
            "may not be judged on what it was calibrated with; draw from another split"
        )


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def draw_calibration_set(
    ref: DatasetRef, split: str, *, samples: int, seed: int, evaluation: Rows, into: Path
) -> CalibrationSet:
    """Draw `samples` rows and keep them as rows.parquet under `into`.

    Raises:
        BadInput: too few rows, or overlap with the evaluation rows.
    """
    rows = load_split(ref, split, samples=samples, seed=seed, fewest=FEWEST_CALIBRATION_ROWS)
    refuse_overlap(rows.texts, evaluation.texts)
    _quietly(lambda: _write(rows, into / "rows.parquet"))
    return CalibrationSet(
        name=f"{split}-{len(rows.texts)}-{seed}",
        dataset=ref.origin,
        revision=ref.revision or rows.digest,
        split=split,
        columns=(ref.text, ref.label),
        seed=seed,
        samples=len(rows.texts),
        quarantined=rows.quarantined,
        digest=rows.digest,
        files=record_tree(into),
        directory=into,
    )


def _write(rows: Rows, file: Path) -> "Dataset":
    from datasets import Dataset

    table = Dataset.from_dict({"text": rows.texts, "label": rows.labels})
    table.to_parquet(file)
    return table


def read_calibration_texts(calibration: CalibrationSet) -> tuple[str, ...]:
    """The texts of a drawn calibration set, in the order drawn."""
    table = _quietly(lambda: _parquet(calibration.directory / "rows.parquet"))
    return tuple(table["text"])
