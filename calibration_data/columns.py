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
    from datasets import Dataset, List, concatenate_datasets

    flat = table.flatten()
    for name, feature in table.features.items():
        fields = feature.feature if isinstance(feature, List) else None
        if isinstance(fields, dict):
            rows = table[name]
            for field, kind in fields.items():
                values = [None if row is None else [each[field] for each in row] for row in rows]
                column = Dataset.from_dict({f"{name}.{field}": values})
                column = column.cast_column(f"{name}.{field}", List(kind))
                flat = concatenate_datasets([flat, column], axis=1)
            flat = flat.remove_columns(name)
    return flat


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
