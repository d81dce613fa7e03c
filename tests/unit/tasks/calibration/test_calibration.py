"""Calibration: the same statistics for any batching, order and split; bad rows; memory; a run that is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tasks.calibration.checkpoint as checkpoints
from registry.errors import BadInput
from registry.records import Precision
from tasks.calibration.collect import calibrate, check, collect
from tasks.calibration.rows import Feed, canonical_batches
from tasks.calibration.statistics import Calibration, merge
from tasks.graphs.session import providers
from tasks.quantization.quantize import quantize
from tests.support.encoder_graphs import NAN_TOKEN, VOCABULARY, WIDTH, artifact, batched, encoder, feed, saved, texts


def same(a: Calibration, b: Calibration) -> bool:
    """Whether two calibrations hold the same bytes, rows' numbers aside."""
    pairs = [(each, b.activations[name]) for name, each in a.activations.items()]
    return (
        a.activations.keys() == b.activations.keys()
        and (a.rows, len(a.quarantined)) == (b.rows, len(b.quarantined))
        and all(np.array_equal(x.channel_amax, y.channel_amax) for x, y in pairs)
        and all(x.histogram.digest == y.histogram.digest for x, y in pairs)
        and all(np.array_equal(x.sample.values(), y.sample.values()) for x, y in pairs if x.sample.rows)
        and all(x.sample.rows.keys() == y.sample.rows.keys() for x, y in pairs)
    )


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return saved(tmp_path, encoder())


@pytest.mark.parametrize("size", [1, 3, 7, 40])
def test_statistics_are_the_same_for_any_batch_size_and_order(graph: Path, size: int) -> None:
    rows = texts(120)
    reference = calibrate(graph, batched(rows, 4))
    shuffled = [rows[at] for at in np.random.default_rng(size).permutation(len(rows))]
    assert same(calibrate(graph, batched(shuffled, size)), reference)


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_merged_parts_of_any_split_are_what_one_process_finds(graph: Path, parts: int) -> None:
    rows = texts(120)
    whole = calibrate(graph, batched(rows, 4))
    found = [collect(graph, batched(rows, 6), shard=(part, parts)) for part in range(parts)]
    assert sum(part.rows for part in found) == 120
    assert max(part.rows for part in found) < 120
    assert same(merge(found), whole)
    assert same(merge(found[::-1]), whole)
    assert merge(found).outlier() == whole.outlier()


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8])
def test_any_batch_size_and_order_give_the_same_bytes_of_the_graph(tmp_path: Path, precision: Precision) -> None:
    source, rows = artifact(tmp_path / "source", encoder()), texts(60)
    orders = [rows, rows[::-1], sorted(rows)]
    digests = {
        quantize(
            source, precision, batched(order, size), calibration_set_digest="c" * 64, into=tmp_path / str(size)
        ).digest
        for size, order in zip((1, 7, 60), orders, strict=True)
    }
    assert len(digests) == 1


def test_canonical_batches_hold_each_row_once_and_no_padding() -> None:
    rows = [*texts(50), texts(1)[0]]
    batches = list(canonical_batches(batched(rows, 8)))
    assert sorted(row.number for batch in batches for row in batch.rows) == list(range(51))
    assert all(batch.feed()["attention_mask"].all() for batch in batches)
    assert max(len(batch.rows) for batch in batches) > 1


def test_padding_never_enters_a_statistic(graph: Path) -> None:
    rows = texts(10)
    padded = [feed(rows[:5], pad_to=30, pad_id=NAN_TOKEN), feed(rows[5:], pad_to=20, pad_id=7)]
    found = calibrate(graph, padded)
    assert same(found, calibrate(graph, batched(rows, 1)))
    assert not found.quarantined
    tokens = sum(len(row) for row in rows)
    assert found.activations["gelu"].histogram.total == tokens * 2 * WIDTH


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
    found = calibrate(graph, batched([*rows[:4], bad, *rows[4:]], 3))
    assert (found.rows, found.quarantined) == (31, [4])
    clean = calibrate(graph, batched(rows, 5))
    for name, each in clean.activations.items():
        assert found.activations[name].histogram.total == each.histogram.total
        np.testing.assert_allclose(found.activations[name].channel_amax, each.channel_amax, rtol=1e-5)


def test_a_row_without_tokens_is_quarantined(graph: Path) -> None:
    empty = {"input_ids": np.ones((1, 3), np.int64), "attention_mask": np.zeros((1, 3), np.int64)}
    assert calibrate(graph, [*batched(texts(19), 3), empty]).quarantined == [19]


def test_more_bad_rows_than_a_tenth_stop_the_run_with_their_numbers(graph: Path) -> None:
    rows = texts(17)
    with pytest.raises(BadInput, match=r"3 of 20 calibration rows .* more than 10%: mend or drop rows 0, 9, 19"):
        calibrate(graph, batched([[NAN_TOKEN], *rows[:8], [NAN_TOKEN, 3], *rows[8:], [VOCABULARY + 1]], 4))


def test_no_usable_row_is_refused() -> None:
    with pytest.raises(BadInput, match="none of 0 calibration rows is usable"):
        check(Calibration())
    with pytest.raises(BadInput, match="no outlier"):
        Calibration().outlier()


def test_the_row_with_the_outlier_is_named(tmp_path: Path) -> None:
    proto = encoder()
    table = next(each for each in proto.graph.initializer if each.name == "embedding")
    values = numpy_helper.to_array(table).copy()
    values[48] = 0
    values[48, 7] = 1e4
    table.CopyFrom(numpy_helper.from_array(values, "embedding"))
    rows = [[token % 48 for token in row] for row in texts(40)]
    rows.insert(23, [1, 48, 2])
    outlier = calibrate(saved(tmp_path, proto), batched(rows, 6)).outlier()
    assert outlier.row == 23
    assert outlier.amax > outlier.typical


def test_progress_counts_every_row_once(graph: Path) -> None:
    told: list[int] = []
    calibrate(graph, batched(texts(40), 8), on_row=told.append)
    assert told == sorted(told)
    assert told[-1] == 40


def test_images_run_one_by_one_and_their_order_changes_nothing(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = random.standard_normal((6, 3, 96, 96)).astype(np.float32)
    source = saved(tmp_path, convolution())
    found = calibrate(source, [{"pixels": images[:4]}, {"pixels": images[4:]}])
    assert same(found, calibrate(source, [{"pixels": images[::-1]}]))
    assert found.activations["pixels"].histogram.total == images.size
    np.testing.assert_array_equal(found.activations["pixels"].channel_amax, np.abs(images).max(axis=(0, 2, 3)))


def convolution() -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    shape: list[str | int | None] = ["batch", 3, 96, 96]
    nodes = [helper.make_node("Conv", ["pixels", "w"], ["y"], name="conv", pads=[1, 1, 1, 1])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("pixels", "y"))
    y.type.tensor_type.shape.dim[1].dim_value = 4
    body = helper.make_graph(nodes, "conv", [x], [y], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_a_graph_of_batch_one_is_fed_row_by_row(tmp_path: Path) -> None:
    proto = encoder()
    for each in (*proto.graph.input, *proto.graph.output):
        each.type.tensor_type.shape.dim[0].dim_value = 1
    assert not calibrate(saved(tmp_path, proto), batched(texts(12), 4)).quarantined


def test_weights_in_a_file_of_their_own_are_found(tmp_path: Path) -> None:
    onnx.save(
        encoder(), tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=1024
    )
    (tmp_path / "single").mkdir()
    rows = batched(texts(12), 4)
    assert same(calibrate(tmp_path / "model.onnx", rows), calibrate(saved(tmp_path / "single", encoder()), rows))


def feeds_of_the_killed() -> list[Feed]:
    return [dict(each) for each in batched(texts(120), 8)]


KILLED = """
import os, signal, sys
from pathlib import Path
import tasks.calibration.checkpoint as checkpoints
from tasks.calibration.collect import calibrate
from tests.unit.tasks.calibration.test_calibration import feeds_of_the_killed
checkpoints.SAVE_EVERY_SECONDS = 0.0
die = lambda row: os.kill(os.getpid(), signal.SIGKILL) if row >= 60 else None
calibrate(Path(sys.argv[1]), feeds_of_the_killed(), on_row=die, checkpoint=Path(sys.argv[2]))
"""


def test_a_killed_run_goes_on_where_it_was(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "partial.npz"
    killed = subprocess.run([sys.executable, "-c", KILLED, graph, checkpoint], check=False, env={**os.environ})
    assert killed.returncode == -signal.SIGKILL
    assert checkpoint.is_file()
    ran: list[int] = []
    resumed = calibrate(graph, feeds_of_the_killed(), on_row=ran.append, checkpoint=checkpoint)
    assert ran[0] > 30
    assert ran[-1] == 120
    assert same(resumed, calibrate(graph, feeds_of_the_killed()))
    assert resumed.outlier() == calibrate(graph, feeds_of_the_killed()).outlier()
    assert not checkpoint.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"no archive"], ids=["empty", "torn", "other"])
def test_an_unreadable_checkpoint_is_no_obstacle(graph: Path, tmp_path: Path, content: bytes) -> None:
    checkpoint = tmp_path / "partial.npz"
    checkpoint.write_bytes(content)
    assert same(calibrate(graph, batched(texts(12), 4), checkpoint=checkpoint), calibrate(graph, batched(texts(12), 4)))


def test_a_checkpoint_of_another_graph_is_not_used(graph: Path, tmp_path: Path) -> None:
    checkpoint, other = tmp_path / "partial.npz", tmp_path / "other"
    collect(graph, batched(texts(12), 4), checkpoint=checkpoint)
    assert checkpoints.Checkpoint.open(checkpoint, graph, (0, 1)).calibration.rows == 12
    other.mkdir()
    assert checkpoints.Checkpoint.open(checkpoint, saved(other, encoder(pre_norm=True)), (0, 1)).calibration.rows == 0
    assert checkpoints.Checkpoint.open(checkpoint, graph, (0, 2)).calibration.rows == 0


def test_cuda_runs_the_rows_in_true_float32_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert providers()[-1] == "CPUExecutionProvider"
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: both)
    assert providers() == [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]
