"""The page of a report: one file that loads nothing, made of the report's JSON values and its charts."""

import base64
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from tasks.measurement.sweep import SizeTimes
from tasks.report.page.charts import Point, draw_latencies, draw_pareto, draw_sizes
from tasks.report.page.formats import format_interval, format_limit, format_number

# Beside the page's own style and script nothing runs or loads, whatever a name that slipped through would ask for.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
_TITLES = {"latency_p50_ms": "p50", "latency_p99_ms": "p99", "speedup": "speed-up"}


def render_page(document: Mapping[str, Any], calls: Mapping[tuple[str, str], NDArray[np.float64]]) -> str:
    """Return the page of `describe_release`'s values; `calls` are raw call times by target and precision."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tasks.report.page", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"interval": format_interval, "number": format_number, "limit": format_limit}
    script = _read(environment, "template.js")
    # A browser hashes a script as it stands between its tags.
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    return environment.get_template("template.html").render(
        report=document,
        targets=_group_by_target(document, calls),
        headline=name_headline(document),
        shown=list(_TITLES.items()),
        policy=_POLICY.format(digest=digest),
        # Both are this folder's files, and no report's text is in them.
        style=Markup(_read(environment, "template.css")),  # noqa: S704
        script=Markup(script),  # noqa: S704
    )


def _read(environment: jinja2.Environment, name: str) -> str:
    if environment.loader is None:
        raise ValueError("the environment has no loader")
    return environment.loader.get_source(environment, name)[0]


def name_headline(document: Mapping[str, Any]) -> str:
    """Say in one sentence what the release has come to, for people who read no further."""
    passed = [engine for engine in document["engines"] if engine["verdict"] == "passed"]
    candidates = [each for each in passed if f"candidate-{each['target']}" in each["aliases"]]
    if candidates:
        names = ", ".join(f"{each['target']} {each['precision']}" for each in candidates)
        return f"Passed: {names} can be promoted."
    if passed:
        return "Passed, but another engine is the candidate."
    if any(engine["verdict"] == "inconclusive" for engine in document["engines"]):
        return "Undecided: the figures prove neither that an engine passes nor that it fails."
    if any(engine["verdict"] == "unmeasured" for engine in document["engines"]):
        return "Not measured: no engine that could pass has run on its target."
    return (
        "Failed: no engine passed its gates."
        if any(each["digest"] for each in document["engines"])
        else "Failed: no engine was built."
    )


def _group_by_target(
    document: Mapping[str, Any], calls: Mapping[tuple[str, str], NDArray[np.float64]]
) -> list[dict[str, Any]]:
    groups = []
    for target in dict.fromkeys(engine["target"] for engine in document["engines"]):
        engines = [engine for engine in document["engines"] if engine["target"] == target]
        timed = {name: seconds for (where, name), seconds in calls.items() if where == target}
        groups.append(
            {
                "name": target,
                "engines": engines,
                "pareto": _draw_pareto(document, engines),
                # matplotlib's drawing, whose texts its SVG backend escaped.
                "latencies": Markup(draw_latencies(timed, _find_limit(engines))) if timed else "",  # noqa: S704
                "sizes": _draw_sizes(engines),
            }
        )
    return groups


def _draw_sizes(engines: Sequence[Mapping[str, Any]]) -> str:
    timed = {
        each["precision"]: [SizeTimes(**{**size, "sizes": tuple(size["sizes"].items())}) for size in each["sizes"]]
        for each in engines
        if each["sizes"]
    }
    reference = next((each["precision"] for each in engines if each["is_reference"] and each["sizes"]), None)
    return Markup(draw_sizes(timed, reference)) if timed else ""  # noqa: S704 - as above


def _draw_pareto(document: Mapping[str, Any], engines: Sequence[Mapping[str, Any]]) -> str:
    metric, points = document["metric"]["name"], []
    for engine in engines:
        quality, p50 = engine["figures"].get(metric), engine["figures"].get("latency_p50_ms")
        if quality and p50:
            points.append(
                Point(
                    engine["precision"],
                    _to_interval(p50),
                    _to_interval(quality),
                    engine["is_reference"],
                    engine["dominated_by"] is not None,
                )
            )
    if not points:
        return ""
    limit = next(
        (gate["limit"] for each in engines for gate in each["gates"] if gate["gate"] == f"{metric}_loss"), None
    )
    reference = next((point for point in points if point.is_reference), None)
    sign = 1 if document["metric"]["better"] == "higher" else -1
    floor = None if limit is None or reference is None else reference.quality[0] - sign * limit
    return Markup(draw_pareto(metric, points, floor))  # noqa: S704 - as above


def _to_interval(figure: Mapping[str, Any]) -> tuple[float, float, float]:
    value = figure["value"]
    low, high = (value if figure[end] is None else figure[end] for end in ("low", "high"))
    return value, low, high


def _find_limit(engines: Sequence[Mapping[str, Any]]) -> float | None:
    return next((gate["limit"] for each in engines for gate in each["gates"] if gate["gate"] == "latency_p99"), None)
