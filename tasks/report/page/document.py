"""What the report of a release says, as JSON values: the page is a template over them, so both say the same."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.records import GateResult, Machine, Measurement, Precision, Verdict
from tasks.graphs.layer_table import LayerRow
from tasks.measurement.row_results import RowResults, count_by_class, list_flips, reference_of
from tasks.measurement.sweep import SizeTimes
from tasks.model_tasks.contract import Metric
from tasks.report.page.commands import list_commands
from tasks.report.page.gates import describe_gates
from tasks.report.rows import EngineRow, ReleaseReport, row_json
from tasks.report.table import describe_result
from tasks.verdicts.gates import WORST_FIRST, Limits

# More rows than a person reads; the engine's answers.json has all.
MOST_FLIPS = 100
# Of a model of hundreds of classes those that changed most.
MOST_CLASSES = 50
_QUANTILES = (0.5, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class ReportedEngine:
    """An engine of a report: its row, its gates, and what is known of it in detail.

    `call_seconds` are raw call times, None where it did not run; `against_production` is empty where there is nothing
    to compare with, and `production` is the version that it was compared with. `sizes` are call times by size.
    """

    row: EngineRow
    gates: tuple[GateResult, ...] = ()
    answered: RowResults | None = None
    call_seconds: NDArray[np.float64] | None = None
    layers: tuple[LayerRow, ...] = ()
    macs_share: float | None = None
    production: int | None = None
    against_production: tuple[GateResult, ...] = ()
    sizes: tuple[SizeTimes, ...] = ()


@dataclass(frozen=True)
class ReportInputs:
    """What a report is made of, beside its engines.

    `rows` says which rows were judged and calibrated on, `shape` is that of the timed calls, `recipe` the
    pinned recipe as YAML, `links` addresses by name.
    """

    report: ReleaseReport
    engines: tuple[ReportedEngine, ...]
    metric: Metric
    limits: Limits
    classes: tuple[str, ...]
    rows: Mapping[str, Mapping[str, str]]
    shape: str
    versions: tuple[tuple[str, str], ...]
    recipe: str
    created_at: str
    links: Mapping[str, str] = field(default_factory=dict)


def describe_release(inputs: ReportInputs) -> dict[str, Any]:
    """Return the report as JSON values. An engine that did not run has no figures, whatever its graph scored."""
    report = inputs.report
    return {
        "release": report.release,
        "model": report.model,
        "state": report.state,
        "created_at": inputs.created_at,
        "verdict": describe_result(report),
        "missing": list(report.missing),
        "metric": {"name": inputs.metric.name, "unit": inputs.metric.unit, "better": _name_better(inputs.metric)},
        "rows": {name: dict(rows) for name, rows in inputs.rows.items()},
        "shape": inputs.shape,
        "engines": [_describe_engine(engine, inputs) for engine in _worst_last(inputs.engines)],
        "machines": _describe_machines(inputs.engines),
        "versions": dict(inputs.versions),
        "commands": list_commands(report),
        "recipe": inputs.recipe,
        "links": dict(inputs.links),
    }


def _worst_last(engines: Sequence[ReportedEngine]) -> list[ReportedEngine]:
    """Sort engines of each target by verdict, the best first."""
    ranks = {verdict: len(WORST_FIRST) - place for place, verdict in enumerate(WORST_FIRST)}
    targets = list(dict.fromkeys(engine.row.target for engine in engines))
    return sorted(
        engines, key=lambda each: (targets.index(each.row.target), ranks.get(each.row.verdict or Verdict.FAILED, 9))
    )


def _name_better(metric: Metric) -> str:
    return "higher" if metric.higher_is_better else "lower"


def _describe_engine(engine: ReportedEngine, inputs: ReportInputs) -> dict[str, Any]:
    row, peers = engine.row, inputs.engines
    own = {
        figure.metric: {"value": figure.value, "low": figure.low, "high": figure.high, "unit": figure.unit}
        for figure in row.measurements
        if figure.subject == "engine"
    }
    return {
        **row_json(row),
        "ran": bool(own),
        "is_reference": row.precision is Precision.FP32,
        "figures": own,
        "dominated_by": _find_dominating(row, [each.row for each in peers], inputs.metric),
        "gates": describe_gates(engine.gates, inputs.limits, row),
        "latency_ms": _describe_calls(engine.call_seconds),
        "sizes": [{**asdict(each), "sizes": dict(each.sizes)} for each in engine.sizes],
        "macs_share": engine.macs_share,
        "layers": [asdict(layer) for layer in engine.layers],
        "production": engine.production,
        "against_production": [_describe_difference(gate) for gate in engine.against_production],
        **_describe_answers(inputs.metric, engine.answered, inputs.classes),
    }


def _describe_difference(gate: GateResult) -> dict[str, Any]:
    """Return a comparison with production; `times` is how many times as long as there, both timed side by side."""
    ratio = gate.measurement if gate.measurement is not None and gate.measurement.against is not None else None
    times = None if ratio is None else {"value": ratio.value, "low": ratio.low, "high": ratio.high, "unit": "ratio"}
    return {"gate": gate.gate, "verdict": gate.verdict.value, "reason": gate.reason, "times": times}


def _describe_answers(metric: Metric, answered: RowResults | None, classes: Sequence[str]) -> dict[str, Any]:
    if answered is None:
        return {"flips": None, "classes": []}
    before = reference_of(answered)
    flips = list_flips(metric, before, answered, classes)
    return {
        "flips": {
            "count": len(flips),
            "of": len(answered.scores),
            "rows": [asdict(flip) for flip in flips[:MOST_FLIPS]],
        },
        "classes": [asdict(change) for change in count_by_class(before, answered, classes)[:MOST_CLASSES]],
    }


def _describe_calls(seconds: NDArray[np.float64] | None) -> dict[str, Any] | None:
    if seconds is None:
        return None
    windows = np.median(seconds, axis=1)
    return {
        "calls": int(seconds.size),
        "windows": int(seconds.shape[0]),
        **{f"p{100 * share:g}": 1000 * float(np.quantile(seconds, share)) for share in _QUANTILES},
        "window_medians": [1000 * float(median) for median in windows],
    }


def _find_dominating(row: EngineRow, peers: Sequence[EngineRow], metric: Metric) -> str | None:
    """Return the precision of an engine of the same target that is no worse in both figures and better in one."""
    ours = _read_point(row, metric)
    for peer in peers:
        theirs = _read_point(peer, metric)
        if ours is None or theirs is None or peer.target != row.target or peer is row:
            continue
        if theirs[0] <= ours[0] and theirs[1] >= ours[1] and theirs != ours:
            return peer.precision.value
    return None


def _read_point(row: EngineRow, metric: Metric) -> tuple[float, float] | None:
    p50, quality = row.figure("latency_p50_ms"), row.figure(metric.name)
    if p50 is None or quality is None or {p50.subject, quality.subject} != {"engine"}:
        return None
    return p50.value, quality.value if metric.higher_is_better else -quality.value


def _describe_spread(figure: Measurement) -> str:
    if figure.unit == "share":
        return f"{figure.value:.0%} of the windows"
    return f"{figure.value:.4g} ({figure.low:.4g} to {figure.high:.4g}) {figure.unit}"


_GPU_WORDS = {
    "gpu_sm_clock_mhz": "SM clock",
    "gpu_power_watts": "power",
    "gpu_temperature_celsius": "temperature",
    "gpu_power_capped": "at its power limit",
}


def _describe_machines(engines: Sequence[ReportedEngine]) -> list[dict[str, Any]]:
    found: dict[Machine, dict[str, None]] = {}
    dropped: dict[Machine, dict[str, int]] = {}
    gpus: dict[Machine, dict[str, str]] = {}
    for engine in engines:
        name = f"{engine.row.target} {engine.row.precision}"
        for figure in engine.row.measurements:
            if figure.subject == "engine":
                found.setdefault(figure.measured_on, {})[name] = None
            if figure.metric == "windows_dropped" and figure.value:
                dropped.setdefault(figure.measured_on, {})[name] = int(figure.value)
            if figure.metric in _GPU_WORDS:
                gpus.setdefault(figure.measured_on, {})[_GPU_WORDS[figure.metric]] = _describe_spread(figure)
    return [
        {
            **asdict(machine),
            "engines": list(names),
            "windows_dropped": dropped.get(machine, {}),
            "gpu_meanwhile": gpus.get(machine, {}),
        }
        for machine, names in found.items()
    ]
