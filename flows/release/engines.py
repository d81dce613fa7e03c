"""Get the engine of a graph for a target: from the registry, if another host published it, else by building it."""

import tempfile
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from flows.release.context import ReleaseContext
from registry.bundle.manifest import check_agrees
from registry.errors import BadInput, DigestMismatch, SignatureInvalid
from registry.host.compatibility import read_host
from registry.mlflow.runs.timing_caches import TimingCaches
from registry.records import Backend, EngineBuild, EngineVersion, GpuTarget, OnnxArtifact
from registry.serving.download import copy_bundle
from registry.serving.fetch import verify_placed
from tasks.backends import BACKENDS
from tasks.backends.build import REPLAYED, build_engine, build_key
from tasks.backends.contract import BuildInputs, TimingFolder
from tasks.backends.timing_cache import shared_timing, timing_key
from tasks.execution.steps import Step


def engine_step(context: ReleaseContext, onnx: OnnxArtifact, target: GpuTarget) -> Step[EngineBuild]:
    """Make the stage that gets the engine of a graph for a target."""
    inputs = BuildInputs(onnx, target, context.recipe.shape_profiles, context.recipe.workspace_mb * 2**20)
    label = f"{target.name} {onnx.precision}"
    strict = context.recipe.reproducible_builds and target.backend is Backend.TENSORRT
    key = build_key(inputs, options=REPLAYED if strict else ())

    def make(into: Path) -> EngineBuild:
        published = context.store.find_build(key)
        if published is not None:
            reused = reuse_published(context, published, target, key, into)
            if reused is not None:
                return reused
        with open_timing(context, target, key if strict else None, into) as timing:
            on_progress = context.progress_of(f"build {label}")
            return build_engine(replace(inputs, timing=timing), into=into, on_progress=on_progress)

    return Step("build", label, key, EngineBuild, make, lambda build: f"{build.size_bytes / 1e6:.1f} MB")


def open_timing(
    context: ReleaseContext, target: GpuTarget, replay_key: str | None, into: Path
) -> AbstractContextManager[TimingFolder | None]:
    """Open the tactic timings of earlier builds on this kind of GPU.

    It yields None for a backend that times nothing. With a `replay_key` (a build key) the timings of that very build
    are replayed, which gives the same engine byte for byte.
    """
    if target.backend is not Backend.TENSORRT:
        return nullcontext()
    options = (("workspace_mb", str(context.recipe.workspace_mb)), *(REPLAYED if replay_key else ()))
    version = BACKENDS[target.backend].version()
    key = timing_key(read_host().gpu_name, target.compute_capability, version, options)
    return shared_timing(TimingCaches(context.store), key, replay_key, into.parent, context.reporter.say)


def reuse_published(
    context: ReleaseContext, published: EngineVersion, target: GpuTarget, key: str, into: Path
) -> EngineBuild | None:
    """Fetch and verify the engine of a published bundle: another host built it, or this workspace was cleared.

    Returns None unless a trusted key signed it, for the build key and the GPU asked for: an engine is code, and this
    machine would run it to measure it. Two targets of one GPU type share engines, and so do two models of one graph.
    """
    with tempfile.TemporaryDirectory(dir=into.parent) as scratch:
        bundle = Path(scratch) / "bundle"
        bundle.mkdir()
        copy_bundle(context.store, published.model, published.version, bundle)
        try:
            manifest = verify_placed(bundle, context.trust())
            check_agrees(published, manifest)
            build = manifest.build
            _check_build(build, target, key)
        except (SignatureInvalid, BadInput, DigestMismatch) as error:
            context.reporter.say(
                f"rebuilding instead of reusing {published.model} version {published.version}: {error}"
            )
            return None
        for record in build.files:
            (bundle / record.path).rename(into / record.path)
    return build


def _check_build(build: EngineBuild, target: GpuTarget, key: str) -> None:
    made_for, wanted = ((each.backend, each.compute_capability) for each in (build.target, target))
    if (build.build_key, made_for) != (key, wanted):
        raise DigestMismatch("the registry answered with another engine than was asked for, do not trust it")
