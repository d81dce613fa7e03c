"""What every backend offers; each is a module or a value that has these functions."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from registry.errors import DigestMismatch
from registry.records import GpuTarget, OnnxArtifact, Precision, ShapeProfile, Tensor
from tasks.execution.progress import OnProgress

Array = NDArray[Any]


@dataclass(frozen=True)
class BuiltEngine:
    """What a backend wrote: the engine's file, and the tensors it binds by name."""

    path: Path
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class TimingFolder:
    """Where a build finds the timing caches of earlier ones, as `*.kept` files, and leaves `merged`, its own.

    What it cannot use it renames to `*.refused`. With `strict` it may only replay what was timed before: from the file
    `replay` where there is one, else from what it times first.
    """

    folder: Path
    strict: bool = False

    @property
    def merged(self) -> Path:
        """What the build knows after it: all that was kept, and what it timed itself."""
        return self.folder / "merged"

    @property
    def replay(self) -> Path:
        """What an equal build knew, alone."""
        return self.folder / "replay"


class Session(Protocol):
    """An engine that is loaded and can run."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """The tensors that `run` must be fed."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """The tensors that `run` returns, in this order."""

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """Outputs in the order of `output_names`, on the host; returns when the result is there."""


class BuilderBackend(Protocol):
    """The functions of a backend."""

    def version(self) -> str:
        """Version of the vendor's library; Incompatible when it is not installed."""

    def supports(self, precision: Precision, target: GpuTarget) -> str | None:
        """None when engines of this precision exist for the target; else the reason in words."""

    def can_build(self, target: GpuTarget) -> str | None:
        """None when this machine can build for the target; else what it needs."""

    def can_run(self, target: GpuTarget) -> str | None:
        """None when this machine can run the target's engines; else what it needs."""

    def build(
        self,
        onnx: OnnxArtifact,
        target: GpuTarget,
        profiles: tuple[ShapeProfile, ...],
        *,
        workspace_bytes: int,
        into: Path,
        on_progress: OnProgress,
        timing: TimingFolder | None = None,
    ) -> BuiltEngine:
        """Write an engine file under `into`; BuildError with the backend's own words when it refuses.

        A backend that times nothing leaves `timing` alone.
        """

    def open_session(
        self,
        engine: Path,
        expected_digest: str,
        *,
        target: GpuTarget,
        backend_version: str,
        threads: int | None = None,
    ) -> Session:
        """Load an engine whose sha256 is `expected_digest`, checked before the vendor's library sees a byte.

        `target` and `backend_version` are what the engine was built for and with; `threads` counts CPU
        threads (None: the library's choice).

        Raises:
            DigestMismatch: the file's bytes differ.
            Incompatible: another version, another GPU, or none.
        """


def read_verified(engine: Path, expected_digest: str) -> bytes:
    """The file's bytes, read once, so that what was hashed is what will run.

    Raises:
        DigestMismatch: their sha256 is another.
    """
    engine_bytes = engine.read_bytes()
    actual = hashlib.sha256(engine_bytes).hexdigest()
    if actual != expected_digest:
        raise DigestMismatch(f"{engine}: sha256 is {actual}, {expected_digest} was expected; fetch or build it again")
    return engine_bytes
