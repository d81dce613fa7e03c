"""See other work on this machine's CPUs while call times are measured. What is seen here is never a call time."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

PROC = Path("/proc")
# Counters of busy CPUs move in steps of 10 ms each: over less time than this they say nothing.
SPAN_SECONDS = 0.2
# The largest shares that are taken as no other work; each is a choice.
# Of the time of all CPUs, what other processes used.
MOST_OTHERS = 0.05
# Of the time of all CPUs, what the hypervisor gave to other guests.
MOST_STEAL = 0.02
# Of a span, that for which a process waited for a CPU, this one or any other.
MOST_PRESSURE = 0.10
# Of the time for which threads of this process were runnable, what they waited for a CPU.
MOST_WAIT = 0.05


@dataclass(frozen=True)
class LoadCounters:
    """Counters since boot, in seconds: what a machine does not count stands still at 0.

    `pressure` is the time for which some process waited for a CPU (PSI, Documentation/accounting/psi.rst), `busy`,
    `steal` and `cpu` are summed over all CPUs, `waited` and `ran` over the threads of this process
    (Documentation/scheduler/sched-stats.rst).
    """

    at: float
    pressure: float
    busy: float
    steal: float
    cpu: float
    waited: float
    ran: float


def read_load(proc: Path = PROC, clock: Callable[[], float] = time.monotonic) -> LoadCounters:
    """Read the counters of this moment; it takes about 0.1 ms."""
    waited, ran = _read_threads(proc / "self" / "task")
    times = psutil.cpu_times()
    # Guests' time is counted in user time too, and so would count twice.
    total = float(sum(times)) - sum(float(getattr(times, name, 0.0)) for name in ("guest", "guest_nice"))
    steal, idle = (
        sum(float(getattr(times, name, 0.0)) for name in names) for names in (("steal",), ("idle", "iowait"))
    )
    return LoadCounters(
        at=clock(),
        pressure=_read_pressure(proc / "pressure" / "cpu"),
        busy=total - idle - steal,
        steal=steal,
        cpu=total,
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
    """Return the shares that are too large for no other work, by what they are of; empty: none is.

    Processes that use CPUs which nobody waits for disturb nobody; and the engines of one measurement make each other
    wait, because the threads of one still spin when the next one is called. So other processes must have both used
    CPUs and let somebody wait.
    """
    cpu, ran = after.cpu - before.cpu, after.ran - before.ran
    waited = after.waited - before.waited
    others = _divide(after.busy - before.busy - ran, cpu)
    has_waited = (
        _divide(after.pressure - before.pressure, after.at - before.at) > MOST_PRESSURE
        or _divide(waited, waited + ran) > MOST_WAIT
    )
    found = {"other processes used the CPUs": others} if has_waited and others > MOST_OTHERS else {}
    steal = _divide(after.steal - before.steal, cpu)
    return found | ({"the hypervisor took CPU time": steal} if steal > MOST_STEAL else {})


def _divide(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
