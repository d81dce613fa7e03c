"""The table and the notes of a release: short where nothing happened, and every reason once."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from registry.records import Backend, Machine, Measurement, Precision, Verdict
from tasks.report.rows import EngineRow, ReleaseReport
from tasks.report.table import (
    LONGEST_NOTE,
    describe_result,
    describe_undecided,
    format_quality,
    list_notes,
    make_release_table,
)

BUILT = EngineRow("sst2", "cpu", Precision.FP32, Backend.ONNXRUNTIME, "built", "", Verdict.PASSED, version=1)
MISSING = [
    EngineRow("sst2", target, precision, Backend.TENSORRT, "skipped", "needs a GPU")
    for target in ("l4", "h100")
    for precision in (Precision.FP32, Precision.FP16)
]
REPORT = ReleaseReport("r1", "sst2", (BUILT, *MISSING))


def test_a_target_skipped_as_a_whole_is_one_line() -> None:
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(make_release_table(REPORT))
    lines = console.export_text().splitlines()
    assert sum("l4" in line for line in lines) == 1
    assert sum("all 2" in line for line in lines) == 2


def test_a_share_is_a_percentage_and_a_cosine_is_not() -> None:
    machine = Machine("x86", 2)
    share = Measurement("accuracy", 0.9123, "share", 100, "engine", "d" * 64, machine, 0.9, 0.92)
    cosine = replace(share, metric="cosine", unit="cosine", subject="onnx-graph")
    assert format_quality(share) == "91.2 (90.0-92.0)"
    assert format_quality(cosine) == "0.9123 (0.9000-0.9200)*"


def test_a_reason_is_listed_once_for_all_its_engines() -> None:
    assert list_notes(REPORT) == ["l4, h100 fp32, fp16: skipped: needs a GPU"]


def test_engines_that_cannot_run_here_share_one_note_whatever_their_graphs_scored() -> None:
    rows = tuple(
        replace(BUILT, target=target, precision=precision, verdict=Verdict.UNMEASURED, reason=f"loss of {precision}")
        for target in ("rtx-4090", "rtx-5090")
        for precision in (Precision.FP32, Precision.INT8)
    )
    (note,) = list_notes(ReleaseReport("r1", "sst2", rows))
    assert note.startswith("rtx-4090, rtx-5090 fp32, int8: unmeasured: no machine here runs it")


def test_a_candidate_says_how_long_it_takes_beside_production() -> None:
    ratio = Measurement("p50_over_production", 0.81, "ratio", 90, "engine", "d" * 64, Machine("x86", 2), 0.78, 0.84)
    row = replace(BUILT, measurements=(ratio,), aliases=("candidate-cpu",))
    note = "cpu fp32: p50 0.81 times as long as in production (0.78 to 0.84), side by side"
    assert list_notes(ReleaseReport("r1", "sst2", (row,))) == [note]
    assert list_notes(ReleaseReport("r1", "sst2", (replace(row, aliases=()),))) == []


def test_a_long_reason_is_cut_at_the_end_of_a_clause() -> None:
    reason = f"too slow: {'measured, ' * 40}and more"
    (note,) = list_notes(ReleaseReport("r1", "sst2", (replace(BUILT, verdict=Verdict.FAILED, reason=reason),)))
    assert len(note) <= LONGEST_NOTE + len("cpu fp32: ") + 2
    assert note.endswith("measured …")


FAILED = replace(BUILT, precision=Precision.INT8, verdict=Verdict.FAILED, version=None)
OPEN = replace(BUILT, verdict=Verdict.INCONCLUSIVE, is_open=True)
CANDIDATE = replace(BUILT, aliases=("candidate-cpu",))


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([CANDIDATE, FAILED], "1 passed, 1 failed. Next: enginery promote sst2 --target cpu"),
        (
            [replace(CANDIDATE, aliases=("candidate-cpu", "production-cpu"))],
            "1 passed. Next: enginery fetch sst2, on a host that serves it",
        ),
        (
            [replace(BUILT, target="l4", verdict=Verdict.UNMEASURED), FAILED],
            (
                "No engine passed: 1 failed, 1 unmeasured. Next: enginery promote sst2 --target l4, which "
                "names the best engine"
            ),
        ),
        (
            [replace(BUILT, verdict=Verdict.INCONCLUSIVE)],
            (
                "No engine passed: 1 inconclusive. Next: evaluate on more rows, or promote with a waiver: no more "
                "windows of calls decide it"
            ),
        ),
        (
            [OPEN],
            "No engine passed: 1 inconclusive. Next: enginery measure sst2 --version 1, which goes on measuring",
        ),
        (
            [FAILED],
            "No engine passed: 1 failed. Next: change the gates, the precisions or the calibration of the recipe",
        ),
        ([replace(BUILT, verdict=None, state="failed")], "No engine was built."),
    ],
)
def test_the_result_names_the_next_command(rows: list[EngineRow], sentence: str) -> None:
    assert describe_result(ReleaseReport("r1", "sst2", tuple(rows))) == sentence


def test_undecided_engines_are_named_with_the_one_command_that_goes_on() -> None:
    rows = (CANDIDATE, replace(OPEN, precision=Precision.INT8, version=4), replace(OPEN, precision=Precision.FP16))
    assert describe_undecided(ReleaseReport("r1", "sst2", rows)) == (
        "Undecided: cpu int8, fp16. enginery measure sst2 --version 4 goes on from the windows that were kept."
    )
    assert describe_undecided(ReleaseReport("r1", "sst2", (CANDIDATE, FAILED))) == ""
