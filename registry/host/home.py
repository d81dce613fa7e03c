"""Locate the folder where Enginery keeps its state."""

import os
from pathlib import Path

from registry.errors import BadInput


def home() -> Path:
    """Return ENGINERY_HOME as an absolute path; `.enginery` in the current folder by default.

    Raises:
        BadInput: it names a file, or what cannot be a path.
    """
    path = Path(os.environ.get("ENGINERY_HOME") or ".enginery").absolute()
    try:
        is_other = path.exists() and not path.is_dir()
    except OSError as error:  # its text repeats the path, which may be too long
        raise BadInput(f"ENGINERY_HOME cannot be used ({error.strerror}): set it to a folder of yours") from error
    if is_other:
        raise BadInput(
            f"ENGINERY_HOME is {path}, which is not a folder: set it to a folder, or to a path that does not exist yet"
        )
    return path


def writable_home() -> Path:
    """Return `home()` after creating it where it is missing.

    Raises:
        BadInput: it is a file, or this user may not write there.
    """
    path = home()
    try:
        path.mkdir(parents=True, exist_ok=True)
        allowed = os.access(path, os.W_OK | os.X_OK)
    except OSError:
        allowed = False
    if not allowed:
        raise BadInput(
            f"ENGINERY_HOME is {path}, where user {os.geteuid()} may not write: chown it, or set another folder"
        )
    return path
