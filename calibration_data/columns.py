"""The columns of a split: their names, their first values, and the files of images and audio that they name.

A value that names a file is hostile until checked: only files in the folder of the split are read.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration_data.forms import read_quietly, read_split
from calibration_data.splits import FILE_FORMS, DatasetRef, Form, Split, check_bytes, find_split
from registry.digest import digest_of, file_sha256

if TYPE_CHECKING:
    from datasets import Dataset

# The tasks' names of columns that hold files, or name them.
MEDIA_COLUMNS = ("image", "mask", "audio")


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


@dataclass(frozen=True)
class UnreadFile:
    """A file that a row names and that may not be read, or is not there; `problem` says why."""

    problem: str


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
    """Read the columns of a split, and behind them those of mappings whole, with the first `rows` values of each.

    Raises:
        BadInput: it cannot be read.
    """
    table = read_quietly(lambda: read_split(split))
    flat = flatten_columns(table)
    features = {**flat.features, **table.features}
    values = {**flat[:rows], **table[:rows]}
    return tuple(
        Column(name, table.num_rows, getattr(feature, "dtype", "") in ("string", "large_string"), values[name])
        for name, feature in features.items()
    )


def read_column(table: "Dataset", name: str, column: str, folder: Path | None) -> Iterable[Any]:
    """Return the values of a column; those of images or audio as the bytes of their files, not decoded.

    `name` is the task's. `folder` is that of the split, whose rows may name files in it; None of a hub's dataset, whose
    rows have only files that `datasets` made.
    """
    import datasets

    feature = table.features[column]
    if isinstance(feature, datasets.Image | datasets.Audio):
        table = table.cast_column(column, type(feature)(decode=False))
    values: Iterable[Any] = table[column]
    if name not in MEDIA_COLUMNS:
        return values
    values = [_take_file(value, is_local=folder is not None) for value in values]
    return values if folder is None else read_named_files(values, folder)


def _take_file(value: Any, *, is_local: bool) -> Any:
    """Return the bytes of a file that a dataset holds, or the name of one that it does not; else the value."""
    if not isinstance(value, dict):
        return value
    content, path = value.get("bytes"), value.get("path")
    if content is not None or not isinstance(path, str):
        return value if content is None else content
    return path if is_local else _read_downloaded(path)


def _read_downloaded(path: str) -> bytes | UnreadFile:
    """Return the bytes of a file that `datasets` downloaded: the rows of a hub's dataset may name any other one too."""
    import datasets
    import huggingface_hub

    for cache in (datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE):
        file = find_named_file(path, Path(cache))
        if isinstance(file, Path):
            return file.read_bytes()
    return UnreadFile(f"the file {path!r:.120} did not come with the dataset: take a dataset that holds its files")


def find_named_file(name: str, folder: Path) -> Path | UnreadFile:
    """Return the file that a row names, relative to the folder of its split, where it is a plain file in there."""
    shown = f"the file {name!r:.120}"
    try:
        file = (folder / name).resolve()
        is_file = file.is_file()
    except (OSError, ValueError):
        return UnreadFile(f"{shown} has a name that cannot be one: give its path from {folder}")
    if ".." in Path(name).parts or not file.is_relative_to(folder.resolve()):
        return UnreadFile(f"{shown} lies outside of {folder}: copy it there, and give its path from there")
    return file if is_file else UnreadFile(f"{shown} is not in {folder}: give its path from there")


def read_named_files(names: Sequence[Any], folder: Path) -> Iterable[Any]:
    """Yield the bytes of each named file, an `UnreadFile` in place of one that is not read, and others as they are.

    Raises:
        BadInput: together they have more bytes than are read.
    """
    found = [find_named_file(name, folder) if isinstance(name, str) else name for name in names]
    check_bytes(folder, sum(file.stat().st_size for file in found if isinstance(file, Path)))
    return (file.read_bytes() if isinstance(file, Path) else file for file in found)


def split_revision(ref: DatasetRef, split: str) -> str:
    """Return what identifies a split's bytes without reading its rows.

    That is a file's sha256, with those of the images or audio that its rows name; the digest of a folder's names and
    sha256s; or the hub commit.

    Raises:
        BadInput: no such split, or not in one form, or too large.
    """
    if ref.is_hub:
        return f"{ref.revision}/{ref.subset}" if ref.subset else str(ref.revision)
    found = find_split(Path(ref.origin), split)
    if found.files == (found.path,):
        own, named = file_sha256(found.path), _list_named_files(ref, found)
        return digest_of((own, named)) if named else own
    files = [(file.relative_to(found.path).as_posix(), file_sha256(file)) for file in found.files]
    return digest_of((found.classes, files))


def _list_named_files(ref: DatasetRef, split: Split) -> list[tuple[str, str]]:
    """List the files that the rows name in columns of files, each with its sha256."""
    wanted = [column for name, column in ref.columns if name in MEDIA_COLUMNS]
    if not wanted or split.form not in FILE_FORMS.values():
        return []
    if split.form is Form.PARQUET:
        names = read_quietly(lambda: _read_names(split.path, wanted))
    else:
        table = read_quietly(lambda: read_split(split))
        names = [value for column in wanted if column in table.column_names for value in table[column]]
    folder = split.path.parent
    files = {find_named_file(name, folder) for name in names if isinstance(name, str)}
    found = sorted(file for file in files if isinstance(file, Path))
    return [(file.relative_to(folder.resolve()).as_posix(), file_sha256(file)) for file in found]


def _read_names(file: Path, columns: Sequence[str]) -> list[Any]:
    """Read the texts of columns of a Parquet file, or the paths beside their bytes, which may fill the memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        schema = opened.schema_arrow
        kinds = {column: schema.field(column).type for column in columns if column in schema.names}
        texts = [column for column, kind in kinds.items() if pa.types.is_string(kind) or pa.types.is_large_string(kind)]
        paths = [
            column for column, kind in kinds.items() if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
        ]
        table = opened.read(columns=[*texts, *(f"{column}.path" for column in paths)])
    named = [value for column in texts for value in table[column].to_pylist()]
    return named + [value["path"] for column in paths for value in table[column].to_pylist() if value]
