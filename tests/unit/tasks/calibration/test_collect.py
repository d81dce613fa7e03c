"""Calibration: the same statistics for any batching and order of the rows; bad rows; images."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from registry.errors import BadInput
from tasks.calibration.collect import calibrate, check_rows_usable
from tasks.calibration.statistics import Calibration
from tests.support.encoder_graphs import (
    NAN_TOKEN,
    VOCABULARY,
    WIDTH,
    batched,
    encoder,
    feed,
    same_statistics,
    saved,
    texts,
)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return saved(tmp_path, encoder())


@pytest.mark.parametrize("size", [1, 3, 7, 40])
def test_statistics_are_the_same_for_any_batch_size_and_order(graph: Path, size: int) -> None:
    rows = texts(120)
    reference = calibrate(graph, batched(rows, 4))
    shuffled = [rows[index] for index in np.random.default_rng(size).permutation(len(rows))]
    assert same_statistics(calibrate(graph, batched(shuffled, size)), reference)


def test_padding_never_enters_a_statistic(graph: Path) -> None:
    rows = texts(10)
    padded = [feed(rows[:5], pad_to=30, pad_id=NAN_TOKEN), feed(rows[5:], pad_to=20, pad_id=7)]
    calibration = calibrate(graph, padded)
    assert same_statistics(calibration, calibrate(graph, batched(rows, 1)))
    assert not calibration.quarantined
    tokens = sum(len(row) for row in rows)
    assert calibration.activations["gelu"].histogram.total == tokens * 2 * WIDTH


def test_masked_tokens_inside_a_row_never_enter_a_statistic(graph: Path) -> None:
    one = feed([[5, 6, 7, 8], [5, 6, 7, 9]])
    one["attention_mask"][0, 1] = 0
    assert calibrate(graph, [one]).activations["gelu"].histogram.total == 7 * 2 * WIDTH


def test_histogram_and_maxima_are_those_of_the_values_themselves(graph: Path) -> None:
    statistics = calibrate(graph, [feed([[5, 6, 7]])]).activations["normed"]
    values = statistics.sample.values()
    assert np.array_equal(statistics.channel_amax, np.abs(values).max(axis=0))
    assert statistics.histogram.total == values.size
    assert statistics.histogram.quantile(1.0) == pytest.approx(float(np.abs(values).max()), rel=2**-8)


@pytest.mark.parametrize("bad", [[4, NAN_TOKEN, 5], [4, VOCABULARY + 7]], ids=["nan", "beyond the vocabulary"])
def test_a_bad_row_is_quarantined_and_numbered(graph: Path, bad: list[int]) -> None:
    rows = texts(30)
    calibration = calibrate(graph, batched([*rows[:4], bad, *rows[4:]], 3))
    assert (calibration.rows, calibration.quarantined) == (31, [4])
    clean = calibrate(graph, batched(rows, 5))
    for name, expected in clean.activations.items():
        assert calibration.activations[name].histogram.total == expected.histogram.total
        np.testing.assert_allclose(calibration.activations[name].channel_amax, expected.channel_amax, rtol=1e-5)


def test_a_row_without_tokens_is_quarantined(graph: Path) -> None:
    empty = {"input_ids": np.ones((1, 3), np.int64), "attention_mask": np.zeros((1, 3), np.int64)}
    assert calibrate(graph, [*batched(texts(19), 3), empty]).quarantined == [19]


def test_more_bad_rows_than_a_tenth_stop_the_run_with_their_numbers(graph: Path) -> None:
    rows = texts(17)
    with pytest.raises(BadInput, match=r"3 of 20 calibration rows .* more than 10%: fix or drop rows 0, 9, 19"):
        calibrate(graph, batched([[NAN_TOKEN], *rows[:8], [NAN_TOKEN, 3], *rows[8:], [VOCABULARY + 1]], 4))


def test_no_usable_row_is_refused() -> None:
    with pytest.raises(BadInput, match="none of 0 calibration rows is usable"):
        check_rows_usable(Calibration())
    with pytest.raises(BadInput, match="no outlier"):
        Calibration().find_outlier()


def test_the_row_with_the_outlier_is_named(tmp_path: Path) -> None:
    proto = encoder()
    table = next(tensor for tensor in proto.graph.initializer if tensor.name == "embedding")
    values = numpy_helper.to_array(table).copy()
    values[48] = 0
    values[48, 7] = 1e4
    table.CopyFrom(numpy_helper.from_array(values, "embedding"))
    rows = [[token % 48 for token in row] for row in texts(40)]
    rows.insert(23, [1, 48, 2])
    outlier = calibrate(saved(tmp_path, proto), batched(rows, 6)).find_outlier()
    assert outlier.row == 23
    assert outlier.amax > outlier.typical


def test_progress_counts_every_row_once(graph: Path) -> None:
    rows_done: list[int] = []
    calibrate(graph, batched(texts(40), 8), on_row=rows_done.append)
    assert rows_done == sorted(rows_done)
    assert rows_done[-1] == 40


def test_images_run_one_by_one_and_their_order_changes_nothing(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = random.standard_normal((6, 3, 96, 96)).astype(np.float32)
    source = saved(tmp_path, make_convolution())
    calibration = calibrate(source, [{"pixels": images[:4]}, {"pixels": images[4:]}])
    assert same_statistics(calibration, calibrate(source, [{"pixels": images[::-1]}]))
    assert calibration.activations["pixels"].histogram.total == images.size
    np.testing.assert_array_equal(calibration.activations["pixels"].channel_amax, np.abs(images).max(axis=(0, 2, 3)))


def make_convolution() -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    shape: list[str | int | None] = ["batch", 3, 96, 96]
    nodes = [helper.make_node("Conv", ["pixels", "w"], ["y"], name="conv", pads=[1, 1, 1, 1])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("pixels", "y"))
    y.type.tensor_type.shape.dim[1].dim_value = 4
    body = helper.make_graph(nodes, "conv", [x], [y], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_a_graph_of_batch_one_is_fed_row_by_row(tmp_path: Path) -> None:
    proto = encoder()
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    assert not calibrate(saved(tmp_path, proto), batched(texts(12), 4)).quarantined


def test_weights_in_a_file_of_their_own_are_found(tmp_path: Path) -> None:
    onnx.save(
        encoder(), tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=1024
    )
    (tmp_path / "single").mkdir()
    rows = batched(texts(12), 4)
    assert same_statistics(
        calibrate(tmp_path / "model.onnx", rows), calibrate(saved(tmp_path / "single", encoder()), rows)
    )
