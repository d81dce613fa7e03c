"""The report of a release that nobody ran, with figures drawn from a seed and names that attack its page."""

from dataclasses import replace

import numpy as np

from registry.records import Backend, GateResult, Machine, Measurement, Precision, Verdict
from tasks.graphs.layer_table import LayerRow
from tasks.measurement.row_results import RowResults
from tasks.measurement.sweep import SizeTimes
from tasks.model_tasks.scores import ACCURACY
from tasks.report.page.document import ReportedEngine, ReportInputs
from tasks.report.rows import EngineRow, ReleaseReport
from tasks.verdicts.gates import Limits

ATTACK = "<script>document.title='owned'</script>"
HOSTILE = f'{ATTACK}"><img src=x onerror="document.title=\'owned\'">'
CLASSES = ("negative", HOSTILE, "neutral-" + "long" * 20)
HOST = Machine("Intel(R) Xeon(R) CPU @ 2.20GHz", 2, instruction_set="avx512-vnni")
ROWS = 200
_P50 = {Precision.FP32: 0.030, Precision.INT8: 0.013, Precision.FP16: 0.034}


def make_report_inputs(model: str = "sst2") -> ReportInputs:
    """A target that ran in three precisions, one that nobody ran, and a precision that was skipped."""
    ran = [_make_engine(model, precision, place) for place, precision in enumerate(_P50)]
    graph = Measurement("accuracy", 0.8712, "share", ROWS, "onnx-graph", "e" * 64, HOST, 0.82, 0.91)
    unmeasured = "latency was not measured: no available machine runs this engine"
    gate = GateResult("latency_p99", Verdict.UNMEASURED, unmeasured)
    row = _make_row(model, "rtx-4090", Precision.FP32, Verdict.UNMEASURED, (graph,), version=4)
    skipped = EngineRow(model, "cpu", Precision.FP8, Backend.ONNXRUNTIME, "skipped", f"no kernels of {HOSTILE}")
    engines = (*ran, ReportedEngine(row, (gate,)), ReportedEngine(skipped))
    return ReportInputs(
        ReleaseReport("0123456789ab", model, tuple(engine.row for engine in engines), run_id="r" * 32),
        engines,
        ACCURACY,
        Limits("accuracy", 0.01, 60.0, 1.2, 200.0),
        CLASSES,
        rows={"judged on": {"what": f"{ROWS} rows of glue, split validation", "digest": "f" * 64}},
        shape="Timed with batch 1, sequence 64",
        versions=(("onnxruntime", "1.32.0"), ("onnx", "1.23.2")),
        recipe=f"model: {model}\ntask: text-classification\n",
        created_at="2026-11-26 12:00 UTC",
    )


def _make_row(
    model: str,
    target: str,
    precision: Precision,
    verdict: Verdict,
    measurements: tuple[Measurement, ...],
    version: int,
) -> EngineRow:
    digest = f"{version}" * 64
    return EngineRow(
        model,
        target,
        precision,
        Backend.ONNXRUNTIME,
        "built",
        "as its gates say",
        verdict,
        digest,
        90_000_000 // version,
        12.5,
        measurements,
        version,
    )


def _make_engine(model: str, precision: Precision, place: int) -> ReportedEngine:
    random = np.random.default_rng(place)
    seconds = _P50[precision] * np.exp(random.normal(0, 0.08, (8, 50)))
    truth = random.integers(0, len(CLASSES), ROWS)
    labels = np.where(random.random(ROWS) < 0.05 * place, (truth + 1) % len(CLASSES), truth)
    right = float((labels == truth).mean())
    p50 = 1000 * float(np.median(seconds))

    def figure(metric: str, value: float, unit: str, low: float, high: float) -> Measurement:
        return Measurement(metric, value, unit, ROWS, "engine", "d" * 64, HOST, low, high)

    loss = figure("accuracy_loss", 1 - right, "share", 1 - right - 0.01, 1 - right + 0.02)
    p99 = figure("latency_p99_ms", 1.3 * p50, "ms", 1.25 * p50, 1.4 * p50)
    measurements = (
        figure("accuracy", right, "share", right - 0.03, min(1.0, right + 0.02)),
        loss,
        figure("latency_p50_ms", p50, "ms", 0.98 * p50, 1.02 * p50),
        p99,
        Measurement("windows_dropped", 6.0 * place, "windows", ROWS, "engine", "d" * 64, HOST),
        *((figure("speedup", 30 / p50, "ratio", 28 / p50, 33 / p50),) if place else ()),
    )
    verdict = [Verdict.PASSED, Verdict.INCONCLUSIVE, Verdict.FAILED][place]
    gates = (
        GateResult("accuracy_loss", verdict, f"accuracy loss {1 - right:+.2%}, limit 1.00%", loss),
        GateResult("latency_p99", Verdict.PASSED, f"p99 {p99.value:.2f} ms, limit 60 ms", p99),
        GateResult("size_mb", Verdict.PASSED, "90.0 MB, limit 200 MB"),
    )
    row = _make_row(model, "cpu", precision, verdict, measurements, version=place + 1)
    row = replace(row, aliases=() if place else ("candidate-cpu",))
    answered = _answer(truth, labels) if place else _answer(truth, truth)
    layers = tuple(
        LayerRow(
            f"/encoder/layer.{index}/attention/{HOSTILE if index == 1 else 'query'}/MatMul",
            "MatMul",
            "int8",
            "int8" if index else "fp32",
            "384x384",
            None if index == 2 else 147_456,
        )
        for index in range(4)
    )
    regressed = GateResult("accuracy_against_production", Verdict.FAILED, "paired accuracy loss: it regressed")
    return ReportedEngine(
        row,
        gates,
        answered,
        seconds,
        layers if place else (),
        0.93 if place else None,
        7 if place == 1 else None,
        (regressed,) if place == 1 else (),
        _time_sizes(1000 * _P50[precision]),
    )


def _time_sizes(opt_ms: float) -> tuple[SizeTimes, ...]:
    return tuple(
        SizeTimes((("batch", batch), ("sequence", sequence)), 10, opt_ms * batch * sequence / 256)
        for batch in (8, 1, 32)
        for sequence in (32, 4, 64)
    )


def _answer(truth: np.ndarray, labels: np.ndarray) -> RowResults:
    scores, exact = (tuple((float(each),) for each in given == truth) for given in (labels, truth))
    numbers = tuple(labels.tolist()), tuple(truth.tolist())
    return RowResults("f" * 64, scores, exact, *numbers, numbers[1])
