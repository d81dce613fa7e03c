"""The columns of a split: their names, what they hold, and their first values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from calibration_data.forms import read_quietly, read_split
from calibration_data.splits import Split


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


def read_columns(split: Split, rows: int) -> tuple[Column, ...]:
    """Read the columns of a split, with the first `rows` values of each.

    Raises:
        BadInput: it cannot be read.
    """
    table = read_quietly(lambda: read_split(split))
    values = table[:rows]
    return tuple(
        Column(name, table.num_rows, getattr(feature, "dtype", "") in ("string", "large_string"), values[name])
        for name, feature in table.features.items()
    )
