"""Which dataset, and in which form its splits are, without reading a row or `datasets`."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from registry.errors import BadInput
from registry.records import LATER

# Rows are kept in memory, and each is evaluated: 2,000,000 texts of 100 characters take 1 GB.
MOST_ROWS = 2_000_000
MOST_BYTES = 4 * 10**9


class Form(StrEnum):
    """How the rows of a split are stored."""

    PARQUET = "Parquet"
    CSV = "CSV"
    TSV = "TSV"
    JSON = "JSON"
    SAVED = "a saved dataset"
    IMAGES = "images in class folders"
    AUDIO = "audio in class folders"
    MASKS = "images and masks in two folders"


FILE_FORMS = {
    ".parquet": Form.PARQUET,
    ".csv": Form.CSV,
    ".tsv": Form.TSV,
    ".jsonl": Form.JSON,
    ".json": Form.JSON,
}
MEDIA_FORMS = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp", ".bmp"), Form.IMAGES),
    **dict.fromkeys((".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif"), Form.AUDIO),
}
# The folders of images and of their masks, which have the same names.
MASK_FOLDERS = ("images", "masks")
# What `save_to_disk` writes beside rows.
_SAVED_STATE = "state.json"
_SAVED_NOTES = frozenset({_SAVED_STATE, "dataset_dict.json", "dataset_info.json"})
# What desktops leave in folders.
_LITTER = frozenset({"thumbs.db", "desktop.ini"})


@dataclass(frozen=True)
class DatasetRef:
    """A dataset: a folder of splits, each in one of the forms, or a hub name at a revision, and of it a `subset`.

    `columns` are the model task's name and the dataset's name of each column that is read, the target's last; a dot
    leads into a column of mappings. `constants` are what the recipe says of every row.
    `drawn_by` is the task's name of the column whose rows of one value are drawn together, such as those of a query.
    """

    origin: str
    columns: tuple[tuple[str, str], ...]
    revision: str | None = None
    is_hub: bool = False
    subset: str | None = None
    constants: tuple[tuple[str, str], ...] = ()
    drawn_by: str | None = field(default=None, metadata=LATER)


@dataclass(frozen=True)
class Split:
    """A split of a folder: a file, or a folder of `files`; `classes` are the names of the folders in it."""

    path: Path
    form: Form
    files: tuple[Path, ...]
    classes: tuple[str, ...] = ()


def list_splits(folder: Path) -> tuple[str, ...]:
    """Return the names of a folder's splits, in order."""
    return tuple(sorted({_split_name(path) for path in _list_folder(folder) if _find_form(path)}))


def find_split(folder: Path, split: str) -> Split:
    """Return the files of a folder's split.

    Raises:
        BadInput: there is none, or two forms of it, or more bytes than are read, or a link out of the folder.
    """
    found = [path for path in _list_folder(folder) if _split_name(path) == split and _find_form(path)]
    if not found:
        there = ", ".join(list_splits(folder)) or "no splits"
        raise BadInput(
            f"{folder} has no split {split!r}: it has {there}; a split is a file {split}.parquet, .csv, .tsv, "
            ".jsonl or .json, a dataset saved to a folder, or a folder of class folders or of images and masks"
        )
    if len(found) > 1:
        names = " and ".join(sorted(path.name + "/" * path.is_dir() for path in found))
        raise BadInput(f"{folder} has the split {split!r} twice, as {names}: keep one of them")
    listed = _list_files(found[0])
    _refuse_links_out((found[0], *listed.files, *(found[0] / name for name in listed.classes)), folder)
    size = sum(file.stat().st_size for file in listed.files)
    if size == 0:
        raise BadInput(f"{found[0]} is empty: write its rows again")
    check_bytes(found[0], size)
    return listed


def check_bytes(path: Path, size: int) -> None:
    """Refuse a split of more bytes than fit into memory.

    Raises:
        BadInput: it is one.
    """
    if size > MOST_BYTES:
        raise BadInput(f"{path} holds {size} bytes, more than {MOST_BYTES}: make a smaller split of it")


def check_rows(name: str, rows: int) -> None:
    """Refuse a split of more rows than are read.

    Raises:
        BadInput: it is one.
    """
    if rows > MOST_ROWS:
        raise BadInput(f"{name} has more than {MOST_ROWS} rows: make a smaller split of it")


def _split_name(path: Path) -> str:
    return path.stem if path.suffix.lower() in FILE_FORMS and not path.is_dir() else path.name


def _find_form(path: Path) -> Form | None:
    """Return the form of a file or folder that can be a split."""
    if not path.is_dir():
        return FILE_FORMS.get(path.suffix.lower()) if path.is_file() and path.name not in _SAVED_NOTES else None
    if (path / _SAVED_STATE).is_file():
        return Form.SAVED
    if tuple(folder.name for folder in _list_folder(path) if folder.is_dir()) == MASK_FOLDERS:
        return Form.MASKS
    within = (file for folder in _list_folder(path) if folder.is_dir() for file in _list_folder(folder))
    return next((MEDIA_FORMS[file.suffix.lower()] for file in within if file.suffix.lower() in MEDIA_FORMS), None)


def _list_folder(folder: Path) -> list[Path]:
    """Return what is in a folder, by name, less what is hidden; nothing where it is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name[0] != "." and path.name.lower() not in _LITTER)


def _list_files(path: Path) -> Split:
    form = _find_form(path)
    if form is Form.SAVED:
        return Split(path, form, _list_saved(path))
    if form in (Form.IMAGES, Form.AUDIO, Form.MASKS):
        folders = [folder for folder in _list_folder(path) if folder.is_dir()]
        return Split(path, form, _list_media(path, folders, form), tuple(folder.name for folder in folders))
    assert form is not None  # noqa: S101  # the caller found it by its form
    return Split(path, form, (path,))


def _list_saved(folder: Path) -> tuple[Path, ...]:
    """Return the files of a saved dataset: its notes and the Arrow files that they name."""
    try:
        names = [str(each["filename"]) for each in json.loads((folder / _SAVED_STATE).read_bytes())["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder / _SAVED_STATE} is not what save_to_disk writes: save the dataset again") from error
    files = [folder / name for name in (*names, _SAVED_STATE, "dataset_info.json")]
    if strange := [file for file in files if file.parent != folder or not file.is_file()]:
        raise BadInput(f"{folder} is not a whole dataset, it has no file {strange[0].name!r}: save the dataset again")
    return tuple(files)


def _list_media(path: Path, folders: Sequence[Path], form: Form) -> tuple[Path, ...]:
    files = [file for folder in folders for file in _list_folder(folder)]
    kind = Form.IMAGES if form is Form.MASKS else form
    if strange := [file for file in files if MEDIA_FORMS.get(file.suffix.lower()) is not kind or not file.is_file()]:
        raise BadInput(f"{strange[0]} does not belong to {form}, which {path} holds: take it out")
    check_rows(str(path), len(files))
    return tuple(files)


def _refuse_links_out(paths: Iterable[Path], folder: Path) -> None:
    root = folder.resolve()
    for path in paths:
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise BadInput(f"{path} is a link out of {folder}: replace it by a copy")
