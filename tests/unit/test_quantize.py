"""Quantized graphs on a one-block encoder with planted outlier channels and a NaN token."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from registry.digest import digest_of, record_tree
from registry.errors import BadInput
from registry.records import OnnxArtifact, Precision
from tasks.calibration import BINS, Calibration, Histogram, calibrate
from tasks.linears import Graph
from tasks.quantize import CALIBRATED, METHODS, quantize, tensors_of
from tasks.smoothquant import choose_scales, smooth
from tasks.tokenize import FeedDict

WIDTH, VOCABULARY, NAN_TOKEN, OUTLIERS = 64, 50, 49, (3, 17)
SET = "c" * 64


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
    session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    # A row at a time, so that padding is no part of what is compared.
    return np.concatenate([session.run(None, feed([row]))[0].reshape(-1) for row in rows])


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def same(a: Calibration, b: Calibration) -> bool:
    pairs = [(a.activations[name], b.activations[name]) for name in a.activations]
    return (
        a.activations.keys() == b.activations.keys()
        and all(np.array_equal(x.channel_amax, y.channel_amax) for x, y in pairs)
        and all(np.array_equal(x.histogram.counts, y.histogram.counts) for x, y in pairs)
        and all(x.histogram.top == y.histogram.top for x, y in pairs)
        and all(np.array_equal(a.sample[name], b.sample[name]) for name in a.sample)
    )


@pytest.fixture
def source(tmp_path: Path) -> OnnxArtifact:
    return artifact(tmp_path / "source", encoder())


def make(source: OnnxArtifact, precision: Precision, into: Path, rows: list[FeedDict] | None = None) -> OnnxArtifact:
    feeds = batched(texts(24), 4) if rows is None else rows
    return quantize(source, precision, feeds, calibration_set_digest=SET, into=into)


@pytest.mark.parametrize("kwargs", [{}, {"pre_norm": True}, {"transposed": True}])
def test_smoothed_graph_gives_what_the_original_gives(kwargs: dict[str, bool]) -> None:
    exact = run(encoder(**kwargs), texts(8, seed=2))
    graph = Graph(encoder(**kwargs))
    scales = choose_scales(graph, calibrate(graph.proto, batched(texts(24), 4)))
    smoothings = {name: each.smoothing for name, each in scales.items() if each.smoothing is not None}
    assert {"normed", "normed_2"} <= smoothings.keys()
    smoothed = smooth(graph, smoothings).proto
    onnx.checker.check_model(smoothed)
    np.testing.assert_allclose(run(smoothed, texts(8, seed=2)), exact, rtol=1e-3, atol=2e-3)


def test_scale_is_folded_where_nothing_else_reads_the_tensor_and_multiplied_where_a_residual_does() -> None:
    ones = np.full(WIDTH, 2.0, dtype=np.float32)
    folded = smooth(Graph(encoder(pre_norm=True)), {"normed": ones}).proto
    multiplied = smooth(Graph(encoder()), {"normed": ones}).proto
    nodes = len(encoder().graph.node)
    assert len(folded.graph.node) == nodes
    assert len(multiplied.graph.node) == nodes + 1


def test_int8_weights_are_int8_and_every_zero_point_is_zero(source: OnnxArtifact, tmp_path: Path) -> None:
    made = onnx.load(make(source, Precision.INT8, tmp_path / "int8").path)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    nodes = [node for node in made.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    weights = [constants[node.input[0]] for node in nodes if node.input[0] in constants]
    zero_points = [constants[node.input[2]] for node in nodes]
    assert [weight.dtype for weight in weights] == [np.int8] * 6
    assert all(zero_point.dtype == np.int8 and not zero_point.any() for zero_point in zero_points)
    assert sum(node.op_type == "QuantizeLinear" for node in nodes) == 4


def test_nothing_is_quantized_but_the_inputs_of_matmuls_with_constant_weights(
    source: OnnxArtifact, tmp_path: Path
) -> None:
    graph = Graph(onnx.load(make(source, Precision.INT8, tmp_path / "int8").path))
    dequantized = [node.output[0] for node in graph.proto.graph.node if node.op_type == "DequantizeLinear"]
    assert {each.op_type for name in dequantized for each in graph.consumers[name]} == {"MatMul"}
    floats = [node for node in graph.proto.graph.node if node.op_type in ("Softmax", "LayerNormalization", "Erf")]
    assert not [name for node in floats for name in node.input if name in dequantized]


@pytest.mark.parametrize("size", [1, 3, 7, 40])
def test_statistics_are_the_same_for_any_batch_size_and_order(size: int) -> None:
    rows = texts(40)
    reference = calibrate(encoder(), batched(rows, 4))
    shuffled = [rows[at] for at in np.random.default_rng(size).permutation(len(rows))]
    assert same(calibrate(encoder(), batched(shuffled, size)), reference)


def test_padding_never_enters_a_statistic() -> None:
    rows = texts(10)
    padded = [feed(rows[:5], pad_to=30, pad_id=NAN_TOKEN), feed(rows[5:], pad_to=20, pad_id=7)]
    found = calibrate(encoder(), padded)
    assert same(found, calibrate(encoder(), batched(rows, 1)))
    assert found.quarantined == 0
    tokens = sum(len(row) for row in rows)
    assert found.activations["gelu"].histogram.counts.sum() == tokens * 2 * WIDTH


def test_masked_tokens_inside_a_row_never_enter_a_statistic() -> None:
    one = feed([[5, 6, 7, 8]])
    one["attention_mask"][0, 1] = 0
    assert calibrate(encoder(), [one]).activations["gelu"].histogram.counts.sum() == 3 * 2 * WIDTH


@pytest.mark.parametrize("bad", [[4, NAN_TOKEN, 5], [4, VOCABULARY + 7]], ids=["nan", "beyond the vocabulary"])
def test_a_bad_row_is_quarantined_and_counted(bad: list[int]) -> None:
    rows = texts(10)
    found = calibrate(encoder(), batched([*rows[:4], bad, *rows[4:]], 3))
    assert (found.rows, found.quarantined) == (11, 1)
    assert same(found, calibrate(encoder(), batched(rows, 5)))


def test_a_row_without_tokens_is_quarantined() -> None:
    rows = [
        feed([[1, 2]]),
        {"input_ids": np.ones((1, 3), np.int64), "attention_mask": np.zeros((1, 3), np.int64)},
    ]
    assert calibrate(encoder(), rows).quarantined == 1


@pytest.mark.parametrize("rows", [[], [feed([[NAN_TOKEN]])]], ids=["none", "only bad ones"])
def test_no_usable_row_is_refused(source: OnnxArtifact, tmp_path: Path, rows: list[FeedDict]) -> None:
    with pytest.raises(BadInput, match="calibration rows is usable"):
        quantize(source, Precision.INT8, rows, calibration_set_digest=SET, into=tmp_path / "int8")


def test_int8_without_rows_is_refused(source: OnnxArtifact, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="needs calibration rows"):
        quantize(source, Precision.INT8, None, calibration_set_digest=None, into=tmp_path / "int8")


def test_a_quantized_graph_is_not_quantized_again(source: OnnxArtifact, tmp_path: Path) -> None:
    once = make(source, Precision.INT8_WEIGHT_ONLY, tmp_path / "once")
    with pytest.raises(BadInput, match="fp32"):
        make(once, Precision.INT8, tmp_path / "twice")


def test_a_folder_with_other_files_is_refused(source: OnnxArtifact, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    with pytest.raises(BadInput, match="not empty"):
        make(source, Precision.FP32, tmp_path / "full")


def test_every_precision_has_its_method() -> None:
    assert METHODS.keys() == set(Precision)


@pytest.mark.parametrize("precision", [each for each in Precision if each not in (Precision.FP16, Precision.BF16)])
def test_same_rows_in_any_batches_give_the_same_digest(
    source: OnnxArtifact, tmp_path: Path, precision: Precision
) -> None:
    once = make(source, precision, tmp_path / "once", batched(texts(24), 4))
    again = make(source, precision, tmp_path / "again", batched(texts(24)[::-1], 5))
    assert once == again
    assert once.quantized_from == source.digest
    assert once.calibration_set == (SET if precision in CALIBRATED else None)


def test_int8_on_outliers_is_nearer_than_plain_min_max(source: OnnxArtifact, tmp_path: Path) -> None:
    rows = texts(16, seed=3)
    exact = run(source.path, rows)
    ours = cosine(run(make(source, Precision.INT8, tmp_path / "int8").path, rows), exact)
    plain = cosine(run(min_max_int8(), rows), exact)
    assert ours > 0.995
    assert 1 - ours < (1 - plain) / 2


def min_max_int8() -> onnx.ModelProto:
    """The same layers in int8 with amax / 127 and no smoothing."""
    from tasks import qdq

    graph = Graph(encoder())
    found = calibrate(graph.proto, batched(texts(24), 4))
    steps = {name: each.amax / 127 for name, each in found.activations.items()}
    qdq.quantize_activations(graph, steps, qdq.int8_zero())
    graph = Graph(graph.proto)
    qdq.quantize_weights(graph, qdq.int8_weight)
    return graph.proto


@pytest.mark.parametrize(
    ("precision", "least"),
    [
        (Precision.INT8_WEIGHT_ONLY, 0.999),
        (Precision.INT4_WEIGHT_ONLY, 0.97),
        (Precision.FP8, 0.99),
        (Precision.INT8_DYNAMIC, 0.97),
        (Precision.FP32, 1 - 1e-6),
    ],
)
def test_other_precisions_stay_near_fp32(
    source: OnnxArtifact, tmp_path: Path, precision: Precision, least: float
) -> None:
    rows = texts(16, seed=3)
    assert cosine(run(make(source, precision, tmp_path / "made").path, rows), run(source.path, rows)) > least


@pytest.mark.parametrize("order", [1, -1])
def test_histogram_counts_do_not_depend_on_order(order: int) -> None:
    values = np.abs(np.random.default_rng(0).standard_cauchy(5000)).astype(np.float32)
    together, apart = Histogram(), Histogram()
    together.add(values)
    for chunk in np.array_split(values, 13)[::order]:
        apart.add(chunk)
    assert np.array_equal(together.counts, apart.counts)
    assert together.counts.sum() == len(values)
    assert np.flatnonzero(together.counts).max() >= BINS // 2


def test_clip_of_least_error_cuts_a_lone_outlier_and_keeps_a_uniform_range() -> None:
    lone, uniform = Histogram(), Histogram()
    spread = np.linspace(0, 1, 100_000, dtype=np.float32)
    lone.add(np.append(spread, np.float32(4.0)))
    uniform.add(spread)
    assert lone.clip_of_least_error(4.0, (1.0, 0.5, 0.25), 127) < 4.0
    assert uniform.clip_of_least_error(1.0, (1.0, 0.5, 0.25), 127) == 1.0


@pytest.mark.slow
def test_int8_builds_for_sm89(source: OnnxArtifact, tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    made = make(source, Precision.INT8, tmp_path / "int8")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(made.path)), [parser.get_error(at).desc() for at in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    for each in made.inputs:
        profile.set_shape(each.name, (1, 4), (2, 16), (4, 32))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None


@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_casts_keep_fp32_outputs_and_are_deterministic(tmp_path: Path, precision: Precision) -> None:
    clean = encoder()
    table = next(tensor for tensor in clean.graph.initializer if tensor.name == "embedding")
    table.CopyFrom(numpy_helper.from_array(np.nan_to_num(numpy_helper.to_array(table)), "embedding"))
    source = artifact(tmp_path / "clean", clean)
    once, again = make(source, precision, tmp_path / "once"), make(source, precision, tmp_path / "again")
    assert once == again
    assert [tensor.dtype for tensor in (*once.inputs, *once.outputs)] == ["int64", "int64", "float32"]
