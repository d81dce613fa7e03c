"""The artifacts on Prefect's pages, as values; tests/flows/test_shown_artifacts.py shows them on a real Prefect."""

from dataclasses import replace
from pathlib import Path

import pytest

from flows.prefect_server import pages
from flows.prefect_server.pages import (
    Pages,
    ProgressPage,
    describe_verdicts,
    make_release_rows,
    show_progress,
    show_release,
)
from flows.promotion.auto_promote import Promotion
from flows.refresh.results import Plan, Refreshed, refresh_rows
from flows.refresh.staleness import Stale
from registry.records import Backend, Machine, Measurement, Precision, Verdict
from tasks.report.rows import EngineRow, ReleaseReport
from tests.support.reporters import Told

P50 = Measurement("latency_p50_ms", 1.23456, "ms", 900, "engine", "d" * 64, Machine("x86", 2), 1.2, 1.3)
GRAPHS = Measurement("accuracy", 0.9, "share", 900, "onnx-graph", "e" * 64, Machine("x86", 2), 0.8, 0.95)
LOSS = replace(GRAPHS, metric="accuracy_loss", value=0.0)
BUILT = EngineRow(
    "sst2",
    "l4",
    Precision.INT8,
    Backend.TENSORRT,
    "built",
    "fine",
    Verdict.PASSED,
    "d" * 64,
    58_900_000,
    0.44,
    (P50, GRAPHS, LOSS),
    2,
    ("candidate-l4",),
)
SKIPPED = EngineRow("sst2", "cpu", Precision.FP16, Backend.ONNXRUNTIME, "skipped", "no such kernels")
REPORT = ReleaseReport("abc123", "sst2", (BUILT, SKIPPED), run_id="r0")
PAGES = Pages("http://mlflow:5000/", "7", "r0", {("l4", "int8"): "r1"})


def test_the_table_has_a_row_an_engine_and_only_the_engines_own_figures() -> None:
    built, skipped = make_release_rows(REPORT)
    assert built == {
        "target": "l4",
        "precision": "int8",
        "state": "built",
        "verdict": "passed",
        "version": 2,
        "aliases": "candidate-l4",
        "MB": 58.9,
        "build s": 0.4,
        "accuracy": "",
        "p50 ms": 1.235,
        "p99 ms": "",
        "speed-up": "",
    }
    assert (skipped["state"], skipped["verdict"], skipped["version"], skipped["MB"]) == ("skipped", "", "", "")


def test_verdicts_link_to_their_runs() -> None:
    text = describe_verdicts(REPORT, PAGES)
    assert "[l4 int8](http://mlflow:5000/#/experiments/7/runs/r1) | passed | fine |" in text
    assert "[release abc123](http://mlflow:5000/#/experiments/7/runs/r0)" in text
    assert "| cpu fp16 | skipped | no such kernels |" in text


@pytest.mark.parametrize("uri", ["sqlite:////tmp/mlflow.db", "postgresql://db/mlflow", "file:///tmp/runs", ""])
def test_where_nobody_serves_pages_there_are_no_links(uri: str) -> None:
    assert "](" not in describe_verdicts(REPORT, replace(PAGES, uri=uri))


def test_a_vendors_message_cannot_write_markdown_or_html() -> None:
    hostile = replace(BUILT, reason="a|b\n| c | <img src=x onerror=alert(1)> [click](http://evil) `x` # y")
    line = describe_verdicts(replace(REPORT, rows=(hostile,)), PAGES).splitlines()[-1]
    assert line.endswith(r"a\|b \| c \| \<img src=x onerror=alert(1)\> \[click\](http://evil) \`x\` \# y |")


def test_a_refresh_is_a_row_for_each_stale_engine_promotion_and_quiet_recipe() -> None:
    stale = Stale("sst2", "l4", Precision.INT8, 3, "the source moved")
    plan = Plan(Path("sst2.yaml"), None, (stale,), ("l4",))  # type: ignore[arg-type]  # the recipe is not shown
    results = [
        Refreshed(Path("sst2.yaml"), "released", plan, promotions=(Promotion("l4", 4, False, "inconclusive: wide"),)),
        Refreshed(Path("broken.yaml"), "failed", reason="no such file"),
    ]
    rows = refresh_rows(results)
    assert [(row["recipe"], row["state"], row["target"], row["why"]) for row in rows] == [
        ("sst2.yaml", "released", "l4", "the source moved"),
        ("sst2.yaml", "released", "l4", "left to a person: inconclusive: wide"),
        ("broken.yaml", "failed", "", ""),
    ]
    assert rows[2]["said"] == "no such file"


class Shown:
    """Prefect's artifact functions, noting what they are called with; and a clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, object, float]] = []
        self.now = 0.0
        monkeypatch.setattr(pages, "create_progress_artifact", self.create)
        monkeypatch.setattr(pages, "update_progress_artifact", self.update)

    def create(self, progress: float, key: str, description: str) -> str:
        self.calls.append((key, description, progress))
        return key

    def update(self, artifact: str, progress: float, description: str) -> None:
        self.calls.append((artifact, description, progress))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    return Shown(monkeypatch)


def test_progress_is_shown_at_most_once_in_a_few_seconds(shown: Shown) -> None:
    said: list[str] = []
    report = ProgressPage(Told(said.append), lambda: shown.now)
    for tenth in range(100):
        shown.now = tenth / 10
        report("build l4 int8: tactics", tenth / 100)
    assert len(said) == 100
    assert shown.calls == [
        ("progress-build-l4-int8", "build l4 int8: tactics", 0.0),
        ("progress-build-l4-int8", "build l4 int8: tactics", 30.0),
        ("progress-build-l4-int8", "build l4 int8: tactics", 60.0),
        ("progress-build-l4-int8", "build l4 int8: tactics", 90.0),
    ]


def test_the_last_step_of_a_piece_is_shown_while_the_next_one_works(shown: Shown) -> None:
    report = ProgressPage(Told(lambda _: None), lambda: shown.now)
    report("quantize int8: table", 0.2)
    report("quantize int8: table", 1.0)
    shown.now = 4.0
    report("publish", 0.0)
    assert shown.calls[-1] == ("progress-quantize-int8", "quantize int8: table", 100.0)


def test_only_calibrations_and_builds_are_shown(shown: Shown) -> None:
    report = ProgressPage(Told(lambda _: None), lambda: shown.now)
    for what in ("source tiny", "export", "rebuilding instead of reusing x", "measure l4: latency", "publish"):
        report(what, 0.5)
    assert shown.calls == []


def test_a_page_that_fails_is_one_warning_and_the_work_goes_on(
    shown: Shown, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_args: object, **_keys: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(pages, "create_progress_artifact", fail)
    said: list[str] = []
    report = ProgressPage(Told(said.append), lambda: shown.now)
    for _ in range(5):
        report("build l4 int8: tactics", 0.5)
    assert len(said) == 5
    assert [record.message for record in caplog.records] == ["could not show progress in Prefect: no route"]


def test_an_interrupt_is_not_taken_for_a_failed_page() -> None:
    def stop(_what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ProgressPage(Told(stop))("build l4 int8", 0.5)


def test_outside_of_a_flow_run_nothing_is_shown(shown: Shown) -> None:
    report = Told(lambda _: None)
    assert show_progress(report) is report
    show_release(REPORT, None)  # type: ignore[arg-type]  # not so much as looked at
    assert shown.calls == []
