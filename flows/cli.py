"""The `enginery` command. Heavy packages are imported by the commands that need them, so that a fetch stays quick."""

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from flows.commands import (
    engines,
    fleet,
    machine,
    promotion,
    recipe,
    reduce,
    refresh,
    release,
    serving,
    tools,
    triton,
    watch,
)
from flows.commands.console import err, out
from registry.errors import EngineryError, explain_place

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # joins the lines of a docstring's paragraph
    help="Build TensorRT and ONNX Runtime engines from a Hugging Face model, hold them to gates, and publish, promote "
    "and serve them.\n\nState is kept in ENGINERY_HOME (default: .enginery). MLFLOW_TRACKING_URI selects a shared "
    "registry, PREFECT_API_URL a Prefect server.\n\nStart with: enginery release recipes/quickstart.yaml",
)
# Typer 0.29 carries a click of its own, whose errors are not click's; Ctrl-C comes back as this exit code.
USAGE_ERROR: Any = typer.BadParameter.__base__
STOPPED = 130

# `--help` lists commands in this order. First what one person needs, on one machine:
app.command("init")(recipe.init)
app.command("check")(recipe.check)
app.command("release")(release.release)
app.command("list")(promotion.list_engines)
app.command("promote")(promotion.promote)
app.command("rollback")(promotion.rollback)
app.command("history")(promotion.history)
app.command("fetch")(serving.fetch)
app.command("watch")(watch.watch)
app.command("verify")(serving.verify)
app.command("run")(serving.run)
app.command("calibration")(engines.calibration)
app.command("compare")(engines.compare)
app.command("measure")(engines.measure)
app.command("reduce")(reduce.reduce)
app.command("targets")(machine.targets)
app.command("doctor")(machine.doctor)
# Then what a team's servers and workers need:
app.command("worker")(fleet.worker)
app.command("refresh")(refresh.refresh)
app.command("deployments")(fleet.deployments)
app.command("up")(fleet.up)
app.command("down")(fleet.down)
# Groups stand last: tools in environments of their own, and what only hosts with a Triton server need.
app.add_typer(tools.app, name="tools")
app.add_typer(triton.app, name="triton")


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version  # not above: its imports would slow every command

        out.print(f"enginery {version('enginery')}", highlight=False)
        raise typer.Exit


@app.callback()
def _set_common_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if debug:
        os.environ["ENGINERY_DEBUG"] = "1"


def main() -> NoReturn:
    """Run the command line and exit; errors are one sentence on stderr, with a traceback only for --debug."""
    sys.exit(run_command(lambda: app(standalone_mode=False)))


def run_command(command: Callable[[], Any]) -> int:
    """Run a command and return its exit code; print an error as one sentence on stderr.

    Raises:
        EngineryError, OSError: with ENGINERY_DEBUG set, so that Python shows the traceback.
        OSError: of another thing than a path or a full disk.
    """
    try:
        code = command()
    except USAGE_ERROR as error:
        error.show()
        return int(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    except (EngineryError, OSError) as error:
        sentence = explain_place(error) if isinstance(error, OSError) else error
        if sentence is None or os.environ.get("ENGINERY_DEBUG"):
            raise
        err.print(f"enginery: {sentence}", style="red", markup=False, highlight=False, soft_wrap=True)
        return sentence.exit_code
    if code == STOPPED:
        err.print("stopped; finished work is kept: run the same command again to resume", soft_wrap=True)
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    main()
