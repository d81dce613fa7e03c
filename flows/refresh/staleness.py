"""Which engines have gone stale and why: rules over values, no registry, no clock, no server.

An engine is the newest one of its target and precision that was made and measured, in production or not: what is to be
replaced is judged by what would replace it. An engine that a gate failed counts too, or it would be made every night.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from registry.records import Precision

Combination = tuple[str, Precision]


@dataclass(frozen=True)
class Facts:
    """What a recipe would be released from now; digests identify.

    `wanted` are the (target, precision) pairs that the recipe asks for and that the target's backend has; `standing_in`
    are precisions that take the place of one that the recipe asks for. `format_version` is the manifest's of now.
    """

    model: str
    source_revision: str
    calibration_set: str
    evaluation_set: str
    profiles: str
    wanted: tuple[Combination, ...]
    format_version: int
    standing_in: tuple[Precision, ...] = ()


@dataclass(frozen=True)
class Engine:
    """What the newest engine of a target and precision was made from.

    `version` is None where a gate failed it. `in_registry` says whether that version is still there, `format_version`
    is its manifest's. `calibration_set` is None where it was not calibrated, `driver` where no GPU ran it.
    """

    target: str
    precision: Precision
    version: int | None
    source_revision: str
    calibration_set: str | None
    evaluation_set: str
    profiles: str
    backend_version: str
    driver: str | None = None
    format_version: int | None = None
    in_registry: bool = True


@dataclass(frozen=True)
class Toolchain:
    """What a target's engines would be built with now, and on which host."""

    host: str
    backend_version: str
    driver: str | None = None


@dataclass(frozen=True)
class Stale:
    """An engine to be made again, and why in words; `version` is None where there is none yet."""

    model: str
    target: str
    precision: Precision
    version: int | None
    reason: str


def find_stale(
    facts: Facts,
    engines: Sequence[Engine],
    toolchains: Mapping[str, Toolchain],
    tried: Collection[Combination] = (),
) -> tuple[Stale, ...]:
    """The stale engines of a recipe, in the recipe's order.

    A target that is not in `toolchains` cannot be built anywhere now: it lacks nothing, but what it has may be stale.
    `tried` are the pairs that a release did not make an engine of, for a reason that tomorrow holds as well (int8 that
    misses its gate on the holdout); they are made again with whatever else of their target is stale.
    """
    newest = {(engine.target, engine.precision): engine for engine in engines}
    stale = []
    for target, precision in (*facts.wanted, *_stand_ins(facts, newest)):
        engine = newest.get((target, precision))
        if engine is None:
            if target in toolchains and (target, precision) not in tried:
                why = "the recipe asks for it, and there is no engine of it yet"
                stale.append(Stale(facts.model, target, precision, None, why))
        elif reasons := tuple(_reasons(facts, engine, toolchains.get(target))):
            stale.append(Stale(facts.model, target, precision, engine.version, "; ".join(reasons)))
    return tuple(stale)


def _stand_ins(facts: Facts, newest: Mapping[Combination, Engine]) -> Iterator[Combination]:
    targets = {target for target, _ in facts.wanted}
    for target, precision in newest:
        if target in targets and precision in facts.standing_in and (target, precision) not in facts.wanted:
            yield target, precision


def _reasons(facts: Facts, engine: Engine, toolchain: Toolchain | None) -> Iterator[str]:
    if engine.source_revision != facts.source_revision:
        yield f"the source is {_short(facts.source_revision)}, it was made of {_short(engine.source_revision)}"
    if engine.calibration_set is not None and engine.calibration_set != facts.calibration_set:
        yield f"the calibration set is {_short(facts.calibration_set)}, it saw {_short(engine.calibration_set)}"
    if engine.evaluation_set != facts.evaluation_set:
        yield f"the evaluation data is {_short(facts.evaluation_set)}, it was judged on {_short(engine.evaluation_set)}"
    if engine.profiles != facts.profiles:
        yield "the recipe has other optimization profiles"
    if toolchain is not None:
        yield from _outdated(engine, toolchain)
    if not engine.in_registry:
        yield f"version {engine.version} is no longer in the registry"
    elif engine.format_version is not None and engine.format_version < facts.format_version:
        yield f"its manifest has format {engine.format_version}, the present one is {facts.format_version}"


def _outdated(engine: Engine, toolchain: Toolchain) -> Iterator[str]:
    if toolchain.backend_version != engine.backend_version:
        yield f"{toolchain.host} builds with {toolchain.backend_version}, it was built with {engine.backend_version}"
    # No driver: nothing of this engine was measured on a GPU, or nobody says what the GPU's driver is.
    if None not in (engine.driver, toolchain.driver) and engine.driver != toolchain.driver:
        yield f"{toolchain.host} has driver {toolchain.driver}, it was measured with {engine.driver}"


def _short(identity: str) -> str:
    return identity[:12] or "not recorded"
