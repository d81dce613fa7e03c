"""`list`, `history`, `fetch` in place and `run` on the embedded registry, beside the same through mlflow.

    make quickstart && python -m benchmarks.commands [ROUNDS]

The commands are started as a person starts them, each in a process of its own, in turns with the same command on the
same database at an address that only mlflow reads (`?timeout=20`). `enginery --help` shows
what the command line itself takes.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time

from registry.host.home import home
from registry.mlflow.quick.open import open_to_read
from registry.names import PRODUCTION

ENGINERY = [sys.executable, "-m", "flows.cli"]


def time_command(arguments: list[str], uri: str | None) -> float:
    """Return the seconds of one command; `uri` of the registry, None for the embedded one."""
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment |= {"MLFLOW_TRACKING_URI": uri} if uri else {}
    began = time.perf_counter()
    subprocess.run([*ENGINERY, *arguments], env=environment, check=True, capture_output=True)
    return time.perf_counter() - began


def main(rounds: int) -> None:
    """Print the median seconds of each command both ways, and their ratio."""
    engines = [engine for engine in open_to_read().versions() if f"{PRODUCTION}cpu" in engine.aliases]
    if not engines:
        sys.exit(f"no engine of {home()} is in production on the CPU: run `make quickstart` first")
    model, by_mlflow = engines[0].model, f"sqlite:///{home()}/mlflow.db?timeout=20"
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "list": ["list"],
            "history": ["history", model],
            "fetch in place": ["fetch", model, "--target", "cpu", "--to", folder],
            "run": ["run", model, "a sentence"],
        }
        bare = statistics.median(time_command(["--help"], None) for _ in range(rounds))
        print(f"{'--help':20}{bare:8.2f} s")
        for name, arguments in commands.items():
            time_command(arguments, None)  # places what it fetches
            pairs = [(time_command(arguments, None), time_command(arguments, by_mlflow)) for _ in range(rounds)]
            ours, theirs = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
            print(f"{name:20}{ours:8.2f} s   by mlflow{theirs:8.2f} s   {theirs / ours:6.1f} times")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
