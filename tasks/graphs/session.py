"""Open ONNX Runtime sessions that answer exactly what their graph says, on every CPU."""

import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime

_CPU_INFO = Path("/proc/cpuinfo")


def exact_options() -> "onnxruntime.SessionOptions":
    """Make session options under which static int8 is exact on CPUs without VNNI too.

    Without VNNI, int8 products are added in pairs in 16 bits and saturate: a graph is then up to 10.5 % away from its
    own answer, and what is chosen by it depends on the machine. The option has ONNX Runtime rewrite the graph so that
    nothing saturates (onnxruntime_session_options_config_keys.h, "session.x64quantprecision"). It rewrites on CPUs with
    VNNI too, for nothing, and breaks a per-channel DequantizeLinear that has no zero point (ours have one).
    """
    import onnxruntime  # heavy, and what only lists backends must not need it

    options = onnxruntime.SessionOptions()
    if not adds_int8_exactly():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def adds_int8_exactly() -> bool:
    """Tell whether this CPU adds int8 products in 32 bits: x86 with VNNI, or another architecture."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return _CPU_INFO.exists() and "vnni" in _CPU_INFO.read_text(encoding="utf-8")


def providers() -> list[str | tuple[str, dict[str, str]]]:
    """Name the execution providers of a session that scores: CUDA in real float32 where there is one, else the CPU."""
    import onnxruntime

    # TF32 rounds what is to be measured.
    cuda = [("CUDAExecutionProvider", {"use_tf32": "0"})]
    return [*(cuda if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else []), "CPUExecutionProvider"]
