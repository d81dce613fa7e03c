"""A given graph of images is taken under any name of its input, and fits its processor or is refused."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from registry.errors import BadInput
from registry.records import Tensor
from tasks.graphs.compare import run_graph
from tasks.graphs.given.admit import admit_graph
from tasks.graphs.given.trial import try_graph
from tasks.model_tasks import model_task
from tests.support.given_graphs import make_image_classifier, save_classifier

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


def test_a_graph_of_one_image_is_refused_by_its_axis(tmp_path: Path) -> None:
    graph = save_classifier(tmp_path / "net.onnx", make_image_classifier(axes=(1, 3, 8, 6)))
    with pytest.raises(BadInput, match="batch axis fixed at 1"):
        admit_graph(graph, TASK, SIZES, into=tmp_path / "made")


def test_bytes_of_images_are_refused(tmp_path: Path) -> None:
    graph = save_classifier(tmp_path / "net.onnx", make_image_classifier(kind=TensorProto.UINT8))
    with pytest.raises(BadInput, match="input images is uint8, rows of image-classification are floats"):
        admit_graph(graph, TASK, SIZES, into=tmp_path / "made")


def test_a_graph_with_a_second_input_is_refused(tmp_path: Path) -> None:
    model = make_image_classifier()
    model.graph.input.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, ("n", 3, 8, 6)))
    with pytest.raises(BadInput, match="has inputs 'images', 'scale', and a row of image-classification gives one"):
        admit_graph(save_classifier(tmp_path / "net.onnx", model), TASK, SIZES, into=tmp_path / "made")
