"""The artifacts on Prefect's pages, as values; tests/flows/test_shown_artifacts.py shows them on a real Prefect."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.prefect_server.pages import (
    Pages,
    PlannedEngine,
    PlanPage,
    advance_engines,
    describe_plan,
    describe_verdicts,
    make_plan_rows,
    make_release_rows,
    plan_engines,
    show_plan,
    show_release,
)
from flows.promotion.auto_promote import Promotion
from flows.refresh.results import Plan, Refreshed, refresh_rows
from flows.refresh.staleness import Stale
from registry.records import Backend, GpuTarget, Machine, Measurement, Precision, Verdict
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
CPU = GpuTarget("cpu", Backend.ONNXRUNTIME, None, None, "p")
L4 = GpuTarget("l4", Backend.TENSORRT, "8.9", None, "gpu-l4")
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


PLANNED = plan_engines([CPU, L4], [Precision.FP32, Precision.FP16, Precision.INT8])


def states(engines: Sequence[PlannedEngine]) -> list[str]:
    return [f"{row['target']} {row['precision']}: {row['state']}" for row in make_plan_rows(engines)]


def test_the_plan_has_an_engine_for_each_target_and_precision() -> None:
    assert states(PLANNED) == [
        "cpu fp32: planned",
        "cpu fp16: skipped",
        "cpu int8: planned",
        "l4 fp32: planned",
        "l4 fp16: planned",
        "l4 int8: planned",
    ]
    text = describe_plan("sst2", "abc123", PLANNED, PAGES)
    assert "This run builds 5 engines for cpu, l4." in text
    assert "[All releases of sst2 in MLflow](http://mlflow:5000/#/experiments/7)" in text
    assert "](" not in describe_plan("sst2", "abc123", PLANNED, replace(PAGES, uri="sqlite:////tmp/mlflow.db"))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (
            ["source tiny", "head tiny", "export fp32"],
            ["planned", "skipped", "planned", "planned", "planned", "planned"],
        ),
        (["quantize int8"], ["planned", "skipped", "quantizing", "planned", "planned", "quantizing"]),
        (
            ["quantize int8", "quantize fp16"],
            ["planned", "skipped", "graph ready", "planned", "quantizing", "graph ready"],
        ),
        (["quantize int8", "wait for cpu, l4"], ["in pool p", "skipped", "in pool p", *["in pool gpu-l4"] * 3]),
        (["wait for l4"], ["has left pool p", "skipped", "has left pool p", *["in pool gpu-l4"] * 3]),
        (["wait for the publishing lock", "publish"], ["publishing", "skipped", *["publishing"] * 4]),
    ],
)
def test_the_plan_follows_the_steps_of_the_release(steps: list[str], expected: list[str]) -> None:
    engines = PLANNED
    for step in steps:
        engines = advance_engines(engines, step)
    assert [engine.state for engine in engines] == expected


def test_the_plan_is_shown_once_a_step_and_no_more_after_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    shown: list[str] = []

    def show(_engines: Sequence[PlannedEngine], step: str) -> None:
        shown.append(step)
        if step == "publish":
            raise ConnectionError("no route")

    said: list[str] = []
    page = PlanPage(show, PLANNED, Told(said.append))
    for what in ("quantize int8: table", "quantize int8: scales", "publish", "wait for l4"):
        page(what, 0.5)
    assert shown == ["quantize int8", "publish"]
    assert len(said) == 4
    assert [record.message for record in caplog.records] == ["could not show the plan in Prefect: no route"]


def test_outside_of_a_flow_run_nothing_is_shown() -> None:
    report = Told(lambda _: None)
    nothing: Any = None  # not so much as looked at
    assert show_plan(("sst2", "abc123"), PLANNED, nothing, report) is report
    show_release(REPORT, nothing)
