"""The pooling of a sentence encoder, in its graph and in PyTorch: so the two are compared, and every engine has it."""

from typing import Any

import onnx
import torch
from onnx.parser import parse_graph

from registry.errors import BadInput
from tasks.checkpoints.pooling import Pooling

STATES, EMBEDDING, MASK = "last_hidden_state", "sentence_embedding", "attention_mask"
# A text of nothing but padding would divide by nothing; as in sentence-transformers.
TINY = 1e-9
# Below any state: what padding is before a maximum.
LOWEST = -1e9
_MASK = """
    pooling_axis = Constant <value = int64[1] {1}> ()
    pooling_last = Constant <value = int64[1] {-1}> ()
    pooling_flat = Cast <to = 1> (attention_mask)
    pooling_mask = Unsqueeze (pooling_flat, pooling_last)
"""
_SUM = """
    pooling_masked = Mul (last_hidden_state, pooling_mask)
    pooling_sum = ReduceSum <keepdims = 0> (pooling_masked, pooling_axis)
    pooling_counted = ReduceSum <keepdims = 0> (pooling_mask, pooling_axis)
    pooling_tiny = Constant <value = float {1e-9}> ()
    pooling_count = Max (pooling_counted, pooling_tiny)
"""
_STEPS = {
    "cls": """
    pooling_first = Constant <value = int64 {0}> ()
    pooled = Gather <axis = 1> (last_hidden_state, pooling_first)
""",
    "mean": _MASK + _SUM + "    pooled = Div (pooling_sum, pooling_count)\n",
    "mean_sqrt_len": _MASK
    + _SUM
    + """
    pooling_root = Sqrt (pooling_count)
    pooled = Div (pooling_sum, pooling_root)
""",
    "max": _MASK
    + """
    pooling_zero = Constant <value = float {0.0}> ()
    pooling_lowest = Constant <value = float {-1e9}> ()
    pooling_is_token = Greater (pooling_mask, pooling_zero)
    pooling_masked = Where (pooling_is_token, last_hidden_state, pooling_lowest)
    pooled = ReduceMax <keepdims = 0> (pooling_masked, pooling_axis)
""",
}
_NORMALIZE = """
    pooling_width = Constant <value = int64[1] {-1}> ()
    pooling_norm = ReduceL2 <keepdims = 1> (pooled, pooling_width)
    pooling_least = Constant <value = float {1e-12}> ()
    pooling_length = Max (pooling_norm, pooling_least)
    sentence_embedding = Div (pooled, pooling_length)
"""


class PooledEncoder(torch.nn.Module):
    """A text encoder that returns one vector per text, float32 [batch, width], as sentence-transformers does."""

    def __init__(self, encoder: Any, pooling: Pooling) -> None:
        """Put the pooling behind an encoder of transformers."""
        super().__init__()
        self.encoder, self.pooling = encoder, pooling

    def forward(self, **feed: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the vectors by the graph's name for them."""
        return {EMBEDDING: pool(self.encoder(**feed).last_hidden_state, feed[MASK], self.pooling)}


def pool(states: torch.Tensor, attended: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Make one vector per text, float32 [batch, width], of its tokens' states; `attended` is the attention mask."""
    mask = attended.unsqueeze(-1).float()
    count = mask.sum(1).clamp(min=TINY)
    if pooling.mode == "cls":
        pooled = states[:, 0]
    elif pooling.mode == "max":
        pooled = states.masked_fill(mask == 0, LOWEST).max(1).values
    else:
        pooled = (states * mask).sum(1) / (count if pooling.mode == "mean" else count.sqrt())
    return torch.nn.functional.normalize(pooled, dim=-1) if pooling.normalize else pooled


def add_pooling(model: onnx.ModelProto, pooling: Pooling) -> None:
    """Put the pooling behind a graph's token states, in place: its one output is `sentence_embedding` [batch, width].

    Raises:
        BadInput: the graph has no last_hidden_state or no attention_mask.
    """
    outputs = {output.name: output for output in model.graph.output}
    if STATES not in outputs or MASK not in {value.name for value in model.graph.input}:
        raise BadInput(
            f"the graph has no {STATES} or no {MASK}, so its token states cannot be pooled: use a text encoder"
        )
    batch, _, width = outputs[STATES].type.tensor_type.shape.dim
    end = _NORMALIZE if pooling.normalize else "    sentence_embedding = Identity (pooled)\n"
    steps = parse_graph(f"pooling () => (float[B, H] sentence_embedding) {{{_STEPS[pooling.mode]}{end}}}")
    model.graph.node.extend(steps.node)
    del model.graph.output[:]
    sizes = [dim.dim_param or dim.dim_value or None for dim in (batch, width)]
    model.graph.output.append(onnx.helper.make_tensor_value_info(EMBEDDING, onnx.TensorProto.FLOAT, sizes))
