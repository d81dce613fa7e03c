"""ONNX Runtime sessions that compute exactly what their graph says, on every CPU."""

from typing import TYPE_CHECKING

from registry.host.cpu import read_cpu

if TYPE_CHECKING:
    import onnxruntime


def exact_options() -> "onnxruntime.SessionOptions":
    """Make session options that keep float8, and static int8 on CPUs without VNNI, exact.

    Without VNNI, int8 products are added in pairs in 16 bits and saturate: answers are up to 10.5 % off, and whatever
    is chosen by them depends on the machine. The option lets ONNX Runtime rewrite the graph so that nothing saturates
    (onnxruntime_session_options_config_keys.h, "session.x64quantprecision"). It is set only where needed: it rewrites
    on CPUs with VNNI too, and breaks a per-channel DequantizeLinear without a zero point (ours have one).
    """
    import onnxruntime  # heavy: commands that only list backends must not import it

    options = onnxruntime.SessionOptions()
    # In front of a float8 QuantizeLinear whose zero point is 0 the first drops a Relu as if negative values were none,
    # and the second, of Clip, refuses the graph (1.32).
    options.add_session_config_entry("optimization.disable_specified_optimizers", "ReluQuantRewrite;ClipQuantRewrite")
    if not adds_int8_exactly():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def adds_int8_exactly() -> bool:
    """Return whether this CPU adds int8 products in 32 bits: x86 with VNNI, or another architecture."""
    return read_cpu().adds_int8_exactly


def choose_providers() -> list[str | tuple[str, dict[str, str]]]:
    """Choose the execution providers of a session that scores: CUDA in full float32 if present, else the CPU."""
    import onnxruntime

    # TF32 would round the answers that are measured.
    cuda = [("CUDAExecutionProvider", {"use_tf32": "0"})]
    return [*(cuda if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else []), "CPUExecutionProvider"]
