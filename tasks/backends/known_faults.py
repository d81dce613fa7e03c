"""Operators that some versions of TensorRT are reported to compute wrongly, each with its public report.

Nothing was run here: an entry is a reason to look at an engine's answers, and not a verdict.
"""

from dataclasses import dataclass
from pathlib import Path

import onnx

from registry.records import Backend
from tasks.graphs.layers import walk_nodes


@dataclass(frozen=True)
class KnownFault:
    """A report of wrong answers: a graph with all the `operators`, built by TensorRT from version `since` on.

    `opset` is the first that it was seen with.
    """

    operators: tuple[str, ...]
    since: tuple[int, ...]
    report: str
    opset: int = 1


FAULTS = (
    KnownFault(("GridSample",), (10, 14), "github.com/pytorch/TensorRT/issues/4074"),
    KnownFault(("GridSample",), (11, 1), "github.com/NVIDIA/TensorRT/issues/4813"),
    KnownFault(("GridSample",), (10, 13), "github.com/NVIDIA/TensorRT/issues/4646", opset=20),
    KnownFault(("If", "Transpose", "Resize"), (11, 1), "github.com/NVIDIA/TensorRT/issues/4846"),
)


def describe_known_faults(graph: Path, backend: Backend, version: str) -> str:
    """Return a note on operators of a graph that this version is reported to compute wrongly; empty where none is.

    The reports are of TensorRT; TensorRT for RTX has versions of its own, and none was found of it.
    """
    if backend is not Backend.TENSORRT:
        return ""
    model = onnx.load(graph, load_external_data=False)
    there = {node.op_type for node in walk_nodes(model.graph)}
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    built_by = tuple(int(part) for part in version.split(".") if part.isdigit())
    found = [
        fault for fault in FAULTS if there >= {*fault.operators} and opset >= fault.opset and built_by >= fault.since
    ]
    if not found:
        return ""
    operators = " and ".join(dict.fromkeys(", ".join(fault.operators) for fault in found))
    reports = ", ".join(fault.report for fault in found)
    return f"TensorRT {version} is reported to compute {operators} wrongly ({reports}): compare its answers"
