"""Build an engine from an ONNX graph, in a process of its own."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

from registry.digest import check_record, digest_of, record_file
from registry.errors import BadInput, BuildError
from registry.records import Backend, EngineBuild, GpuTarget, OnnxArtifact, ShapeProfile
from tasks.backends import BACKENDS
from tasks.backends.contract import BuiltEngine, TimingFolder
from tasks.execution.isolate import run_isolated
from tasks.execution.progress import OnProgress
from tasks.graphs.external_data import check_external_data

Options = tuple[tuple[str, str], ...]
# An engine whose tactics were all replayed is another one than an engine whose tactics were timed while it was built.
REPLAYED: Options = (("tactics", "replayed"),)


def build_key(
    onnx: OnnxArtifact,
    target: GpuTarget,
    profiles: tuple[ShapeProfile, ...],
    *,
    workspace_bytes: int,
    backend_version: str | None = None,
    options: Options = (),
) -> str:
    """Hex sha256 of all that decides what an engine is; equal keys need no second build.

    TensorRT's rebuilds differ byte for byte, so inputs make the key. `backend_version` None means the
    version installed here. The target's name is not part of it: two pools of one GPU type share engines.

    Raises:
        Incompatible: `backend_version` is None and the backend is not installed.
    """
    version = backend_version or BACKENDS[target.backend].version()
    return digest_of(
        (onnx.digest, target.backend, version, target.compute_capability, profiles, workspace_bytes, options)
    )


def build_engine(
    onnx: OnnxArtifact,
    target: GpuTarget,
    profiles: tuple[ShapeProfile, ...],
    *,
    workspace_bytes: int,
    into: Path,
    on_progress: OnProgress,
    timing: TimingFolder | None = None,
) -> EngineBuild:
    """Build for the target and put the engine's file under `into`, all of it or nothing.

    `on_progress(phase, fraction)` may return False to cancel. The vendor's library runs in a fresh process (ONNX
    Runtime runs here), so its crash is an error and not our end. `digest` of the result is the file's sha256.
    `timing` is a folder of timing caches, for a backend that times tactics.

    Raises:
        BadInput: a profile or the graph's external data is not acceptable.
        DigestMismatch: the graph's files are not what the artifact says.
        BuildError: the target has no such precision, or it cannot be built here; the backend refused, its
            process died, or the build was cancelled.
    """
    backend = BACKENDS[target.backend]
    if reason := backend.supports(onnx.precision, target) or backend.can_build(target):
        raise BuildError(f"{target.name}: {reason}")
    _check_graph(onnx)
    version = backend.version()
    into.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    # Beside its destination, so that the move at the end is atomic.
    with TemporaryDirectory(dir=into, prefix=".building-") as scratch:
        built = _run((onnx, target, profiles, workspace_bytes, Path(scratch), timing), on_progress)
        build_seconds = time.perf_counter() - started
        engine = built.path.replace(into / built.path.name)
    file = record_file(engine, root=into)
    return EngineBuild(
        file=file.path,
        files=(file,),
        digest=file.sha256,
        build_key=build_key(
            onnx,
            target,
            profiles,
            workspace_bytes=workspace_bytes,
            backend_version=version,
            options=REPLAYED if timing is not None and timing.strict else (),
        ),
        onnx_digest=onnx.digest,
        precision=onnx.precision,
        backend=target.backend,
        backend_version=version,
        target=target,
        profiles=profiles,
        inputs=built.inputs,
        outputs=built.outputs,
        build_seconds=build_seconds,
        size_bytes=file.size_bytes,
        directory=into,
    )


Arguments = tuple[OnnxArtifact, GpuTarget, tuple[ShapeProfile, ...], int, Path, TimingFolder | None]


def _run(arguments: Arguments, on_progress: OnProgress) -> BuiltEngine:
    if arguments[1].backend is Backend.ONNXRUNTIME:  # a copy and a load: quicker than a new process
        return _build(arguments, on_progress)
    return run_isolated(_build, arguments, on_progress=on_progress, died=BuildError)


def _build(arguments: Arguments, on_progress: OnProgress) -> BuiltEngine:
    onnx, target, profiles, workspace_bytes, into, timing = arguments
    return BACKENDS[target.backend].build(
        onnx, target, profiles, workspace_bytes=workspace_bytes, into=into, on_progress=on_progress, timing=timing
    )


def _check_graph(onnx: OnnxArtifact) -> None:
    """The files are those that `onnx.digest`, and so the build key, stands for."""
    for record in onnx.files:
        check_record(onnx.directory, record)
    recorded = {onnx.directory / record.path for record in onnx.files}
    if strange := sorted(str(path) for path in check_external_data(onnx.path) if path not in recorded):
        raise BadInput(f"{onnx.path} reads {', '.join(strange)}, which its artifact does not list: export it again")
