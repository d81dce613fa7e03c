"""Whether two engines can be timed side by side: in one process, fed with the same calls."""

from collections.abc import Mapping

from registry.records import EngineBuild
from tasks.backends import BACKENDS


def explain_apart(build: EngineBuild, other: EngineBuild, sizes: Mapping[str, int]) -> str:
    """Say why an engine cannot be timed beside another, with that one's inputs in these sizes; empty where it can.

    `sizes` are those of each named axis.
    """
    if (reason := BACKENDS[build.backend].can_run(build.target)) is not None:
        return f"it does not run here: {reason}"
    if (build.generation is None) != (other.generation is None):
        return "one of the two writes text and the other does not"
    if (ours := _describe_inputs(build)) != (theirs := _describe_inputs(other)):
        return f"its inputs are {ours}, and the other's are {theirs}"
    if not any(profile.holds(sizes) for profile in build.profiles):
        shape = ", ".join(f"{name} {size}" for name, size in sizes.items())
        return f"it takes no {shape}, which the other is timed with"
    return ""


def _describe_inputs(build: EngineBuild) -> str:
    """Name each input with its type and sizes; the names that graphs give to their axes mean nothing."""
    shapes = {tensor.name: [size if isinstance(size, int) else "?" for size in tensor.shape] for tensor in build.inputs}
    return ", ".join(
        f"{tensor.name} {tensor.dtype}[{'x'.join(map(str, shapes[tensor.name]))}]"
        for tensor in sorted(build.inputs, key=lambda each: each.name)
    )
