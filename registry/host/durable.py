"""Writes that a power cut cannot halve: the bytes are on the disk before the name is."""

import os
import tempfile
from pathlib import Path


def sync(path: Path) -> None:
    """Make a folder's or a file's state durable.

    Raises:
        OSError: the disk does not take it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes, *, stage: Path | None = None, mode: int = 0o644) -> None:
    """Give `path` new content in one rename; `stage` is where it is written first, on the same file system.

    What a kill leaves there begins with ".incoming-".

    Raises:
        OSError: the folder does not take it.
    """
    # mkstemp makes it 0600: a key is never readable to others, not for an instant.
    descriptor, name = tempfile.mkstemp(dir=stage or path.parent, prefix=".incoming-")
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(path)
    sync(path.parent)
