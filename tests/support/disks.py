"""A file system of its own, which can be filled without harm to another."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Disk:
    """A file system of its own, whose size changes while it is in use."""

    folder: Path

    def leave(self, room: int) -> None:
        """Fill the disk, but for so many bytes."""
        self.resize(shutil.disk_usage(self.folder).used + room)

    def resize(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)

    @contextmanager
    def full(self) -> Iterator[None]:
        """Fill the disk to its last block, with a file that is removed after the block."""
        filler = self.folder / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))
        yield
        filler.unlink()


@contextmanager
def mounted(folder: Path, size: int | str) -> Iterator[Disk | None]:
    """Mount a disk in memory on a folder; None where nothing can be mounted, as without root."""
    folder.mkdir(exist_ok=True)
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    is_able = sys.platform.startswith("linux") and os.geteuid() == 0
    if not is_able or subprocess.run(mounting, check=False, capture_output=True).returncode:
        yield None
        return
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a server may need a second to end
