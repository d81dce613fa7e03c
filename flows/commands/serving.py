"""On a serving host: `fetch`, `verify`, `run`. Only `run` needs more than the base install."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from flows.commands.console import Json, err, need, out, plain, print_json
from flows.commands.triton import (
    Container,
    Layout,
    Server,
    Serving,
    Text,
    serve_with_triton,
    tensorrt_in,
    triton_folders,
    triton_hook,
)
from registry.errors import BadInput
from registry.host.home import home
from registry.mlflow.connect import open_store
from registry.names import production_alias

if TYPE_CHECKING:
    from registry.host.compatibility import Host
    from registry.serving.fetch import Fetched

Target = Annotated[
    str, typer.Option("--target", help="Fetch production-TARGET; auto picks it for the local GPU, or the CPU.")
]
AnyHost = Annotated[bool, typer.Option("--any-host", help="Fetch for another machine: do not look at this one's GPU.")]
TensorRT = Annotated[
    str | None,
    typer.Option("--tensorrt", help="The TensorRT (or TensorRT-RTX) that will load engines; default: the installed."),
]


def fetch(
    model: str,
    target: Target = "auto",
    alias: Annotated[str | None, typer.Option(help="Fetch this alias instead, such as candidate-cpu.")] = None,
    version: Annotated[int | None, typer.Option(help="Fetch this version instead.")] = None,
    to: Annotated[Path, typer.Option("--to", help="The folder to place MODEL/VERSION in.")] = Path("models"),
    any_host: AnyHost = False,
    tensorrt: TensorRT = None,
    older: Annotated[
        str | None, typer.Option("--allow-older", help="The reason to take an older release than was here.")
    ] = None,
    rehash: Annotated[bool, typer.Option("--rehash", help="Hash what is in place again, byte for byte.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the alias; keeps MODEL/current.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Watch: seconds between looks.")] = 30.0,
    keep: Annotated[int, typer.Option(min=2, help="Watch: versions to keep on the disk.")] = 3,
    hook: Annotated[str, typer.Option(help="Watch: command to run after a swap; gets MODEL VERSION PATH.")] = "",
    health: Annotated[str, typer.Option(help="Watch: command that exits 0 when the new version serves.")] = "",
    layout: Annotated[
        Layout, typer.Option(help="triton: bundles in TO/bundles, and a Triton model repository in TO/repository.")
    ] = Layout.BUNDLE,
    text_model: Text = False,
    container: Container = None,
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Download an engine, verify signature and every byte, and place it in one rename."""
    from registry.bundle.signing import local_trust
    from registry.host.compatibility import read_host
    from registry.serving.fetch import Policy
    from registry.serving.fetch import fetch as place

    if layout is Layout.BUNDLE and (text_model or server):
        raise BadInput("--text-model and --server are Triton's: add --layout triton, or leave them away")
    # What serves brings its own TensorRT: the container's, where one is named.
    host = read_host(tensorrt or tensorrt_in(container))
    policy = Policy(local_trust(home()), None if any_host else host, older=older, rehash=rehash)
    store = _serving_store()
    into, repository = (to, None) if layout is Layout.BUNDLE else triton_folders(to)
    serving = Serving(text_model, container, server, keep)

    def look() -> "Fetched":
        named = alias or (_production_alias(store, model, target, host) if version is None else None)
        return place(store, model, into=into, policy=policy, alias=named, version=version)

    if watch:
        if version is not None or older is not None or as_json or (repository and hook):
            raise BadInput(
                "--watch follows an alias and logs: leave --version, --allow-older and --json away, and --hook with a "
                "layout for Triton"
            )
        runs = triton_hook(repository, serving) if repository else split(hook, "--hook")
        _watch(look, into / model, interval, keep, (runs, split(health, "--health")))
        return
    fetched = look()
    if repository:
        serve_with_triton(model, fetched.version, [fetched.path], repository, serving, as_json=as_json)
    elif as_json:
        print_json(plain(fetched) | {"path": str(fetched.path)})
    else:
        how = "was there already, intact" if fetched.reused else "fetched and verified"
        out.print(f"{model} version {fetched.version} {how}: {fetched.path}", highlight=False, soft_wrap=True)


def split(command: str, option: str) -> tuple[str, ...]:
    """A command as a shell would split it.

    Raises:
        BadInput: it has an open quote.
    """
    try:
        return tuple(shlex.split(command))
    except ValueError as error:
        raise BadInput(f"{option} has an open quote ({error}): quote it as a shell would") from error


def _watch(
    look: "Callable[[], Fetched]", folder: Path, interval: float, keep: int, commands: tuple[tuple[str, ...], ...]
) -> None:
    import logging
    import time
    from contextlib import suppress

    from registry.serving.watch import Watch, stopped_by_sigterm, watch

    hook, health = commands

    def wait(seconds: float) -> bool:
        time.sleep(seconds)
        return False

    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("registry.serving.watch").setLevel(logging.INFO)
    with suppress(KeyboardInterrupt), stopped_by_sigterm():
        watch(look, folder, Watch(interval, keep, hook, health), wait)
    err.print("stopped; what is current stays", soft_wrap=True)


def verify(bundle: Annotated[Path, typer.Argument(help="A fetched bundle folder.")], as_json: Json = False) -> None:
    """Check a bundle on disk: signature, exact listing, sha256 and size of every file."""
    from registry.bundle.signing import local_trust
    from registry.serving.fetch import verify_placed

    manifest = verify_placed(bundle, local_trust(home()))
    if as_json:
        print_json({"path": str(bundle), "model": manifest.model, "digest": manifest.build.digest, "intact": True})
    else:
        out.print(
            f"{bundle} is intact and signed: {manifest.model}, {manifest.build.target.name} "
            f"{manifest.build.precision}, verdict {manifest.verdict}",
            highlight=False,
            soft_wrap=True,
        )


def run(
    engine: Annotated[str, typer.Argument(help="A model in production, which is fetched first, or a bundle folder.")],
    texts: Annotated[list[str], typer.Argument(help="One or more sentences.")],
    as_json: Json = False,
) -> None:
    """Answer sentences with a fetched engine; it is verified before it is loaded."""
    need("onnxruntime", "tokenizers", what="run")
    from registry.bundle.signing import local_trust
    from registry.host.compatibility import read_host
    from registry.serving.fetch import Policy, verify_placed
    from registry.serving.fetch import fetch as place
    from tasks.bundle.answer import answer

    bundle, trust = Path(engine), local_trust(home())
    if bundle.is_dir():
        verify_placed(bundle, trust)
    else:
        store, host = open_store(), read_host()
        alias = _production_alias(store, engine, "auto", host)
        bundle = place(store, engine, into=home() / "models", policy=Policy(trust, host), alias=alias).path
    answers = answer(bundle, texts)
    if as_json:
        print_json([plain(given) for given in answers])
        return
    for given in answers:
        out.print(escape(given.line), highlight=False)


def _serving_store() -> Any:
    from registry.mlflow.rest import QuickStore, is_plain

    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    return QuickStore(uri, open_store) if is_plain(uri) else open_store()


def _production_alias(store: Any, model: str, target: str, host: "Host") -> str:
    from registry.host.compatibility import local_target, production_engines

    return production_alias(local_target(production_engines(store, model), model, host) if target == "auto" else target)
