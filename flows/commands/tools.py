"""`enginery tools`: what runs in environments of its own, and whether it is installed here."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from flows.commands.console import Json, err, out, print_json
from registry.host.home import home, writable_home

if TYPE_CHECKING:
    from tasks.execution.tools.catalog import Tool

Name = Annotated[str, typer.Argument(help="The tool, as `enginery tools` lists it.")]

app = typer.Typer(
    invoke_without_command=True,
    help="List the tools that run in environments of their own. Each is installed when it is first needed; `install` "
    "does it now, `remove` frees its disk.",
)


@app.callback()
def list_all(context: typer.Context, as_json: Json = False) -> None:
    """List the tools, what each is for, and whether it is installed.

    Example: enginery tools
    """
    if context.invoked_subcommand is not None:
        return
    from tasks.execution.tools.catalog import list_tools

    rows = [_describe(tool) for tool in list_tools()]
    if as_json:
        print_json(rows)
        return
    table = Table("tool", "version", "installed", "MB", "what for")
    for row in rows:
        size = f"{row['size_bytes'] / 1e6:.1f}" if row["size_bytes"] else ""
        table.add_row(row["name"], row["version"], "yes" if row["installed"] else "no", size, escape(row["purpose"]))
    out.print(table)


def install(name: Name) -> None:
    """Install a tool now, where a package index can be reached, and not when it is first needed.

    Example: enginery tools install transformers5
    """
    from tasks.execution.tools.catalog import find_tool
    from tasks.execution.tools.install import install_tool, is_installed, size_of

    tool, place = find_tool(name), writable_home()
    found = is_installed(tool, place)

    def show(what: str, _share: float) -> None:
        err.print(what, markup=False, highlight=False, soft_wrap=True)

    folder = install_tool(tool, place, show)
    state = "is installed already" if found else "is installed"
    out.print(
        f"{name} {tool.version} {state}: {folder}, {size_of(tool, place) / 1e6:.1f} MB", highlight=False, soft_wrap=True
    )


def remove(name: Name) -> None:
    """Remove all that is installed of a tool; it is installed again when it is next needed.

    Example: enginery tools remove transformers5
    """
    from tasks.execution.tools.catalog import find_tool
    from tasks.execution.tools.install import remove_tool

    size = remove_tool(find_tool(name), home())
    out.print(f"{name} is removed: {size / 1e6:.1f} MB" if size else f"{name} is not installed", highlight=False)


app.command("install")(install)
app.command("remove")(remove)


def _describe(tool: "Tool") -> dict[str, Any]:
    from tasks.execution.tools.install import is_installed, size_of

    place = home()
    return {
        "name": tool.name,
        "purpose": tool.purpose,
        "version": tool.version,
        "installed": is_installed(tool, place),
        "size_bytes": size_of(tool, place),
    }
