"""The process in which a tool's script runs: `python -m … SCRIPT FOLDER`; progress and errors are lines of JSON."""

import json
import os
import runpy
import sys
from pathlib import Path

from registry.errors import BadInput, EngineryError
from tasks.execution.offline import go_offline


def main(script: str, folder: str) -> int:
    """Call the script's `run(folder, tell)` without a network; return the exit code."""
    # What libraries print is no line of ours.
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    go_offline()

    def tell(phase: str, fraction: float) -> None:
        lines.write(json.dumps({"phase": phase, "fraction": fraction}) + "\n")

    try:
        runpy.run_path(script)["run"](Path(folder), tell)
    except EngineryError as error:
        lines.write(json.dumps({"error": str(error), "is_input": isinstance(error, BadInput)}) + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
