"""A graph of a user's own task: any inputs and outputs, their types as they are, axes by the profiles' names."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from registry.errors import BadInput
from registry.records import Tensor
from tasks.graphs.given.admit import admit_graph
from tasks.graphs.given.source import Trial, run_admission
from tasks.model_tasks.own.module_task import open_module_task
from tests.support.given_graphs import Axes, save_classifier
from tests.support.own_tasks import AXES, MODULE, draw_series, make_series_graph, open_task, write_module


def pack_rows(tmp_path: Path, code: str = MODULE) -> Trial:
    task = open_task(tmp_path, code)
    pairs = [task.read_row({"series": each, "next": 1.0}, None) for each in draw_series(3, 8)]
    inputs, targets = zip(*(pair for pair in pairs if pair is not None), strict=True)
    return Trial(inputs, dict.fromkeys(AXES, 12), (), targets)


def test_a_graph_with_an_input_of_rank_one_is_admitted_and_tried(tmp_path: Path) -> None:
    trial = pack_rows(tmp_path)
    graph = save_classifier(
        tmp_path / "net.onnx", make_series_graph(axes=("n", "time", 3), length=("m",), answer=("n",))
    )
    made = run_admission(graph, open_task(tmp_path), tmp_path, trial, into=tmp_path / "made")
    assert made.inputs == (
        Tensor("series", "float32", ("batch_size", "time", 3)),
        Tensor("length", "int64", ("batch_size",)),
    )
    assert made.outputs[0] == Tensor("forecast", "float32", ("batch_size",))
    assert made.outputs[1].shape[0] == "batch_size"


@pytest.mark.parametrize(
    ("axes", "length", "message"),
    [
        (("batch", "steps", 3), ("batch",), "the dynamic axis steps at position 1: add it to `profiles`"),
        (("batch", None, 3), ("batch",), "the dynamic axis without a name at position 1"),
        ((4, "time", 3), ("batch",), r"different batch axes, the first of each input \(series 4, length dynamic\)"),
        (("batch", "time", 3), (), "input length declares no axes"),
        (("batch", 6, 3), ("batch",), "has no dynamic axis time, and the profiles do"),
    ],
)
def test_an_axis_that_does_not_fit_is_named(tmp_path: Path, axes: Axes, length: Axes, message: str) -> None:
    graph = save_classifier(tmp_path / "net.onnx", make_series_graph(axes=axes, length=length))
    with pytest.raises(BadInput, match=message):
        admit_graph(graph, open_task(tmp_path), {}, into=tmp_path / "made")


def test_a_feed_of_another_type_than_the_graphs_is_named(tmp_path: Path) -> None:
    code = MODULE.replace("np.float32", "np.float64")
    graph = save_classifier(tmp_path / "net.onnx", make_series_graph())
    with pytest.raises(BadInput, match=r"input series is float64\[8, \d+, 3\] as preprocess\(\) makes it"):
        run_admission(graph, open_task(tmp_path, code), tmp_path, pack_rows(tmp_path, code), into=tmp_path / "made")


def test_a_judged_output_without_a_batch_is_refused(tmp_path: Path) -> None:
    model = make_series_graph()
    model.graph.node.append(helper.make_node("ReduceMean", ["forecast"], ["mean_of_all"], keepdims=0, name="mean"))
    model.graph.output.insert(0, helper.make_tensor_value_info("mean_of_all", TensorProto.FLOAT, ()))
    with pytest.raises(BadInput, match="output mean_of_all has no axes, and a judged one has the batch there"):
        admit_graph(save_classifier(tmp_path / "net.onnx", model), open_task(tmp_path), {}, into=tmp_path / "made")


def test_whole_numbers_and_booleans_are_answers_too(tmp_path: Path) -> None:
    model = make_series_graph()
    model.graph.node.append(helper.make_node("Greater", ["forecast", "threshold"], ["is_high"], name="greater"))
    model.graph.initializer.append(helper.make_tensor("threshold", TensorProto.FLOAT, (), [0.0]))
    model.graph.output.insert(0, helper.make_tensor_value_info("is_high", TensorProto.BOOL, ("batch",)))
    trial = pack_rows(tmp_path)
    task = open_module_task(write_module(tmp_path), AXES)
    made = run_admission(save_classifier(tmp_path / "net.onnx", model), task, tmp_path, trial, into=tmp_path / "made")
    assert made.outputs[0] == Tensor("is_high", "bool", ("batch_size",))


def test_attributes_stay_of_their_own_kind(tmp_path: Path) -> None:
    """`Shape` with a start, as torch.onnx writes it, was refused: its attribute got an empty body."""
    model = make_series_graph()
    shape = next(node for node in model.graph.node if node.op_type == "Shape")
    shape.attribute.append(helper.make_attribute("start", 0))
    made = admit_graph(save_classifier(tmp_path / "net.onnx", model), open_task(tmp_path), {}, into=tmp_path / "made")
    onnx.checker.check_model(made.path, full_check=True)
