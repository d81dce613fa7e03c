"""A one-block encoder with planted outlier channels and a NaN token, rows for it, and its answers."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from registry.records import OnnxArtifact, Precision
from tasks.calibration.statistics import Calibration
from tasks.graphs.files import GRAPH_FILE, make_artifact
from tasks.graphs.session import exact_options
from tasks.model_tasks.inputs.texts import FeedDict

WIDTH, VOCABULARY, NAN_TOKEN, OUTLIERS = 64, 50, 49, (3, 17)


def encoder(*, pre_norm: bool = False, transposed: bool = False) -> onnx.ModelProto:
    """Make embedding, LayerNorm, one head of attention, LayerNorm, GELU FFN; outputs [batch, sequence, WIDTH]."""
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
    """Save a graph in a folder of its own, as an exported fp32 graph is."""
    folder.mkdir(parents=True)
    onnx.save(proto, folder / GRAPH_FILE)
    return make_artifact(folder, Precision.FP32)


def texts(count: int, *, seed: int = 1) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(1, NAN_TOKEN, size=random.integers(3, 12)).tolist() for _ in range(count)]


def feed(rows: list[list[int]], *, pad_to: int = 0, pad_id: int = 0) -> FeedDict:
    width = max(pad_to, *(len(row) for row in rows))
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def batched(rows: list[list[int]], size: int) -> list[FeedDict]:
    return [feed(rows[start : start + size]) for start in range(0, len(rows), size)]


def run(proto: onnx.ModelProto | Path, rows: list[list[int]]) -> NDArray[np.float32]:
    source = str(proto) if isinstance(proto, Path) else proto.SerializeToString()
    session = ort.InferenceSession(source, exact_options(), providers=["CPUExecutionProvider"])
    # A row at a time, so that no padding is compared.
    return np.concatenate([session.run(None, feed([row]))[0].reshape(-1) for row in rows])


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def saved(folder: Path, proto: onnx.ModelProto) -> Path:
    """Save a graph, and return its file."""
    onnx.save(proto, folder / "graph.onnx")
    return folder / "graph.onnx"


def same_statistics(a: Calibration, b: Calibration) -> bool:
    """Return whether two calibrations hold the same bytes, rows' numbers aside."""
    pairs = [(statistics, b.activations[name]) for name, statistics in a.activations.items()]
    return (
        a.activations.keys() == b.activations.keys()
        and (a.rows, len(a.quarantined)) == (b.rows, len(b.quarantined))
        and all(np.array_equal(x.channel_amax, y.channel_amax) for x, y in pairs)
        and all(x.histogram.digest == y.histogram.digest for x, y in pairs)
        and all(np.array_equal(x.sample.values(), y.sample.values()) for x, y in pairs if x.sample.rows)
        and all(x.sample.rows.keys() == y.sample.rows.keys() for x, y in pairs)
    )
