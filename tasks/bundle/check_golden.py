"""Run a bundle's golden inputs on this host: what `enginery verify --golden` does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import numpy as np

from registry.errors import BadInput, Incompatible, first_line
from registry.host.cpu import read_cpu
from registry.host.gpu import read_gpu
from registry.records import Backend, EngineManifest, largest_axes
from tasks.backends import BACKENDS, Session, open_engine
from tasks.bundle.golden import ENGINE, Golden, describe_feed, read_golden, run_judged
from tasks.bundle.task import TrustModule, bundle_task
from tasks.bundle.toolchain import toolchain
from tasks.model_tasks.contract import Encoder, Feed, ModelTask

_PREPARES = ("tokenizers", "pillow", "enginery")


class Outcome(StrEnum):
    """What a check found."""

    SAME = "same"
    DIFFERS = "differs"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class GoldenCheck:
    """One check of golden inputs.

    `largest_difference` and `tolerance` are shares of the largest number among all recorded answers. `remark` is for
    the line of the check, `problem` the sentence where it is not the same.
    """

    check: str
    outcome: Outcome
    inputs: int
    differing: int = 0
    largest_difference: float | None = None
    tolerance: float | None = None
    remark: str = ""
    problem: str = ""

    @property
    def line(self) -> str:
        """The check for a terminal."""
        of = f"{self.differing} of " if self.differing else ""
        measured = (
            f", largest difference {self.largest_difference:.2g} (tolerance {self.tolerance:g})"
            if self.largest_difference is not None
            else ""
        )
        remark = f"; {self.remark}" if self.remark else ""
        return f"{self.check}: {self.outcome}, {of}{self.inputs} golden inputs{measured}{remark}"


def check_golden(bundle: Path, manifest: EngineManifest, *, trust_module: TrustModule = False) -> list[GoldenCheck]:
    """Encode and run the golden inputs of a bundle that is verified already, and compare both with its record.

    Raises:
        NotFound: the bundle has no golden inputs.
        DigestMismatch, BadInput: its files were changed since it was verified, or are not what Enginery writes; or it
            has a task module that is not trusted.
    """
    golden, task = read_golden(bundle, manifest), bundle_task(bundle, manifest, trust_module)
    prepared, encoder, feeds = _check_preprocessing(golden, task, bundle, manifest)
    if encoder is None:
        return [
            prepared,
            GoldenCheck("answers", Outcome.NOT_RUN, len(golden.rows), remark="no input could be prepared"),
        ]
    return [prepared, _check_answers(golden, task, encoder, feeds, bundle, manifest)]


def _check_preprocessing(
    golden: Golden, task: ModelTask, bundle: Path, manifest: EngineManifest
) -> tuple[GoldenCheck, Encoder | None, list[Feed]]:
    """Return the check, the encoder and the feeds; none where the encoder does not work here."""
    name, count = "preprocessing", len(golden.rows)
    advice = f"install what the engine was released with{_list_other_versions(manifest)}, and verify again"
    try:
        encoder: Encoder = task.open_encoder(bundle, manifest.build.input_names, largest_axes(manifest.build.profiles))
        feeds = [encoder.encode([row.decoded]) for row in golden.rows]
    except Exception as error:  # noqa: BLE001  # libraries of another version than read these files before
        problem = f"{bundle}: the golden inputs cannot be prepared here ({first_line(error)[:200]}): {advice}"
        return GoldenCheck(name, Outcome.DIFFERS, count, count, problem=problem), None, []
    differing = {
        number: described
        for number, (row, feed) in enumerate(zip(golden.rows, feeds, strict=True), 1)
        if (described := describe_feed(feed)) != row.feed
    }
    if not differing:
        return GoldenCheck(name, Outcome.SAME, count), encoder, feeds
    number, described = next(iter(differing.items()))
    recorded = golden.rows[number - 1].feed
    tensor = next((each.name for each in described if each not in recorded), recorded[0].name)
    problem = (
        f"{bundle}: {len(differing)} of {count} golden inputs are prepared otherwise than where the engine was "
        f"released, first {tensor} of number {number}: {advice}"
    )
    return GoldenCheck(name, Outcome.DIFFERS, count, len(differing), problem=problem), encoder, feeds


def _list_other_versions(manifest: EngineManifest) -> str:
    """Name the versions of packages that prepare inputs, where they are others here."""
    there, here = dict(manifest.toolchain), dict(toolchain())
    others = [f"{name} {there[name]}" for name in _PREPARES if name in there and there[name] != here.get(name)]
    return f" ({', '.join(others)})" if others else ""


def _check_answers(
    golden: Golden, task: ModelTask, encoder: Encoder, feeds: Sequence[Feed], bundle: Path, manifest: EngineManifest
) -> GoldenCheck:
    build, count = replace(manifest.build, directory=bundle), len(golden.rows)
    try:
        session = open_engine(build)
    except Incompatible as error:
        problem = f"this host cannot run the golden inputs, verify on one of target {build.target.name}: {error}"
        return GoldenCheck("answers", Outcome.NOT_RUN, count, remark=str(error), problem=problem)
    tolerance, remark = _choose_tolerance(golden, manifest)
    differences = _measure_differences(golden, task, encoder, feeds, session)
    differing = [number for number, difference in enumerate(differences, 1) if not difference <= tolerance]
    problem = (
        f"{bundle}: {len(differing)} of {count} golden inputs are answered otherwise than recorded, number "
        f"{differing[0]} first ({remark or 'on a host of the same kind'}): do not serve it from this host; look for "
        "other versions of the libraries or the driver, or faulty hardware, and verify again"
        if differing
        else ""
    )
    outcome = Outcome.DIFFERS if differing else Outcome.SAME
    largest = max(differences) if np.isfinite(differences).all() else None
    return GoldenCheck("answers", outcome, count, len(differing), largest, tolerance, remark, problem)


def _measure_differences(
    golden: Golden, task: ModelTask, encoder: Encoder, feeds: Sequence[Feed], session: Session
) -> list[float]:
    """Return how far each answer is off: a share of the largest number that was recorded of that output."""
    scales: dict[str, float] = {}
    for output in (output for row in golden.rows for output in row.outputs):
        scales[output.name] = max(scales.get(output.name, 0.0), *map(abs, output.values), 0.0)
    differences = []
    for row, feed in zip(golden.rows, feeds, strict=True):
        try:
            given = run_judged(session, task, encoder, row.decoded, feed)
        except BadInput:  # a feed of another shape than the engine takes
            given = {}
        off = [0.0]
        for output in row.outputs:
            answer = given.get(output.name)
            if answer is None or answer.shape != output.shape or not np.isfinite(answer).all():
                off.append(float("inf"))
            elif answer.size:
                distance = float(np.abs(answer - output.array).max())
                off.append(distance / scales[output.name] if scales[output.name] else distance)
        differences.append(max(off))
    return differences


def _choose_tolerance(golden: Golden, manifest: EngineManifest) -> tuple[float, str]:
    """Return the tolerance on this host, and the remark where it is of another kind than the one that answered."""
    there, tolerance = golden.answered_on, golden.tolerance
    if golden.subject != ENGINE:
        return tolerance.from_graph, f"recorded by the exact ONNX graph on {there.host_cpu}, not by the engine"
    recorded, here, what = there.gpu, _name_gpu(), "GPU "
    if manifest.build.backend is Backend.ONNXRUNTIME:
        recorded, here, what = there.instruction_set, read_cpu().instruction_set, "a CPU with "
    remarks = [f"recorded on {what}{recorded}, this host has {here}"] if recorded != here else []
    remarks += filter(None, [_describe_backend(manifest)])
    return tolerance.other_kind if remarks else tolerance.same_kind, "; ".join(remarks)


def _name_gpu() -> str | None:
    gpu = read_gpu()
    return gpu.name if gpu else None


def _describe_backend(manifest: EngineManifest) -> str:
    """Name the version of the backend, where it is another here."""
    build, here = manifest.build, BACKENDS[manifest.build.backend].version()
    return "" if here == build.backend_version else f"with {build.backend} {build.backend_version}, here it is {here}"
