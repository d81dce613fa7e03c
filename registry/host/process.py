"""Which process works on something, and whether it has ended: for what it may have left behind."""

import os
import platform
from pathlib import Path


def this_process() -> str:
    """Host, process id and start of this process; two processes never share it, not even after a reboot."""
    pid = os.getpid()
    return f"{_host()} {pid} {start_of(pid)}"


def has_ended(owner: str) -> bool:
    """Whether the process is known to have ended. One of another host, or of another container, is not known of."""
    host, _, process = owner.partition(" ")
    pid, _, started = process.partition(" ")
    return host == _host() and pid.isdecimal() and start_of(int(pid)) != started


def _host() -> str:
    # Containers may share a host's name; a process id means something in its own namespace only.
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = "-"
    return f"{platform.node() or '-'}/{namespace}".replace(" ", "-")


def start_of(pid: int) -> str:
    """Clock ticks between boot and the start of a process, or words where /proc does not tell; "" where it ended."""
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
