"""What TensorRT timed is shared between hosts with the same GPU; see docs/adr/0022-timing-cache.md."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from registry.digest import digest_of
from registry.errors import EngineryError
from tasks.backends.build import Options
from tasks.backends.contract import TimingFolder

if TYPE_CHECKING:
    from registry.mlflow.runs.timing_caches import KeptCache, TimingCaches

Say = Callable[[str], None]


def timing_key(gpu_name: str | None, compute_capability: str | None, backend_version: str, options: Options) -> str:
    """What a timing cache is good for: one kind of GPU, one version of TensorRT, the same builder options."""
    return digest_of(("timing-cache", gpu_name, compute_capability, backend_version, options))


@contextmanager
def shared_timing(
    caches: "TimingCaches", key: str, replay_key: str | None, beside: Path, say: Say
) -> Iterator[TimingFolder]:
    """A folder with the caches kept under `key`, and under `replay_key` the one of an equal build, which is strict.

    What the build leaves there is kept, and what it refused is thrown away, once the block ended well. A registry that
    fails costs time and no build: `say` gets one sentence. The folder lies `beside` a stage's scratch folder.
    """
    with tempfile.TemporaryDirectory(dir=beside, prefix=f"timing-{os.getpid()}-") as scratch:
        timing = TimingFolder(Path(scratch), strict=replay_key is not None)
        try:
            kept = _place(caches, key, replay_key, timing, say)
        except EngineryError as error:
            say(f"built without the timing caches of earlier builds: {error}")
            kept = ()
        yield timing
        try:
            _keep(caches, key, replay_key, kept, timing, say)
        except EngineryError as error:
            say(f"what this build timed is not kept: {error}")


def _place(
    caches: "TimingCaches", key: str, replay_key: str | None, timing: TimingFolder, say: Say
) -> Sequence["KeptCache"]:
    if replay_key is not None and (equal := caches.read(replay_key, say)):
        # The oldest: the engines that were published first were made from it.
        timing.replay.write_bytes(equal[-1].content)
        return (equal[-1],)
    kept = caches.read(key, say)
    for cache in kept:
        (timing.folder / f"{cache.run_id}.kept").write_bytes(cache.content)
    return kept


def _keep(
    caches: "TimingCaches",
    key: str,
    replay_key: str | None,
    kept: Sequence["KeptCache"],
    timing: TimingFolder,
    say: Say,
) -> None:
    refused = [cache for cache in kept if (timing.folder / f"{cache.run_id}.refused").is_file()]
    if timing.replay.with_suffix(".refused").is_file():
        refused = list(kept)
    for cache in refused:
        say(f"TensorRT does not read the timing cache of run {cache.run_id}: it is thrown away")
        caches.throw_away(cache.run_id, "TensorRT does not read it")
    if not timing.merged.is_file():
        return
    merged = timing.merged.read_bytes()
    if replay_key is not None:
        caches.write(replay_key, merged)
    combined = [cache for cache in kept if cache not in refused]
    if [cache.content for cache in combined] != [merged]:  # a build that timed nothing new leaves what is there
        caches.write(key, merged, [cache.run_id for cache in combined])
