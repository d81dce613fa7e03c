"""A graph with an operator that a version of TensorRT is reported to get wrong is named with the report."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from registry.records import Backend
from tasks.backends.known_faults import FAULTS, describe_known_faults


def save(folder: Path, *operators: str, opset: int = 18) -> Path:
    """Save a graph with these operators, the last of them in a branch; nothing of it is run."""
    *plain, last = operators
    body = helper.make_graph([helper.make_node(last, ["x"], ["inner"])], "body", [], [])
    nodes = [helper.make_node(each, ["x"], [each]) for each in plain]
    nodes.append(helper.make_node("Loop", ["x"], ["y"], body=body))
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph(nodes, "graph", [value], [])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]), str(folder / "model.onnx"))
    return folder / "model.onnx"


@pytest.mark.parametrize(
    ("operators", "version", "opset", "reports"),
    [
        (("GridSample",), "10.14.1.48", 18, ["4074"]),
        (("GridSample",), "11.4.0", 18, ["4074", "4813"]),
        (("GridSample",), "10.13.3", 20, ["4646"]),
        (("GridSample",), "10.13.3", 18, []),
        (("GridSample",), "10.9", 20, []),
        (("If", "Transpose", "Resize"), "11.2.1.2", 18, ["4846"]),
        (("Transpose", "Resize"), "11.2.1.2", 18, []),
        (("Conv",), "11.2.1.2", 20, []),
    ],
)
def test_only_reported_operators_of_reported_versions_are_named(
    tmp_path: Path, operators: tuple[str, ...], version: str, opset: int, reports: list[str]
) -> None:
    note = describe_known_faults(save(tmp_path, *operators, opset=opset), Backend.TENSORRT, version)
    assert [report for report in ("4074", "4646", "4813", "4846") if report in note] == sorted(reports)
    assert bool(note) is bool(reports)


def test_other_backends_have_no_reports(tmp_path: Path) -> None:
    graph = save(tmp_path, "GridSample")
    assert describe_known_faults(graph, Backend.TENSORRT_RTX, "11.4") == ""
    assert describe_known_faults(graph, Backend.ONNXRUNTIME, "11.4") == ""


def test_every_report_has_an_address() -> None:
    assert all(fault.report.startswith("github.com/") for fault in FAULTS)
