"""The columns of a Parquet file: their names, what they hold, and their first values."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.errors import BadInput


@dataclass(frozen=True)
class Column:
    """A column of a file with `rows` rows; `values` are the first of them."""

    name: str
    rows: int
    is_text: bool
    values: Sequence[Any]

    @property
    def mean_length(self) -> float:
        """The mean number of characters of the values that are texts."""
        lengths = [len(value) for value in self.values if isinstance(value, str)]
        return sum(lengths) / len(lengths) if lengths else 0.0


def read_columns(file: Path, rows: int) -> tuple[Column, ...]:
    """Read the columns of a Parquet file, with the first `rows` values of each.

    Raises:
        BadInput: it is not a Parquet file.
    """
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            total = parquet.metadata.num_rows
            batch = next(parquet.iter_batches(batch_size=rows), None)
            columns = [(field.name, str(field.type)) for field in parquet.schema_arrow]
    except (OSError, ValueError) as error:
        raise BadInput(f"{file} cannot be read as Parquet: {str(error).splitlines()[0]}; write it again") from error
    values = batch.to_pydict() if batch is not None else {}
    return tuple(
        Column(name, total, kind in ("string", "large_string"), values.get(name, [])) for name, kind in columns
    )
