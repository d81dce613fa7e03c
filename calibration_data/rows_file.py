"""Rows as a file that can be sent: Parquet, which holds texts, lists, numbers and the bytes of images alike.

Written with pyarrow alone: `datasets` brings pandas, a second that a worker, who gets its rows, does not pay.
"""

import json
from pathlib import Path

from calibration_data.reader import Rows
from calibration_data.splits import check_bytes, check_rows
from registry.errors import BadInput

# Where the schema keeps what is not of one row.
_ABOUT = b"enginery"


def write_rows(rows: Rows, file: Path) -> None:
    """Write rows with what is known of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    about = {name: value for name, value in vars(rows).items() if name not in ("inputs", "targets", "groups")}
    columns = {"input": list(rows.inputs), "target": list(rows.targets)}
    columns |= {"group": list(rows.groups)} if rows.groups else {}
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata({_ABOUT: json.dumps(about).encode()}), file)


def read_rows(file: Path) -> Rows:
    """Read what `write_rows` wrote; what was a tuple of a row is a list.

    Raises:
        BadInput: it is not such a file, or too large.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(file)
        check_rows(str(file), metadata.num_rows)
        check_bytes(file, sum(metadata.row_group(at).total_byte_size for at in range(metadata.num_row_groups)))
        table = pq.read_table(file, partitioning=None)
        about = json.loads(table.schema.metadata[_ABOUT])
        columns = {name: tuple(table[name].to_pylist()) for name in table.column_names}
        classes = about.pop("classes")
        return Rows(
            inputs=columns["input"],
            targets=columns["target"],
            groups=columns.get("group", ()),
            classes=None if classes is None else tuple(classes),
            **about,
        )
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{file} holds no rows: send them again") from error
