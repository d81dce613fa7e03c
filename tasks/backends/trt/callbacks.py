"""Python objects that TensorRT calls back from its own threads, and its safe start; `trt` is the vendor's module.

Functions make these objects, since their base classes are in that module, which is not imported here.
"""

import logging
from functools import cache
from typing import Any

from registry.errors import Incompatible
from tasks.execution.progress import OnProgress

log = logging.getLogger(__name__)


@cache
def process_logger(trt: Any) -> Any:
    """Return the trt.ILogger of this process: it logs warnings as infos and collects errors for `take_errors()`.

    There is one per process: TensorRT keeps a bare pointer to the first logger that it gets, and ignores later ones.
    """

    class Log(trt.ILogger):  # type: ignore[misc]  # the module ships no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            """Record a message; TensorRT calls this from several threads."""
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(msg)
            elif severity == trt.ILogger.Severity.WARNING:
                log.info("%s: %s", trt.__name__, msg)

        def take_errors(self) -> str:
            """Return the errors since the last call, in TensorRT's words."""
            errors, self.errors = self.errors, []
            return "; ".join(errors) or "it gave no reason"

    return Log()


def start(trt: Any, kind: Any, logger: Any) -> Any:
    """Create a `kind`: a trt.Builder or a trt.Runtime.

    Where CUDA does not start, TensorRT reports it only in its log and returns an empty object, whose first use ends
    this process by SIGSEGV (seen with 11.4's lean runtime).

    Raises:
        Incompatible: TensorRT does not start on this machine.
    """
    logger.take_errors()
    instance = kind(logger)
    if logger.errors:
        raise Incompatible(f"{trt.__name__} {trt.__version__} does not start on this machine: {logger.take_errors()}")
    return instance


def make_monitor(trt: Any, on_progress: OnProgress) -> Any:
    """Make a trt.IProgressMonitor over `on_progress`; its `cancelled` is True once that returned False."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the module ships no types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False
            self.steps: dict[str, int] = {}

        def _report(self, phase: str, fraction: float) -> bool:
            if not self.cancelled and on_progress(phase, fraction) is False:
                self.cancelled = True
            return not self.cancelled

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            """Report a new phase of `num_steps`; TensorRT reads no answer here, so a cancel waits for a step."""
            self.steps[phase_name] = num_steps
            self._report(phase_name, 0.0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            """Report a finished step; returning False cancels the build."""
            return self._report(phase_name, min(1.0, (step + 1) / max(1, self.steps.get(phase_name, 1))))

        def phase_finish(self, phase_name: str) -> None:
            """Do nothing: the steps of the phase have reported its end."""

    return Monitor()
