"""Figures as people read them: with units, shares in percent, and "not run" where there is none."""

from collections.abc import Mapping
from typing import Any

_MISSING = "not run"


def format_number(value: float | None, unit: str = "") -> str:
    """Return a figure as people read it, shares in percent; "not run" where there is none."""
    if value is None:
        return _MISSING
    return (
        f"{100 * value:.2f} %"
        if unit == "share"
        else f"{value:.4g}{f' {unit}' if unit not in ('', 'ratio', 'rho') else ''}"
    )


def format_interval(figure: Mapping[str, Any] | None) -> str:
    """Return the interval of a figure, or nothing where it has none."""
    if figure is None or figure["low"] is None:
        return ""
    high = "more" if figure["high"] is None else format_number(figure["high"], figure["unit"])
    return f"{format_number(figure['low'], figure['unit'])} to {high}"


def format_limit(gate: Mapping[str, Any]) -> str:
    """Return a gate's limit with its unit and its side."""
    if gate["limit"] is None:
        return "none"
    side = "at least" if gate["gate"] == "speedup" else "at most"
    units = {"latency_p99": "ms", "size_mb": "MB", "speedup": "ratio"}
    return f"{side} {format_number(gate['limit'], units.get(gate['gate'], 'share'))}"
