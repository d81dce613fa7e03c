"""Answers that depend on what else is in the batch are found, counted and judged where they are worst."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from registry.records import AxisRange, Machine
from tasks.measurement.batching import PROBED_ROWS, BatchDependence, Batching, choose_probed
from tasks.measurement.evaluate import LARGEST_BATCH, Evaluation, evaluate
from tasks.measurement.measurements import describe_batch_flips, quality_measurements
from tasks.model_tasks.contract import Feed, is_another_answer
from tasks.model_tasks.inputs.texts import TextEncoder, open_text_encoder
from tasks.model_tasks.texts.text_classification import TEXT_CLASSIFICATION
from tasks.verdicts.gates import find
from tests.support.tiny import WORDS, write_tokenizer

MACHINE = Machine("a CPU", 2)
LONG = " ".join(["good"] * 12)
PLAIN = [word for word in WORDS if not word.startswith("##")][:8]
TEXTS = [f"{one} {other} {third}" for one in PLAIN for other in PLAIN for third in PLAIN][:400]


class ByBatch:
    """Two classes; a row is the second one where its batch is padded to `at` tokens, or has one row if `alone`."""

    def __init__(self, at: int = 1000, *, alone: bool = False, nudge: float = 0.0) -> None:
        self.at, self.alone, self.nudge, self.rows = at, alone, nudge, 0

    def run(self, feed: Feed) -> list[NDArray[Any]]:
        rows, tokens = feed["input_ids"].shape
        self.rows += rows
        is_other = tokens >= self.at or (self.alone and rows == 1)
        return [np.tile(np.array([[1.0, 2.0 if is_other else self.nudge * rows]], dtype=np.float32), (rows, 1))]


@pytest.fixture
def encoder(tmp_path: Path) -> TextEncoder:
    write_tokenizer(tmp_path)
    return open_text_encoder(tmp_path, ["input_ids"], {"sequence": 16})


def run(session: ByBatch, encoder: TextEncoder, texts: list[str], into: Path, *, smallest: int = 1) -> Evaluation:
    into.mkdir()
    batch = AxisRange(smallest, LARGEST_BATCH, LARGEST_BATCH)
    return evaluate(session, TEXT_CLASSIFICATION, encoder, texts, subject_digest="d" * 64, into=into, batch=batch)


def test_answers_that_change_with_padding_are_counted_over_all_rows(encoder: TextEncoder, tmp_path: Path) -> None:
    texts = [*TEXTS, LONG]
    found = run(ByBatch(at=10), encoder, texts, tmp_path / "found")
    assert found.dependence == BatchDependence(rows=401, flips=400, difference=2.0)
    assert set(found.batchings) == set(Batching)
    assert [int(answer) for answer in found.answers(Batching.PADDED)] == [1] * 401
    assert [int(answer) for answer in found.answers(Batching.ALONE)] == [0] * 400 + [1]


def test_answers_that_change_alone_are_counted(encoder: TextEncoder, tmp_path: Path) -> None:
    found = run(ByBatch(alone=True), encoder, TEXTS[:40], tmp_path / "found")
    assert found.dependence == BatchDependence(rows=40, flips=40, difference=1.0)
    assert found.batchings == (Batching.BY_LENGTH, Batching.ALONE)  # rows of one length have no padding


def test_only_some_rows_run_again_where_answers_do_not_change(encoder: TextEncoder, tmp_path: Path) -> None:
    session = ByBatch(nudge=0.01)
    found = run(session, encoder, [*TEXTS, LONG], tmp_path / "found")
    assert found.dependence is not None
    assert (found.dependence.rows, found.dependence.flips) == (PROBED_ROWS, 0)
    assert found.dependence.difference == pytest.approx(0.31)
    assert found.batchings == (Batching.BY_LENGTH,)
    assert [file.path for file in found.files] == ["answers.npz"]
    assert session.rows < 401 + 2 * PROBED_ROWS + 20


def test_an_engine_that_takes_no_single_row_is_not_run_on_one(encoder: TextEncoder, tmp_path: Path) -> None:
    session = ByBatch(alone=True)
    found = run(session, encoder, TEXTS[:64], tmp_path / "found", smallest=2)
    assert (found.dependence, session.rows) == (None, 64)


def test_the_batching_with_the_worst_figure_is_the_one_that_is_judged(encoder: TextEncoder, tmp_path: Path) -> None:
    texts = [*TEXTS, LONG]
    found = run(ByBatch(at=10), encoder, texts, tmp_path / "found")
    exact = run(ByBatch(), encoder, texts, tmp_path / "exact")

    def measure(targets: list[int]) -> dict[str, Any]:
        figures = quality_measurements(TEXT_CLASSIFICATION, found, exact, targets, subject="engine", machine=MACHINE)
        loss, flips = find(figures, "accuracy_loss"), find(figures, "batch_flips")
        assert loss is not None
        assert flips is not None
        assert f"{400 / 401:.1%} of 401 rows" in describe_batch_flips(figures)
        return {"loss": loss.value, "raw": loss.raw_digest, "flips": (flips.value, flips.samples)}

    padded = {"loss": 1.0, "raw": found.sha256(Batching.PADDED), "flips": (400 / 401, 401)}
    assert measure([0] * 401) == padded
    assert measure([1] * 401)["raw"] != padded["raw"]


def test_an_engine_that_does_not_depend_on_its_batch_has_no_note(encoder: TextEncoder, tmp_path: Path) -> None:
    found = run(ByBatch(), encoder, TEXTS[:40], tmp_path / "found")
    figures = quality_measurements(TEXT_CLASSIFICATION, found, found, [0] * 40, subject="engine", machine=MACHINE)
    assert describe_batch_flips(figures) == ""
    assert [each.metric for each in figures][-2:] == ["batch_flips", "batch_difference"]


@pytest.mark.parametrize("rows", [1, 2, PROBED_ROWS, PROBED_ROWS + 1, 5000])
def test_the_probed_rows_reach_from_the_first_to_the_last(rows: int) -> None:
    chosen = choose_probed(rows)
    assert (chosen[0], chosen[-1], len(chosen)) == (0, rows - 1, min(rows, PROBED_ROWS))


@pytest.mark.parametrize(
    ("one", "other", "changed"),
    [
        ([1, 2], [1, 2], False),
        ([1, 2], [2, 1], True),
        ([1, 2], [1, 2, 3], True),
        ([3.0, 4.0], [3.0, 4.04], False),
        ([3.0, 4.0], [3.0, 4.06], True),
    ],
)
def test_labels_change_when_they_differ_and_numbers_by_a_hundredth(
    one: list[float], other: list[float], *, changed: bool
) -> None:
    assert is_another_answer(np.array(one), np.array(other)) is changed
