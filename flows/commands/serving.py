"""On a serving host: `fetch`, `verify`, `run`. Only `run` needs more than the base install."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from flows.commands.shared import Json, need, open_store, out, plain, print_json
from registry.home import home


def fetch(
    model: str,
    target: Annotated[
        str, typer.Option("--target", help="Fetch production-TARGET; auto picks it for the local GPU, or the CPU.")
    ] = "auto",
    alias: Annotated[str | None, typer.Option(help="Fetch this alias instead, such as candidate-cpu.")] = None,
    version: Annotated[int | None, typer.Option(help="Fetch this version instead.")] = None,
    to: Annotated[Path, typer.Option("--to", help="The folder to place MODEL/VERSION in.")] = Path("models"),
    as_json: Json = False,
) -> None:
    """Download an engine, verify every byte against its manifest, and place it in one rename."""
    from registry.fetch import fetch as place

    store = open_store()
    if alias is None and version is None:
        alias = _production_alias(store, model, target)
    fetched = place(store, model, into=to, alias=alias, version=version)
    if as_json:
        print_json(plain(fetched) | {"path": str(fetched.path)})
    else:
        how = "was there already, intact" if fetched.reused else "fetched and verified"
        out.print(f"{model} version {fetched.version} {how}: {fetched.path}", highlight=False, soft_wrap=True)


def verify(bundle: Annotated[Path, typer.Argument(help="A fetched bundle folder.")], as_json: Json = False) -> None:
    """Check a bundle on disk: exact listing, sha256 and size of every file."""
    from registry.manifest import verify_bundle

    manifest = verify_bundle(bundle)
    if as_json:
        print_json({"path": str(bundle), "model": manifest.model, "digest": manifest.build.digest, "intact": True})
    else:
        out.print(
            f"{bundle} is intact: {manifest.model}, {manifest.build.target.name} {manifest.build.precision}, "
            f"verdict {manifest.verdict}",
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
    from registry.fetch import fetch as place
    from tasks.answer import answer

    bundle = Path(engine)
    if not bundle.is_dir():
        store = open_store()
        alias = _production_alias(store, engine, "auto")
        bundle = place(store, engine, into=home() / "models", alias=alias).path
    answers = answer(bundle, texts)
    if as_json:
        print_json([plain(given) for given in answers])
        return
    for given in answers:
        out.print(f"[bold]{escape(given.label)}[/] ({given.score:.0%})  {escape(given.text)}", highlight=False)


def _production_alias(store: Any, model: str, target: str) -> str:
    from registry.promotion import production_alias
    from registry.targets import local_target

    return production_alias(local_target(store.versions(model), model) if target == "auto" else target)
