"""What a registry must do, in domain values only: the interface that MLflow and the tests' memory store implement."""

from collections.abc import Collection, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from registry.errors import NotFound
from registry.records import EngineManifest, EngineVersion, PromotionEvent


class BundleFiles(Protocol):
    """The files of one published bundle, wherever the registry stores them."""

    @property
    def ranged(self) -> bool:
        """Whether a part of a file costs only that part, and parts read one by one fit together."""

    def read(self, path: str, start: int = 0, stop: int | None = None) -> Generator[bytes]:
        """Yield the bytes from `start` to before `stop` of one file, in chunks; all of it if not `ranged`.

        Neither their length nor their sha256 is checked here.

        Raises:
            NotFound: the file does not exist.
            Interrupted: a server failed or a connection broke; trying again may help.
            EngineryError: it cannot be read.
        """


@dataclass(frozen=True)
class Bundle:
    """A published bundle: manifest.json with the sha256 recorded at publishing, the signature, and the files."""

    manifest: bytes
    signature: bytes | None
    files: BundleFiles


class Lease(Protocol):
    """The right to promote one model, for a limited time."""

    @property
    def fencing(self) -> int:
        """A number that grows with every holder of the model's lease."""

    def guard(self) -> AbstractContextManager[object]:
        """Keep everyone else from taking the lease until the block ends; write inside of it.

        Raises:
            PromotionRefused: another holder took the lease meanwhile; nothing was written.
        """


class Leases(Protocol):
    """Where a registry's leases are stored."""

    # Whether every host that reaches the registry sees the same lease.
    shared: bool

    def hold(self, model: str) -> AbstractContextManager[Lease]:
        """Wait for the model's lease and hold it until the block ends; not re-entrant.

        Raises:
            PromotionRefused: another holder did not finish in time.
        """


class ServingStore(Protocol):
    """The part of a registry that a serving host reads. An unknown model has no aliases or events; that is no error."""

    def aliases(self, model: str) -> dict[str, int]:
        """Return the model's aliases, each with its version number."""

    def version(self, model: str, version: int) -> EngineVersion:
        """Return one complete version.

        Raises:
            NotFound: the model has no such version.
            TornBundle: it is incomplete.
        """

    def versions(self, model: str | None = None, *, newest: int | None = None) -> tuple[EngineVersion, ...]:
        """Return the complete versions of one model, or of all, by model and number; or only the `newest` so many."""

    def resolve(self, model: str, alias: str) -> EngineVersion:
        """Return the version that an alias points at.

        Raises:
            NotFound: no such model or alias.
        """

    def open_bundle(self, model: str, version: int) -> Bundle:
        """Open the bundle of a complete version; `registry.serving.download` copies and checks its files.

        Raises:
            NotFound, TornBundle: as `version`.
            DigestMismatch: its manifest was changed after publishing.
            BadInput: its manifest or signature is larger than any can be.
        """

    def events(
        self, model: str, *, alias: str | None = None, outcome: str | None = None, newest: int | None = None
    ) -> tuple[PromotionEvent, ...]:
        """Return the model's history, oldest first: of one alias, of one outcome, or the `newest` so many."""


class Store(ServingStore, Protocol):
    """A registry of engines. An unknown model has no versions; that is no error."""

    def publish(self, manifest: EngineManifest, directory: Path, *, run_id: str | None = None) -> EngineVersion:
        """Publish the bundle in `directory` as a version, visible only once it is whole and read back.

        An engine already published by the same release for the same target with the same verdict (model, build_key,
        digest) is returned as it is, and so is one whose publishing was interrupted after everything was in place. A
        signature in the folder is stored as it is: the store does not sign, and trusts nobody.

        Raises:
            BadInput: the manifest breaks the format, or `run_id` already holds another published bundle.
            TornBundle, DigestMismatch: the folder, or what was read back, is not what the manifest lists.
            EngineryError: the registry or a disk failed (nothing is visible), or the sequence number was given twice.
        """

    def take_sequence(self, model: str) -> int:
        """Return a sequence number for the next engine of `model`: higher than any before, and never given again.

        Raises:
            PromotionRefused: another process held the model's lock for too long.
        """

    def checked(self, model: str, version: int) -> EngineVersion:
        """Return one complete version whose row agrees with its manifest: tags can be edited in MLflow's own pages.

        Raises:
            NotFound, TornBundle, DigestMismatch: as `manifest`; also if the two disagree.
        """

    def manifest(self, model: str, version: int) -> EngineManifest:
        """Return the manifest of a complete version.

        Raises:
            NotFound, TornBundle: as `version`.
            DigestMismatch: it was changed after publishing.
        """

    def builds(self, build_key: str) -> tuple[EngineVersion, ...]:
        """Return the complete versions with this build key, of any model and target, oldest first."""

    def find_build(self, build_key: str) -> EngineVersion | None:
        """Return the newest complete version with this build key, of any model."""

    def aliased(self, model: str, alias: str) -> int | None:
        """Return the version number that an alias points at, without reading the model's other aliases."""

    def set_alias(self, model: str, alias: str, version: int) -> None:
        """Point an alias at a complete version. Promotion calls this under `lock`.

        Raises:
            BadName: not an alias name.
            NotFound, TornBundle: as `version`.
        """

    def delete_alias(self, model: str, alias: str) -> None:
        """Remove an alias; a missing one is ignored."""

    def append_event(self, event: PromotionEvent) -> None:
        """Add an event to the model's history, which is in the order of the events' ids.

        Raises:
            BadInput: the event's text is too long to be stored whole.
        """

    def finish_event(self, model: str, event_id: str, outcome: str) -> None:
        """Set the outcome of a pending event, once.

        Raises:
            NotFound: no such event.
            BadInput: it already has an outcome: history is append-only.
        """

    def lock(self, model: str) -> "AbstractContextManager[Lease]":
        """Serialise promotion of one model between processes and hosts; not re-entrant.

        Events, and the aliases that they are about, are written inside the lease's `guard`.

        Raises:
            PromotionRefused: another holder did not finish in time.
        """


@dataclass(frozen=True)
class Unfinished:
    """A publishing that a crash interrupted, or that is still running.

    `since_seconds` is seconds since the epoch; `pin` the sha256 that its manifest must have, None if it has no version
    yet. `complete`: the version is published, only its run is still open. `uri` is where its files are.
    """

    model: str
    run_id: str
    version: int | None
    complete: bool
    uri: str
    since_seconds: float
    owner: str | None
    pin: str | None


class Repairable(Protocol):
    """A registry in which a crash can leave something unfinished; registry/repair.py decides what becomes of it."""

    def unfinished(self, model: str | None = None) -> tuple[Unfinished, ...]:
        """Return everything unfinished of one model or of all, left by a crash or still running."""

    def download_unfinished(self, unfinished: Unfinished, into: Path) -> EngineManifest:
        """Copy its files into the folder `into`, if their names are exactly those of a signed bundle.

        Raises:
            TornBundle, DigestMismatch: they are not; the bytes of listed files are not checked here.
            EngineryError: the registry did not answer.
        """

    def finish(self, unfinished: Unfinished, manifest: EngineManifest) -> int:
        """Make a verified bundle a complete version, and return its number.

        Raises:
            TornBundle: the same engine was published meanwhile.
            DigestMismatch: the manifest is another model's.
        """

    def end_run(self, unfinished: Unfinished) -> None:
        """End the run of a complete version."""

    def mark_torn(self, unfinished: Unfinished, reason: str) -> None:
        """Set it aside for good, with the reason."""


def no_alias(model: str, alias: str, aliases: Collection[str]) -> NotFound:
    """Return the error for an alias that a model does not have, with those it has."""
    existing = f"it has {', '.join(sorted(aliases))}" if aliases else "it has none, or there is no such model"
    return NotFound(f"{model} has no alias {alias} ({existing}): promote a version, or name another")


def row_of(manifest: EngineManifest, version: int) -> EngineVersion:
    """Return the registry row of a published manifest, without aliases.

    Metrics of the engine itself have their plain name; those of another subject are prefixed with `subject.`. They are
    in the order of the measurements: what the engine is judged by comes before what is only reported.
    """
    build = manifest.build
    machine = next((m.measured_on for m in manifest.measurements if m.subject == "engine"), None)
    metrics = {m.name: m.value for m in manifest.measurements}
    return EngineVersion(
        model=manifest.model,
        version=version,
        target=build.target.name,
        precision=build.precision,
        backend=build.backend,
        verdict=manifest.verdict,
        reason=manifest.reason[:5000],
        aliases=(),
        digest=build.digest,
        build_key=build.build_key,
        release=manifest.release,
        sequence=manifest.sequence,
        size_bytes=build.size_bytes,
        metrics=tuple({**metrics, "build_seconds": build.build_seconds}.items()),
        measured_on=machine.label if machine else "",
        compute_capability=build.target.compute_capability,
        backend_version=build.backend_version,
        minimum_driver=manifest.minimum_driver,
        format_version=manifest.format_version,
        complete=True,
    )


def require_engines(store: ServingStore, model: str) -> None:
    """Check that a model has engines in the registry.

    Raises:
        NotFound: it has none; the message names the models that have some.
    """
    if store.versions(model, newest=1):
        return
    models = ", ".join(sorted({engine.model for engine in store.versions()}))
    known = f"it has {models}" if models else "it is empty: run `enginery release RECIPE` first"
    raise NotFound(f"the registry has no engine of {model!r}; {known}")
