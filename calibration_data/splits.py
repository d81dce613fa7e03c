"""Which dataset and what identifies its splits, without reading a row or importing `datasets`."""

from dataclasses import dataclass
from pathlib import Path

from registry.digest import file_sha256
from registry.errors import BadInput


@dataclass(frozen=True)
class DatasetRef:
    """A dataset: a folder of `<split>.parquet` files, or a hub name at a revision.

    `columns` are the model task's name and the dataset's name of each column that is read, the target's last.
    """

    origin: str
    columns: tuple[tuple[str, str], ...]
    revision: str | None = None
    is_hub: bool = False


def split_revision(ref: DatasetRef, split: str) -> str:
    """Return what identifies a split's bytes without reading its rows: a file's sha256, or the hub commit.

    Raises:
        BadInput: no such split.
    """
    if ref.is_hub:
        return str(ref.revision)
    return file_sha256(split_file(ref, split))


def split_file(ref: DatasetRef, split: str) -> Path:
    """Return the Parquet file of a folder's split.

    Raises:
        BadInput: there is none; the message lists those that there are.
    """
    file = Path(ref.origin) / f"{split}.parquet"
    if not file.is_file():
        there = ", ".join(sorted(path.stem for path in Path(ref.origin).glob("*.parquet"))) or "no Parquet files"
        raise BadInput(f"{ref.origin} has no split {split!r} ({file.name}): it has {there}")
    return file
