"""The code of a task module: read by its digest, run once, and called with one sentence for what it raises."""

import sys
import traceback
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from registry.errors import BadInput, first_line
from tasks.model_tasks.own.declarations import Declarations, read_declarations

# The module's name in a stage and in a bundle, whatever the user calls it.
TASK_FILE = "task_module.py"
FUNCTIONS = ("rows", "preprocess", "answers", "score")
LARGEST_CODE = 2**20


@dataclass(frozen=True)
class ModuleCode:
    """A task module by its bytes: only those with this sha256 run. `shown` is the name that errors have."""

    file: Path
    sha256: str
    shown: str

    def declarations(self) -> Declarations:
        """Read its constants, without running it.

        Raises:
            BadInput: as `read_code` and `read_declarations`.
        """
        return _parse(self)

    def has(self, name: str) -> bool:
        """Tell whether it has a function that it need not have; runs the file."""
        return callable(getattr(_run(self), name, None))

    def call(self, name: str, *arguments: Any) -> Any:
        """Call one of its functions.

        Raises:
            BadInput: the file or the function raises something, with the line; or the function is missing.
        """
        function = getattr(_run(self), name)
        return _name_failure(self.shown, f"{name}()", lambda: function(*arguments))

    def read(self) -> bytes:
        """Read its bytes.

        Raises:
            BadInput: it cannot be read, is too large, or is another file by now.
        """
        code = read_code(self.file)
        if sha256(code).hexdigest() != self.sha256:
            raise BadInput(f"{self.file} changed while it was in use: run again once it is written")
        return code


def open_code(file: Path, *, digest: str | None = None, shown: str | None = None) -> ModuleCode:
    """Name a task module's code as it is now, or as it was when it had a sha256.

    Raises:
        BadInput: it cannot be read, or has another digest.
    """
    actual = sha256(read_code(file)).hexdigest()
    if digest is not None and actual != digest:
        raise BadInput(f"{file} has sha256 {actual}, and {digest} was asked for: give the file that was meant")
    return ModuleCode(file, actual, shown or file.name)


def read_code(file: Path) -> bytes:
    """Read a task module.

    Raises:
        BadInput: it cannot be read, or is too large.
    """
    try:
        with file.open("rb") as opened:
            code = opened.read(LARGEST_CODE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no path"
        raise BadInput(f"module: {file} cannot be read ({reason}): name the Python file of the task") from None
    if len(code) > LARGEST_CODE:
        raise BadInput(f"module: {file} has more than {LARGEST_CODE} bytes: name the Python file of the task")
    return code


@lru_cache(maxsize=8)
def _parse(code: ModuleCode) -> Declarations:
    return read_declarations(code.read(), code.shown)


@lru_cache(maxsize=8)
def _run(code: ModuleCode) -> types.ModuleType:
    """Run a task module's file, once a process."""
    source = code.read()
    _parse(code)
    module = types.ModuleType(f"enginery_task_{code.sha256[:16]}")
    module.__file__ = str(code.file)
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    compiled = compile(source, code.shown, "exec", dont_inherit=True)
    _name_failure(code.shown, "running the file", lambda: exec(compiled, vars(module)))  # noqa: S102  # the user's own
    if missing := [name for name in FUNCTIONS if not callable(getattr(module, name, None))]:
        raise BadInput(f"{code.shown} has no function {', '.join(missing)}: docs/recipes.md shows what each is for")
    return module


def _name_failure(shown: str, what: str, act: Callable[[], Any]) -> Any:
    try:
        return act()
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == shown]
        line = f", line {frames[-1].lineno}" if frames else ""
        raised = f"{type(error).__name__} ({first_line(error)[:300]})"
        raise BadInput(f"{shown}{line}: {what} failed with {raised}: correct it") from error
