"""Which engines are stale, and why: rules over values, which read no registry, no clock and no server.

The rules judge the newest engine of each target and precision that was built and measured. It need not be in
production, and a gate may have failed it: otherwise such an engine would be built again every night.

An engine that exists is stale if one of these holds:

1. The source has moved: the engine was made from other weights than the recipe's source has now.
2. It was calibrated, and on another calibration set than the recipe draws now.
3. It was judged on other evaluation data than the recipe draws now.
4. The recipe has other optimization profiles now.
5. Its target is built with another version of the backend now, older or newer.
6. It was measured on a GPU, and that GPU's driver has another version now. An unknown driver is no reason.
7. Its version was deleted from the registry.
8. Its manifest has an older format than new manifests have.

An engine that does not exist is stale if the recipe wants it, some machine can build its target now, and no earlier
release tried it in vain for a reason that still holds (such as int8 that failed its gate on the holdout). A
combination that was tried is built again once anything else of its target is stale.

A precision that stands in for another one of the recipe is judged by rules 1 to 8 if it exists, and never missed.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from registry.records import Precision

Combination = tuple[str, Precision]


@dataclass(frozen=True)
class Facts:
    """What a recipe would be released from now; digests identify.

    `combinations` are the (target, precision) pairs that the recipe names and the target's backend supports.
    `stand_ins` are precisions that may take the place of one of the recipe. `format_version` is that of new manifests.
    """

    model: str
    source_revision: str
    calibration_set: str
    evaluation_set: str
    profiles: str
    combinations: tuple[Combination, ...]
    format_version: int
    stand_ins: tuple[Precision, ...] = ()


@dataclass(frozen=True)
class Engine:
    """What the newest engine of a target and precision was made from.

    `version` is None if a gate failed it. `in_registry` tells whether that version still exists, and `format_version`
    is its manifest's. `calibration_set` is None if it was not calibrated, `driver` if no GPU ran it.
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
    """An engine to build again, and why in words; `version` is None if there is none yet."""

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
    """Return the stale engines of a recipe, in the recipe's order, each with its reasons.

    `toolchains` has the targets that some machine can build now; `tried` are the combinations that a release tried in
    vain.
    """
    newest = {(engine.target, engine.precision): engine for engine in engines}
    stale = []
    for target, precision in (*facts.combinations, *_existing_stand_ins(facts, newest)):
        engine = newest.get((target, precision))
        if engine is not None:
            reason = "; ".join(_list_reasons(facts, engine, toolchains.get(target)))
        elif target in toolchains and (target, precision) not in tried:
            reason = "the recipe asks for it, and there is no engine of it yet"
        else:
            reason = ""
        if reason:
            stale.append(Stale(facts.model, target, precision, engine.version if engine else None, reason))
    return tuple(stale)


def _existing_stand_ins(facts: Facts, newest: Mapping[Combination, Engine]) -> Iterator[Combination]:
    targets = {target for target, _ in facts.combinations}
    for target, precision in newest:
        if target in targets and precision in facts.stand_ins and (target, precision) not in facts.combinations:
            yield target, precision


def _list_reasons(facts: Facts, engine: Engine, toolchain: Toolchain | None) -> Iterator[str]:
    """List the reasons for which an engine is stale, in the order of the rules 1 to 8."""
    if engine.source_revision != facts.source_revision:
        yield f"the source is {_shorten(facts.source_revision)}, it was made of {_shorten(engine.source_revision)}"
    if engine.calibration_set is not None and engine.calibration_set != facts.calibration_set:
        now, then = _shorten(facts.calibration_set), _shorten(engine.calibration_set)
        yield f"the calibration set is {now}, it was calibrated on {then}"
    if engine.evaluation_set != facts.evaluation_set:
        now, then = _shorten(facts.evaluation_set), _shorten(engine.evaluation_set)
        yield f"the evaluation data is {now}, it was judged on {then}"
    if engine.profiles != facts.profiles:
        yield "the recipe has other optimization profiles"
    if toolchain is not None:
        yield from _list_toolchain_reasons(engine, toolchain)
    if not engine.in_registry:
        yield f"version {engine.version} is no longer in the registry"
    elif engine.format_version is not None and engine.format_version < facts.format_version:
        yield f"its manifest has format {engine.format_version}, the present one is {facts.format_version}"


def _list_toolchain_reasons(engine: Engine, toolchain: Toolchain) -> Iterator[str]:
    if toolchain.backend_version != engine.backend_version:
        yield f"{toolchain.host} builds with {toolchain.backend_version}, it was built with {engine.backend_version}"
    if None not in (engine.driver, toolchain.driver) and engine.driver != toolchain.driver:
        yield f"{toolchain.host} has driver {toolchain.driver}, it was measured with {engine.driver}"


def _shorten(identity: str) -> str:
    return identity[:12] or "not recorded"
