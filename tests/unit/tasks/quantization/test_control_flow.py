"""Quantized graphs of DeBERTa-v2, whose If nodes read tensors of the graph around them."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from registry.errors import BadInput
from registry.records import OnnxArtifact, Precision
from tasks.checkpoints.source import from_folder
from tasks.graphs.export import export_checkpoint
from tasks.graphs.session import choose_providers, exact_options
from tasks.model_tasks.inputs.texts import FeedDict, open_text_encoder
from tasks.quantization.quantize import quantize
from tests.support.tiny import WORDS, tiny_deberta

# transformers scripts parts of DeBERTa-v2 when it is imported, which PyTorch calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")


@pytest.fixture(scope="module")
def deberta(tmp_path_factory: pytest.TempPathFactory) -> tuple[OnnxArtifact, list[FeedDict]]:
    root = tmp_path_factory.mktemp("deberta")
    source = from_folder(
        tiny_deberta(root / "checkpoint"), name="deberta", task="text-classification", into=root / "taken"
    )
    exported = export_checkpoint(source, into=root / "onnx")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size=rng.integers(3, 12))) for _ in range(32)]
    encoder = open_text_encoder(source.directory, exported.input_names, {"sequence": 16})
    return exported, [encoder.encode(batch) for _, batch in encoder.batches(texts, 8)]


def answer(artifact: OnnxArtifact, feeds: list[FeedDict]) -> NDArray[np.float32]:
    session = ort.InferenceSession(artifact.path, exact_options(), providers=choose_providers())
    return np.concatenate([session.run(None, feed)[0] for feed in feeds])


@pytest.mark.parametrize(
    "precision", [Precision.FP16, Precision.INT8, Precision.INT8_DYNAMIC, Precision.INT8_WEIGHT_ONLY]
)
def test_a_graph_with_branches_answers_nearly_as_fp32(
    deberta: tuple[OnnxArtifact, list[FeedDict]], precision: Precision, tmp_path: Path
) -> None:
    exported, feeds = deberta
    assert any(node.op_type == "If" for node in onnx.load(exported.path).graph.node)
    quantized = quantize(exported, precision, feeds, calibration_set_digest="c" * 64, into=tmp_path / precision)
    exact, near = answer(exported, feeds), answer(quantized, feeds)
    assert (exact.argmax(1) == near.argmax(1)).mean() > 0.9
    assert np.corrcoef(exact.ravel(), near.ravel())[0, 1] > 0.98


def test_a_graph_with_branches_is_half_as_large_in_fp16(
    deberta: tuple[OnnxArtifact, list[FeedDict]], tmp_path: Path
) -> None:
    cast = quantize(deberta[0], Precision.FP16, None, calibration_set_digest=None, into=tmp_path / "fp16")
    graph = onnx.load(cast.path).graph
    weights = [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16]
    assert sum(np.prod(tensor.dims) for tensor in weights) > 4000
    assert not any(tensor.data_type == onnx.TensorProto.FLOAT for tensor in graph.initializer)
    assert [tensor.dtype for tensor in cast.outputs] == ["float32"]


def test_a_graph_that_cannot_be_cast_to_bf16_is_refused_in_a_sentence(
    deberta: tuple[OnnxArtifact, list[FeedDict]], tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="AutoCast cannot cast this graph to bf16"):
        quantize(deberta[0], Precision.BF16, None, calibration_set_digest=None, into=tmp_path / "bf16")
