"""What a release's run shows in MLflow: figures that lists and charts take, and a table to read."""

from dataclasses import replace

from registry.records import Backend, Machine, Measurement, Precision, Verdict
from tasks.model_tasks.scores import ACCURACY
from tasks.report.rows import EngineRow, ReleaseReport
from tasks.report.summary import release_metrics, release_note


def make_row(
    precision: Precision, accuracy: float, p50: float, verdict: Verdict, version: int | None, subject: str = "engine"
) -> EngineRow:
    machine = Machine("x86", 2)
    measurements = tuple(
        Measurement(name, value, unit, 100, subject, "d" * 64, machine, value - 0.01, value + 0.01)
        for name, value, unit in (
            ("accuracy", accuracy, "share"),
            ("accuracy_loss", 0.0, "share"),
            ("latency_p50_ms", p50, "ms"),
        )
    )
    target = "cpu" if subject == "engine" else "l4"
    return EngineRow(
        "sst2", target, precision, Backend.ONNXRUNTIME, "built", "why", verdict, "d" * 64, 9_000_000, 1.5,
        measurements, version,
    )  # fmt: skip


REPORT = ReleaseReport(
    "abc123",
    "sst2",
    (
        make_row(Precision.FP32, 0.92, 8.0, Verdict.PASSED, 1),
        make_row(Precision.INT8_DYNAMIC, 0.91, 4.0, Verdict.PASSED, 2),
        make_row(Precision.INT8, 0.95, 1.0, Verdict.FAILED, None),
        make_row(Precision.FP32, 0.99, 0.5, Verdict.UNMEASURED, 3, subject="onnx-graph"),
        EngineRow("sst2", "h100", Precision.FP32, Backend.TENSORRT, "skipped", "no GPU"),
        EngineRow("sst2", "h100", Precision.INT8, Backend.TENSORRT, "skipped", "no GPU"),
    ),
)


def test_only_published_engines_and_their_own_figures_count() -> None:
    assert release_metrics(REPORT, ACCURACY) == {
        "engines_passed": 2,
        "engines_failed": 1,
        "engines_inconclusive": 0,
        "engines_unmeasured": 1,
        "best_accuracy.cpu": 0.92,
        "best_latency_p50_ms.cpu": 4.0,
    }


def test_best_of_a_metric_that_should_be_low_is_the_lowest() -> None:
    assert release_metrics(REPORT, replace(ACCURACY, higher_is_better=False))["best_accuracy.cpu"] == 0.91


def test_note_is_a_table_with_a_row_per_engine_and_one_per_skipped_target() -> None:
    lines = release_note(REPORT).splitlines()
    assert "| cpu | int8-dynamic | passed | 2 | 9.0 | 91.0 (90.0-92.0) | 4.0 |  |  |" in lines
    assert "| l4 | fp32 | unmeasured | 3 | 9.0 | 99.0 (98.0-100.0)* | 0.5 |  |  |" in lines
    assert "| h100 | all 2 | skipped |  |  |  |  |  |  |" in lines
    assert "- h100 fp32, int8: skipped: no GPU" in lines
    assert {line.count("|") for line in lines if line.startswith("|")} == {10}
