"""`enginery triton`: verified bundles into a Triton model repository, and onto a running server.

Needs the `triton` extra.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.console import Json, out, plain, print_json
from flows.commands.serving import (
    Alias,
    AnyHost,
    Model,
    Older,
    Rehash,
    Selection,
    Target,
    Unrecorded,
    Version,
    open_fetch,
)
from flows.commands.watch import Health, Interval, follow_alias, split_command
from registry.errors import BadInput
from registry.host.home import home

# NAME=VALUE of the server's restricted control API: a secret, so not on a command line that every user can list.
HEADER_VARIABLE = "ENGINERY_TRITON_HEADER"

To = Annotated[
    Path, typer.Option("--to", help="The folder that gets bundles/MODEL/VERSION and the model repository, repository/.")
]
TensorRT = Annotated[
    str | None,
    typer.Option("--tensorrt", help="The version of TensorRT that will load it; default: --container's, or installed."),
]
PythonBackend = Annotated[
    bool,
    typer.Option(
        "--python-backend",
        help="Place a Python model around a CPU engine: text, images or audio in, the answers of `enginery run` out.",
    ),
]
Container = Annotated[
    str | None,
    typer.Option("--container", help="The Triton container that serves, such as 26.08: its TensorRT must match."),
]
Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        help=f"Load it on the Triton at this gRPC HOST:PORT. For a restricted API set {HEADER_VARIABLE}=NAME=VALUE.",
    ),
]
Keep = Annotated[int, typer.Option("--keep", min=2, help="How many versions stay in the repository.")]

app = typer.Typer(
    no_args_is_help=True,
    help="Serve engines with Triton: `fetch` one into a model repository, `watch` an alias, or `place` several bundles "
    "as one version.",
)


@dataclass(frozen=True)
class TritonOptions:
    """How Triton serves a model: the options that the three commands share."""

    python_backend: bool = False
    container: str | None = None
    server: str | None = None
    keep: int = 3


@app.command("fetch")
def fetch(
    model: Model,
    target: Target = "auto",
    alias: Alias = None,
    version: Version = None,
    to: To = Path("models"),
    any_host: AnyHost = False,
    tensorrt: TensorRT = None,
    older: Older = None,
    unrecorded: Unrecorded = False,
    rehash: Rehash = False,
    python_backend: PythonBackend = False,
    container: Container = None,
    server: Server = None,
    keep: Keep = 3,
    as_json: Json = False,
) -> None:
    """Fetch an engine as `enginery fetch` does, and place it in a Triton model repository.

    With --server the version is loaded too; if the load fails, the previous version keeps serving. Start Triton with
    --model-control-mode=explicit on TO/repository.

    For example, `enginery triton fetch sst2 --to /srv/enginery --container 26.08 --server localhost:8001`.
    """
    selection = Selection(
        target, alias, version, any_host, tensorrt or find_container_tensorrt(container), older, unrecorded, rehash
    )
    bundles, repository = triton_folders(to)
    fetched = open_fetch(model, bundles, selection)()
    options = TritonOptions(python_backend, container, server, keep)
    place_and_load(model, fetched.version, [fetched.path], repository, options, as_json=as_json)


@app.command("watch")
def watch(
    model: Model,
    target: Target = "auto",
    alias: Alias = None,
    to: To = Path("models"),
    any_host: AnyHost = False,
    tensorrt: TensorRT = None,
    unrecorded: Unrecorded = False,
    interval: Interval = 30.0,
    health: Health = "",
    python_backend: PythonBackend = False,
    container: Container = None,
    server: Server = None,
    keep: Keep = 3,
) -> None:
    """Follow an alias as `enginery watch` does, and place and load each new version in Triton.

    If a version does not load, or the health check fails, the previous version serves again. Ctrl-C or SIGTERM ends
    the command; Triton keeps serving.

    For example, `enginery triton watch sst2 --to /srv/enginery --server localhost:8001`.
    """
    from registry.serving.watch import Watch

    bundles, repository = triton_folders(to)
    hook = place_command(repository, TritonOptions(python_backend, container, server, keep))
    options = Watch(interval, keep, hook, split_command(health, "--health"))
    tensorrt = tensorrt or find_container_tensorrt(container)
    selection = Selection(target, alias, any_host=any_host, tensorrt=tensorrt, unrecorded=unrecorded)
    follow_alias(open_fetch(model, bundles, selection), bundles / model, options)


@app.command("place")
def place(
    model: Annotated[str, typer.Argument(help="The model's name in the bundles and in Triton.")],
    version: Annotated[int, typer.Argument(help="Triton's version of the model.")],
    bundles: Annotated[
        list[Path], typer.Argument(help="Fetched bundles of the model: one, or one per compute capability.")
    ],
    repository: Annotated[Path, typer.Option("--repository", help="Triton's model repository.")],
    python_backend: PythonBackend = False,
    container: Container = None,
    server: Server = None,
    keep: Keep = 3,
    as_json: Json = False,
) -> None:
    """Place fetched bundles as one version of a Triton model, and load it if a server is named.

    Bundles of several GPU types become one version: Triton chooses by compute capability. If the load fails, the
    previous version keeps serving.

    For example, `enginery triton place sst2 7 bundles/sst2/6 bundles/sst2/7 --repository /srv/repository`.
    """
    options = TritonOptions(python_backend, container, server, keep)
    place_and_load(model, version, bundles, repository, options, as_json=as_json)


def place_and_load(
    model: str, version: int, bundles: Sequence[Path], repository: Path, options: TritonOptions, *, as_json: bool
) -> None:
    """Verify bundles, place them, load them if a server is named, and print the result.

    Raises:
        BadInput: a bundle belongs to another model.
        EngineryError: as `verify_placed`, `place_triton` and `load_version`.
    """
    from registry.bundle.signing import local_trust
    from registry.serving.fetch import verify_placed
    from registry.triton.control import load_version, triton_server
    from registry.triton.repository import VerifiedBundle, place_triton, prune
    from tasks.bundle.python_model import make_python_model

    trust = local_trust(home())
    # Resolved once: `current` may move between two reads.
    folders = [bundle.resolve() if bundle.is_dir() else bundle for bundle in bundles]
    verified = [VerifiedBundle(folder, verify_placed(folder, trust)) for folder in folders]
    for bundle in verified:
        if bundle.manifest.model != model:
            raise BadInput(
                f"{bundle.folder} belongs to model {bundle.manifest.model}, not {model}: name that model, or another "
                "bundle"
            )
    server = triton_server(options.server, os.environ.get(HEADER_VARIABLE)) if options.server else None
    python_model = make_python_model(verified[0].manifest.source.task) if options.python_backend else None
    placed = place_triton(verified, repository, version=version, python_model=python_model, container=options.container)
    if server:
        load_version(server, placed)
    prune(placed, options.keep)
    if as_json:
        fields = {key: value for key, value in plain(placed).items() if key != "previous_config"}
        print_json(fields | {"path": str(placed.folder), "loaded": server is not None})
        return
    state = f"is served by {server.address}" if server else "is placed"
    out.print(f"{model} version {version} {state}: {placed.folder}", highlight=False, soft_wrap=True)


def triton_folders(to: Path) -> tuple[Path, Path]:
    """Return the folders for bundles and the model repository: apart, as Triton takes every folder for a model."""
    return to / "bundles", to / "repository"


def find_container_tensorrt(container: str | None) -> str | None:
    """Return the TensorRT of a Triton container, None if no container is named.

    Raises:
        Incompatible: the container is unknown.
    """
    if container is None:
        return None
    from registry.host.tensorrt_releases import tensorrt_of_container

    return tensorrt_of_container(container)


def place_command(repository: Path, options: TritonOptions) -> tuple[str, ...]:
    """Return the `enginery triton place` command that a watch runs as its hook; it appends MODEL VERSION PATH."""
    arguments = [f"--repository={repository.absolute()}", f"--keep={options.keep}"]
    arguments += ["--python-backend"] if options.python_backend else []
    arguments += [f"--container={options.container}"] if options.container else []
    arguments += [f"--server={options.server}"] if options.server else []
    return (sys.executable, "-c", "from flows.cli import main; main()", "triton", "place", *arguments)
