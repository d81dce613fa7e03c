"""The fleet file: the team's targets, each with its backend, GPU, work pool and rules of promotion.

`load_fleet(path)` reads it; `list_work_pools(fleet)` says which pools its builds run in.
"""

from pathlib import Path
from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from flows.inputs.strict_yaml import Name, Part, parse_yaml
from registry.errors import BadInput
from registry.promotion.rules import TargetRules
from registry.records import Backend, GpuTarget

# The pool of flows that start others and wait for them: in a pool that builds, they could hold the slot they wait for.
RELEASES_POOL = "releases"


_Capability = Annotated[
    str, Field(pattern=r"^[0-9]{1,2}\.[0-9]$", description="a compute capability in quotes", examples=["8.9"])
]
_Version = Annotated[
    str,
    Field(
        pattern=r"^[0-9]{1,5}([.][0-9]{1,5}){0,4}$", description="a version, or its first parts, in quotes",
        examples=["10.13"],
    ),
]  # fmt: skip


class TargetSpec(Part):
    """One target of the fleet file."""

    backend: Backend = Field(examples=["onnxruntime"])
    compute_capability: _Capability | None = None
    gpu_name: str | None = Field(default=None, examples=["NVIDIA L4"])
    work_pool: Name = "default"
    # Rules of promotion: the backend's version (or its first parts) on the serving hosts, and whether two must approve.
    serving: _Version | None = None
    protected: bool = False
    # How long a release on workers waits for one of the pool to come online; for a busy one it waits without limit.
    patience_seconds: Annotated[int, Field(ge=1, le=604_800)] = 1800

    @model_validator(mode="after")
    def _check_capability(self) -> Self:
        if self.backend.is_portable != (self.compute_capability is None):
            raise ValueError(
                'a TensorRT target needs a compute_capability such as "8.9"; a target of ONNX Runtime has none'
            )
        return self

    def target(self, name: str) -> GpuTarget:
        """Return the target as a domain value."""
        return GpuTarget(name, self.backend, self.compute_capability, self.gpu_name, self.work_pool)


class Fleet(Part):
    """The team's targets, by name."""

    model_config = ConfigDict(title="fleet file")

    targets: dict[Name, TargetSpec] = Field(min_length=1, examples=[{"cpu": {"backend": "onnxruntime"}}])

    def target(self, name: str) -> GpuTarget:
        """Return the target of that name.

        Raises:
            BadInput: the fleet has no such target.
        """
        return self.spec(name).target(name)

    def rules(self, name: str) -> TargetRules:
        """Return the rules of promotion of the target of that name.

        Raises:
            BadInput: the fleet has no such target.
        """
        spec = self.spec(name)
        return TargetRules(spec.serving, spec.protected)

    def spec(self, name: str) -> TargetSpec:
        """Return the fleet file's entry of that name.

        Raises:
            BadInput: the fleet has no such target.
        """
        if name not in self.targets:
            raise BadInput(
                f"the fleet has no target {name!r}: choose from {', '.join(self.targets)}, or add it to the fleet file"
            )
        return self.targets[name]


def load_fleet(path: Path) -> Fleet:
    """Read a fleet file.

    Raises:
        BadInput: as `parse_yaml`.
    """
    return parse_yaml(Fleet, path)


def list_work_pools(fleet: Fleet) -> dict[str, Backend]:
    """Return the fleet's work pools in the fleet file's order, each with its backend.

    Raises:
        BadInput: a pool has two backends, or the name that is reserved for releases.
    """
    pools: dict[str, Backend] = {}
    for name in fleet.targets:
        target = fleet.target(name)
        if pools.setdefault(target.work_pool, target.backend) != target.backend:
            raise BadInput(
                f"work pool {target.work_pool!r} of the fleet file has two backends: give {name} a pool of its own"
            )
    if RELEASES_POOL in pools:
        raise BadInput(
            f"work pool {RELEASES_POOL!r} is reserved for releases: give the fleet file's targets another work_pool"
        )
    return pools
