"""Look up which TensorRT a Triton container carries and which driver it needs, in tensorrt_releases.json.

Each row names its source. A container without a source is left out: an unknown container is refused, never guessed.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter

from registry.errors import BadInput, Incompatible
from registry.records import Backend

IMAGE = "nvcr.io/nvidia/tritonserver"
# Major, minor and patch: TensorRT's standard runtime refuses an engine that differs in one of them.
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
    """Read the table that ships with this package."""
    raw = Path(__file__).with_name("tensorrt_releases.json").read_bytes()
    return TypeAdapter(Releases).validate_json(raw)


def minimum_driver(backend: Backend, backend_version: str) -> str | None:
    """Return the oldest driver that runs engines of this backend version; None on a CPU, or without a source.

    Raises:
        BadInput: the version is not numbers and dots.
    """
    if backend.is_portable:
        return None
    major = _parse_version(backend_version)[0]
    fitting = (row.minimum_driver for row in releases().drivers if (row.backend, row.major) == (backend, major))
    return next(fitting, None)


def triton_container(backend_version: str) -> str:
    """Return the newest Triton image that carries this TensorRT, like "nvcr.io/nvidia/tritonserver:26.08-py3".

    Raises:
        Incompatible: no image carries it; the message names the nearest ones.
        BadInput: the version is not numbers and dots.
    """
    version = _parse_version(backend_version)
    containers = releases().containers
    for row in containers:
        if same_tensorrt(row.tensorrt, backend_version):
            return f"{IMAGE}:{row.tag}"
    older = [row for row in containers if _parse_version(row.tensorrt) < version][:1]
    newer = [row for row in containers if _parse_version(row.tensorrt) > version][-1:]
    nearest = " and ".join(f"{row.tag} ({row.tensorrt})" for row in (*older, *newer))
    raise Incompatible(
        f"no known Triton container carries TensorRT {backend_version}; the nearest are {nearest}: "
        "build the engine with the TensorRT of the container that serves it"
    )


def tensorrt_of_container(tag: str) -> str:
    """Return the TensorRT of a Triton container, named "26.08", "26.08-py3" or by its whole image.

    Raises:
        Incompatible: the table does not list it; the message names those it lists.
    """
    image, colon, name = tag.rpartition(":")
    short = name if colon and image == IMAGE else tag
    for row in releases().containers:
        if short in (row.tag, row.tag.removesuffix("-py3")):
            return row.tensorrt
    listed = ", ".join(row.tag for row in releases().containers)
    raise Incompatible(
        f"the TensorRT of Triton container {tag!r} is not known: use one of the known containers, {listed}"
    )


def same_tensorrt(one: str, other: str) -> bool:
    """Tell whether engines of one version load in the other: every part that both name is equal, at least three.

    TensorRT's standard runtime requires the version that built the engine; DRIVE OS's release properties say so
    of major, minor, patch and build: https://developer.nvidia.com/docs/drive/drive-os/7.0.3/public/
    drive-os-tensorrt-release-notes/release-properties.html.

    Raises:
        BadInput: a version is not numbers and dots.
    """
    left, right = _parse_version(one), _parse_version(other)
    shared = min(len(left), len(right))
    return left == right or (shared >= _DECIDING_PARTS and left[:shared] == right[:shared])


def is_release_of(version: str, declared: str) -> bool:
    """Tell whether `version` belongs to the declared one: "10.13" stands for all of its patches."""
    parts = declared.split(".")
    return version.split(".")[: len(parts)] == parts


def _parse_version(version: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in version.split("."))
    except ValueError as error:
        raise BadInput(f"TensorRT version {version[:40]!r} is not numbers and dots, such as 11.2.1.2") from error
