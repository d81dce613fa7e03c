"""Build with the timing caches of earlier builds; `trt` is the vendor's module.

https://docs.nvidia.com/deeplearning/tensorrt/11.0.0/inference-library/precision-control.html (reproducible builds) and
https://docs.nvidia.com/deeplearning/tensorrt/10.16.1/performance/builder-performance.html (timing cache).
"""

from typing import Any

from registry.errors import BuildError
from tasks.backends.contract import TimingFolder


def build_with_timing(trt: Any, builder: Any, network: Any, config: Any, timing: TimingFolder) -> Any:
    """Build and return the serialized engine, or None where TensorRT refuses; write the merged cache to `timing`.

    A strict build runs twice, unless an equal build left its cache: the first run times tactics, and the second, which
    produces the engine, may only choose tactics that are in the cache.

    Raises:
        BuildError: TensorRT accepts no timing cache on this machine.
    """
    # Compiled code would make up most of a cache, and a file that other hosts read should contain none.
    config.set_flag(trt.BuilderFlag.DISABLE_COMPILATION_CACHE)
    if not timing.strict:
        cache = attach_merged(config, timing)
        plan = builder.build_serialized_network(network, config)
        _write_merged(cache, timing)
        return plan
    # Each layer gets its own tactic, and the cache records the choice.
    config.set_flag(trt.BuilderFlag.EDITABLE_TIMING_CACHE)
    if (cache := _attach_replay(config, timing)) is None:
        cache = attach_merged(config, timing)
        if builder.build_serialized_network(network, config) is None:
            return None
        _write_merged(cache, timing)
    config.set_flag(trt.BuilderFlag.ERROR_ON_TIMING_CACHE_MISS)
    return builder.build_serialized_network(network, config)


def attach_merged(config: Any, timing: TimingFolder) -> Any:
    """Attach a cache with the entries of every kept one to the builder's config, and return it.

    Raises:
        BuildError: TensorRT accepts no timing cache on this machine.
    """
    cache = config.create_timing_cache(b"")
    if cache is None:
        raise BuildError("TensorRT cannot create a timing cache on this machine: check its GPU driver")
    for file in sorted(timing.folder.glob("*.kept")):
        stored = load_cache(config, file.read_bytes())
        # False: TensorRT itself also refuses a cache of another GPU or version, beside our key.
        if stored is None or not cache.combine(stored, False):
            file.rename(file.with_suffix(".refused"))
    if not config.set_timing_cache(cache, False):
        raise BuildError("TensorRT rejects its own timing cache on this machine: check its GPU driver")
    return cache


def _attach_replay(config: Any, timing: TimingFolder) -> Any:
    """Attach the cache of an equal build and return it; None where TensorRT cannot read it, or there is none."""
    if not timing.replay.is_file():
        return None
    cache = load_cache(config, timing.replay.read_bytes())
    if cache is None or not config.set_timing_cache(cache, False):
        timing.replay.rename(timing.replay.with_suffix(".refused"))
        return None
    return cache


def load_cache(config: Any, content: bytes) -> Any:
    """Create a cache from its bytes; None where TensorRT cannot read them.

    TensorRT then logs a warning and returns an empty cache.
    """
    cache = config.create_timing_cache(content)
    return (
        cache
        if cache is not None and serialized_size(cache) > serialized_size(config.create_timing_cache(b""))
        else None
    )


def _write_merged(cache: Any, timing: TimingFolder) -> None:
    serialized = cache.serialize()
    if serialized is not None:
        timing.merged.write_bytes(memoryview(serialized))


def serialized_size(cache: Any) -> int:
    """Return the size of a cache in bytes."""
    serialized = cache.serialize()
    return 0 if serialized is None else memoryview(serialized).nbytes
