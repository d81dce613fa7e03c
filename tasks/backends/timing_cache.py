"""Share TensorRT's timing caches between hosts with the same GPU; see docs/adr/0022-timing-cache.md."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from registry.digest import digest_of
from registry.errors import EngineryError
from tasks.backends.build import Options
from tasks.backends.contract import StoredCache, TimingCacheStore, TimingFolder

Notify = Callable[[str], None]


def timing_key(gpu_name: str | None, compute_capability: str | None, backend_version: str, options: Options) -> str:
    """Return the key of a timing cache: one GPU model, one version of TensorRT, the same builder options."""
    return digest_of(("timing-cache", gpu_name, compute_capability, backend_version, options))


@contextmanager
def shared_timing(
    caches: TimingCacheStore, key: str, replay_key: str | None, parent: Path, notify: Notify
) -> Iterator[TimingFolder]:
    """Fill a timing folder from the caches stored under `key`, and store what the build leaves in it.

    With a `replay_key` the build is strict, and gets only the cache that an equal build stored under that key. What the
    build refused is discarded. Nothing is stored if the block raises. A store that fails costs time and never the
    build: `notify` gets one sentence. `parent` holds the folder: the folder of the stages' scratch folders.
    """
    with tempfile.TemporaryDirectory(dir=parent, prefix=f"timing-{os.getpid()}-") as scratch:
        timing = TimingFolder(Path(scratch), strict=replay_key is not None)
        placed: Sequence[StoredCache] = ()
        try:
            placed = _place_caches(caches, key, replay_key, timing, notify)
        except EngineryError as error:
            notify(f"built without the timing caches of earlier builds: {error}")
        yield timing
        try:
            usable = _discard_refused(caches, placed, timing, notify)
            _store_merged(caches, key, replay_key, usable, timing)
        except EngineryError as error:
            notify(f"the timing cache of this build was not stored: {error}")


def _place_caches(
    caches: TimingCacheStore, key: str, replay_key: str | None, timing: TimingFolder, notify: Notify
) -> Sequence[StoredCache]:
    if replay_key is not None and (equal_builds := caches.read(replay_key, notify)):
        # The oldest: the engines that were published first were built from it.
        timing.replay.write_bytes(equal_builds[-1].content)
        return (equal_builds[-1],)
    stored = caches.read(key, notify)
    for cache in stored:
        (timing.folder / f"{cache.run_id}.kept").write_bytes(cache.content)
    return stored


def _discard_refused(
    caches: TimingCacheStore, placed: Sequence[StoredCache], timing: TimingFolder, notify: Notify
) -> list[StoredCache]:
    """Discard the caches that TensorRT refused, and return the others."""
    replay_refused = timing.replay.with_suffix(".refused").is_file()
    usable = []
    for cache in placed:
        if replay_refused or (timing.folder / f"{cache.run_id}.refused").is_file():
            notify(f"TensorRT cannot read the timing cache of run {cache.run_id}: it was discarded")
            caches.discard(cache.run_id, "TensorRT cannot read it")
        else:
            usable.append(cache)
    return usable


def _store_merged(
    caches: TimingCacheStore, key: str, replay_key: str | None, combined: Sequence[StoredCache], timing: TimingFolder
) -> None:
    if not timing.merged.is_file():
        return
    merged = timing.merged.read_bytes()
    if replay_key is not None:
        caches.write(replay_key, merged)
    if [cache.content for cache in combined] != [merged]:  # a build that timed nothing new stores nothing
        caches.write(key, merged, [cache.run_id for cache in combined])
