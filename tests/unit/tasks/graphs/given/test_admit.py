"""A given graph is refused in a sentence, or made like an export that gives the same answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from registry.errors import BadInput
from registry.records import OnnxArtifact, Tensor
from tasks.graphs.compare import check_interface
from tasks.graphs.given.admit import admit_graph
from tasks.graphs.given.trial import try_graph
from tasks.model_tasks import model_task
from tests.support.given_graphs import make_classifier, save_classifier

TASK = model_task("text-classification")
LABELS = ("negative", "positive")
FEED = {
    "input_ids": np.array([[2, 5, 6, 3], [2, 7, 3, 0]]),
    "attention_mask": np.array([[1, 1, 1, 1], [1, 1, 1, 0]]),
}
EXPORTED = ("batch_size", "sequence_length")
Spoil = Callable[[onnx.ModelProto], Any]


def admit(folder: Path, model: onnx.ModelProto) -> OnnxArtifact:
    return admit_graph(save_classifier(folder / "net.onnx", model), TASK, {}, into=folder / "made")


def assert_like_an_export(folder: Path, made: OnnxArtifact) -> None:
    assert made.inputs == tuple(Tensor(name, "int64", EXPORTED) for name in ("input_ids", "attention_mask"))
    assert made.outputs == (Tensor("logits", "float32", ("batch_size", 2)),)
    for rows in (FEED, {name: values[:1, :3] for name, values in FEED.items()}):
        try_graph(folder / "net.onnx", made, TASK, rows, LABELS)


@pytest.mark.parametrize(
    "model",
    [
        make_classifier(),
        make_classifier(ids=TensorProto.INT32),
        make_classifier(answer=TensorProto.FLOAT16),
        make_classifier(answer=TensorProto.DOUBLE),
        make_classifier(axes=(None, None), answer_axes=(None, 2)),
        make_classifier(opset=13),
        make_classifier(opset=21),
    ],
    ids=["plain", "int32 ids", "fp16 answers", "fp64 answers", "nameless axes", "opset 13", "opset 21"],
)
def test_what_exporters_differ_in_is_made_like_an_export(tmp_path: Path, model: onnx.ModelProto) -> None:
    assert_like_an_export(tmp_path, admit(tmp_path, model))


def test_an_older_opset_is_converted(tmp_path: Path) -> None:
    model = make_classifier()
    nodes = {node.name: node for node in model.graph.node}
    # Before opset 13 the axes were attributes.
    for name, axes in (("unsqueeze", [2]), ("sum", [1]), ("count", [1])):
        del nodes[name].input[1]
        nodes[name].attribute.append(helper.make_attribute("axes", axes))
    del model.graph.initializer[2:]
    model.opset_import[0].version = 11
    made = admit(tmp_path, model)
    assert made.opset == 13
    assert_like_an_export(tmp_path, made)


def test_constants_among_the_inputs_and_what_describes_a_graph_are_dropped(tmp_path: Path) -> None:
    model = make_classifier()
    weight = model.graph.initializer[1]
    model.graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    model.graph.value_info.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["batch", 16]))
    model.doc_string = model.graph.node[0].doc_string = model.producer_name = "<script>"
    helper.set_model_props(model, {"key": "<script>"})
    made = admit(tmp_path, model)
    assert_like_an_export(tmp_path, made)
    assert b"<script>" not in made.path.read_bytes()
    assert not onnx.load(made.path).graph.value_info


def test_a_branch_is_kept_and_reads_the_ids_that_were_cast(tmp_path: Path) -> None:
    model = make_classifier(ids=TensorProto.INT32)
    picked = helper.make_tensor_value_info("picked", TensorProto.INT32, None)
    same = helper.make_graph([helper.make_node("Identity", ["input_ids"], ["picked"])], "same", [], [picked])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    branch = helper.make_node("If", ["always"], ["chosen"], then_branch=same, else_branch=same)
    model.graph.node[0].input[1] = "chosen"
    model.graph.node.insert(0, branch)
    made = admit(tmp_path, model)
    assert_like_an_export(tmp_path, made)
    assert "If" in {node.op_type for node in onnx.load(made.path).graph.node}


def test_external_data_is_read_from_the_graphs_folder(tmp_path: Path) -> None:
    graph = save_classifier(tmp_path / "net.onnx", external="net.weights")
    assert_like_an_export(tmp_path, admit_graph(graph, TASK, {}, into=tmp_path / "made"))


def _set_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.acme"
    model.opset_import.append(helper.make_opsetid("com.acme", 1))


def _hide_domain(model: onnx.ModelProto) -> None:
    value = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    body = helper.make_graph([helper.make_node("Run", [], ["inner"], domain="com.acme")], "body", [], [value])
    model.graph.node.append(helper.make_node("If", ["always"], ["chosen"], then_branch=body, else_branch=body))


def _add_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    model.functions.append(helper.make_function("own", "F", ["x"], ["y"], [node], [helper.make_opsetid("", 17)]))


def _store_doubles(model: onnx.ModelProto) -> None:
    weight = model.graph.initializer[1]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float64), weight.name))


def _quantize(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("DequantizeLinear", ["a", "b"], ["c"]))


def _answer_twice(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "vectors"


def _give_sequence(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None))


def _fix_answers(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2], np.int64), "one"))
    model.graph.node.append(helper.make_node("Reshape", ["logits", "one"], ["shaped"]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("shaped", TensorProto.FLOAT, [None, None]))


def _unorder(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, model.graph.node.pop())


REFUSED: dict[str, tuple[onnx.ModelProto, Spoil, str]] = {
    "names": (make_classifier(names=("ids", "mask")), bool, "'ids', 'mask', known are input_ids, attention_mask"),
    "float ids": (make_classifier(ids=TensorProto.FLOAT), bool, "input_ids is float, tokens are int64 or int32"),
    "rank": (make_classifier(axes=("seq",)), bool, r"input_ids has 1 axes, rows of text-class.* have 2 \(batch, seq"),
    "fixed answers of a batch": (
        make_classifier(answer_axes=(1, 2)),
        bool,
        "output logits has its batch axis fixed at 1",
    ),
    "fixed sequence": (make_classifier(axes=("batch", 64)), bool, "input_ids has its sequence axis fixed at 64"),
    "whole answers": (make_classifier(answer=TensorProto.INT64), bool, "output logits is int64, answers are read from"),
    "no axes": (make_classifier(answer_axes=None), bool, "output logits declares no axes"),
    "domain": (make_classifier(), _set_domain, r"not ONNX's own \(com.acme::Gather\)"),
    "domain in a branch": (make_classifier(), _hide_domain, r"not ONNX's own \(com.acme::Run\)"),
    "function": (make_classifier(), _add_function, r"functions of its own \(own::F\)"),
    "doubles": (make_classifier(), _store_doubles, "weights in double: give the fp32 graph"),
    "quantized": (make_classifier(), _quantize, r"is quantized already \(DequantizeLinear\)"),
    "sequence output": (make_classifier(), _give_sequence, "output list is no tensor"),
    "answer axes": (make_classifier(), _answer_twice, "not a valid ONNX graph|3 axes, answers of text-classification"),
    "fixed answers": (make_classifier(), _fix_answers, "output shaped has its batch axis fixed at 1"),
    "order": (make_classifier(), _unorder, "not a valid ONNX graph"),
    "opset of the future": (make_classifier(opset=999), bool, "has opset 999, known are 1 to"),
    "no nodes": (onnx.ModelProto(), bool, "it has no nodes or no outputs"),
}


@pytest.mark.parametrize(("model", "spoil", "words"), REFUSED.values(), ids=REFUSED)
def test_a_graph_that_does_not_fit_is_refused_in_a_sentence(
    tmp_path: Path, model: onnx.ModelProto, spoil: Spoil, words: str
) -> None:
    spoiled = onnx.ModelProto()
    spoiled.CopyFrom(model)
    spoil(spoiled)
    with pytest.raises(BadInput, match=words):
        admit(tmp_path, spoiled)


def test_a_graph_that_fails_or_answers_for_other_classes_is_refused_on_rows(tmp_path: Path) -> None:
    made = admit(tmp_path, make_classifier())
    beyond = FEED | {"input_ids": FEED["input_ids"] + 1000}
    with pytest.raises(BadInput, match=r"does not run on 2 real rows .*its processor its own"):
        try_graph(tmp_path / "net.onnx", made, TASK, beyond, LABELS)
    with pytest.raises(BadInput, match=r"logits is \[2, 2\] for inputs of \[2, 4\], where .* needs \[2, 3\]"):
        try_graph(tmp_path / "net.onnx", made, TASK, FEED, (*LABELS, "neutral"))


def test_a_graph_without_finite_answers_is_refused_on_rows(tmp_path: Path) -> None:
    model = make_classifier()
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.full((16, 2), np.nan, np.float32), "weight"))
    made = admit(tmp_path, model)
    with pytest.raises(BadInput, match="output logits is not finite"):
        try_graph(tmp_path / "net.onnx", made, TASK, FEED, LABELS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": ("input_ids", "mask")}, "the inputs .*attention_mask .* became .*mask"),
        ({"ids": TensorProto.INT32}, r"the inputs input_ids \(int64\).* became input_ids \(int32\)"),
        ({"answer": TensorProto.FLOAT16}, r"the outputs logits \(float\) became logits \(float16\)"),
        ({"answer_axes": ("batch", 1, 2)}, "output logits had 2 axes and has 3"),
        ({"answer_axes": None}, "output logits had 2 axes and has None"),
    ],
)
def test_a_rewrite_that_changes_what_a_graph_declares_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=f"^a cast changes what the graph declares: {words}"):
        check_interface(make_classifier(), make_classifier(**changes), what="a cast")
