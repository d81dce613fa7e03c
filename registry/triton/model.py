"""What Triton serves: one version of one model, made of a bundle or of one for each compute capability."""

from collections.abc import Sequence
from dataclasses import dataclass

from registry.errors import BadInput, Incompatible
from registry.host.tensorrt_releases import same_tensorrt, tensorrt_of_container, triton_container
from registry.names import check_name
from registry.records import AxisRange, Backend, EngineBuild, EngineManifest

_ENGINE_FILES = {Backend.TENSORRT: "model.plan", Backend.ONNXRUNTIME: "model.onnx"}


@dataclass(frozen=True)
class WarmupRow:
    """One real row, such as of the calibration set: its text, and its tokens as (input's name, tokens)."""

    text: str
    tokens: tuple[tuple[str, tuple[int, ...]], ...] = ()


@dataclass(frozen=True)
class TritonModel:
    """One version of one Triton model: a bundle's manifest, or one for each compute capability.

    With `python_backend` the model takes text and answers a label and a score; without, tensors.
    """

    manifests: tuple[EngineManifest, ...]
    version: int
    rows: tuple[WarmupRow, ...] = ()
    python_backend: bool = False

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
    """The engine's name in the version's folder: model.plan or model.onnx; sm89.plan where several lie together."""
    if model.python_backend:
        return manifest.build.file
    if len(model.manifests) > 1:
        return f"sm{str(manifest.build.target.compute_capability).replace('.', '')}.plan"
    return _ENGINE_FILES[manifest.build.backend]


def largest_batch(model: TritonModel) -> int:
    """Triton's max_batch_size; 0 where the first axis of an input or output is no batch, or none is known."""
    build = model.manifest.build
    firsts = {tensor.shape[0] if tensor.shape else None for tensor in (*build.inputs, *build.outputs)}
    batched = len(firsts) == 1 and isinstance(next(iter(firsts)), str)
    return min(_reaches(build), default=0) if batched else 0


def _reaches(build: EngineBuild) -> list[int]:
    """For each part of the profiles' sequence range, the largest batch up to which every batch fits a profile.

    Triton's batcher knows one limit: it must hold for whatever length the requests have.
    """
    ranges = [profile.sequence for profile in build.profiles]
    # What covers a length changes only where a range starts, or after it ends.
    lengths = {length for each in ranges for length in (each.min, each.max, each.max + 1)}
    covering = (
        [profile.batch for profile in build.profiles if profile.sequence.min <= length <= profile.sequence.max]
        for length in lengths
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
        BadInput: the version or a label is not one that Triton's files can hold.
    """
    build = model.manifest.build
    if model.version < 1:
        raise BadInput(f"version is {model.version}; Triton's versions count from 1")
    if not all(label.isprintable() for label in model.manifest.source.labels):
        raise BadInput(f"{model.name} has a label that is no printable line: Triton's label file holds one a line")
    if build.backend is Backend.TENSORRT_RTX:
        raise Incompatible(f"{model.name}: Triton has no backend for TensorRT for RTX; release it for tensorrt too")
    if model.python_backend and build.backend is not Backend.ONNXRUNTIME:
        raise Incompatible(f"{model.name}: the text model runs ONNX Runtime engines only, not {build.backend}")
    if 0 in _reaches(build):
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
    place = (manifest.model, manifest.source.labels, build.backend, build.backend_version)
    return (*place, build.inputs, build.outputs, build.profiles)


def _check_container(build: EngineBuild, container: str) -> None:
    carried = tensorrt_of_container(container)
    if not same_tensorrt(carried, build.backend_version):
        raise Incompatible(
            f"container {container} carries TensorRT {carried}, the engine was built with {build.backend_version}: "
            f"serve it with {triton_container(build.backend_version)}, or build for that container"
        )
