"""Run a tool's script on files, in a process without a network that has the tool's packages in front of our own."""

import json
import sys
import tempfile
from pathlib import Path

from registry.errors import BadInput, BuildError, EngineryError
from registry.host.home import writable_home
from tasks.execution.isolate import describe_exit
from tasks.execution.progress import OnProgress, ignore_progress
from tasks.execution.tools.catalog import Tool
from tasks.execution.tools.install import install_tool
from tasks.execution.tools.process import run_process

# Long, because gigabytes of weights are read and written: it is there to end what never would.
LIMIT_SECONDS = 3600.0
_KEPT_BYTES = 2**14


def run_tool(
    tool: Tool,
    script: str,
    folder: Path,
    *,
    on_progress: OnProgress = ignore_progress,
    limit_seconds: float = LIMIT_SECONDS,
) -> None:
    """Run `run(folder, tell)` of a tool's script, which reads the files in `folder` and writes its own there.

    The tool is installed first where it is not.

    Raises:
        BadInput, EngineryError: the script raised it, or the tool cannot be installed.
        BuildError: the process ended otherwise, or ran for more than `limit_seconds`.
    """
    packages = install_tool(tool, writable_home(), on_progress)
    failures: list[EngineryError] = []

    def take(line: str) -> None:
        message = json.loads(line)
        if "error" in message:
            failures.append((BadInput if message["is_input"] else EngineryError)(message["error"]))
        else:
            on_progress(message["phase"], message["fraction"])

    child = ["-P", "-s", "-m", "tasks.execution.tools.child", str(tool.folder / script), str(folder)]
    with tempfile.TemporaryFile() as errors:
        code = run_process(
            [sys.executable, *child],
            python_path=(packages,),
            errors=errors,
            on_line=take,
            limit_seconds=limit_seconds,
        )
        errors.seek(max(errors.seek(0, 2) - _KEPT_BYTES, 0))
        trace = errors.read().decode(errors="replace").strip()
    if failures:
        raise failures[0]
    if code:
        last = trace.splitlines()[-1][:300] if trace else "without a word"
        raise BuildError(f"the tool {tool.name} failed: its process {describe_exit(code)} ({last})\n{trace}")
