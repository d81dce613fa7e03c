"""What a recipe asks for: the engines of each target, and the steps of its release by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flows.inputs.recipe import Recipe
from registry.records import NEW_TOKENS, GpuTarget, Precision
from tasks.backends import BACKENDS

# Returns why there will be no engine of a precision for a target, or None.
WhyNot = Callable[[Precision, GpuTarget], str | None]


@dataclass(frozen=True)
class TargetPlan:
    """The precisions that a target gets engines of, and the reason for each that it does not.

    `why_not_measured` says why this machine cannot run them.
    """

    target: GpuTarget
    precisions: tuple[Precision, ...]
    skipped: tuple[tuple[Precision, str], ...]
    why_not_measured: str | None


def why_not_here(precision: Precision, target: GpuTarget) -> str | None:
    """Return why this machine cannot build a precision for a target, or None if it can."""
    return why_not_supported(precision, target) or BACKENDS[target.backend].can_build(target)


def why_not_supported(precision: Precision, target: GpuTarget) -> str | None:
    """Return why no machine can build a precision for a target, or None; whether a worker can, the worker tells."""
    return BACKENDS[target.backend].supports(precision, target)


def plan_target(recipe: Recipe, target: GpuTarget, why_not: WhyNot) -> TargetPlan:
    """Plan the engines of one target of a recipe."""
    reasons = [(precision, why_not(precision, target)) for precision in recipe.precisions]
    return TargetPlan(
        target,
        tuple(precision for precision, reason in reasons if reason is None),
        tuple((precision, reason) for precision, reason in reasons if reason is not None),
        BACKENDS[target.backend].can_run(target),
    )


def is_swept(recipe: Recipe) -> bool:
    """Tell whether the sizes of a recipe's profile are timed too: a call that writes text takes as long as its text."""
    return bool(recipe.latency.sweep_seconds_max) and NEW_TOKENS not in recipe.model_task.axes


def list_steps(recipe: Recipe, plans: Sequence[TargetPlan]) -> tuple[str, ...]:
    """List the names of the steps of a release on this machine, in their order; stand-ins for int8 are not among them.

    An exact graph is scored once for all targets that do not run here.
    """
    taken = [precision for precision in recipe.precisions if any(precision in plan.precisions for plan in plans)]
    steps = [f"source {recipe.model}", *([f"head {recipe.model}"] if recipe.source.head else [])]
    steps += [f"calibration {recipe.data.calibration.split}", "export fp32"]
    steps += [f"quantize {precision}" for precision in taken if precision is not Precision.FP32]
    for plan in plans:
        names = [(plan.target.name, precision) for precision in plan.precisions]
        subject = plan.target.name if plan.why_not_measured is None else "onnx-graph"
        steps += [f"build {target} {precision}" for target, precision in names]
        if plan.why_not_measured is None and Precision.FP32 in plan.precisions:
            steps.append(f"benchmark {plan.target.name}")
            steps += [f"sweep {plan.target.name}"] if is_swept(recipe) else []
        # The fp32 graph is what all others are compared with.
        steps += ["evaluate onnx-graph fp32"] if names else []
        steps += [f"evaluate {subject} {precision}" for _, precision in names]
    return tuple(dict.fromkeys([*steps, f"publish {recipe.model}"]))
