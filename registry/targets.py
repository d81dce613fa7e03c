"""Which of a model's targets the local machine is."""

from collections.abc import Sequence

import pynvml

from registry.errors import Incompatible
from registry.records import Backend, EngineVersion


def local_compute_capability() -> str | None:
    """Like "8.9" for the first GPU by NVML; None without a GPU or driver."""
    try:
        pynvml.nvmlInit()
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(pynvml.nvmlDeviceGetHandleByIndex(0))
    except pynvml.NVMLError:
        return None
    return f"{major}.{minor}"


def local_target(engines: Sequence[EngineVersion], model: str) -> str:
    """The target in production that this machine's GPU runs; the CPU target where there is no GPU.

    Raises:
        Incompatible: none in production fits; the message lists what there is.
    """
    capability = local_compute_capability()
    serving = [engine for engine in engines if f"production-{engine.target}" in engine.aliases]
    fitting = [
        engine.target
        for engine in serving
        if engine.compute_capability == capability and (capability or engine.backend is Backend.ONNXRUNTIME)
    ]
    if len(set(fitting)) != 1:
        there = ", ".join(f"{engine.target} (compute capability {engine.compute_capability})" for engine in serving)
        here = f"compute capability {capability}" if capability else "no GPU"
        found = "several targets fit" if fitting else "none fits"
        raise Incompatible(
            f"{model} in production: {there or 'nothing'}; this machine has {here} and {found}: name one with --target"
        )
    return fitting[0]
