"""A one-block encoder with planted outlier channels and a NaN token, rows for it, and how it answers."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from registry.digest import digest_of, record_tree
from registry.records import OnnxArtifact, Precision
from tasks.graphs.files import tensors_of
from tasks.graphs.session import exact_options
from tasks.model_tasks.text_inputs import FeedDict

WIDTH, VOCABULARY, NAN_TOKEN, OUTLIERS = 64, 50, 49, (3, 17)


def encoder(*, pre_norm: bool = False, transposed: bool = False) -> onnx.ModelProto:
    """Embedding, LayerNorm, one head of attention, LayerNorm, GELU FFN; outputs [batch, sequence, WIDTH]."""
    random = np.random.default_rng(0)
    constants: dict[str, NDArray[np.float32]] = {}

    def constant(name: str, *shape: int, scale: float = 1.0) -> str:
        constants[name] = (random.standard_normal(shape) * scale).astype(np.float32)
        return name

    def linear(source: str, name: str, k: int, n: int) -> list[onnx.NodeProto]:
        weight = constant(f"{name}.weight", k, n, scale=k**-0.5)
        bias = constant(f"{name}.bias", n, scale=0.1)
        product = helper.make_node("MatMul", [source, weight], [f"{name}.product"], name=f"{name}.matmul")
        return [product, helper.make_node("Add", [f"{name}.product", bias], [name], name=f"{name}.add")]

    def norm(source: str, name: str) -> onnx.NodeProto:
        constants[f"{name}.gamma"] = np.ones(WIDTH, dtype=np.float32)
        constants[f"{name}.gamma"][list(OUTLIERS)] = 40.0
        parameters = [f"{name}.gamma", constant(f"{name}.beta", WIDTH, scale=0.1)]
        return helper.make_node("LayerNormalization", [source, *parameters], [name], name=f"{name}.node")

    constant("embedding", VOCABULARY, WIDTH)
    constants["embedding"][NAN_TOKEN] = np.nan
    constants |= {
        "one": np.array([1.0], dtype=np.float32),
        "half": np.array([0.5], dtype=np.float32),
        "root2": np.array([2**0.5], dtype=np.float32),
        "low": np.array([1e4], dtype=np.float32),
    }
    axes = numpy_helper.from_array(np.array([1], dtype=np.int64), "axes")
    residual = "embedded" if pre_norm else "normed"
    make = helper.make_node
    nodes = [
        make("Gather", ["embedding", "input_ids"], ["embedded"]),
        norm("embedded", "normed"),
        *linear("normed", "query", WIDTH, WIDTH),
        *linear("normed", "key", WIDTH, WIDTH),
        *linear("normed", "value", WIDTH, WIDTH),
        make("Transpose", ["key"], ["key_t"], perm=[0, 2, 1]),
        make("MatMul", ["query", "key_t"], ["scores"]),
        make("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        make("Sub", ["mask", "one"], ["mask_minus"]),
        make("Mul", ["mask_minus", "low"], ["mask_low"]),
        make("Unsqueeze", ["mask_low", "axes"], ["mask_bias"]),
        make("Add", ["scores", "mask_bias"], ["masked"]),
        make("Softmax", ["masked"], ["weights"], axis=-1),
        make("MatMul", ["weights", "value"], ["context"]),
        *linear("context", "attended", WIDTH, WIDTH),
        make("Add", ["attended", residual], ["sum_1"]),
        norm("sum_1", "normed_2"),
        *linear("normed_2", "wide", WIDTH, 2 * WIDTH),
        make("Div", ["wide", "root2"], ["scaled"]),
        make("Erf", ["scaled"], ["erf"]),
        make("Add", ["erf", "one"], ["erf_one"]),
        make("Mul", ["wide", "erf_one"], ["gelu_2"]),
        make("Mul", ["gelu_2", "half"], ["gelu"]),
        *linear("gelu", "narrow", 2 * WIDTH, WIDTH),
        make("Add", ["narrow", "sum_1" if pre_norm else "normed_2"], ["hidden"]),
    ]
    if transposed:
        weight = constant("head.weight", 8, WIDTH, scale=0.1)
        first = make("Gather", ["hidden", "zero"], ["first"], axis=1)
        head = make("Gemm", ["first", weight, constant("head.bias", 8)], ["logits"], transB=1, name="head")
        nodes += [first, head]
    shapes: dict[str, list[str | int | None]] = (
        {"logits": ["batch", 8]} if transposed else {"hidden": ["batch", "sequence", WIDTH]}
    )
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    initializers += [axes, numpy_helper.from_array(np.array(0, dtype=np.int64), "zero")]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def artifact(folder: Path, proto: onnx.ModelProto) -> OnnxArtifact:
    folder.mkdir(parents=True)
    onnx.save(proto, folder / "model.onnx")
    files = record_tree(folder)
    inputs, outputs = tensors_of(proto.graph.input), tensors_of(proto.graph.output)
    return OnnxArtifact("model.onnx", files, digest_of(files), Precision.FP32, 18, inputs, outputs, directory=folder)


def texts(count: int, *, seed: int = 1) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(1, NAN_TOKEN, size=random.integers(3, 12)).tolist() for _ in range(count)]


def feed(rows: list[list[int]], *, pad_to: int = 0, pad_id: int = 0) -> FeedDict:
    width = max(pad_to, *(len(row) for row in rows))
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for at, row in enumerate(rows):
        ids[at, : len(row)], mask[at, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def batched(rows: list[list[int]], size: int) -> list[FeedDict]:
    return [feed(rows[at : at + size]) for at in range(0, len(rows), size)]


def run(proto: onnx.ModelProto | Path, rows: list[list[int]]) -> NDArray[np.float32]:
    source = str(proto) if isinstance(proto, Path) else proto.SerializeToString()
    session = ort.InferenceSession(source, exact_options(), providers=["CPUExecutionProvider"])
    # A row at a time, so that padding is no part of what is compared.
    return np.concatenate([session.run(None, feed([row]))[0].reshape(-1) for row in rows])


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def saved(folder: Path, proto: onnx.ModelProto) -> Path:
    """The file of a graph."""
    onnx.save(proto, folder / "graph.onnx")
    return folder / "graph.onnx"
