"""The disks that Prefect's temporary server writes to: which of them is full is told by its name."""

import os
import shutil
from pathlib import Path

from registry.errors import EngineryError
from registry.host.home import home

# Prefect's database with its journal, as it is first made, has 3 MB.
NEEDED_BYTES = 8 * 10**6
FULL_BYTES = 10**6
_MEGABYTE = 10**6


def check_room() -> None:
    """Check that Prefect's database and temporary files have room, before its server is started.

    Raises:
        EngineryError: a disk has less than 8 MB free.
    """
    for setting, folder, free in _measure_room():
        if free < NEEDED_BYTES:
            raise EngineryError(
                f"{folder} ({setting}) has {free / _MEGABYTE:.1f} MB free, Prefect's temporary server needs "
                f"{NEEDED_BYTES / _MEGABYTE:.0f} MB: free some, or set {setting} to a folder on another disk"
            )


def describe_full_disks() -> str:
    """Return which of the disks are full, for an error; empty where none is."""
    full = [f"{folder} ({setting}) is full" for setting, folder, free in _measure_room() if free < FULL_BYTES]
    return ", ".join(dict.fromkeys(full))


def _measure_room() -> list[tuple[str, Path, int]]:
    places = {
        "ENGINERY_HOME": str(home()),
        "PREFECT_HOME": os.environ.get("PREFECT_HOME", "~/.prefect"),
        "TMPDIR": os.environ.get("TMPDIR", "/tmp"),  # noqa: S108  # where temporary files go by default
    }
    room = []
    for setting, name in places.items():
        folder = Path(name).expanduser().absolute()
        existing = next(place for place in (folder, *folder.parents) if place.exists())
        room.append((setting, existing, shutil.disk_usage(existing).free))
    return room
