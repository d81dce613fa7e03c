"""See other work on this machine's CPUs while call times are measured. What is seen here is never a call time."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

PROC = Path("/proc")
# The largest shares that are taken as no other work; each is a choice, and not measured on an idle machine.
# Of a group's time, that for which a process waited for a CPU, this one or any other.
MOST_PRESSURE = 0.10
# Of the time of all CPUs, what the hypervisor gave to other guests.
MOST_STEAL = 0.02
# Of the time for which threads of this process were runnable, what they waited for a CPU.
MOST_WAIT = 0.05


@dataclass(frozen=True)
class LoadCounters:
    """Counters since boot, in seconds: what a machine does not count stands still at 0.

    `pressure` is the time for which some process waited for a CPU (PSI, Documentation/accounting/psi.rst), `steal` and
    `cpu` are summed over all CPUs, `waited` and `ran` over the threads of this process
    (Documentation/scheduler/sched-stats.rst).
    """

    at: float
    pressure: float
    steal: float
    cpu: float
    waited: float
    ran: float


def read_load(proc: Path = PROC, clock: Callable[[], float] = time.monotonic) -> LoadCounters:
    """Read the counters of this moment; it takes about 0.1 ms."""
    waited, ran = _read_threads(proc / "self" / "task")
    times = psutil.cpu_times()
    return LoadCounters(
        at=clock(),
        pressure=_read_pressure(proc / "pressure" / "cpu"),
        steal=float(getattr(times, "steal", 0.0)),
        cpu=float(sum(times)),
        waited=waited,
        ran=ran,
    )


def _read_pressure(file: Path) -> float:
    """Return the "some" total; 0 on a kernel without PSI (some containers refuse the read)."""
    with suppress(OSError, ValueError, IndexError):
        return int(file.read_text(encoding="ascii").splitlines()[0].rpartition("total=")[2]) / 1e6
    return 0.0


def _read_threads(folder: Path) -> tuple[float, float]:
    """Return the seconds that this process's threads waited and ran. `self/schedstat` itself has only the first one."""
    waited = ran = 0
    with suppress(OSError):
        for thread in folder.iterdir():
            with suppress(OSError, ValueError):  # a thread that has just ended
                on_cpu, waiting, *_ = thread.joinpath("schedstat").read_text(encoding="ascii").split()
                ran, waited = ran + int(on_cpu), waited + int(waiting)
    return waited / 1e9, ran / 1e9


def find_foreign_load(before: LoadCounters, after: LoadCounters) -> Mapping[str, float]:
    """Return the shares that are too large for no other work, by what they are of; empty: none is."""
    wall, ran = after.at - before.at, after.ran - before.ran
    waited, cpu = after.waited - before.waited, after.cpu - before.cpu
    shares = {
        "other processes waited for a CPU": (_divide(after.pressure - before.pressure, wall), MOST_PRESSURE),
        "the hypervisor took CPU time": (_divide(after.steal - before.steal, cpu), MOST_STEAL),
        "the engines waited for a CPU": (_divide(waited, waited + ran), MOST_WAIT),
    }
    return {name: share for name, (share, most) in shares.items() if share > most}


def _divide(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
