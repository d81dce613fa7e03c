"""The table and the notes of a release: short where nothing happened, and every reason once."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from registry.records import Backend, Precision, Verdict
from tasks.report.rows import EngineRow, ReleaseReport
from tasks.report.table import describe_result, list_notes, make_release_table

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


def test_a_reason_is_listed_once_for_all_its_engines() -> None:
    assert list_notes(REPORT) == ["l4 fp32, fp16; h100 fp32, fp16: skipped: needs a GPU"]


FAILED = replace(BUILT, precision=Precision.INT8, verdict=Verdict.FAILED, version=None)
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
                "No engine is a candidate: 1 failed, 1 unmeasured. Next: enginery promote sst2 --target l4, which "
                "names the best engine"
            ),
        ),
        ([FAILED], "No engine was published."),
    ],
)
def test_the_result_names_the_next_command(rows: list[EngineRow], sentence: str) -> None:
    assert describe_result(ReleaseReport("r1", "sst2", tuple(rows))) == sentence
