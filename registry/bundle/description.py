"""Describe an engine, and a model of engines, in Markdown, for MLflow's pages of runs, versions and models."""

from collections.abc import Iterable, Sequence

from registry.records import EngineBuild, EngineManifest, GateResult, Measurement, ModelSource, Tensor, Verdict

PAST_EVERY_GATE = (
    "MLflow's own *Promote model* button and its alias editor pass no gate and leave no history: `enginery doctor` "
    "reports an alias that they moved, and `enginery fetch` refuses it."
)


def describe_model(model: str, source: ModelSource) -> str:
    """Describe what the versions of a registered model are, and how one gets into production."""
    what = (
        f"Engines of {source.origin} ({source.task}). Each version is one engine: for one target, in one precision, "
        "with one verdict. `candidate-TARGET` is the engine that a release proposes, `production-TARGET` the one that "
        "serves."
    )
    how = (
        f"Promote a candidate with `enginery promote {model} --target TARGET`, and place it on a serving host with "
        f"`enginery fetch {model}`. Who promoted what: `enginery history {model}`."
    )
    return "\n\n".join([what, how, PAST_EVERY_GATE])


def describe_version(manifest: EngineManifest, version: int) -> str:
    """Describe a published engine: what it is, its verdict, its figures, inputs and outputs, and the next command."""
    build = manifest.build
    return "\n\n".join(
        [
            describe_engine(manifest.model, build, manifest.measurements, manifest.gates, manifest.verdict),
            describe_next(manifest.model, build.target.name, manifest.verdict, version),
            PAST_EVERY_GATE,
            _make_table(
                ("", "name", "type", "shape"),
                [
                    *(("input", *_describe_tensor(tensor)) for tensor in build.inputs),
                    *(("output", *_describe_tensor(tensor)) for tensor in build.outputs),
                ],
            ),
        ]
    )


def describe_engine(
    model: str,
    build: EngineBuild,
    measurements: Sequence[Measurement],
    gates: Sequence[GateResult],
    verdict: Verdict,
) -> str:
    """Describe an engine with its gates and its figures."""
    backend = f"{build.backend} {build.backend_version}"
    machine = next((figure.measured_on.label for figure in measurements if figure.subject == "engine"), None)
    parts = [
        f"**{model}** in **{build.precision}** for **{build.target.name}**, built with {backend}: **{verdict}**.",
        _make_table(("gate", "verdict", "measured, and the limit"), [(g.gate, g.verdict, g.reason) for g in gates]),
    ]
    if measurements:
        rows = [(figure.name, _format_value(figure), _format_interval(figure)) for figure in measurements]
        parts.append(_make_table(("figure", "value", "95 % interval"), rows))
    parts.append(f"Measured on {machine}." if machine else "The engine itself has not run.")
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


def _describe_tensor(tensor: Tensor) -> tuple[str, str, str]:
    return tensor.name, tensor.dtype, " x ".join(map(str, tensor.shape))


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
    return f"{value:.4g} {unit}"
