"""A tool made in no time: a script, and a package of one module that needs no index."""

import base64
import hashlib
import textwrap
from pathlib import Path
from zipfile import ZipFile

from tasks.execution.tools.catalog import REQUIREMENTS, Tool, read_tool

SCRIPT = "script.py"
# Shows that the tool's package is found before one of the same name among our own, and what else a run can be asked.
_BODY = """
import json


def run(folder, tell):
    import colorama, filelock  # one of the tool's own, one of Enginery's

    tell("count", 0.5)
    print("noise of a library")
    (folder / "answer.json").write_text(json.dumps([colorama.ANSWER, filelock.__name__]))
"""


def write_tool(folder: Path, body: str = _BODY, *, answer: int | None = None) -> Tool:
    """Write a tool with a script; with `answer` it installs a package that has it, colorama by name."""
    folder.mkdir(parents=True)
    (folder / SCRIPT).write_text(textwrap.dedent(body), encoding="utf-8")
    lines = ["# Answer questions.", "--no-index", f"--find-links {folder}"]
    if answer is not None:
        wheel = _write_wheel(folder, f"ANSWER = {answer}\n")
        lines.append(f"colorama==99.1 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}")
    (folder / REQUIREMENTS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return read_tool(folder)


def _write_wheel(folder: Path, module: str) -> Path:
    info = "colorama-99.1.dist-info"
    files = {
        "colorama/__init__.py": module,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: colorama\nVersion: 99.1\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},sha256={_record_digest(text)},{len(text)}\n" for name, text in files.items())
    wheel = folder / "colorama-99.1-py3-none-any.whl"
    with ZipFile(wheel, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            archive.writestr(name, text)
    return wheel


def _record_digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
