"""Networks with random weights and planted outlier channels: BERT-shaped, ViT-shaped, and a small Conv network.

Outliers are planted as trained networks have them (Bondarenko et al., arXiv 2109.12948): a few channels of what a
LayerNormalization gives are far larger than the others, and the weights that read them are as much smaller, so that
all channels matter alike. A per-tensor int8 range that holds the few has no steps left for the others.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tasks.calibration.rows import Feed

OUTLIERS, GAIN = (3, 17, 40), 60.0


@dataclass
class NetworkBuilder:
    """A graph under construction; each method adds to it and returns the name of the tensor it added."""

    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, NDArray[np.float32] | NDArray[np.int64]] = field(default_factory=dict)

    def constant(self, name: str, *shape: int, scale: float = 1.0) -> str:
        self.constants[name] = (self.random.standard_normal(shape) * scale).astype(np.float32)
        return name

    def fixed(self, name: str, values: list[int] | float) -> str:
        integers = isinstance(values, list)
        self.constants[name] = np.array(values, np.int64) if integers else np.array(values, np.float32)
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def linear(self, source: str, name: str, k: int, n: int, *, outliers: bool = False) -> str:
        weight = self.constant(f"{name}.weight", k, n, scale=k**-0.5)
        if outliers:
            self.constants[weight][[channel % k for channel in OUTLIERS]] /= GAIN
        product = self.node("MatMul", [source, weight], f"{name}.product")
        return self.node("Add", [product, self.constant(f"{name}.bias", n, scale=0.1)], name)

    def norm(self, source: str, name: str, width: int, *, outliers: bool = True) -> str:
        gamma = 1 + 0.1 * self.random.standard_normal(width)
        if outliers:
            gamma[[channel % width for channel in OUTLIERS]] = GAIN
        self.constants[f"{name}.gamma"] = gamma.astype(np.float32)
        beta = self.constant(f"{name}.beta", width, scale=0.1)
        return self.node("LayerNormalization", [source, f"{name}.gamma", beta], name)

    def heads(self, source: str, name: str, width: int, heads: int, *, transposed: bool = False) -> str:
        shape = self.fixed(f"{name}.heads", [0, -1, heads, width // heads])
        split = self.node("Reshape", [source, shape], f"{name}.split")
        return self.node("Transpose", [split], f"{name}.t", perm=[0, 2, 3, 1] if transposed else [0, 2, 1, 3])

    def block(self, source: str, name: str, width: int, heads: int, *, pre_norm: bool) -> str:
        read = self.norm(source, f"{name}.norm_1", width) if pre_norm else source
        q, k, v = (
            self.linear(read, f"{name}.{part}", width, width, outliers=True) for part in ("query", "key", "value")
        )
        left, right = (
            self.heads(q, f"{name}.q", width, heads),
            self.heads(k, f"{name}.k", width, heads, transposed=True),
        )
        scores = self.node("MatMul", [left, right], f"{name}.scores")
        root = self.fixed(f"{name}.root", float((width // heads) ** -0.5) * 0.05)
        weights = self.node("Softmax", [self.node("Mul", [scores, root], f"{name}.scaled")], f"{name}.softmax", axis=-1)
        mixed = self.node("MatMul", [weights, self.heads(v, f"{name}.v", width, heads)], f"{name}.mixed")
        joined = self.node("Transpose", [mixed], f"{name}.joined", perm=[0, 2, 1, 3])
        context = self.node("Reshape", [joined, self.fixed(f"{name}.flat", [0, -1, width])], f"{name}.context")
        sum_1 = self.node("Add", [self.linear(context, f"{name}.attended", width, width), source], f"{name}.sum_1")
        read = self.norm(sum_1, f"{name}.norm_2", width)
        wide = self.linear(read, f"{name}.wide", width, 4 * width, outliers=True)
        gelu = self.node("Gelu", [wide], f"{name}.gelu")
        narrow = self.linear(gelu, f"{name}.narrow", 4 * width, width)
        added = self.node("Add", [narrow, sum_1 if pre_norm else read], f"{name}.sum_2")
        return added if pre_norm else self.norm(added, f"{name}.norm_out", width)

    def model(self, inputs: dict[str, tuple[int, list[str | int | None]]], output: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in inputs.items()],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        return onnx.shape_inference.infer_shapes(model)


def bert(width: int = 64, layers: int = 2, heads: int = 2, vocabulary: int = 100) -> onnx.ModelProto:
    """Map input_ids [batch, sequence] to [batch, sequence, width] of a head; BERT base is 768, 12, 12, 30522."""
    make = NetworkBuilder()
    embedded = make.node("Gather", [make.constant("embedding", vocabulary, width), "input_ids"], "embedded")
    hidden = make.norm(embedded, "norm", width)
    for layer in range(layers):
        hidden = make.block(hidden, f"layer.{layer}", width, heads, pre_norm=False)
    hidden = make.linear(hidden, "head", width, width, outliers=True)
    return make.model({"input_ids": (TensorProto.INT64, ["batch", "sequence"])}, hidden)


def vit(width: int = 64, layers: int = 2, heads: int = 2, pixels: int = 32, patch: int = 8) -> onnx.ModelProto:
    """Map pixels [batch, 3, pixels, pixels] to [batch, patches, width]; ViT base is 768, 12, 12, 224, 16."""
    make = NetworkBuilder()
    weight = make.constant("patch.weight", width, 3, patch, patch, scale=(3 * patch**2) ** -0.5)
    bias = make.constant("patch.bias", width, scale=0.1)
    patches = make.node("Conv", ["pixels", weight, bias], "patches", strides=[patch, patch], kernel_shape=[patch] * 2)
    flat = make.node("Reshape", [patches, make.fixed("flat", [0, width, -1])], "flattened")
    hidden = make.node("Transpose", [flat], "tokens", perm=[0, 2, 1])
    hidden = make.node("Add", [hidden, make.constant("positions", (pixels // patch) ** 2, width, scale=0.1)], "placed")
    for layer in range(layers):
        hidden = make.block(hidden, f"layer.{layer}", width, heads, pre_norm=True)
    shape: list[str | int | None] = ["batch", 3, pixels, pixels]
    return make.model({"pixels": (TensorProto.FLOAT, shape)}, make.norm(hidden, "norm", width, outliers=False))


def conv_network(pixels: int = 32, channels: int = 16, classes: int = 10) -> onnx.ModelProto:
    """Map pixels [batch, 3, pixels, pixels] to logits [batch, classes]: strided, depthwise, 1 by 1 Conv, residual."""
    make = NetworkBuilder()

    def conv(source: str, name: str, out: int, k: int, size: int, **attributes: Any) -> str:
        weight = make.constant(f"{name}.weight", out, k, size, size, scale=(k * size**2) ** -0.5)
        # Filters of very different size: one scale for the whole weight cannot hold them.
        make.constants[weight] *= np.geomspace(0.05, 2.0, out).astype(np.float32)[:, None, None, None]
        bias = make.constant(f"{name}.bias", out, scale=0.1)
        product = make.node("Conv", [source, weight, bias], f"{name}.conv", kernel_shape=[size, size], **attributes)
        return make.node("Relu", [product], name)

    hidden = conv("pixels", "stem", channels, 3, 3, pads=[1, 1, 1, 1], strides=[2, 2])
    depth = conv(hidden, "depthwise", channels, 1, 3, pads=[1, 1, 1, 1], group=channels)
    hidden = make.node("Add", [conv(depth, "pointwise", channels, channels, 1), hidden], "residual")
    hidden = conv(hidden, "last", 2 * channels, channels, 3, strides=[2, 2])
    pooled = make.node("Flatten", [make.node("GlobalAveragePool", [hidden], "pooled")], "features")
    weight, bias = make.constant("head.weight", classes, 2 * channels, scale=0.2), make.constant("head.bias", classes)
    logits = make.node("Gemm", [pooled, weight, bias], "logits", transB=1)
    return make.model({"pixels": (TensorProto.FLOAT, ["batch", 3, pixels, pixels])}, logits)


def token_rows(count: int, seed: int) -> list[Feed]:
    random = np.random.default_rng(seed)
    lengths = random.integers(4, 16, size=count)
    return [{"input_ids": random.integers(0, 100, size=(1, length))} for length in lengths]


def image_rows(count: int, seed: int) -> list[Feed]:
    random = np.random.default_rng(seed)
    return [{"pixels": random.standard_normal((1, 3, 32, 32)).astype(np.float32)} for _ in range(count)]


@dataclass(frozen=True)
class SampleNetwork:
    """A network, rows for it by count and seed, its layers with weights, and its products of two activations."""

    make_model: Callable[[], onnx.ModelProto]
    make_rows: Callable[[int, int], list[Feed]]
    weighted_layers: int
    attention_products: int


NETWORKS = {
    "bert": SampleNetwork(bert, token_rows, 13, 4),
    "vit": SampleNetwork(vit, image_rows, 13, 4),
    "conv": SampleNetwork(conv_network, image_rows, 5, 0),
}
