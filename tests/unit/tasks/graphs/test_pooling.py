"""The pooling of a sentence encoder is in its graph, and is that of sentence-transformers."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.parser import parse_model

from registry.errors import BadInput
from tasks.checkpoints.pooling import Mode, Pooling
from tasks.graphs.pooling import PooledEncoder, add_pooling

STATES = """
<ir_version: 10, opset_import: ["" : 18]>
encoder (float[batch_size, sequence_length, 4] given, int64[batch_size, sequence_length] attention_mask)
    => (float[batch_size, sequence_length, 4] last_hidden_state) {
    last_hidden_state = Identity (given)
}
"""


class Given(torch.nn.Module):
    """Returns the token states that it is given, as an encoder of transformers does."""

    def forward(self, given: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return type("Output", (), {"last_hidden_state": given, "mask": attention_mask})


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mode", get_args(Mode))
def test_the_graph_pools_as_pytorch_does_and_padding_counts_for_nothing(mode: Mode, normalize: bool) -> None:
    pooling, model = Pooling(mode, normalize), parse_model(STATES)
    add_pooling(model, pooling)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    states = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    (pooled,) = session.run(None, {"given": states, "attention_mask": mask})
    feed = {"given": torch.from_numpy(states), "attention_mask": torch.from_numpy(mask)}
    np.testing.assert_allclose(pooled, PooledEncoder(Given(), pooling)(**feed)["sentence_embedding"], atol=1e-6)
    spoiled = np.where(mask[:, :, None] == 1, states, 1e6).astype(np.float32)
    np.testing.assert_array_equal(session.run(None, {"given": spoiled, "attention_mask": mask})[0], pooled)
    if normalize:
        np.testing.assert_allclose(np.linalg.norm(pooled, axis=1), 1, atol=1e-6)
    assert [dim.dim_param or dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim] == [
        "batch_size",
        4,
    ]


def test_the_mean_is_that_of_the_tokens() -> None:
    states, mask = torch.arange(12, dtype=torch.float32).reshape(1, 3, 4), torch.tensor([[1, 1, 0]])
    pooled = PooledEncoder(Given(), Pooling("mean"))(given=states, attention_mask=mask)["sentence_embedding"]
    assert pooled.tolist() == [[2.0, 3.0, 4.0, 5.0]]


def test_a_graph_without_token_states_is_refused(tmp_path: Path) -> None:
    model = parse_model(STATES.replace("last_hidden_state", "logits"))
    with pytest.raises(BadInput, match="no last_hidden_state or no attention_mask"):
        add_pooling(model, Pooling())
