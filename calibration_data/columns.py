"""The columns of a split: their names, what they hold, and their first values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from calibration_data.forms import read_quietly, read_split
from calibration_data.splits import Split

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Column:
    """A column of a split with `rows` rows; `values` are the first of them."""

    name: str
    rows: int
    is_text: bool
    values: Sequence[Any]

    @property
    def mean_length(self) -> float:
        """The mean number of characters of the values that are texts."""
        lengths = [len(value) for value in self.values if isinstance(value, str)]
        return sum(lengths) / len(lengths) if lengths else 0.0


def flatten_columns(table: "Dataset") -> "Dataset":
    """Return a table with a column for each field of a column of mappings, or of lists of them, named with a dot.

    `objects: {bbox, category}` becomes `objects.bbox` and `objects.category`, lists where `objects` is a list.
    """
    from datasets import Dataset, Features, List, concatenate_datasets

    for name, feature in table.features.items():
        inner = feature.feature if isinstance(feature, List) else None
        if isinstance(feature, dict):
            flat = table.select_columns([name]).flatten()
        elif isinstance(inner, dict):
            fields = {f"{name}.{field}": List(kind) for field, kind in inner.items()}
            rows = table[name]
            columns = {
                f"{name}.{field}": [None if row is None else [each[field] for each in row] for row in rows]
                for field in inner
            }
            flat = Dataset.from_dict(columns, features=Features(fields))
        else:
            continue
        table = concatenate_datasets([table.remove_columns(name), flat], axis=1)
    return table


def read_columns(split: Split, rows: int) -> tuple[Column, ...]:
    """Read the columns of a split, with the first `rows` values of each.

    Raises:
        BadInput: it cannot be read.
    """
    table = flatten_columns(read_quietly(lambda: read_split(split)))
    values = table[:rows]
    return tuple(
        Column(name, table.num_rows, getattr(feature, "dtype", "") in ("string", "large_string"), values[name])
        for name, feature in table.features.items()
    )
