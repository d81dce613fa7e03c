"""Builds that know what earlier ones timed: TensorRT's timing cache; `trt` is the vendor's module.

https://docs.nvidia.com/deeplearning/tensorrt/11.0.0/inference-library/precision-control.html (reproducible builds) and
https://docs.nvidia.com/deeplearning/tensorrt/10.16.1/performance/builder-performance.html (timing cache).
"""

from typing import Any

from registry.errors import BuildError
from tasks.backends.contract import TimingFolder


def build_with_timing(trt: Any, builder: Any, network: Any, config: Any, timing: TimingFolder) -> Any:
    """The serialized engine, or None where TensorRT refuses; what was timed is left in `timing`.

    A strict build is made twice, unless an equal one left its cache: the first one times, and the second one, which is
    the engine, may choose nothing that is not in the cache.

    Raises:
        BuildError: TensorRT takes no timing cache at all.
    """
    # Compiled code would make up most of a cache, and a file that others read should hold none.
    config.set_flag(trt.BuilderFlag.DISABLE_COMPILATION_CACHE)
    if not timing.strict:
        cache = attach(config, timing)
        plan = builder.build_serialized_network(network, config)
        _leave(cache, timing)
        return plan
    # Each layer gets tactics of its own, and the cache holds the choice.
    config.set_flag(trt.BuilderFlag.EDITABLE_TIMING_CACHE)
    if (cache := _replayed(config, timing)) is None:
        cache = attach(config, timing)
        if builder.build_serialized_network(network, config) is None:
            return None
        _leave(cache, timing)
    config.set_flag(trt.BuilderFlag.ERROR_ON_TIMING_CACHE_MISS)
    return builder.build_serialized_network(network, config)


def attach(config: Any, timing: TimingFolder) -> Any:
    """A cache that holds the entries of every kept one, attached to the builder's config.

    Raises:
        BuildError: TensorRT takes no timing cache at all.
    """
    cache = config.create_timing_cache(b"")
    if cache is None:
        raise BuildError("TensorRT makes no timing cache on this machine: look at its driver")
    for file in sorted(timing.folder.glob("*.kept")):
        kept = _load(config, file.read_bytes())
        # False: one of another GPU or version is refused by TensorRT itself too, and not only by our key.
        if kept is None or not cache.combine(kept, False):
            file.rename(file.with_suffix(".refused"))
    if not config.set_timing_cache(cache, False):
        raise BuildError("TensorRT does not take its own timing cache on this machine: look at its driver")
    return cache


def _replayed(config: Any, timing: TimingFolder) -> Any:
    """The cache of an equal build, attached; None where there is none, or TensorRT does not read it."""
    if not timing.replay.is_file():
        return None
    cache = _load(config, timing.replay.read_bytes())
    if cache is None or not config.set_timing_cache(cache, False):
        timing.replay.rename(timing.replay.with_suffix(".refused"))
        return None
    return cache


def _load(config: Any, content: bytes) -> Any:
    """The cache of these bytes; None where TensorRT does not read them.

    TensorRT says in a warning that it cannot, and gives an empty cache.
    """
    cache = config.create_timing_cache(content)
    return cache if cache is not None and _size(cache) > _size(config.create_timing_cache(b"")) else None


def _leave(cache: Any, timing: TimingFolder) -> None:
    serialized = cache.serialize()
    if serialized is not None:
        timing.merged.write_bytes(memoryview(serialized))


def _size(cache: Any) -> int:
    serialized = cache.serialize()
    return 0 if serialized is None else memoryview(serialized).nbytes
