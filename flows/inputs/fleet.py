"""TODO: flows/inputs/fleet.py."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from flows.inputs.strict_yaml import Name, Part, _parse
from registry.errors import BadInput
from registry.promotion.rules import TargetRules
from registry.records import Backend, GpuTarget

FLEET = Path("recipes/fleet.yaml")


class TargetSpec(Part):
    """One entry of the fleet file."""

    backend: Backend
    compute_capability: Annotated[str, Field(pattern=r"^[0-9]{1,2}\.[0-9]$")] | None = None
    gpu_name: str | None = None
    work_pool: Name = "default"
    # What promotion asks of the target: the backend's version (or its first parts) on the serving hosts; two approvers.
    serving: Annotated[str, Field(pattern=r"^[0-9]{1,5}([.][0-9]{1,5}){0,4}$")] | None = None
    protected: bool = False
    # How long a release on workers waits for a worker of the pool to come online; one that is busy is waited for.
    patience_seconds: Annotated[int, Field(ge=1, le=604_800)] = 1800

    @model_validator(mode="after")
    def _capability(self) -> Self:
        if (self.backend is Backend.ONNXRUNTIME) != (self.compute_capability is None):
            raise ValueError('a TensorRT target needs a compute_capability such as "8.9"; a CPU target has none')
        return self

    def target(self, name: str) -> GpuTarget:
        """The same as a domain value."""
        return GpuTarget(name, self.backend, self.compute_capability, self.gpu_name, self.work_pool)


class Fleet(Part):
    """The GPU types of the team, by target name."""

    targets: Annotated[dict[Name, TargetSpec], Field(min_length=1)]

    def target(self, name: str) -> GpuTarget:
        """The target of that name.

        Raises:
            BadInput: the fleet has none.
        """
        return self.spec(name).target(name)

    def rules(self, name: str) -> TargetRules:
        """What promotion asks of the target of that name.

        Raises:
            BadInput: the fleet has none.
        """
        spec = self.spec(name)
        return TargetRules(spec.serving, spec.protected)

    def spec(self, name: str) -> TargetSpec:
        """The entry of that name.

        Raises:
            BadInput: the fleet has none.
        """
        if name not in self.targets:
            raise BadInput(f"the fleet has no target {name!r}: choose from {', '.join(self.targets)}, or add it there")
        return self.targets[name]


def load_fleet(path: Path) -> Fleet:
    """Read a fleet file.

    Raises:
        BadInput: as for a recipe.
    """
    return _parse(Fleet, path)


# Flows that start others and wait: in a pool that builds they could wait for a place that they hold themselves.
RELEASES_POOL = "releases"


def work_pools(fleet: Fleet) -> dict[str, Backend]:
    """The fleet's work pools, each with its one backend, in the fleet file's order.

    Raises:
        BadInput: a pool of two backends, or of the name that releases have for theirs.
    """
    pools: dict[str, Backend] = {}
    for name in fleet.targets:
        target = fleet.target(name)
        if pools.setdefault(target.work_pool, target.backend) != target.backend:
            raise BadInput(f"work pool {target.work_pool!r} of the fleet file has two backends: give {name} another")
    if RELEASES_POOL in pools:
        raise BadInput(f"work pool {RELEASES_POOL!r} is where releases run: give the fleet's targets another one")
    return pools
