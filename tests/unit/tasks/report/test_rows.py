"""The report of a release: its winner, its state, and its JSON."""

import re

import pytest

from registry.records import Backend, Machine, Measurement, Precision, Verdict
from tasks.report.rows import EngineRow, ReleaseIncomplete, ReleaseReport, pick_winner, row_json

L4, HOST = Machine("x86", 8, "NVIDIA L4", "580.10"), Machine("x86", 8)
P50 = Measurement("latency_p50_ms", 1.25, "ms", 900, "engine", "d" * 64, L4, 1.2, 1.3)
GRAPH = Measurement("accuracy", 0.9, "share", 900, "onnx-graph", "e" * 64, HOST)


def row(*measurements: Measurement, verdict: Verdict = Verdict.PASSED, version: int | None = 1) -> EngineRow:
    return EngineRow(
        "sst2", "l4", Precision.FP16, Backend.TENSORRT, "built", "", verdict, measurements=measurements, version=version
    )


def test_a_metric_of_the_onnx_graph_carries_its_subject() -> None:
    shown = row_json(row(P50, GRAPH))
    assert shown["metrics"] == {"latency_p50_ms": 1.25, "onnx-graph.accuracy": 0.9}
    assert shown["intervals"] == {"latency_p50_ms": [1.2, 1.3]}
    assert shown["measured_on"] == "NVIDIA L4"
    assert row_json(row(GRAPH))["measured_on"] == ""


def test_the_winner_is_the_fastest_published_engine_that_passed() -> None:
    timed, untimed = row(P50), row()
    assert pick_winner([untimed, timed]) is timed
    assert pick_winner([row(P50, verdict=Verdict.INCONCLUSIVE), row(P50, version=None)]) is None


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (
            ReleaseReport("r1", "sst2", (row(),), missing=("h100",)),
            "no result for h100: .*`enginery release --resume r1`",
        ),
        (ReleaseReport("r1", "sst2", ()), "release r1 of sst2 built no engine: see the reasons in its report"),
    ],
)
def test_an_incomplete_release_says_what_to_do(report: ReleaseReport, words: str) -> None:
    assert re.search(words, str(ReleaseIncomplete(report)))
