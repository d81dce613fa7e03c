"""Install a tool's packages into a folder of their own, once, whole or not at all; remove it again."""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from registry.errors import BadInput, EngineryError
from registry.host.durable import sync
from tasks.execution.progress import OnProgress, ignore_progress
from tasks.execution.tools.catalog import Tool
from tasks.execution.tools.process import run_process

INSTALL_SECONDS = 1800.0
_INCOMING, _LOCK = ".incoming-", ".lock"
_SHOWN_LINE = 100
# Of what pip and uv print; other lines name indexes, with who may read them.
_TOLD = ("Downloading", "Installing", "Installed")

# By what pip and uv say; else no index was reached, or it lacks a package.
_ADVICE = {
    "no space left": "free space on the disks of ENGINERY_HOME and TMPDIR",
    "hash": "the index gives other files than were locked; use another one",
}


def is_installed(tool: Tool, home: Path) -> bool:
    """Tell whether a tool's environment is there; a folder under that name is complete."""
    return tool.place(home).is_dir()


def size_of(tool: Tool, home: Path) -> int:
    """Return the bytes of all that is installed of a tool, earlier versions too."""
    return sum(file.lstat().st_size for file in (home / "tools" / tool.name).rglob("*") if not file.is_dir())


def install_tool(tool: Tool, home: Path, on_progress: OnProgress = ignore_progress) -> Path:
    """Return the folder of a tool's packages, installed now unless it is there.

    It is filled under another name and renamed last. One process installs; others wait for it and find it.

    Raises:
        EngineryError: a package cannot be had; the sentence says why, and what to do.
        BadInput: there is neither uv nor pip.
    """
    place = tool.place(home)
    if place.is_dir():
        return place
    with _locked(place.parent):
        if place.is_dir():
            return place
        for leftover in place.parent.glob(f"{_INCOMING}*"):  # of one that was killed: who installs has the lock
            shutil.rmtree(leftover, ignore_errors=True)
        incoming = Path(tempfile.mkdtemp(dir=place.parent, prefix=_INCOMING))
        try:
            if tool.packages:
                _fill(tool, incoming, on_progress)
            incoming.chmod(0o755)
            incoming.rename(place)
            sync(place.parent)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
    return place


def remove_tool(tool: Tool, home: Path) -> int:
    """Remove all that is installed of a tool, earlier versions too, and return its bytes."""
    folder = home / "tools" / tool.name
    if not folder.is_dir():
        return 0
    with _locked(folder):
        size = size_of(tool, home)
        for entry in [entry for entry in folder.iterdir() if entry.name != _LOCK]:
            # Under its name a folder is complete, also while it is removed.
            incoming = folder / f"{_INCOMING}{entry.name.removeprefix(_INCOMING)}"
            shutil.rmtree(entry.rename(incoming))
    return size


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / _LOCK):
        yield


def _fill(tool: Tool, into: Path, on_progress: OnProgress) -> None:
    """Install a tool's packages into an empty folder: wheels only, so no package runs code, each of a locked hash."""
    lines: list[str] = []

    def take(line: str) -> None:
        lines.append(line.strip())
        if line.startswith(_TOLD):
            on_progress(f"{tool.name}: {line.strip()[:_SHOWN_LINE]}", 0.0)

    options = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--target", str(into)]
    code = run_process(
        [*_choose_installer(), *options, "-r", str(tool.requirements)],
        errors=subprocess.STDOUT,
        on_line=take,
        limit_seconds=INSTALL_SECONDS,
    )
    if code:
        reason = next((line for line in lines if line.lower().startswith("error")), lines[-1] if lines else "no reason")
        copied = f"copy {tool.place(into.parents[2])} from a host like this that has the tool"
        known = (advice for phrase, advice in _ADVICE.items() if phrase in reason.lower())
        advice = next(known, f"it needs a package index once; connect this host to one, or {copied}")
        raise EngineryError(f"the tool {tool.name} cannot be installed ({reason[:300]}): {advice}")


def _choose_installer() -> list[str]:
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable]
    if importlib.util.find_spec("pip") is None:
        raise BadInput("a tool is installed with uv or pip, and neither is here: install one of them")
    pip = [sys.executable, "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    return [*pip, "--no-compile", "--progress-bar", "off"]
