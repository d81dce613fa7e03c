"""Read a folder's split, in whichever form it is, as a `datasets.Dataset` whose images and audio are not decoded.

Nothing goes through the cache of `datasets`: it goes by path and mtime, and gives the old rows of a file replaced in
place.
"""

import csv
import errno
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration_data.splits import MASK_FOLDERS, Form, Split, check_bytes, check_rows
from registry.errors import BadInput, first_line

if TYPE_CHECKING:
    from datasets import Dataset

# The csv module's own limit, 131,072, is shorter than texts that are read.
_LONGEST_FIELD = 2**31 - 1


def read_split(split: Split) -> "Dataset":
    """Read all rows of a split.

    Raises:
        BadInput: too many rows or bytes; a torn row, another encoding, a line that is no JSON object.
    """
    from datasets import Audio, Image

    table = _READERS[split.form](split)
    for name, feature in table.features.items():
        if isinstance(feature, Audio | Image):
            table = table.cast_column(name, type(feature)(decode=False))
    return table


def read_parquet(file: Path) -> "Dataset":
    """Read a Parquet file with its own schema.

    Raises:
        BadInput: too many rows or bytes.
    """
    import pyarrow.parquet

    metadata = pyarrow.parquet.read_metadata(file)
    check_rows(str(file), metadata.num_rows)
    check_bytes(file, sum(metadata.row_group(at).total_byte_size for at in range(metadata.num_row_groups)))
    return _make_dataset(pyarrow.parquet.read_table(file, partitioning=None))


def _make_dataset(table: Any) -> "Dataset":
    """Wrap a table without a digest of it, which pickles all its rows for a cache that is not used."""
    from datasets import Dataset
    from datasets.fingerprint import generate_random_fingerprint

    return Dataset(table, fingerprint=generate_random_fingerprint())


def read_quietly(read: Callable[[], "Dataset"]) -> "Dataset":
    """Call what reads or writes rows, without bars, and with one sentence for what a library raises.

    Raises:
        BadInput: the rows cannot be read.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        return read()
    except BadInput:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # nothing is wrong with the dataset
        raise BadInput(f"the dataset cannot be read: {error.__class__.__name__}: {first_line(error)}") from error


def _read_delimited(file: Path, delimiter: str) -> "Dataset":
    """Read a file of texts: a column has no type, and the task decides what its texts are."""
    csv.field_size_limit(_LONGEST_FIELD)
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            lines = csv.reader(opened, delimiter=delimiter, strict=True)
            header = next(filter(None, lines), [])
            if twice := next((name for name in header if header.count(name) > 1), None):
                raise BadInput(f"{file} has two columns named {twice!r}: rename one of them")
            columns: list[list[str]] = [[] for _ in header]
            for fields in lines:
                _add_fields(file, lines.line_num, columns, fields)
    except UnicodeDecodeError as error:
        raise _not_utf8(file) from error
    except csv.Error as error:
        raise BadInput(
            f"{file} is torn near line {lines.line_num} ({error}): put a field with quotes in it into quotes, and "
            "double those within"
        ) from error
    return _make_table(dict(zip(header, columns, strict=True)))


def _add_fields(file: Path, line: int, columns: list[list[str]], fields: list[str]) -> None:
    if fields and len(fields) != len(columns):
        raise BadInput(
            f"{file} is torn at line {line}: it has {len(fields)} fields, and the header {len(columns)}; put fields "
            "with separators or line ends in them into quotes"
        )
    for column, field in zip(columns, fields, strict=False):  # an empty line has none
        column.append(field)
    check_rows(str(file), len(columns[0]) if columns else 0)


def _read_json(file: Path) -> "Dataset":
    columns: dict[str, list[Any]] = {}
    rows = 0
    try:
        for row in _read_objects(file):
            columns |= {name: [None] * rows for name in row if name not in columns}
            for name, column in columns.items():
                column.append(row.get(name))
            rows += 1
            check_rows(str(file), rows)
    except UnicodeDecodeError as error:
        raise _not_utf8(file) from error
    if not rows:
        raise BadInput(f"{file} is empty: write its rows again")
    return _make_table(columns)


def _read_objects(file: Path) -> Iterator[Mapping[str, Any]]:
    """Read the objects of a JSON array, or of JSON lines."""
    with file.open(encoding="utf-8-sig", newline="\n") as opened:
        start = next((line for line in opened if line.strip()), "")
    if start.lstrip().startswith("["):
        for number, value in enumerate(_read_array(file, file.read_text(encoding="utf-8-sig"))):
            yield _check_object(value, f"{file} entry {number}")
        return
    with file.open(encoding="utf-8-sig", newline="\n") as opened:
        for number, line in enumerate(opened, start=1):
            if line.strip():
                try:
                    value = json.loads(line)
                except ValueError:
                    value = None
                yield _check_object(value, f"{file} line {number}")


def _read_array(file: Path, text: str) -> Iterator[Any]:
    """Read the values of an array one by one: all at once take many times the text's memory."""
    decoder, at = json.JSONDecoder(), text.index("[")
    try:
        while text[at] != "]":
            at = _skip_space(text, at + 1)
            if text[at] != "]":
                value, at = decoder.raw_decode(text, at)
                yield value
                at = _skip_space(text, at, expected=",]")
        is_whole = not text[at + 1 :].strip()
    except (ValueError, IndexError):
        is_whole = False
    if not is_whole:
        raise BadInput(f"{file} is a torn JSON array: write it again, or one object per line")


def _skip_space(text: str, at: int, *, expected: str = "") -> int:
    while text[at].isspace():
        at += 1
    if expected and text[at] not in expected:
        raise ValueError(text[at])
    return at


def _check_object(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadInput(f"{where} is no JSON object: write one object per line, or an array of objects")
    return value


def _read_saved(split: Split) -> "Dataset":
    from datasets import Dataset

    table = Dataset.load_from_disk(str(split.path), keep_in_memory=True)
    check_rows(str(split.path), table.num_rows)
    return table


def _read_media(split: Split) -> "Dataset":
    import pyarrow
    from datasets import Audio, ClassLabel, Features, Image

    column, kind = ("image", Image) if split.form is Form.IMAGES else ("audio", Audio)
    media = [{"bytes": file.read_bytes(), "path": file.relative_to(split.path).as_posix()} for file in split.files]
    numbers = {name: number for number, name in enumerate(split.classes)}
    labels = [numbers[file.parent.name] for file in split.files]
    features = Features({column: kind(decode=False), "label": ClassLabel(names=list(split.classes))})
    # Not Dataset.from_dict: it asks for the decoders of audio, though nothing is decoded.
    return _make_dataset(pyarrow.table({column: media, "label": labels}, schema=features.arrow_schema))


def _read_masked(split: Split) -> "Dataset":
    """Pair images with the masks of the same names; an image without one has none.

    Raises:
        BadInput: two images or masks of one name, or a mask without its image.
    """
    import pyarrow
    from datasets import Features, Image

    images, masks = ({file.stem: file for file in split.files if file.parent.name == name} for name in MASK_FOLDERS)
    if len(images) + len(masks) < len(split.files):
        twice = next(file for file in split.files if file not in (images.get(file.stem), masks.get(file.stem)))
        raise BadInput(f"{twice} is not the only file of that name: keep one of them")
    if lonely := sorted(masks.keys() - images.keys()):
        raise BadInput(f"{masks[lonely[0]]} is the mask of no image: name masks as their images, or take it out")

    def read(file: Path | None) -> dict[str, Any] | None:
        return None if file is None else {"bytes": file.read_bytes(), "path": file.relative_to(split.path).as_posix()}

    columns = {
        "image": [read(file) for file in images.values()],
        "mask": [read(masks.get(name)) for name in images],
    }
    features = Features({name: Image(decode=False) for name in columns})
    return _make_dataset(pyarrow.table(columns, schema=features.arrow_schema))


def _make_table(columns: Mapping[str, list[Any]]) -> "Dataset":
    import pyarrow

    return _make_dataset(pyarrow.table(dict(columns)))


def _not_utf8(file: Path) -> BadInput:
    return BadInput(f"{file} is not UTF-8: save it in that encoding")


_READERS: Mapping[Form, Callable[[Split], "Dataset"]] = {
    Form.PARQUET: lambda split: read_parquet(split.path),
    Form.CSV: lambda split: _read_delimited(split.path, ","),
    Form.TSV: lambda split: _read_delimited(split.path, "\t"),
    Form.JSON: lambda split: _read_json(split.path),
    Form.SAVED: _read_saved,
    Form.IMAGES: _read_media,
    Form.AUDIO: _read_media,
    Form.MASKS: _read_masked,
}
