"""The quickstart's release: first and second wall time, peak memory, overhead over its bare stages, CPU speed-up.

    python -m benchmarks.release

The release runs as a user runs it (`enginery release`, fresh ENGINERY_HOME). The peer is the same stages, one after
the other in one process, without Prefect and MLflow, in a workspace of their own.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

RECIPE, FLEET = Path("recipes/quickstart.yaml"), Path("recipes/fleet.yaml")
MEGABYTE = 1_000_000


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        first, peak, report = run_release(home / "home")
        print(f"first release: {first:.1f} s", flush=True)
        second, _, again = run_release(home / "home")
        bare = bare_stages(home / "bare")
    fastest = report["engines"]
    dynamic = next(row for row in fastest if row["target"] == "cpu" and row["precision"] == "int8-dynamic")
    print(f"cores                                   {os.cpu_count()}")
    print(f"first release, wall                     {first:7.1f} s    (claim: at most 240)")
    print(f"second release, wall                    {second:7.1f} s    (claim: at most 15), found: {again['found']}")
    print(f"peak memory of all its processes (RSS)  {peak / MEGABYTE:7.0f} MB   (claim: under 3000)")
    print(f"the same stages bare in one process     {bare:7.1f} s")
    print(f"release over bare stages                {first / bare:7.2f}      (claim: at most 1.10)")
    speedup, interval = dynamic["metrics"]["speedup"], dynamic["intervals"]["speedup"]
    loss, bounds = dynamic["metrics"]["accuracy_loss"], dynamic["intervals"]["accuracy_loss"]
    print(f"cpu int8-dynamic over fp32, batch 8     {speedup:7.2f}      (99 %: {interval[0]:.2f} to {interval[1]:.2f})")
    print(f"accuracy lost by it                     {loss:+7.2%}    (95 %: {bounds[0]:+.2%} to {bounds[1]:+.2%})")


def run_release(home: Path) -> tuple[float, int, dict]:  # type: ignore[type-arg]  # JSON
    """Return wall seconds, peak RSS in bytes summed over the process tree, and the report of one `enginery release`."""
    command = [sys.executable, "-c", "from flows.cli import main; main()", "release", str(RECIPE), "--json"]
    started = time.perf_counter()
    with subprocess.Popen(command, env=os.environ | {"ENGINERY_HOME": str(home)}, stdout=subprocess.PIPE) as process:
        peak = PeakMemory(process.pid)
        out, _ = process.communicate()
        seconds = time.perf_counter() - started
        peak.stop()
    if process.returncode:
        raise SystemExit(f"the release failed with exit status {process.returncode}")
    return seconds, peak.peak, json.loads(out)


class PeakMemory:
    """Samples the RSS of a process tree every 0.2 s."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._root = psutil.Process(pid)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the sampling; `peak` is final."""
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(0.2):
            total = 0
            try:
                for process in [self._root, *self._root.children(recursive=True)]:
                    total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            self.peak = max(self.peak, total)


def bare_stages(root: Path) -> float:
    """Return the wall seconds of every stage of the recipe, imports included, without Prefect and MLflow."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "benchmarks.bare_stages", RECIPE, FLEET, root], check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
