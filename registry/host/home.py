"""Where Enginery keeps its state."""

import os
from pathlib import Path

from registry.errors import BadInput


def home() -> Path:
    """ENGINERY_HOME as an absolute path; `.enginery` in the current folder by default.

    Raises:
        BadInput: it names a file.
    """
    path = Path(os.environ.get("ENGINERY_HOME") or ".enginery").absolute()
    if path.exists() and not path.is_dir():
        raise BadInput(f"ENGINERY_HOME is {path}, which is not a folder: name a folder, or a path that is free")
    return path


def writable_home() -> Path:
    """`home()`, made where it is not there.

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
        raise BadInput(f"ENGINERY_HOME is {path}, where user {os.geteuid()} may not write: chown it, or name another")
    return path
