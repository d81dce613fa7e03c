"""On a serving host: `watch` follows an alias, swaps `MODEL/current` and rolls back what is not healthy."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.console import err
from flows.commands.serving import Alias, AnyHost, Model, Selection, Target, TensorRT, To, Unrecorded, open_fetch
from registry.errors import BadInput

if TYPE_CHECKING:
    from registry.serving.fetch import Fetched
    from registry.serving.watch import Watch

Interval = Annotated[float, typer.Option("--interval", min=0.1, max=86400, help="Seconds between polls of the alias.")]
Keep = Annotated[int, typer.Option("--keep", min=2, help="How many versions stay on the disk.")]
Health = Annotated[
    str, typer.Option("--health", help="Command that exits 0 once the new version serves; gets MODEL VERSION PATH.")
]


def watch(
    model: Model,
    target: Target = "auto",
    alias: Alias = None,
    to: To = Path("models"),
    any_host: AnyHost = False,
    tensorrt: TensorRT = None,
    unrecorded: Unrecorded = False,
    interval: Interval = 30.0,
    keep: Keep = 3,
    hook: Annotated[
        str, typer.Option("--hook", help="Command to run after a swap, to reload the server; gets MODEL VERSION PATH.")
    ] = "",
    health: Health = "",
) -> None:
    """Follow an alias: fetch each new version, and keep TO/MODEL/current on it.

    A version is verified as `enginery fetch` does before `current` moves to it. If the hook or the health check fails,
    `current` goes back to the previous version, and the hook runs again for that one. While the registry is down,
    `current` stays and the command polls less often. Ctrl-C or SIGTERM ends it.

    For example, `enginery watch sst2 --to /srv/models --hook "systemctl reload server" --health ./is-serving`.
    """
    from registry.serving.watch import Watch

    options = Watch(interval, keep, split_command(hook, "--hook"), split_command(health, "--health"))
    selection = Selection(target, alias, any_host=any_host, tensorrt=tensorrt, unrecorded=unrecorded)
    fetch_selected = open_fetch(model, to, selection)
    follow_alias(fetch_selected, to / model, options)


def follow_alias(fetch_selected: "Callable[[], Fetched]", model_folder: Path, options: "Watch") -> None:
    """Follow an alias until Ctrl-C or SIGTERM, and log what happens."""
    import logging
    import time
    from contextlib import suppress

    from registry.serving.watch import stopped_by_sigterm
    from registry.serving.watch import watch as watch_alias

    def wait(seconds: float) -> bool:
        time.sleep(seconds)
        return False

    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("registry.serving.watch").setLevel(logging.INFO)
    with suppress(KeyboardInterrupt), stopped_by_sigterm():
        watch_alias(fetch_selected, model_folder, options, wait)
    err.print("stopped; the current version stays", soft_wrap=True)


def split_command(command: str, option: str) -> tuple[str, ...]:
    """Split a command as a shell does.

    Raises:
        BadInput: it has an open quote.
    """
    try:
        return tuple(shlex.split(command))
    except ValueError as error:
        raise BadInput(f"{option} has an open quote ({error}): quote it as a shell would") from error
