"""The consoles, common options and JSON output that all subcommands share."""

import getpass
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from flows.inputs.default_paths import BUILT_IN_FLEET
from registry.errors import BadInput, printable


class _SafeConsole(Console):
    """A console on which names, reasons, labels and tags of strangers are text, and never codes for the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


# A pipe or a log file has no width, and rich's default of 80 columns would wrap the tables beyond reading.
out = _SafeConsole(width=None if sys.stdout.isatty() else 150)
err = _SafeConsole(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text.")]


def _find_fleet(context: typer.Context, option: typer.CallbackParam, file: Path) -> Path:
    """Return the built-in fleet file where nobody named one and the current folder has none."""
    source = context.get_parameter_source(str(option.name))
    is_default = source is not None and source.name == "DEFAULT"
    return BUILT_IN_FLEET if is_default and not file.exists() else file


def _find_rules(context: typer.Context, option: typer.CallbackParam, file: Path) -> Path:
    """Return the fleet file as `_find_fleet`, but never the built-in one for a registry that others may share.

    Only a team's own file says which targets are protected.
    """
    found = _find_fleet(context, option, file)
    if found is not file and "MLFLOW_TRACKING_URI" in os.environ:
        raise BadInput(
            f"the registry at MLFLOW_TRACKING_URI may be shared, and there is no {file} here to say which of its "
            "targets are protected: run this in the team's checkout, or pass its fleet file with --fleet"
        )
    return found


_FLEET_HELP = "The fleet file, which lists the targets"
_OR_BUILT_IN = f"{_FLEET_HELP}; where it does not exist, a built-in one."
FleetFile = Annotated[Path, typer.Option("--fleet", callback=_find_fleet, help=_OR_BUILT_IN)]
RulesFile = Annotated[Path, typer.Option("--fleet", callback=_find_rules, help=_OR_BUILT_IN)]
# A team's commands run in its checkout: without its fleet file they are in the wrong folder.
TeamFleetFile = Annotated[Path, typer.Option("--fleet", help=f"{_FLEET_HELP}.")]


def need_pipeline(what: str) -> None:
    """Raise unless the packages of the `pipeline` extra are installed; `what` is the subcommand."""
    _need("prefect", "onnxruntime", "datasets", what=what, extra="pipeline")


def need_run(what: str) -> None:
    """Raise unless the packages of the `run` extra and ONNX Runtime are installed; `what` is the subcommand."""
    packages = ("onnxruntime", "tokenizers", "PIL", "soundfile", "soxr", "scipy", "ml_dtypes", "seqeval")
    _need(*packages, what=what, extra="run")


def _need(*packages: str, what: str, extra: str) -> None:
    from importlib.util import find_spec

    if missing := [package for package in packages if find_spec(package) is None]:
        raise BadInput(
            f"`enginery {what}` needs {', '.join(missing)}, which the base install does not include: "
            f"pip install 'enginery[{extra},cpu]'"
        )


def who_decides(name: str) -> str:
    """Return the name given, or else the name of the current user."""
    return name or getpass.getuser()


def plain(value: Any) -> dict[str, Any]:
    """Convert a dataclass to JSON values."""
    from pydantic import TypeAdapter

    values: dict[str, Any] = TypeAdapter(type(value)).dump_python(value, mode="json")
    return values


def print_json(value: object) -> None:
    """Write a value to stdout as indented JSON."""
    sys.stdout.write(json.dumps(value, indent=1) + "\n")
