"""Gates as lines of a table: what was measured, its interval, the limit, and what would change the verdict."""

import math
from collections.abc import Sequence
from typing import Any

from registry.records import GateResult, Measurement, Verdict
from tasks.report.rows import EngineRow
from tasks.verdicts.deciding_rows import estimate_rows
from tasks.verdicts.gates import MEGABYTE, Limits


def describe_gates(gates: Sequence[GateResult], limits: Limits, row: EngineRow) -> list[dict[str, Any]]:
    """Return one line per gate, as JSON values. Only what the engine itself produced is called measured."""
    return [_describe_gate(gate, limits, row) for gate in gates]


def _describe_gate(gate: GateResult, limits: Limits, row: EngineRow) -> dict[str, Any]:
    limit = _find_limit(gate, limits)
    own = gate.measurement if gate.measurement is not None and gate.measurement.subject == "engine" else None
    measured: dict[str, Any] = {"measured": None, "low": None, "high": None, "unit": ""}
    if own is not None:
        measured = {"measured": own.value, "low": own.low, "high": own.high, "unit": own.unit}
    elif gate.gate == "size_mb" and row.size_bytes is not None:
        measured = {"measured": row.size_bytes / MEGABYTE, "low": None, "high": None, "unit": "MB"}
    line = {"gate": gate.gate, "verdict": gate.verdict.value, "reason": gate.reason, "limit": limit, **measured}
    return {**line, "change": _name_change(gate, own, limits, row)}


def _find_limit(gate: GateResult, limits: Limits) -> float | None:
    return {
        f"{limits.metric}_loss": limits.loss_max,
        "latency_p99": limits.latency_p99_ms_max,
        "speedup": limits.speedup_min,
        "size_mb": limits.size_mb_max,
        "batch_flips": limits.batch_flips_max,
    }.get(gate.gate)


def _name_change(gate: GateResult, own: Measurement | None, limits: Limits, row: EngineRow) -> str:
    """Say what would give the gate another verdict."""
    if gate.verdict is Verdict.UNMEASURED:
        return f"run it: release on a worker that has the target ({row.target})"
    if _find_limit(gate, limits) is None:
        return "a limit in the recipe"
    if own is None:
        return _name_size_change(gate, row)
    if gate.verdict is Verdict.INCONCLUSIVE:
        return _name_deciding(gate, limits, row)
    if gate.gate == "latency_p99":  # its bounds are in ms, and the reason has them
        is_failed = gate.verdict is Verdict.FAILED
        return (
            f"a limit {'above' if is_failed else 'below'} the {'lower' if is_failed else 'upper'} bound in its reason"
        )
    bound = own.low if (gate.verdict is Verdict.FAILED) == (gate.gate != "speedup") else own.high
    if bound is None or not math.isfinite(bound):
        return ""
    shown = f"{bound:.2f}" if gate.gate == "speedup" else f"{100 * bound:.2f} %"
    if gate.verdict is Verdict.FAILED:
        return f"a limit of {shown}, which it would no longer fail"
    return f"a limit {'above' if gate.gate == 'speedup' else 'below'} {shown}, which is not proven"


def _name_size_change(gate: GateResult, row: EngineRow) -> str:
    if row.size_bytes is None:
        return ""
    side = "of at least" if gate.verdict is Verdict.FAILED else "below"
    return f"a limit {side} {row.size_bytes / MEGABYTE:.1f} MB"


def _name_deciding(gate: GateResult, limits: Limits, row: EngineRow) -> str:
    if gate.gate == "batch_flips":
        return "more evaluation rows"
    if not gate.gate.endswith("_loss"):
        return "more windows (`enginery measure`, a larger latency.seconds_max), or a quieter machine"
    rows = estimate_rows(row.measurements, limits.metric, limits.loss_max, limits.looks)
    return "more evaluation rows" if rows is None else f"about {rows:,} evaluation rows, if the loss stays what it is"
