"""A given graph of images is taken under any name of its input, and fits its processor or is refused."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from registry.errors import BadInput
from registry.records import Tensor
from tasks.graphs.compare import run_graph
from tasks.graphs.given.admit import admit_graph
from tasks.graphs.given.source import Trial, run_admission
from tasks.graphs.given.trial import try_graph
from tasks.model_tasks import model_task
from tasks.model_tasks.images.object_detection import OBJECT_DETECTION
from tests.support.given_graphs import make_detector, make_image_classifier, save_classifier
from tests.support.images import draw_image

TASK = model_task("image-classification")
SIZES = {"num_channels": 3, "height": 8, "width": 6}


@pytest.mark.parametrize("axes", [("n", 3, "h", "w"), (None, 3, 8, 6), ("batch", "c", 8, "w")])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_the_axes_of_images_get_the_processors_sizes(
    tmp_path: Path, axes: tuple[str | int | None, ...], kind: int
) -> None:
    graph = save_classifier(tmp_path / "net.onnx", make_image_classifier(axes=axes, kind=kind))
    made = admit_graph(graph, TASK, SIZES, into=tmp_path / "made")
    assert made.inputs == (Tensor("images", "float32", ("batch_size", 3, 8, 6)),)
    assert made.outputs == (Tensor("logits", "float32", ("batch_size", 2)),)
    pixels = np.random.default_rng(0).random((5, 3, 8, 6)).astype(np.float16).astype(np.float32)
    try_graph(graph, made, TASK, {"images": pixels}, ("a", "b"))
    alone = run_graph(made.path, [{"images": pixels[:1]}])["logits"][0]
    np.testing.assert_allclose(alone, run_graph(made.path, [{"images": pixels}])["logits"][0][:1], rtol=1e-5)


def test_a_graph_of_another_size_than_its_processors_is_refused(tmp_path: Path) -> None:
    graph = save_classifier(tmp_path / "net.onnx", make_image_classifier(axes=("n", 3, 7, 6)))
    with pytest.raises(BadInput, match="height axis fixed at 7, and the processor gives 8"):
        admit_graph(graph, TASK, SIZES, into=tmp_path / "made")


def test_a_graph_of_one_image_a_call_is_taken(tmp_path: Path) -> None:
    graph = save_classifier(tmp_path / "net.onnx", make_image_classifier(axes=(1, 3, 8, 6), batch=1))
    made = admit_graph(graph, TASK, SIZES, into=tmp_path / "made")
    assert made.inputs == (Tensor("images", "float32", (1, 3, 8, 6)),)
    pixels = np.random.default_rng(0).random((5, 3, 8, 6)).astype(np.float32)
    (logits,) = try_graph(graph, made, TASK, {"images": pixels}, ("a", "b"))
    assert logits.shape == (5, 2)


def test_bytes_of_images_are_refused(tmp_path: Path) -> None:
    graph = save_classifier(tmp_path / "net.onnx", make_image_classifier(kind=TensorProto.UINT8))
    with pytest.raises(BadInput, match="input images is uint8, rows of image-classification are floats"):
        admit_graph(graph, TASK, SIZES, into=tmp_path / "made")


def test_a_graph_with_a_second_input_is_refused(tmp_path: Path) -> None:
    model = make_image_classifier()
    model.graph.input.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, ("n", 3, 8, 6)))
    with pytest.raises(BadInput, match="has inputs 'images', 'scale', and a row of image-classification gives one"):
        admit_graph(save_classifier(tmp_path / "net.onnx", model), TASK, SIZES, into=tmp_path / "made")


def test_a_detector_with_one_output_is_admitted_with_its_processor_and_labels_only(tmp_path: Path) -> None:
    graph = save_classifier(tmp_path / "net.onnx", make_detector())
    folder = tmp_path / "processor"
    folder.mkdir()
    size = {"height": 16, "width": 16}

    def admit(kind: str, labels: tuple[str, ...]) -> tuple[Tensor, ...]:
        file = {"image_processor_type": f"{kind}ImageProcessor", "size": size}
        (folder / "preprocessor_config.json").write_text(json.dumps(file), encoding="utf-8")
        trial = Trial((draw_image(0), draw_image(1, (40, 9))), {}, labels)
        into = Path(tempfile.mkdtemp(dir=tmp_path))
        return run_admission(graph, OBJECT_DETECTION, folder, trial, into=into).outputs

    assert admit("Ultralytics", ("a", "b")) == (Tensor("output0", "float32", ("batch_size", 6, 16)),)
    with pytest.raises(BadInput, match=r"one output \[batch, 7, places\].* the graph has \[1, 6, 16\]"):
        admit("Ultralytics", ("a", "b", "c"))
    with pytest.raises(BadInput, match="give a processor of the type UltralyticsImageProcessor"):
        admit("RTDetr", ("a", "b"))
