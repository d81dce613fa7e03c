"""Get engines: of a graph for a target, from the registry or by building it; and the one in production on a target."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from flows.release.context import ReleaseContext
from registry.bundle.manifest import check_agrees
from registry.errors import BadInput, DigestMismatch, EngineryError, SignatureInvalid
from registry.host.compatibility import find_incompatibility, read_host
from registry.mlflow.runs.timing_caches import TimingCaches
from registry.names import production_alias
from registry.records import Backend, EngineBuild, EngineVersion, GpuTarget, OnnxArtifact
from registry.serving.download import copy_bundle
from registry.serving.fetch import verify_placed
from tasks.backends import BACKENDS
from tasks.backends.build import REPLAYED, build_engine, build_key
from tasks.backends.contract import BuildInputs, TimingFolder
from tasks.backends.timing_cache import shared_timing, timing_key
from tasks.execution.steps import Step
from tasks.measurement.beside import explain_apart


@dataclass(frozen=True)
class InProduction:
    """The engine in production on a target, to be timed beside new ones; or why it is not, in words.

    Both are empty where there is none.
    """

    build: EngineBuild | None = None
    remark: str = ""


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
    try:
        return _fetch_engine(context, published, into, lambda build: _check_build(build, target, key))
    except (SignatureInvalid, BadInput, DigestMismatch) as error:
        context.reporter.say(f"rebuilding instead of reusing {published.model} version {published.version}: {error}")
        return None


def _fetch_engine(
    context: ReleaseContext,
    published: EngineVersion,
    into: Path,
    check: Callable[[EngineBuild], None] = lambda _: None,
) -> EngineBuild:
    """Copy a published engine's files, after its bundle was verified and `check` did not raise."""
    with tempfile.TemporaryDirectory(dir=into.parent) as scratch:
        bundle = Path(scratch) / "bundle"
        bundle.mkdir()
        copy_bundle(context.store, published.model, published.version, bundle)
        manifest = verify_placed(bundle, context.trust())
        check_agrees(published, manifest)
        check(manifest.build)
        for record in manifest.build.files:
            (bundle / record.path).rename(into / record.path)
    return manifest.build


def _check_build(build: EngineBuild, target: GpuTarget, key: str) -> None:
    made_for, wanted = ((each.backend, each.compute_capability) for each in (build.target, target))
    if (build.build_key, made_for) != (key, wanted):
        raise DigestMismatch("the registry answered with another engine than was asked for, do not trust it")


def find_production(
    context: ReleaseContext, target: GpuTarget, builds: Sequence[EngineBuild], sizes: Mapping[str, int]
) -> InProduction:
    """Find the engine in production on a target, to be timed here beside `builds` with calls of these sizes.

    It is one of them where it was made again, else it is fetched and verified. Whatever is wrong with it, the release
    goes on without it, and says why.
    """
    model, version = context.recipe.model, None
    try:
        version = context.store.aliased(model, production_alias(target.name))
        if version is None:
            return InProduction()
        serving = context.store.checked(model, version)
        for build in builds:
            if build.digest == serving.digest:
                return InProduction(build)
        manifest = context.store.manifest(model, version)
        reason = find_incompatibility(serving, read_host()) or explain_apart(manifest.build, builds[0], sizes)
        if not reason:
            return InProduction(context.run(_production_step(context, serving)))
    except EngineryError as error:
        reason = str(error)
    return InProduction(remark=f"not timed beside version {version or '?'} in production: {reason}")


def _production_step(context: ReleaseContext, serving: EngineVersion) -> Step[EngineBuild]:
    """Make the stage that fetches the engine in production: only one that a trusted key signed is run."""
    label = f"{serving.target} version {serving.version}"
    key = serving.model, serving.version, serving.digest
    return Step(
        "production",
        label,
        key,
        EngineBuild,
        lambda into: _fetch_engine(context, serving, into),
        lambda build: f"{build.size_bytes / 1e6:.1f} MB",
    )
