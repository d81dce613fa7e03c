"""Build an engine from an ONNX graph, in a process of its own."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from registry.digest import check_record, digest_of, record_file
from registry.errors import BadInput, BuildError
from registry.records import Backend, EngineBuild, OnnxArtifact, Part, axis_name, fixed_batch
from tasks.backends import BACKENDS
from tasks.backends.contract import BuildInputs, BuiltEngine
from tasks.execution.isolate import run_isolated
from tasks.execution.progress import OnProgress
from tasks.generation.parts import digest_files, fit_profiles, split_graphs
from tasks.graphs.external_data import check_external_data
from tasks.graphs.fixed_batch import check_batch

Options = tuple[tuple[str, str], ...]
# An engine whose tactics were all replayed differs from one whose tactics were timed while it was built.
REPLAYED: Options = (("tactics", "replayed"),)


def build_key(inputs: BuildInputs, *, backend_version: str | None = None, options: Options = ()) -> str:
    """Return the hex sha256 of everything that decides an engine; equal keys need no second build.

    TensorRT's rebuilds differ byte for byte, so inputs make the key. `backend_version` None means the version
    installed here. The target's name is not part of the key: two pools of one GPU type share engines. Nor are the
    timing caches, apart from `options`.

    Raises:
        Incompatible: `backend_version` is None and the backend is not installed.
    """
    target = inputs.target
    version = backend_version or BACKENDS[target.backend].version()
    gpu = target.compute_capability
    return digest_of(
        (inputs.onnx.digest, target.backend, version, gpu, inputs.profiles, inputs.workspace_bytes, options)
    )


def build_engine(inputs: BuildInputs, *, into: Path, on_progress: OnProgress) -> EngineBuild:
    """Build an engine for its target under `into`: whole files, one for each of its parts, or none.

    `on_progress(phase, fraction)` may return False to cancel. The vendor's library runs in a fresh process, so that
    its crash is an error here and does not end this process; ONNX Runtime runs here. `digest` of the result is the
    file's sha256, or that of the records of several files.

    Raises:
        BadInput: a profile or the graph's external data is not acceptable.
        DigestMismatch: the graph's files differ from their records in the artifact.
        BuildError: the target has no such precision, or this machine cannot build it; the backend refused, its
            process died, or the build was cancelled.
    """
    onnx, target = inputs.onnx, inputs.target
    backend = BACKENDS[target.backend]
    if reason := backend.supports(onnx.precision, target) or backend.can_build(target):
        raise BuildError(f"{target.name}: {reason}")
    graphs = _list_graphs(inputs)
    for graph in graphs.values():
        _check_graph(graph.onnx)
        _check_axes(graph)
    version = backend.version()
    into.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    # Beside its destination, so that the move at the end is atomic.
    with TemporaryDirectory(dir=into, prefix=".building-") as scratch:
        built = {name: _build_isolated(graph, Path(scratch), name, on_progress) for name, graph in graphs.items()}
        build_seconds = time.perf_counter() - started
        for part in built.values():
            part.path.replace(into / part.path.name)
    return _describe_build(inputs, built, into, version, build_seconds)


def _list_graphs(inputs: BuildInputs) -> dict[str, BuildInputs]:
    """Return the inputs of each file's build by the name of its part; "" of a graph that has none.

    Parts share no timing caches: of several builds only the last one's would be kept.
    """
    onnx = inputs.onnx
    if onnx.generation is None:
        return {"": inputs}
    return {
        name: replace(inputs, onnx=graph, profiles=fit_profiles(name, onnx.generation, inputs.profiles), timing=None)
        for name, graph in split_graphs(onnx).items()
    }


def _build_isolated(inputs: BuildInputs, into: Path, part: str, on_progress: OnProgress) -> BuiltEngine:
    """Build one file, which is called after its part where it has one."""
    if inputs.target.backend is Backend.ONNXRUNTIME:  # a copy and a load: quicker than a new process
        built = _build(inputs, into, on_progress)
    else:
        built = run_isolated(_build, inputs, into, on_progress=on_progress, died=BuildError)
    return replace(built, path=built.path.rename(into / f"{part}{built.path.suffix}")) if part else built


def _build(inputs: BuildInputs, into: Path, on_progress: OnProgress) -> BuiltEngine:
    return BACKENDS[inputs.target.backend].build(inputs, into=into, on_progress=on_progress)


def _describe_build(
    inputs: BuildInputs, built: Mapping[str, BuiltEngine], folder: Path, version: str, build_seconds: float
) -> EngineBuild:
    onnx, files = inputs.onnx, tuple(record_file(folder / part.path.name, root=folder) for part in built.values())
    first, generation = next(iter(built.values())), onnx.generation
    if generation is not None:
        parts = tuple(Part(name, part.path.name, part.inputs, part.outputs) for name, part in built.items())
        generation = replace(generation, parts=parts)
    replayed = inputs.timing is not None and inputs.timing.strict
    return EngineBuild(
        file=files[0].path,
        files=files,
        digest=digest_files(files, generation),
        build_key=build_key(inputs, backend_version=version, options=REPLAYED if replayed else ()),
        onnx_digest=onnx.digest,
        precision=onnx.precision,
        backend=inputs.target.backend,
        backend_version=version,
        target=inputs.target,
        profiles=inputs.profiles,
        inputs=first.inputs,
        outputs=first.outputs if generation is None else onnx.outputs,
        build_seconds=build_seconds,
        size_bytes=sum(record.size_bytes for record in files),
        generation=generation,
        directory=folder,
    )


def _check_axes(inputs: BuildInputs) -> None:
    """Check that each axis of the profiles is a dynamic axis of the graph; a fixed one would take its own size only.

    Raises:
        BadInput: one is not.
    """
    shapes = {tensor.name: tensor.shape for tensor in inputs.onnx.inputs}
    dynamic = {axis_name(size) for shape in shapes.values() for size in shape if isinstance(size, str)}
    asked = {axis for profile in inputs.profiles for axis, _ in profile.axes}
    if fixed_batch(inputs.onnx.inputs) is not None:
        check_batch(inputs.onnx, inputs.profiles)
        asked -= {"batch"}
    if fixed := sorted(asked - dynamic):
        shown = ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in shapes.items())
        raise BadInput(
            f"the profile has the axis {', '.join(fixed)}, which no input of the graph has as a dynamic one ({shown}): "
            "export the graph with that axis dynamic"
        )


def _check_graph(onnx: OnnxArtifact) -> None:
    """Check that the files are those that `onnx.digest`, and so the build key, stands for."""
    for record in onnx.files:
        check_record(onnx.directory, record)
    recorded = {onnx.directory / record.path for record in onnx.files}
    if unlisted := sorted(str(path) for path in check_external_data(onnx.path) if path not in recorded):
        raise BadInput(f"{onnx.path} reads {', '.join(unlisted)}, which its artifact does not list: export it again")
