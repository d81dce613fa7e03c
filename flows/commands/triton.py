"""`triton`: fetched bundles into a Triton model repository, and onto a running server. Needs the `triton` extra."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.console import Json, out, plain, print_json
from registry.errors import BadInput
from registry.host.home import home

# NAME=VALUE of the server's restricted control API: a secret, so not on a command line that every user can list.
HEADER_VARIABLE = "ENGINERY_TRITON_HEADER"


class Layout(StrEnum):
    """How a fetched engine is laid out: as published, or for Triton too."""

    BUNDLE = "bundle"
    TRITON = "triton"


Text = Annotated[
    bool, typer.Option("--text-model", help="Place a model that takes text, around an ONNX engine: labels and scores.")
]
Container = Annotated[
    str | None,
    typer.Option("--container", help="The Triton container that serves, such as 26.08: TensorRT must agree."),
]
Server = Annotated[
    str | None,
    typer.Option("--server", help=f"Load it on the Triton at this gRPC HOST:PORT; {HEADER_VARIABLE}=NAME=VALUE."),
]
Keep = Annotated[int, typer.Option(min=2, help="Versions to keep in the repository.")]


@dataclass(frozen=True)
class Serving:
    """How Triton is to serve: the options of the command line, for whoever passes them on."""

    text_model: bool = False
    container: str | None = None
    server: str | None = None
    keep: int = 3


def triton(
    model: str,
    version: int,
    bundles: Annotated[list[Path], typer.Argument(help="Its fetched bundle; one for each compute capability.")],
    repository: Annotated[Path, typer.Option("--repository", help="Triton's model repository.")],
    text_model: Text = False,
    container: Container = None,
    server: Server = None,
    keep: Keep = 3,
    as_json: Json = False,
) -> None:
    """Place fetched bundles as a version of a Triton model, and load it; a load that fails is rolled back."""
    serving = Serving(text_model, container, server, keep)
    serve_with_triton(model, version, bundles, repository, serving, as_json=as_json)


def serve_with_triton(
    model: str, version: int, bundles: Sequence[Path], repository: Path, serving: Serving, *, as_json: bool
) -> None:
    """Verify bundles by signature and bytes, place them, load them where a server is named, and say so.

    Raises:
        BadInput: a bundle is of another model.
        EngineryError: as `verify_placed`, `place_triton` and `load_version`.
    """
    from registry.bundle.signing import local_trust
    from registry.serving.fetch import verify_placed
    from registry.triton.control import load_version, triton_server
    from registry.triton.repository import place_triton, prune

    trust = local_trust(home())
    for bundle in bundles:
        if (found := verify_placed(bundle, trust).model) != model:
            raise BadInput(f"{bundle} is of model {found}, not {model}: name its own model, or another bundle")
    server = triton_server(serving.server, os.environ.get(HEADER_VARIABLE)) if serving.server else None
    placed = place_triton(
        bundles, repository, version=version, python_backend=serving.text_model, container=serving.container
    )
    if server:
        load_version(server, placed)
    prune(placed, serving.keep)
    if as_json:
        shown = {key: value for key, value in plain(placed).items() if key != "previous_config"}
        print_json(shown | {"path": str(placed.folder), "loaded": server is not None})
        return
    state = f"is served by {server.address}" if server else "is placed"
    out.print(f"{model} version {version} {state}: {placed.folder}", highlight=False, soft_wrap=True)


def triton_folders(to: Path) -> tuple[Path, Path]:
    """Where bundles and the model repository lie under `to`: apart, as Triton takes any folder for a model."""
    return to / "bundles", to / "repository"


def tensorrt_in(container: str | None) -> str | None:
    """The TensorRT of a container, None for none.

    Raises:
        Incompatible: it is not known.
    """
    if container is None:
        return None
    from registry.host.tensorrt_releases import tensorrt_of_container

    return tensorrt_of_container(container)


def triton_hook(repository: Path, serving: Serving) -> tuple[str, ...]:
    """`enginery triton` as the hook of a watch, which appends MODEL VERSION PATH."""
    options = [f"--repository={repository.absolute()}", f"--keep={serving.keep}"]
    options += ["--text-model"] if serving.text_model else []
    options += [f"--container={serving.container}"] if serving.container else []
    options += [f"--server={serving.server}"] if serving.server else []
    return (sys.executable, "-c", "from flows.cli import main; main()", "triton", *options)
