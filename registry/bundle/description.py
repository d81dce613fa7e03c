"""Describe an engine, and a model of engines, in Markdown, for MLflow's pages of runs, versions and models."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from registry.records import EngineBuild, EngineManifest, GateResult, Measurement, ModelSource, Verdict

_DIGEST = re.compile(r"\b[0-9a-f]{40,64}\b")
_UNITS = {"ratio": "times", "probability": ""}

PAST_EVERY_GATE = (
    "MLflow's own *Promote model* button and its alias editor pass no gate and leave no history: `enginery doctor` "
    "reports an alias that they moved, and `enginery fetch` refuses it."
)


def describe_model(model: str, source: ModelSource) -> str:
    """Describe what the versions of a registered model are, and how one gets into production."""
    what = (
        f"Engines of {_DIGEST.sub(_cut, source.origin)} ({source.task}). Each version is one engine: for one target, "
        "in one precision, "
        "with one verdict. `candidate-TARGET` is the engine that a release proposes, `production-TARGET` the one that "
        "serves."
    )
    how = (
        f"Promote a candidate with `enginery promote {model} --target TARGET`, and place it on a serving host with "
        f"`enginery fetch {model}`. Who promoted what: `enginery history {model}`."
    )
    return "\n\n".join([what, how, PAST_EVERY_GATE])


def describe_version(manifest: EngineManifest, version: int, links: Mapping[str, str] | None = None) -> str:
    """Describe a published engine: what it is, its verdict, its figures, and the next command; `links` are by name."""
    build = manifest.build
    what = describe_engine(build, manifest.measurements, manifest.gates, manifest.verdict)
    pages = ", ".join(f"[{name}]({address})" for name, address in (links or {}).items())
    parts = [what, describe_next(manifest.model, build.target.name, manifest.verdict, version), pages, PAST_EVERY_GATE]
    return "\n\n".join(filter(None, parts))


def describe_engine(
    build: EngineBuild,
    measurements: Sequence[Measurement],
    gates: Sequence[GateResult],
    verdict: Verdict,
) -> str:
    """Describe an engine with its gates and its figures; the first line is without markup, for lists that show it."""
    machine = next((figure.measured_on.label for figure in measurements if figure.subject == "engine"), None)
    headline = "".join(f", {name} {_format_value(figure)}" for name, figure in _find_headline(measurements))
    parts = [
        f"{build.precision} for {build.target.name}: {verdict}{headline}",
        f"Built with {build.backend} {build.backend_version}. "
        + (f"Measured on {machine}." if machine else "The engine itself has not run."),
        "**Gates**",
        _make_table(("gate", "verdict", "measured, and the limit"), [(g.gate, g.verdict, g.reason) for g in gates]),
    ]
    if measurements:
        rows = [(figure.name, _format_value(figure), _format_interval(figure)) for figure in measurements]
        parts += ["**Figures**", _make_table(("figure", "value", "95 % interval"), rows)]
    return "\n\n".join(parts)


def describe_next(model: str, target: str, verdict: Verdict, version: int | None) -> str:
    """Say which command promotes an engine, or why none does."""
    if version is None:
        return "It was not published: a gate failed."
    waiver = "" if verdict is Verdict.PASSED else ' --waiver "REASON"'
    return (
        f"Promote it: `enginery promote {model} --target {target} --version {version}{waiver}`. "
        f"Place it on a serving host: `enginery fetch {model} --target {target}`."
    )


def _find_headline(measurements: Sequence[Measurement]) -> Iterator[tuple[str, Measurement]]:
    # The task's metric is the one whose loss is measured too.
    own = {figure.metric: figure for figure in measurements if figure.subject == "engine"}
    yield from ((name, figure) for name, figure in own.items() if f"{name}_loss" in own)
    if "latency_p50_ms" in own:
        yield "p50", own["latency_p50_ms"]


def _cut(digest: re.Match[str]) -> str:
    return digest[0][:12]


def _make_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '¦') for cell in line)} |" for line in lines)


def _format_value(figure: Measurement) -> str:
    return _format_number(figure.value, figure.unit)


def _format_interval(figure: Measurement) -> str:
    if figure.low is None or figure.high is None:
        return ""
    return f"{_format_number(figure.low, figure.unit)} to {_format_number(figure.high, figure.unit)}"


def _format_number(value: float, unit: str) -> str:
    if unit == "share":
        return f"{100 * value:.2f} %"
    return f"{value:.4g} {_UNITS.get(unit, unit)}".rstrip()
