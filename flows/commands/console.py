"""The consoles, common options and JSON output that all subcommands share."""

import getpass
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from registry.errors import BadInput

# A pipe or a log file has no width, and rich's default of 80 columns would wrap the tables beyond reading.
out = Console(width=None if sys.stdout.isatty() else 150)
err = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text.")]
FleetFile = Annotated[Path, typer.Option("--fleet", help="The fleet file, which lists the targets.")]


def need_pipeline(what: str) -> None:
    """Raise unless the packages of the `pipeline` extra are installed; `what` is the subcommand."""
    need("prefect", "onnxruntime", "datasets", what=what)


def need(*packages: str, what: str) -> None:
    """Raise unless the packages that a subcommand needs are installed.

    Args:
        packages: import names.
        what: the subcommand, as the error names it.

    Raises:
        BadInput: a package is missing; the message says what to install.
    """
    from importlib.util import find_spec

    if missing := [package for package in packages if find_spec(package) is None]:
        raise BadInput(
            f"`enginery {what}` needs {', '.join(missing)}, which the base install does not include: "
            "pip install 'enginery[pipeline]'"
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
