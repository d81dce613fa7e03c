"""On a serving host: `fetch`, `verify`, `run`. Only `run` needs more than the base install."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from flows.commands.console import Json, err, need_run, out, plain, print_json
from registry.errors import BadInput, GoldenMismatch, Incompatible
from registry.host.home import home
from registry.names import check_name, production_alias

if TYPE_CHECKING:
    from registry.host.compatibility import Host
    from registry.records import EngineManifest
    from registry.serving.fetch import Fetched
    from registry.store import ServingStore
    from tasks.bundle.answer import Answer
    from tasks.bundle.check_golden import GoldenCheck
    from tasks.bundle.task import TrustModule

Model = Annotated[str, typer.Argument(help="The model's name in the registry; `enginery list` shows all.")]
Target = Annotated[
    str, typer.Option("--target", help="Fetch production-TARGET; auto picks the target of the local GPU, or the CPU.")
]
Alias = Annotated[
    str | None, typer.Option("--alias", help="Fetch this alias, such as candidate-cpu, instead of a target's.")
]
Version = Annotated[int | None, typer.Option("--version", help="Fetch this version instead of an alias.")]
To = Annotated[Path, typer.Option("--to", help="The folder that gets MODEL/VERSION.")]
AnyHost = Annotated[bool, typer.Option("--any-host", help="Fetch for another machine: skip the check of this GPU.")]
TensorRT = Annotated[
    str | None,
    typer.Option(
        "--tensorrt", help="The version of TensorRT (or TensorRT-RTX) that will load the engine; default: installed."
    ),
]
Older = Annotated[
    str | None,
    typer.Option("--allow-older", help="The reason to accept an older release than this host has served; recorded."),
]
Unrecorded = Annotated[
    bool,
    typer.Option("--allow-unrecorded", help="Accept a production alias that was moved without `enginery promote`."),
]
Rehash = Annotated[bool, typer.Option("--rehash", help="Hash every byte of a bundle that is in place already.")]


AllowModule = Annotated[
    bool,
    typer.Option("--allow-module", help="Run the task's own Python code that the bundle carries (`task: module`)."),
]
Module = Annotated[
    Path | None,
    typer.Option("--module", help="Run that code only where it is, byte for byte, this file of yours."),
]


@dataclass(frozen=True)
class Selection:
    """The engine of a model to fetch, and the host it is for: options that all fetching commands share."""

    target: str = "auto"
    alias: str | None = None
    version: int | None = None
    any_host: bool = False
    tensorrt: str | None = None
    older: str | None = None
    unrecorded: bool = False
    rehash: bool = False


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
    as_json: Json = False,
) -> None:
    """Download an engine, verify its signature and every byte, and place it in one rename.

    An engine that does not load on this host is refused before the download. So are an older release than this host
    has served, and a production alias that was moved without `enginery promote`. A download that was interrupted
    resumes. A bundle that is in place and intact is kept, so that the command can run at each start of a server.

    For example, `enginery fetch sst2 --to /srv/models` places /srv/models/sst2/7.

    See also `enginery watch`, which follows the alias, and `enginery triton fetch`, which feeds a Triton server.
    """
    fetched = open_fetch(model, to, Selection(target, alias, version, any_host, tensorrt, older, unrecorded, rehash))()
    if as_json:
        engine = {"model": fetched.manifest.model, "digest": fetched.manifest.build.digest}
        print_json(engine | {"version": fetched.version, "path": str(fetched.path), "reused": fetched.reused})
        return
    how = "was in place already, intact" if fetched.reused else "fetched and verified"
    out.print(f"{model} version {fetched.version} {how}: {fetched.path}", highlight=False, soft_wrap=True)
    _note_other_cpu(fetched.manifest)


def open_fetch(model: str, into: Path, selection: Selection) -> "Callable[[], Fetched]":
    """Return a function that fetches the selected engine; each call resolves the alias again.

    Raises:
        BadInput: this host trusts no publisher, `selection.tensorrt` is not a version, or the registry is unusable.
    """
    from registry.bundle.signing import local_trust
    from registry.host.compatibility import read_host
    from registry.mlflow.quick.open import open_to_read
    from registry.serving.fetch import Policy
    from registry.serving.fetch import fetch as fetch_bundle

    host = read_host(selection.tensorrt)
    accepted_host = None if selection.any_host else host
    with _name_unknown_model(model):
        trust = local_trust(home())
    policy = Policy(
        trust, accepted_host, older=selection.older, unrecorded=selection.unrecorded, rehash=selection.rehash
    )
    store = open_to_read()

    def fetch_selected() -> "Fetched":
        alias = selection.alias
        with _name_unknown_model(model):
            if alias is None and selection.version is None:
                alias = _find_production_alias(store, model, selection.target, host)
            return fetch_bundle(store, model, into=into, policy=policy, alias=alias, version=selection.version)

    return fetch_selected


@contextmanager
def _name_unknown_model(model: str) -> Iterator[None]:
    """Say of a model without engines which models there are, whatever else is wrong: nothing helps before that.

    The registry is asked only where something is wrong, so a fetch that works costs no request more.
    """
    try:
        yield
    except BadInput:
        from registry.mlflow.quick.open import open_to_read
        from registry.store import require_engines

        require_engines(open_to_read(), check_name(model, what="model"))
        raise


def verify(
    bundle: Annotated[Path, typer.Argument(help="A fetched bundle's folder.")],
    golden: Annotated[
        bool, typer.Option("--golden", help="Run the bundle's golden inputs here, and compare with what it recorded.")
    ] = False,
    allow_module: AllowModule = False,
    module: Module = None,
    as_json: Json = False,
) -> None:
    """Check a bundle on disk: its signature, the exact list of files, and the sha256 and size of each.

    For example, `enginery verify models/sst2/7`. It needs no registry, only the publisher's key: set
    ENGINERY_VERIFY_KEY or ENGINERY_VERIFY_ROOTS on a host other than the publisher's.

    With --golden this host prepares the inputs that travel with the bundle and runs the engine on them. Exit code 4:
    it prepares or answers them otherwise than where the engine was released. Exit code 2: it cannot run the engine,
    or the bundle has none.
    """
    from registry.bundle.signing import local_trust
    from registry.serving.fetch import verify_placed

    if golden:
        need_run("verify --golden")
    if bundle.is_dir():
        bundle = bundle.resolve()  # `current` may move between two reads
    manifest = verify_placed(bundle, local_trust(home()))
    if not as_json:
        out.print(
            f"{bundle} is intact and signed: {manifest.model}, {manifest.build.target.name} "
            f"{manifest.build.precision}, verdict {manifest.verdict}",
            highlight=False,
            soft_wrap=True,
        )
    checks = _run_golden(bundle, manifest, module or allow_module, as_json=as_json) if golden else ()
    if as_json:
        intact = {"path": str(bundle), "model": manifest.model, "digest": manifest.build.digest, "intact": True}
        print_json(intact | ({"golden": [plain(check) for check in checks]} if golden else {}))
    if differing := [check.problem for check in checks if check.outcome == "differs"]:
        raise GoldenMismatch("; ".join(differing))
    if not_run := [check.problem for check in checks if check.problem]:
        raise Incompatible("; ".join(not_run))


def _run_golden(
    bundle: Path, manifest: "EngineManifest", trust_module: "TrustModule", *, as_json: bool
) -> "Sequence[GoldenCheck]":
    from tasks.bundle.check_golden import check_golden

    checks = check_golden(bundle, manifest, trust_module=trust_module)
    for check in () if as_json else checks:
        out.print(escape(check.line), highlight=False, soft_wrap=True)
    return checks


def run(
    engine: Annotated[str, typer.Argument(help="A model in production, which is fetched first, or a bundle's folder.")],
    inputs: Annotated[
        list[str],
        typer.Argument(help="One or more inputs of the model's task: texts, files of images or audio, or JSON."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", help="Write the answer to one input here, where it is a file: a map of classes, .png."
        ),
    ] = None,
    allow_module: AllowModule = False,
    module: Module = None,
    as_json: Json = False,
) -> None:
    """Answer inputs with an engine, which is verified before it is loaded.

    For example, `enginery run sst2 "a charming film"`, or `enginery run digits seven.png`. A classifier answers
    with a label and its probability. `enginery run scenes street.png --output map.png` writes the class of each pixel
    of semantic segmentation, numbered as in its masks. An engine of `task: module` answers by Python code that its
    bundle carries: that runs only with --allow-module or --module.
    """
    need_run("run")
    from registry.bundle.signing import local_trust
    from registry.serving.fetch import verify_placed
    from tasks.bundle.answer import answer

    if Path(engine).is_dir():
        bundle = Path(engine).resolve()  # `current` may move between two reads
        manifest = verify_placed(bundle, local_trust(home()))
    else:
        fetched = open_fetch(engine, home() / "models", Selection())()
        bundle, manifest = fetched.path, fetched.manifest
    if output is not None:
        _check_output(output, manifest, inputs)
    answers = answer(bundle, manifest, inputs, trust_module=module or allow_module)
    if output is not None:
        _write_answer(answers[0], output)
    if as_json:
        print_json([plain(each.shown) for each in answers])
        return
    for each in answers:
        out.print(escape(each.shown.line), highlight=False)
    if output is not None:
        out.print(f"written to {output}", highlight=False, soft_wrap=True)
    _note_other_cpu(manifest)


def _check_output(output: Path, manifest: "EngineManifest", inputs: "Sequence[str]") -> None:
    from tasks.model_tasks import model_task

    ending = model_task(manifest.source.task).answer_file
    if ending is None:
        raise BadInput(
            f"the answers of {manifest.model} ({manifest.source.task}) are no files: leave --output out, or save what "
            "--json prints"
        )
    if output.suffix.lower() != ending:
        raise BadInput(f"--output {output}: an answer of {manifest.model} is a {ending} file: give it that ending")
    if len(inputs) > 1:
        raise BadInput(f"--output writes one answer, and there are {len(inputs)} inputs: run them one by one")


def _write_answer(answer: "Answer", output: Path) -> None:
    try:
        output.write_bytes(answer.file or b"")
    except OSError as error:
        raise BadInput(f"{output} cannot be written ({error.strerror}): choose another file") from None


def _note_other_cpu(manifest: "EngineManifest") -> None:
    from registry.host.compatibility import note_other_cpu
    from registry.host.cpu import read_cpu

    if (note := note_other_cpu(manifest, read_cpu())) is not None:
        err.print(f"note: {manifest.model} was {note}", highlight=False, soft_wrap=True)


def _find_production_alias(store: "ServingStore", model: str, target: str, host: "Host") -> str:
    from registry.host.compatibility import local_target, production_engines

    return production_alias(local_target(production_engines(store, model), model, host) if target == "auto" else target)
