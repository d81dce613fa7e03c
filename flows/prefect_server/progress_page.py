"""The progress of a flow run on its page in Prefect: the whole run from its start, and its longest steps."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast
from uuid import UUID

from prefect import runtime
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from flows.prefect_server.artifacts import PageUpdates, make_key
from tasks.execution.progress import Reporter, StepEnd

# The stages of each flow in their order, by how its steps begin; one that is found finished reports nothing.
RELEASE_STAGES = ("source", "head", "export", "quantize", "send", "wait for", "publish")
BUILD_STAGES = ("build", "benchmark", "sweep", "evaluate")
# These take minutes, and each is one piece of work.
SHOWN_STEPS = ("head ", "quantize ", "build ")
SECONDS_BETWEEN_UPDATES = 3.0


@contextmanager
def show_progress(reporter: Reporter, stages: Sequence[str]) -> Iterator[Reporter]:
    """Open a reporter that tells `reporter` all, and shows the progress of the run on its page, from start to end.

    Args:
        reporter: is told everything.
        stages: what the run goes through, as the beginnings of its steps.
    """
    if not runtime.flow_run.id:
        yield reporter
        return
    page = ProgressPage(reporter, stages)
    page.begin(str(runtime.flow_run.flow_name))
    yield page
    page.end()


@dataclass
class _ShownStep:
    """An artifact, updated at `shown_at` (monotonic seconds); `not_shown` is a later phase and fraction."""

    artifact: UUID
    shown_at: float
    not_shown: tuple[str, float] | None = None


class ProgressPage:
    """A `Reporter` that updates each artifact every few seconds at most, and no more after a failure."""

    def __init__(self, reporter: Reporter, stages: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        """Pass every call on to `reporter`; `clock` counts seconds."""
        self._reporter, self._stages, self._clock = reporter, stages, clock
        self._steps: dict[str, _ShownStep] = {}
        self._updates = PageUpdates("progress")
        self._run, self._stage, self._done = "", -1, 0.0

    def begin(self, run: str) -> None:
        """Show the run itself, before its first stage."""
        self._run = run
        self._updates.run(partial(self._show, run, "begins", 0.0))

    def end(self) -> None:
        """Show that the run has ended, and what of its steps was not shown yet."""
        self._updates.run(partial(self._show, self._run, "done", 1.0))
        self._updates.run(partial(self._refresh, 0.0))

    def __call__(self, what: str, fraction: float) -> None:
        """Take a phase, named "step: phase", and the share of it that is done."""
        self._reporter(what, fraction)
        self._updates.run(partial(self._update, what, fraction))

    def end_step(self, end: StepEnd) -> None:
        """Pass a step that has ended on."""
        self._reporter.end_step(end)

    def say(self, sentence: str) -> None:
        """Pass a finding on."""
        self._reporter.say(sentence)

    def _update(self, what: str, fraction: float) -> None:
        step = what.split(":")[0]
        if step.startswith(SHOWN_STEPS):
            self._show(step, what, fraction)
        reached = [number for number, stage in enumerate(self._stages) if step.startswith(stage)]
        is_next = bool(reached) and reached[0] > self._stage
        if reached and self._run:
            # Stages of several engines alternate: the run is as far as the one that is furthest.
            self._stage = max(self._stage, reached[0])
            self._done = max(self._done, (reached[0] + fraction) / len(self._stages))
            self._show(self._run, f"stage {self._stage + 1} of {len(self._stages)}: {what}", self._done)
        # A new stage at once: its first phase may take minutes.
        self._refresh(0.0 if is_next else SECONDS_BETWEEN_UPDATES)

    def _show(self, name: str, words: str, fraction: float) -> None:
        if name in self._steps:
            self._steps[name].not_shown = words, fraction
            return
        # Its type allows an awaitable, which it returns only inside of an event loop.
        artifact = create_progress_artifact(_to_percent(fraction), key=make_key("progress", name), description=words)
        self._steps[name] = _ShownStep(cast("UUID", artifact), self._clock())

    def _refresh(self, seconds: float) -> None:
        """Update the artifacts that are `seconds` old.

        Also those of steps that have ended: no call says so, and the last phase may have come too soon to be shown.
        """
        now = self._clock()
        for step in self._steps.values():
            if step.not_shown is not None and now - step.shown_at >= seconds:
                words, done = step.not_shown
                update_progress_artifact(step.artifact, _to_percent(done), description=words)
                step.not_shown, step.shown_at = None, now


def _to_percent(fraction: float) -> float:
    return round(100 * min(max(fraction, 0.0), 1.0), 1)
