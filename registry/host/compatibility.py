"""Describe the local machine and decide which engines load on it, before anything is downloaded.

TensorRT and TensorRT-RTX engines load only on the compute capability and the version that they were built for:
https://docs.nvidia.com/deeplearning/tensorrt/11.1.0/inference-library/engine-compatibility.html and
https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/engine-compatibility.html. ONNX runs
on every machine, and in ONNX Runtime for CUDA on every NVIDIA GPU.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from registry.errors import BadInput, Incompatible, TornBundle
from registry.host.cpu import Cpu
from registry.host.gpu import read_gpu
from registry.host.tensorrt_releases import is_release_of
from registry.names import PRODUCTION, production_alias
from registry.records import Backend, EngineManifest, EngineVersion
from registry.store import ServingStore

# The wheels that carry each library, by the CUDA version in their names.
_PACKAGES = {
    Backend.TENSORRT: ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    Backend.TENSORRT_RTX: ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
}
_VERSION = re.compile(r"\d+(?:\.\d+){1,4}")


@dataclass(frozen=True)
class Host:
    """A serving machine; versions look like "580.95.05", and None means that it has none.

    `cuda` is the newest CUDA that the driver runs; `tensorrt` and `tensorrt_rtx` will load the engines.
    """

    compute_capability: str | None = None
    gpu_name: str | None = None
    driver: str | None = None
    cuda: str | None = None
    tensorrt: str | None = None
    tensorrt_rtx: str | None = None


def read_host(tensorrt: str | None = None) -> Host:
    """Describe this machine: the GPU that CUDA takes first, and the TensorRT that will load engines.

    Args:
        tensorrt: the declared version; the installed package's if None. A server that brings its own TensorRT, like a
            container, has to be declared.

    Raises:
        BadInput: `tensorrt` is not a version.
    """
    if tensorrt is not None and not _VERSION.fullmatch(tensorrt):
        raise BadInput(
            f"--tensorrt {tensorrt[:40]!r} is not a version: give the one that will load engines, like 10.13"
        )
    versions = (tensorrt or _installed_version(Backend.TENSORRT), tensorrt or _installed_version(Backend.TENSORRT_RTX))
    gpu = read_gpu()
    if gpu is None:
        return Host(None, None, None, None, *versions)
    return Host(gpu.compute_capability, gpu.name, gpu.driver, gpu.cuda, *versions)


def production_engines(store: ServingStore, model: str) -> tuple[EngineVersion, ...]:
    """Return the engine in production for each target; skip an alias whose version is missing or cannot be read."""
    engines: dict[int, EngineVersion] = {}
    for alias, number in sorted(store.aliases(model).items()):
        if alias.startswith(PRODUCTION):
            with suppress(BadInput, TornBundle):
                engines[number] = store.version(model, number)
    return tuple(engine for engine in engines.values() if _serves_its_target(engine))


def local_target(engines: Sequence[EngineVersion], model: str, host: Host) -> str:
    """Return the target in production that this machine runs: its GPU's, or the CPU's without a GPU.

    Raises:
        Incompatible: no target in production fits, or several do; the message lists those in production.
    """
    serving = [engine for engine in engines if _serves_its_target(engine)]
    # A machine with a GPU does not silently get the CPU's engine: only its latency would give that away.
    same_gpu = [engine for engine in serving if _is_for_gpu_of(engine, host)]
    loading = [engine for engine in same_gpu if find_incompatibility(engine, host) is None]
    # What was built for this GPU goes before what any GPU runs.
    fitting = {each.target for each in loading if not each.backend.is_portable} or {each.target for each in loading}
    if len(fitting) == 1:
        return next(iter(fitting))
    reasons = [reason for engine in same_gpu if (reason := find_incompatibility(engine, host))]
    if not serving:
        raise Incompatible(
            f"{model} has nothing in production: promote a version, or fetch one by --alias or --version; "
            "`enginery list` shows the published engines"
        )
    result = "several targets fit: name one with --target" if fitting else "no target in production fits"
    why = f" ({'; '.join(reasons)})" if reasons and not fitting else ""
    way_out = "" if fitting else "; name another with --target, or promote one for this machine"
    raise Incompatible(
        f"{model}: this machine has {_describe_host(host)}; {result}{why}; {list_production(serving)}{way_out}"
    )


def check_compatible(engine: EngineVersion, host: Host, alternatives: Sequence[EngineVersion] = ()) -> None:
    """Refuse an engine that cannot load on `host`; the message offers the `alternatives`.

    Raises:
        Incompatible: the compute capability or TensorRT differs or is unknown, or the driver is too old.
    """
    if reason := find_incompatibility(engine, host):
        raise Incompatible(
            f"{engine.model} version {engine.version} for {engine.target} does not load here: {reason}; this machine "
            f"has {_describe_host(host)}; {list_production(alternatives)}; fetch one of those, or use --any-host to "
            "fetch for another machine"
        )


def find_incompatibility(engine: EngineVersion, host: Host) -> str | None:
    """Return the reason why `engine` does not load on `host`; None where it loads."""
    if engine.backend.is_portable:
        needs_gpu = engine.backend is Backend.ONNXRUNTIME_CUDA
        return "it needs an NVIDIA GPU" if needs_gpu and host.compute_capability is None else None
    if engine.compute_capability is None or engine.compute_capability != host.compute_capability:
        return f"it was built for compute capability {engine.compute_capability or 'unknown'}"
    installed = host.tensorrt if engine.backend is Backend.TENSORRT else host.tensorrt_rtx
    if installed is None:
        return (
            f"it needs {engine.backend} {engine.backend_version}, which is not installed: name the version that will "
            "load it with --tensorrt"
        )
    if not is_release_of(engine.backend_version, installed):
        return f"it was built with {engine.backend} {engine.backend_version}, which version {installed} does not load"
    if engine.minimum_driver and (
        not host.driver or _parse_numbers(host.driver) < _parse_numbers(engine.minimum_driver)
    ):
        return f"it needs driver {engine.minimum_driver} or newer"
    return None


def note_other_cpu(manifest: EngineManifest, cpu: Cpu) -> str | None:
    """Say where an engine for CPUs was judged on one that adds int8 otherwise than this one; None where it is alike."""
    if manifest.build.backend is not Backend.ONNXRUNTIME:
        return None
    own = (each.measured_on.instruction_set for each in manifest.measurements if each.subject == "engine")
    judged = next((instructions for instructions in own if instructions), None)
    if judged is None or Cpu("", judged).adds_int8_exactly == cpu.adds_int8_exactly:
        return None
    return (
        f"judged on a CPU with {judged}, this one has {cpu.instruction_set}: int8 is added otherwise, so the speed and "
        "some answers differ from the record"
    )


def list_production(engines: Sequence[EngineVersion]) -> str:
    """List the engines in production in words."""
    return f"in production: {', '.join(map(_describe_engine, engines)) or 'nothing'}"


def _describe_engine(engine: EngineVersion) -> str:
    if engine.backend.is_portable:
        return f"{engine.target} (any {'machine' if engine.backend is Backend.ONNXRUNTIME else 'NVIDIA GPU'})"
    driver = f", driver {engine.minimum_driver} or newer" if engine.minimum_driver else ""
    capability = engine.compute_capability or "unknown"
    return f"{engine.target} (compute capability {capability}, {engine.backend} {engine.backend_version}{driver})"


def _describe_host(host: Host) -> str:
    if host.compute_capability is None:
        return "no GPU"
    libraries = ((Backend.TENSORRT, host.tensorrt), (Backend.TENSORRT_RTX, host.tensorrt_rtx))
    versions = "".join(f", {library} {version}" for library, version in libraries if version)
    return f"compute capability {host.compute_capability} ({host.gpu_name}, driver {host.driver}{versions})"


def _is_for_gpu_of(engine: EngineVersion, host: Host) -> bool:
    if engine.backend is Backend.ONNXRUNTIME_CUDA:
        return host.compute_capability is not None
    return engine.compute_capability == host.compute_capability


def _serves_its_target(engine: EngineVersion) -> bool:
    return production_alias(engine.target) in engine.aliases


def _parse_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def _installed_version(backend: Backend) -> str | None:
    for package in _PACKAGES[backend]:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None
