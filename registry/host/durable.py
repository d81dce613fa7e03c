"""Write files so that a power cut cannot halve them, and read and write plain files only, never through a link."""

import errno
import os
import stat
import tempfile
from pathlib import Path

from registry.errors import BadInput


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


def read_plain(path: Path, at_most: int | None = None) -> bytes:
    """Return the content of a plain file, or its first `at_most` bytes.

    Raises:
        BadInput: it is a link, a pipe or another thing than a file.
        FileNotFoundError: there is none.
        OSError: it cannot be read.
    """
    # Non-blocking: opening a pipe would wait until somebody writes into it.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BadInput(f"{path} is a link: remove it") from error
        raise
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BadInput(f"{path} is no plain file: remove it")
        return file.read(-1 if at_most is None else at_most)


def write_new(path: Path, content: bytes) -> None:
    """Write a new file in the place of whatever has its name: what a link points at stays as it is.

    Raises:
        OSError: the folder cannot be written, or the name is a folder's.
    """
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
