"""The `enginery` command. Heavy packages are imported by the commands that need them, so that a fetch stays quick."""

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from flows.commands import calibration, machine, promotion, refresh, release, serving, stack, triton, watch, worker
from flows.commands.console import err
from registry.errors import EngineryError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Hugging Face model in; gated, versioned, verified TensorRT engines out. State lives in ENGINERY_HOME "
    "(.enginery by default); MLFLOW_TRACKING_URI and PREFECT_API_URL work as everywhere.",
)
# Typer 0.29 carries a click of its own, whose errors are not click's; Ctrl-C comes back as this exit code.
USAGE_ERROR: Any = typer.BadParameter.__base__
STOPPED = 130

app.command("release")(release.release)
app.command("worker")(worker.worker)
app.command("refresh")(refresh.refresh)
app.command("list")(promotion.list_engines)
app.command("targets")(machine.targets)
app.command("calibration")(calibration.calibration)
app.command("promote")(promotion.promote)
app.command("rollback")(promotion.rollback)
app.command("history")(promotion.history)
app.command("fetch")(serving.fetch)
app.command("watch")(watch.watch)
app.command("verify")(serving.verify)
app.command("run")(serving.run)
app.add_typer(triton.app, name="triton")
app.command("doctor")(machine.doctor)
app.command("deployments")(stack.deployments)
app.command("up")(stack.up)
app.command("down")(stack.down)


@app.callback()
def _common(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    if debug:
        os.environ["ENGINERY_DEBUG"] = "1"


def main() -> NoReturn:
    """Run the command; an error is one sentence on stderr, and a traceback only with --debug."""
    sys.exit(_guarded(lambda: app(standalone_mode=False)))


def _guarded(command: Callable[[], Any]) -> int:
    try:
        code = command()
    except USAGE_ERROR as error:
        error.show()
        return int(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    except EngineryError as error:
        if os.environ.get("ENGINERY_DEBUG"):
            raise
        err.print(f"enginery: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return error.exit_code
    if code == STOPPED:
        err.print("stopped; what was finished is kept: run the same command again to go on", soft_wrap=True)
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    main()
