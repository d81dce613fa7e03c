"""Manifests of engines that were never built, with the files of their bundles."""

from collections.abc import Callable
from pathlib import Path

from registry.bundle.manifest import FORMAT_VERSION
from registry.digest import digest_of
from registry.records import (
    AxisRange,
    Backend,
    CalibrationSet,
    EngineBuild,
    EngineManifest,
    FileRecord,
    GateResult,
    GpuTarget,
    Machine,
    Measurement,
    ModelSource,
    Precision,
    ShapeProfile,
    Tensor,
    Verdict,
)

ManifestFactory = Callable[..., tuple[EngineManifest, Path]]


def make_manifest(
    files: tuple[FileRecord, ...],
    *,
    model: str = "sst2",
    target: str = "l4",
    release: str = "r1",
    sequence: int = 1,
    verdict: Verdict = Verdict.PASSED,
    reason: str = "every gate passed",
    build_key: str | None = None,
) -> EngineManifest:
    engine = tuple(record for record in files if record.path.startswith("engine"))
    digest = digest_of(engine)
    machine = Machine(host_cpu="x86", cores=8, gpu="NVIDIA L4", driver="580.10", clocks="locked")
    latency = Measurement("latency_p50_ms", 1.25, "ms", 2000, "engine", digest, machine, 1.2, 1.3)
    tensor = Tensor("input_ids", "int64", ("batch", "sequence"))
    build = EngineBuild(
        file="engine.plan",
        files=engine,
        digest=digest,
        build_key=build_key or digest_of([target, digest]),
        onnx_digest="a" * 64,
        precision=Precision.FP16,
        backend=Backend.TENSORRT,
        backend_version="11.0",
        target=GpuTarget(target, Backend.TENSORRT, "8.9", "NVIDIA L4"),
        profiles=(ShapeProfile.of(batch=AxisRange(1, 8, 32), sequence=AxisRange(8, 64, 128)),),
        inputs=(tensor,),
        outputs=(Tensor("logits", "float32", ("batch", 2)),),
        build_seconds=12.5,
        size_bytes=sum(record.size_bytes for record in engine),
        directory=Path("/nowhere"),
    )
    return EngineManifest(
        format_version=FORMAT_VERSION,
        model=model,
        release=release,
        sequence=sequence,
        source=ModelSource(model, "distilbert/sst2", "b" * 40, "text-classification", ("no", "yes")),
        build=build,
        calibration_set=CalibrationSet("sst2-train", "glue", "c" * 40, "train", ("sentence",), 7, 128, 0, "d" * 64),
        evaluation_set="sst2-validation",
        measurements=(latency,),
        gates=(GateResult("latency", verdict, reason, latency),),
        verdict=verdict,
        reason=reason,
        toolchain=(("tensorrt", "11.0"),),
        minimum_driver="580",
        files=files,
        created_at="2026-11-23T10:00:00+00:00",
    )
