"""The precisions that each backend builds, by compute capability.

Sources: the rules of TensorRT for RTX were measured by building tiny graphs with 1.7.1.116, and
tests/unit/tasks/backends/test_precisions.py builds each of them again; the rules of TensorRT are from the support
matrix in its documentation, untested here. Those of ONNX Runtime for CUDA were measured on an H100 by
tests/gpu/test_ort_gpu.py, with 1.31.1. Quantized graphs are assumed to be fp32 around their quantized weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from registry.records import Backend, GpuTarget, Precision

MEASURED = "measured"
DOCUMENTED = "from documentation, not measured"


@dataclass(frozen=True)
class Rule:
    """The oldest compute capability that builds a precision, or None and the reason why none does."""

    since: str | None
    source: str
    reason: str = ""


CAPABILITIES: Mapping[Backend, tuple[str, ...]] = MappingProxyType(
    {
        Backend.TENSORRT: ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "12.0", "12.1"),
        Backend.TENSORRT_RTX: ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"),
    }
)

_NO_DYNAMIC = "its ONNX parser has no DynamicQuantizeLinear and no MatMulInteger: use int8, whose scales are calibrated"
_ON_CPU = "its DynamicQuantizeLinear runs on the CPU, and each layer's input is copied there and back: use fp16"
_CASTS = "the CPU kernels cast it to fp32 and back, so it is never faster than fp32: use fp32 or int8-dynamic"

RULES: Mapping[tuple[Backend, Precision], Rule] = MappingProxyType(
    {
        (Backend.TENSORRT_RTX, Precision.FP32): Rule("8.0", MEASURED),
        (Backend.TENSORRT_RTX, Precision.FP16): Rule("7.5", MEASURED),
        (Backend.TENSORRT_RTX, Precision.BF16): Rule("8.0", MEASURED),
        (Backend.TENSORRT_RTX, Precision.INT8): Rule("8.0", MEASURED),
        (Backend.TENSORRT_RTX, Precision.INT8_DYNAMIC): Rule(None, MEASURED, _NO_DYNAMIC),
        (Backend.TENSORRT_RTX, Precision.INT8_WEIGHT_ONLY): Rule("8.0", MEASURED),
        (Backend.TENSORRT_RTX, Precision.FP8): Rule("8.9", MEASURED),
        (Backend.TENSORRT_RTX, Precision.INT4_WEIGHT_ONLY): Rule("8.0", MEASURED),
        (Backend.TENSORRT, Precision.FP32): Rule("7.5", DOCUMENTED),
        (Backend.TENSORRT, Precision.FP16): Rule("7.5", DOCUMENTED),
        (Backend.TENSORRT, Precision.BF16): Rule("8.0", DOCUMENTED),
        (Backend.TENSORRT, Precision.INT8): Rule("7.5", DOCUMENTED),
        (Backend.TENSORRT, Precision.INT8_DYNAMIC): Rule(None, DOCUMENTED, _NO_DYNAMIC),
        (Backend.TENSORRT, Precision.INT8_WEIGHT_ONLY): Rule("7.5", DOCUMENTED),
        (Backend.TENSORRT, Precision.FP8): Rule("8.9", DOCUMENTED),
        (Backend.TENSORRT, Precision.INT4_WEIGHT_ONLY): Rule("8.0", DOCUMENTED),
        (Backend.ONNXRUNTIME, Precision.FP32): Rule("0.0", MEASURED),
        (Backend.ONNXRUNTIME, Precision.FP16): Rule(None, DOCUMENTED, _CASTS),
        (Backend.ONNXRUNTIME, Precision.BF16): Rule(None, DOCUMENTED, _CASTS),
        (Backend.ONNXRUNTIME, Precision.INT8): Rule("0.0", MEASURED),
        (Backend.ONNXRUNTIME, Precision.INT8_DYNAMIC): Rule("0.0", MEASURED),
        (Backend.ONNXRUNTIME, Precision.INT8_WEIGHT_ONLY): Rule("0.0", MEASURED),
        (Backend.ONNXRUNTIME, Precision.FP8): Rule(None, DOCUMENTED, _CASTS),
        (Backend.ONNXRUNTIME, Precision.INT4_WEIGHT_ONLY): Rule("0.0", MEASURED),
        (Backend.ONNXRUNTIME_CUDA, Precision.FP32): Rule("0.0", MEASURED),
        (Backend.ONNXRUNTIME_CUDA, Precision.FP16): Rule("0.0", MEASURED),
        (Backend.ONNXRUNTIME_CUDA, Precision.BF16): Rule("0.0", MEASURED),
        (Backend.ONNXRUNTIME_CUDA, Precision.INT8): Rule("0.0", MEASURED),
        (Backend.ONNXRUNTIME_CUDA, Precision.INT8_DYNAMIC): Rule(None, MEASURED, _ON_CPU),
        (Backend.ONNXRUNTIME_CUDA, Precision.INT8_WEIGHT_ONLY): Rule("0.0", MEASURED),
        (Backend.ONNXRUNTIME_CUDA, Precision.FP8): Rule("0.0", MEASURED),
        (Backend.ONNXRUNTIME_CUDA, Precision.INT4_WEIGHT_ONLY): Rule("0.0", MEASURED),
    }
)


def _parse_capability(capability: str) -> tuple[int, ...]:
    """Return numbers to compare by, since 10.0 comes after 9.0: (8, 9) for "8.9"."""
    return tuple(int(part) for part in capability.split("."))


def why_unsupported(precision: Precision, target: GpuTarget) -> str | None:
    """Return None when the target's backend builds this precision for its GPU, else the reason."""
    rule = RULES[target.backend, precision]
    if rule.since is None:
        return f"{target.backend} does not build {precision}: {rule.reason}"
    if target.backend.is_portable:
        return None
    capabilities = CAPABILITIES[target.backend]
    if target.compute_capability not in capabilities:
        return (
            f"{target.backend} does not support compute capability {target.compute_capability} (target {target.name}); "
            f"it supports {', '.join(capabilities)}"
        )
    if _parse_capability(target.compute_capability) < _parse_capability(rule.since):
        return (
            f"{target.backend} builds {precision} for compute capability {rule.since} and later ({rule.source}); "
            f"target {target.name} has {target.compute_capability}"
        )
    return None
