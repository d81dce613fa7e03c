"""TensorRT version ↔ Triton container ↔ driver: tensorrt_releases.json, each row with its source.

A container that no source speaks of is left out: an unknown one is refused, never guessed.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter

from registry.errors import BadInput, Incompatible
from registry.records import Backend

IMAGE = "nvcr.io/nvidia/tritonserver"
# Major, minor and patch: TensorRT's standard runtime refuses an engine of another one.
_DECIDING_PARTS = 3


@dataclass(frozen=True)
class Container:
    """One Triton container: its TensorRT and CUDA; `evidence` says how `source` was read."""

    tag: str
    tensorrt: str
    cuda: str
    source: str
    evidence: str


@dataclass(frozen=True)
class Driver:
    """The oldest GPU driver for a major version of a backend, like "580"."""

    backend: Backend
    major: int
    minimum_driver: str
    source: str
    evidence: str


@dataclass(frozen=True)
class Releases:
    """The whole table, containers newest first."""

    drivers: tuple[Driver, ...]
    containers: tuple[Container, ...]


@cache
def releases() -> Releases:
    """The table that ships with this package."""
    raw = Path(__file__).with_name("tensorrt_releases.json").read_bytes()
    return TypeAdapter(Releases).validate_json(raw)


def minimum_driver(backend: Backend, backend_version: str) -> str | None:
    """The oldest driver that runs engines of this backend version; None on a CPU, or where no source says.

    Raises:
        BadInput: the version is not numbers and dots.
    """
    if backend is Backend.ONNXRUNTIME:
        return None
    major = _parts(backend_version)[0]
    fitting = (row.minimum_driver for row in releases().drivers if (row.backend, row.major) == (backend, major))
    return next(fitting, None)


def triton_container(backend_version: str) -> str:
    """The newest Triton image that carries this TensorRT, like "nvcr.io/nvidia/tritonserver:26.08-py3".

    Raises:
        Incompatible: none carries it; the message names the nearest ones.
        BadInput: the version is not numbers and dots.
    """
    wanted = _parts(backend_version)
    containers = releases().containers
    for row in containers:
        if same_tensorrt(row.tensorrt, backend_version):
            return f"{IMAGE}:{row.tag}"
    older = [row for row in containers if _parts(row.tensorrt) < wanted][:1]
    newer = [row for row in containers if _parts(row.tensorrt) > wanted][-1:]
    nearest = " and ".join(f"{row.tag} ({row.tensorrt})" for row in (*older, *newer))
    raise Incompatible(
        f"no known Triton container carries TensorRT {backend_version}; the nearest are {nearest}: "
        "build the engine with the TensorRT of the container that serves it"
    )


def tensorrt_of_container(tag: str) -> str:
    """The TensorRT of a Triton container, named "26.08", "26.08-py3" or by its whole image.

    Raises:
        Incompatible: the table does not have it; the message names those it has.
    """
    image, colon, name = tag.rpartition(":")
    short = name if colon and image == IMAGE else tag
    for row in releases().containers:
        if short in (row.tag, row.tag.removesuffix("-py3")):
            return row.tensorrt
    known = ", ".join(row.tag for row in releases().containers)
    raise Incompatible(f"which TensorRT {tag!r} carries is not known; known are {known}: serve with one of these")


def same_tensorrt(one: str, other: str) -> bool:
    """Whether engines of one version load in the other: equal in every part that both name, at least three.

    TensorRT's standard runtime wants the version that built the engine; DRIVE OS's release properties say so
    of major, minor, patch and build: https://developer.nvidia.com/docs/drive/drive-os/7.0.3/public/
    drive-os-tensorrt-release-notes/release-properties.html.

    Raises:
        BadInput: a version is not numbers and dots.
    """
    left, right = _parts(one), _parts(other)
    shared = min(len(left), len(right))
    return left == right or (shared >= _DECIDING_PARTS and left[:shared] == right[:shared])


def is_release_of(version: str, declared: str) -> bool:
    """Whether `version` is the declared one, or one of it: whoever declares "10.13" vouches for its patches."""
    wanted = declared.split(".")
    return version.split(".")[: len(wanted)] == wanted


def _parts(version: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in version.split("."))
    except ValueError as error:
        raise BadInput(f"TensorRT version {version[:40]!r} is not numbers and dots, such as 11.2.1.2") from error
