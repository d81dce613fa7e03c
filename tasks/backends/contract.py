"""The contract of every backend: a module, or a value, that has these functions."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from registry.errors import BadInput, DigestMismatch
from registry.records import GpuTarget, OnnxArtifact, Precision, ShapeProfile, Tensor
from tasks.execution.progress import OnProgress

Array = NDArray[Any]


@dataclass(frozen=True)
class TimingFolder:
    """A folder through which a build shares timing caches: it reads the `*.kept` files and writes `merged`.

    The build renames what it cannot use to `*.refused`. A `strict` build may only replay tactics that were timed
    before: those in the file `replay` where there is one, else those that it times first.
    """

    folder: Path
    strict: bool = False

    @property
    def merged(self) -> Path:
        """The cache after the build: the entries of all kept caches, and those that it timed itself."""
        return self.folder / "merged"

    @property
    def replay(self) -> Path:
        """The cache of an equal build, and nothing else."""
        return self.folder / "replay"


class StoredCache(Protocol):
    """A stored timing cache."""

    @property
    def run_id(self) -> str:
        """The id to discard or replace it by."""

    @property
    def content(self) -> bytes:
        """The serialized cache."""


class TimingCacheStore(Protocol):
    """A store of timing caches by key; every method raises EngineryError where the store fails."""

    def read(self, key: str, notify: Callable[[str], None], /) -> Sequence[StoredCache]:
        """Return the caches stored under `key`, newest first; `notify` gets a sentence per unusable one."""

    def write(self, key: str, content: bytes, replaces: Sequence[str] = (), /) -> None:
        """Store a cache, and delete those whose entries it all holds, by `run_id`."""

    def discard(self, run_id: str, reason: str, /) -> None:
        """Delete a cache, and record the reason."""


@dataclass(frozen=True)
class BuildInputs:
    """Everything a build is given: graph, target, optimization profiles, workspace, and caches to share.

    `timing` is for backends that time tactics; the others ignore it.
    """

    onnx: OnnxArtifact
    target: GpuTarget
    profiles: tuple[ShapeProfile, ...]
    workspace_bytes: int
    timing: TimingFolder | None = None


@dataclass(frozen=True)
class BuiltEngine:
    """The engine file that a backend wrote, and the tensors that it binds by name."""

    path: Path
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Session(Protocol):
    """A loaded engine that can run."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """The tensors that `run` must be fed."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """The tensors that `run` returns, in this order."""

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """Run the engine and return its outputs on the host, in the order of `output_names`."""


@dataclass(frozen=True)
class PhaseTimes:
    """The seconds of one call on the GPU, by its own clock: copies to it, work, and copies back."""

    upload_seconds: float
    compute_seconds: float
    download_seconds: float


@runtime_checkable
class TimesPhases(Protocol):
    """A session on a GPU."""

    def phase_times(self) -> PhaseTimes:
        """Return the times on the GPU of the last call's copies and of its work."""


class BuilderBackend(Protocol):
    """The functions of a backend."""

    def version(self) -> str:
        """Return the version of the vendor's library; Incompatible when it is not installed."""

    def supports(self, precision: Precision, target: GpuTarget) -> str | None:
        """Return None when engines of this precision exist for the target, else the reason why not."""

    def can_build(self, target: GpuTarget) -> str | None:
        """Return None when this machine can build for the target, else what it needs."""

    def can_run(self, target: GpuTarget) -> str | None:
        """Return None when this machine can run the target's engines, else what it needs."""

    def build(self, inputs: BuildInputs, *, into: Path, on_progress: OnProgress) -> BuiltEngine:
        """Write an engine file under `into`; BuildError in the backend's own words when it refuses."""

    def open_session(self, engine: Path, expected_digest: str, *, target: GpuTarget, backend_version: str) -> Session:
        """Load an engine whose sha256 is `expected_digest`, checked before the vendor's library reads a byte.

        `target` and `backend_version` are what the engine was built for and with.

        Raises:
            DigestMismatch: the file's bytes differ.
            Incompatible: another version, another GPU, or no GPU.
        """


def read_verified(engine: Path, expected_digest: str) -> bytes:
    """Read an engine file once, so that the bytes that were hashed are the bytes that run.

    Raises:
        DigestMismatch: their sha256 is not `expected_digest`.
    """
    engine_bytes = engine.read_bytes()
    actual = hashlib.sha256(engine_bytes).hexdigest()
    if actual != expected_digest:
        raise DigestMismatch(f"{engine}: sha256 is {actual}, expected {expected_digest}; fetch or build it again")
    return engine_bytes


def check_feed(feed: Mapping[str, Array], input_names: tuple[str, ...]) -> None:
    """Raise BadInput where a feed has other tensors than an engine's inputs."""
    if feed.keys() != set(input_names):
        raise BadInput(f"the engine needs inputs {', '.join(input_names)}; the feed has {', '.join(feed)}")
