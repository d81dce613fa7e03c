"""What Triton serves: one version of one model, made of a bundle or of one for each compute capability."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from registry.errors import BadInput, Incompatible
from registry.host.tensorrt_releases import same_tensorrt, tensorrt_of_container, triton_container
from registry.names import check_name
from registry.records import AxisRange, Backend, EngineBuild, EngineManifest, fixed_batch, largest_axes

# Where the bundle lies in the folder of a Python model's version.
BUNDLE_FOLDER = "bundle"
_ENGINE_FILES = {
    Backend.TENSORRT: "model.plan",
    Backend.ONNXRUNTIME: "model.onnx",
    Backend.ONNXRUNTIME_CUDA: "model.onnx",
}


@dataclass(frozen=True)
class WarmupRow:
    """One real row, such as of the calibration set: as a client sends it, and as (input's name, its values)."""

    request: str
    tensors: tuple[tuple[str, tuple[int, ...]], ...] = ()


@dataclass(frozen=True)
class PythonModel:
    """A model for Triton's Python backend around a bundle: raw `request` in, `answers` out, each a string a row.

    `files` are (name, content): model.py and what it needs beside the bundle, which lies in BUNDLE_FOLDER.
    """

    request: str
    answers: tuple[str, ...]
    files: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True)
class TritonModel:
    """One version of one Triton model: a bundle's manifest, or one for each compute capability.

    With a `python_model` it takes and answers what `enginery run` does; without, tensors.
    """

    manifests: tuple[EngineManifest, ...]
    version: int
    rows: tuple[WarmupRow, ...] = ()
    python_model: PythonModel | None = None

    @property
    def manifest(self) -> EngineManifest:
        """The first one, which speaks for all where they agree."""
        return self.manifests[0]

    @property
    def name(self) -> str:
        """The registered model's name: the folder's, and what clients ask for."""
        return check_name(self.manifest.model, what="model")

    @property
    def labels_file(self) -> str:
        """Beside config.pbtxt, so its name holds the version: two versions may have other labels."""
        return f"labels-{self.version}.txt"


def engine_file(model: TritonModel, manifest: EngineManifest) -> str:
    """Return the bare engine's name in the version's folder: model.plan or model.onnx, or sm89.plan of several."""
    if len(model.manifests) > 1:
        return f"sm{str(manifest.build.target.compute_capability).replace('.', '')}.plan"
    return _ENGINE_FILES[manifest.build.backend]


def largest_batch(model: TritonModel) -> int:
    """Return Triton's max_batch_size; 0 where the first axis of an input or output is no batch, or none is known.

    A Python model cuts what it gets into the engine's batches, so there is always one.
    """
    build = model.manifest.build
    if model.python_model is not None:
        return largest_axes(build.profiles).get("batch", 1)
    firsts = {tensor.shape[0] if tensor.shape else None for tensor in (*build.inputs, *build.outputs)}
    batched = len(firsts) == 1 and isinstance(next(iter(firsts)), str)
    return min(_reaches(build), default=0) if batched else 0


def _reaches(build: EngineBuild) -> list[int]:
    """Return, for each part of the profiles' other axes, the largest batch up to which every batch fits a profile.

    Triton's batcher knows one limit: it must hold for whatever sizes the requests have.
    """
    others = [dict(profile.axes) for profile in build.profiles]
    names = sorted({name for axes in others for name in axes} - {"batch"})
    # What covers a size changes only where a range starts, or after it ends.
    sizes = [
        {size for axes in others if name in axes for size in (axes[name].min, axes[name].max, axes[name].max + 1)}
        for name in names
    ]
    covering = (
        [axes["batch"] for axes, profile in zip(others, build.profiles, strict=True) if profile.holds(point)]
        for point in (dict(zip(names, corner, strict=True)) for corner in itertools.product(*sizes))
    )
    return [_reach(batches) for batches in covering if batches]


def _reach(batches: Sequence[AxisRange]) -> int:
    reach = 0
    for batch in sorted(batches, key=lambda batch: batch.min):
        if batch.min <= reach + 1:
            reach = max(reach, batch.max)
    return reach


def check_servable(model: TritonModel, container: str | None) -> None:
    """Check that Triton can serve these engines together, in `container` where one is named.

    Raises:
        Incompatible: Triton has no backend for one, they differ in more than the compute capability, the
            engine takes no single request, or the container carries another TensorRT.
        BadInput: the version or a class name is not one that Triton's files can hold.
    """
    build = model.manifest.build
    if model.version < 1:
        raise BadInput(f"version is {model.version}; Triton's versions count from 1")
    if not all(name.isprintable() for name in model.manifest.source.classes):
        raise BadInput(f"{model.name} has a class name that is not a printable line, as in Triton's label file")
    if build.backend is Backend.TENSORRT_RTX:
        raise Incompatible(f"{model.name}: Triton has no backend for TensorRT for RTX; release it for tensorrt too")
    if model.python_model is not None:
        if build.backend is not Backend.ONNXRUNTIME:
            raise Incompatible(
                f"{model.name}: the Python model runs ONNX Runtime's engines for CPUs only, not {build.backend}: place "
                "it without --python-backend, or release it for target cpu too"
            )
    elif build.generation is not None:
        raise Incompatible(
            f"{model.name} writes text with several engines, token by token, which only Triton's Python backend does: "
            "place its engine for CPUs with --python-backend, or serve it from a program of your own"
        )
    elif fixed_batch(build.inputs) is None and 0 in _reaches(build):
        raise Incompatible(f"{model.name} takes no batch of 1, and Triton sends what comes: set a profile's min to 1")
    _check_together(model)
    if container and build.backend is Backend.TENSORRT:
        _check_container(build, container)


def _check_together(model: TritonModel) -> None:
    if any(_shared(manifest) != _shared(model.manifest) for manifest in model.manifests[1:]):
        raise Incompatible(f"{model.name}: engines placed together may differ in compute capability only")
    capabilities = [manifest.build.target.compute_capability for manifest in model.manifests]
    if len(set(capabilities)) < len(capabilities):
        raise Incompatible(f"{model.name}: two engines for one compute capability of {capabilities}: place one")


def _shared(manifest: EngineManifest) -> tuple[object, ...]:
    build = manifest.build
    place = (manifest.model, manifest.source.classes, build.backend, build.backend_version)
    return (*place, build.inputs, build.outputs, build.profiles)


def _check_container(build: EngineBuild, container: str) -> None:
    carried = tensorrt_of_container(container)
    if not same_tensorrt(carried, build.backend_version):
        raise Incompatible(
            f"container {container} carries TensorRT {carried}, the engine was built with {build.backend_version}: "
            f"serve it with {triton_container(build.backend_version)}, or build for that container"
        )
