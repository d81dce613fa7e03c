"""Identify a process and tell whether it has ended, to clean up what it may have left behind."""

import os
import platform
from pathlib import Path


def this_process() -> str:
    """Return host, process id and start of this process: unique even across reboots."""
    pid = os.getpid()
    return f"{_host_id()} {pid} {start_of(pid)}"


def has_ended(owner: str) -> bool:
    """Tell whether the process has ended.

    Returns False for processes on other hosts or in other containers, which cannot be checked.
    """
    host, _, process = owner.partition(" ")
    pid, _, started = process.partition(" ")
    return host == _host_id() and pid.isdecimal() and start_of(int(pid)) != started


def _host_id() -> str:
    # Containers may share a host's name; a process id means something in its own namespace only.
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = "-"
    return f"{platform.node() or '-'}/{namespace}".replace(" ", "-")


def start_of(pid: int) -> str:
    """Return the clock ticks from boot to the start of a process; "" where it ended, "running" without /proc."""
    try:
        # The name, in brackets, may hold anything; behind it come the state and, 19 fields on, the start (man 5 proc).
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass
    return "running"
