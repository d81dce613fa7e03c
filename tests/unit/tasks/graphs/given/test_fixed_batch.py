"""A graph that takes batches of one size only: rows run in such batches, and what fills one up leaves no trace."""

from pathlib import Path

import numpy as np
import pytest

from registry.errors import BadInput
from registry.records import AxisRange, Backend, GpuTarget, OnnxArtifact, Precision, ShapeProfile, fixed_batch
from tasks.backends import BuildInputs, open_engine
from tasks.backends.build import build_engine
from tasks.graphs.fixed_batch import check_batch, join_outputs, split_feed
from tasks.graphs.given.admit import admit_graph
from tasks.graphs.given.trial import try_graph
from tasks.model_tasks import model_task
from tasks.model_tasks.contract import Feed
from tasks.quantization.quantize import quantize
from tests.support.given_graphs import CLASSES, VOCABULARY, make_classifier, save_classifier

TASK, LABELS = model_task("text-classification"), ("no", "yes")
SIZE = 4
PROFILE = ShapeProfile.of(batch=AxisRange(SIZE, SIZE, SIZE), sequence=AxisRange(1, 4, 8))
TARGETS = (GpuTarget("cpu", Backend.ONNXRUNTIME), GpuTarget("rtx-4090", Backend.TENSORRT_RTX, "8.9"))


def make_feed(rows: int, length: int = 6) -> Feed:
    draw = np.random.default_rng(rows)
    mask = np.arange(length) < draw.integers(1, length + 1, (rows, 1))
    return {"input_ids": draw.integers(0, VOCABULARY, (rows, length)), "attention_mask": mask.astype(np.int64)}


def admit(folder: Path, batch: str | int) -> OnnxArtifact:
    model = make_classifier(axes=(batch, "seq"), answer_axes=(batch, CLASSES))
    return admit_graph(save_classifier(folder / "net.onnx", model), TASK, {}, into=folder / "made")


def run_engine(folder: Path, onnx: OnnxArtifact, feed: Feed) -> list[np.ndarray]:
    inputs = BuildInputs(onnx, TARGETS[0], (PROFILE,), 2**28)
    return open_engine(build_engine(inputs, into=folder, on_progress=lambda *_: True)).run(feed)


@pytest.mark.parametrize("rows", [1, SIZE, SIZE + 1, 3 * SIZE])
def test_any_number_of_rows_is_answered_as_by_a_dynamic_graph(tmp_path: Path, rows: int) -> None:
    fixed, free = (admit(tmp_path / name, batch) for name, batch in (("fixed", SIZE), ("free", "n")))
    assert fixed.inputs[0].shape == (SIZE, "sequence_length")
    feed = make_feed(rows)
    (tried,) = try_graph(tmp_path / "fixed" / "net.onnx", fixed, TASK, feed, LABELS)
    (given,) = run_engine(tmp_path / "engine", fixed, feed)
    (wanted,) = try_graph(tmp_path / "free" / "net.onnx", free, TASK, feed, LABELS)
    assert given.shape == (rows, CLASSES)
    np.testing.assert_allclose(given, wanted, rtol=1e-5)
    np.testing.assert_allclose(tried, wanted, rtol=1e-5)


def test_profiles_that_ask_for_other_batches_are_refused(tmp_path: Path) -> None:
    onnx = admit(tmp_path, SIZE)
    check_batch(onnx, (PROFILE,))
    other = ShapeProfile.of(batch=AxisRange(1, SIZE, SIZE), sequence=AxisRange(1, 4, 8))
    with pytest.raises(BadInput, match=r"batch axis fixed at 4: give each profile batch: \{min: 4, opt: 4, max: 4\}"):
        check_batch(onnx, (PROFILE, other))


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT8_DYNAMIC, Precision.FP16])
def test_a_graph_of_a_fixed_batch_is_quantized_like_a_dynamic_one(tmp_path: Path, precision: Precision) -> None:
    feeds = [make_feed(SIZE, length) for length in (3, 5, 6, 8)] * 4
    answers = []
    for name, batch in (("fixed", SIZE), ("free", "n")):
        onnx = admit(tmp_path / name, batch)
        made = quantize(onnx, precision, feeds, calibration_set_digest="c" * 64, into=tmp_path / name / "quantized")
        assert fixed_batch(made.inputs) == (SIZE if batch == SIZE else None)
        answers.append(made)
    exact, given = (try_graph(answers[at].path, answers[at], TASK, make_feed(SIZE), LABELS)[0] for at in (1, 0))
    np.testing.assert_allclose(given, exact, atol=0.03 * np.abs(exact).max())


def test_tensorrt_for_rtx_builds_a_graph_of_a_fixed_batch(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    inputs = BuildInputs(admit(tmp_path, SIZE), TARGETS[1], (PROFILE,), 2**28)
    built = build_engine(inputs, into=tmp_path / "engine", on_progress=lambda *_: True)
    assert fixed_batch(built.inputs) == SIZE


def test_an_output_without_a_batch_is_that_of_the_first_batch() -> None:
    parts = split_feed({"x": np.arange(5)}, 2)
    assert [part["x"].tolist() for part in parts] == [[0, 1], [2, 3], [4, 4]]
    assert join_outputs([part["x"] for part in parts], 2, 5).tolist() == [0, 1, 2, 3, 4]
    assert join_outputs([np.array(7.0)] * 3, 2, 5) == 7.0
    assert join_outputs([np.arange(3)] * 3, 2, 5).tolist() == [0, 1, 2]
