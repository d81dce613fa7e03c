"""Bundle files in a folder of this machine."""

import os
import stat
from collections.abc import Generator
from pathlib import Path

from registry.errors import EngineryError, NotFound, TornBundle

CHUNK_BYTES = 2**20


class FolderFiles:
    """Files of a folder on this machine."""

    ranged = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, path: str, start: int = 0, stop: int | None = None) -> Generator[bytes]:
        """See `BundleFiles.read`."""
        # Non-blocking: opening a pipe in place of a file would wait indefinitely.
        try:
            descriptor = os.open(self._folder / path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFound(f"{self._folder / path} does not exist: publish the engine again") from error
        except OSError as error:
            raise EngineryError(f"{self._folder / path} cannot be read: {error.strerror}") from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise TornBundle(f"{self._folder / path} is not a regular file: do not trust it")
            while chunk := os.pread(descriptor, CHUNK_BYTES if stop is None else min(CHUNK_BYTES, stop - start), start):
                start += len(chunk)
                yield chunk
        finally:
            os.close(descriptor)
