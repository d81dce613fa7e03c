"""What the subcommands share: consoles, common options, the registry they talk to, and JSON."""

import getpass
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from registry.errors import BadInput

# A log has no width of its own: 80 columns would fold the tables into noise.
out = Console(width=None if sys.stdout.isatty() else 150)
err = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]
FleetFile = Annotated[Path, typer.Option("--fleet", help="The fleet file that names the targets.")]


def need_pipeline(what: str) -> None:
    """Refuse `enginery <what>` where only the base install is there."""
    need("prefect", "onnxruntime", "datasets", what=what)


def need(*packages: str, what: str) -> None:
    """Refuse `enginery <what>` where one of its packages is missing.

    Raises:
        BadInput: says what to install.
    """
    from importlib.util import find_spec

    if missing := [package for package in packages if find_spec(package) is None]:
        raise BadInput(
            f"`enginery {what}` needs {', '.join(missing)}, which the base install leaves out: "
            "pip install 'enginery[pipeline]'"
        )


def who_decides(given: str) -> str:
    """The name given, or the user's."""
    return given or getpass.getuser()


def plain(value: Any) -> dict[str, Any]:
    """A dataclass as JSON values."""
    from pydantic import TypeAdapter

    plain: dict[str, Any] = TypeAdapter(type(value)).dump_python(value, mode="json")
    return plain


def print_json(value: object) -> None:
    """Print for programs."""
    sys.stdout.write(json.dumps(value, indent=1) + "\n")
