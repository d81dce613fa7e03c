"""Write files so that a power cut cannot halve them: the bytes reach the disk before the name."""

import os
import tempfile
from pathlib import Path


def sync(path: Path) -> None:
    """Flush a folder's or a file's state to the disk.

    Raises:
        OSError: the disk refuses the write.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes, *, stage: Path | None = None, mode: int = 0o644) -> None:
    """Replace the content of `path` in one rename.

    Args:
        path: the file.
        content: its new content.
        stage: the folder where it is written first, on the same file system; the file's own if None. A kill leaves
            a file there whose name begins with ".incoming-".
        mode: the permissions of the file.

    Raises:
        OSError: the folder cannot be written.
    """
    # mkstemp creates the file with 0600, so other users can never read a key, not for an instant.
    descriptor, name = tempfile.mkstemp(dir=stage or path.parent, prefix=".incoming-")
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(path)
    sync(path.parent)
