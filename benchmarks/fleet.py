"""Fan-out to 8 targets with 2 workers: wall time over the ideal, and Prefect's hop latency apart. Or scale, simulated.

    python -m benchmarks.fleet [--build-seconds 45]
    python -m benchmarks.fleet --scale 50 100 200 500 [--at-once 2]

Real are Prefect and MLflow servers (benchmarks/fleet_stack.py says on what), the workers (`enginery worker`, one job
at a time, one process per job) and the parent (`enginery release --on-workers`). The model is tiny and its engines are
built in a second, so that each build takes a fixed time more (benchmarks/slow_target.py). For `--scale` see
benchmarks/fleet_scale.py.
"""

import argparse
import json
import signal
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fleet_scale import scale
from benchmarks.fleet_stack import (
    ENTRYPOINT,
    BenchFleet,
    bench_fleet,
    deploy,
    load,
    middle_and_worst,
    write_fleet,
    write_recipe,
)
from flows.workers.machine import QUERY_SECONDS
from tests.support.fleet import releasing, working

GOAL = 1.3
WORKERS = 2
PATIENCE_SECONDS = 900.0
# Several names, some with the same compute capability: a pool serves them all.
CAPABILITIES = {
    "a100": "8.0",
    "a10": "8.6",
    "rtx-3090": "8.6",
    "l4": "8.9",
    "rtx-4090": "8.9",
    "rtx-5090": "12.0",
    "rtx-pro-6000": "12.0",
    "gb10": "12.1",
}
TARGETS = {
    name: {"backend": "tensorrt_rtx", "compute_capability": capability, "work_pool": "rtx"}
    for name, capability in CAPABILITIES.items()
}


@dataclass(frozen=True)
class Hops:
    """Times of one target's flow run, in seconds since the epoch."""

    scheduled: float
    pending: float
    running: float
    ended: float
    accepted: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build-seconds", type=float, default=45.0)
    parser.add_argument("--scale", type=int, nargs="+", metavar="ENGINES")
    parser.add_argument("--at-once", type=int, default=2, help="with --scale: releases at a time")
    options = parser.parse_args()
    # Ended by anybody, it ends what it started.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    with (
        tempfile.TemporaryDirectory(prefix="enginery-fleet-", ignore_cleanup_errors=True) as folder,
        bench_fleet(Path(folder)) as fleet,
    ):
        if options.scale:
            scale(fleet, options.scale, options.at_once)
        else:
            fan_out(fleet, options.build_seconds)


def fan_out(fleet: BenchFleet, build_seconds: float) -> None:
    """Release 8 targets on 2 workers, and print the figures."""
    deploy(fleet, "build-target", "rtx", "rtx", ENTRYPOINT, {"build_seconds": build_seconds})
    write_fleet(fleet.template, TARGETS)
    tiny, clock = write_recipe(fleet, "fan-out", TARGETS), fleet.folder / "clock.json"
    before = f"from benchmarks.slow_target import record_fan_out; record_fan_out({str(clock)!r})"
    with ExitStack() as stack:
        for number in range(WORKERS):
            stack.enter_context(working(fleet, "l4", f"worker-{number}"))
        at_start = load()
        with releasing(fleet, tiny, before=before) as parent:
            code, report = parent.wait(PATIENCE_SECONDS)
        at_end = load()
    if code:
        raise SystemExit(f"the release failed with exit status {code}: {report}")
    seen = json.loads(clock.read_text(encoding="utf-8"))
    hops = [_hops(fleet, report["release"], name, seen["accepted"][name]) for name in TARGETS]
    print(f"{at_start} before, {at_end} after; a worker asks for work every {QUERY_SECONDS} s")
    _print(hops, seen, build_seconds, report)


def _print(hops: list[Hops], seen: dict[str, Any], build_seconds: float, report: dict[str, Any]) -> None:
    engines = [row["build_seconds"] for row in report["engines"] if row["state"] == "built"]
    builds = len(hops) * build_seconds + sum(engines)
    wall = max(hop.accepted for hop in hops) - seen["began"]
    runs = sum(hop.ended - hop.running for hop in hops)
    slots = _slots_free(hops)
    print(f"fan-out to {len(hops)} targets, {WORKERS} workers    {wall:6.1f} s")
    print(
        f"builds: {len(hops)} times {build_seconds:.0f} s added, and {len(engines)} engines in {sum(engines):.1f} s; "
        f"ideal {builds / WORKERS:.1f} s"
    )
    print(f"wall over that ideal              {wall * WORKERS / builds:6.2f}     (goal: at most {GOAL})")
    print(
        f"flow runs, Running to end, over workers  {runs / WORKERS:6.1f} s; wall over that {wall * WORKERS / runs:.2f}"
    )
    print("Prefect's hops of each flow run:")
    pairs = list(zip(sorted(hops, key=lambda hop: hop.running), slots, strict=True))
    print(f"  requested and a worker free, to Running{middle_and_worst([hop.running - free for hop, free in pairs])}")
    print(f"    to Pending (the worker asked)        {middle_and_worst([hop.pending - free for hop, free in pairs])}")
    print(f"    Pending to Running (its process)     {middle_and_worst([hop.running - hop.pending for hop in hops])}")
    print(f"  end to accepted by the parent          {middle_and_worst([hop.accepted - hop.ended for hop in hops])}")
    seconds = seen["ended"] - seen["began"]
    rates = ", ".join(f"{server} {number / seconds:.1f}" for server, number in seen["asked"].items())
    print(f"requests a second of the waiting parent: {rates}")


def _slots_free(hops: list[Hops]) -> list[float]:
    """Return when each run, in the order of their starts, had been requested and a worker was free.

    The n-th to start cannot do so before all but WORKERS - 1 of the earlier ones have ended.
    """
    starts, ends = sorted(hops, key=lambda hop: hop.running), sorted(hop.ended for hop in hops)
    return [
        max(hop.scheduled, ends[place - WORKERS]) if place >= WORKERS else hop.scheduled
        for place, hop in enumerate(starts)
    ]


def _hops(fleet: BenchFleet, release: str, target: str, accepted: float) -> Hops:
    (run,) = fleet.flow_runs(release, target)
    with fleet.client() as client:
        states = client.read_flow_run_states(run.id)
    first: dict[str, float] = {}
    for state in sorted(states, key=lambda state: state.timestamp):
        first.setdefault(state.type.value, state.timestamp.timestamp())
    return Hops(first["SCHEDULED"], first["PENDING"], first["RUNNING"], first["COMPLETED"], accepted)


if __name__ == "__main__":
    main()
