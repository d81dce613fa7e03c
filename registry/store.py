"""What the registry must do, in domain values only: the seam that MLflow and the tests' memory plug into."""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from registry.errors import NotFound
from registry.records import EngineManifest, EngineVersion, PromotionEvent


class BundleFiles(Protocol):
    """The files of one published bundle, wherever the registry keeps them."""

    @property
    def ranged(self) -> bool:
        """Whether a part of a file is read for the cost of that part, and parts read one by one fit together."""

    def read(self, path: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` to before `stop` of one file, in pieces; all of it where not `ranged`.

        What comes is not checked here, neither its length nor its sha256.

        Raises:
            NotFound: there is no such file.
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
    """One turn at a model."""

    @property
    def fencing(self) -> int:
        """Grows with every holder of the model."""

    def guard(self) -> AbstractContextManager[object]:
        """Write inside of this: no one else takes the lease until it ends.

        Raises:
            PromotionRefused: someone took the lease over since; nothing was written.
        """


class Leases(Protocol):
    """Where a registry's leases are kept."""

    # Whether every host that reaches the registry meets the same lease.
    shared: bool

    def hold(self, model: str) -> AbstractContextManager[Lease]:
        """Wait for one's turn, and keep it until the block ends; not re-entrant.

        Raises:
            PromotionRefused: another holder did not finish in time.
        """


class Store(Protocol):
    """A registry of engines. An unknown model has no versions, aliases or events; that is no error."""

    def publish(self, manifest: EngineManifest, directory: Path, *, run_id: str | None = None) -> EngineVersion:
        """Make the bundle in `directory` a version, visible only once it is whole and read back.

        An engine already published by the same release for the same target (model, build_key, digest) is returned
        as it is, and so is one whose publishing was interrupted after everything was in place. A signature in the
        folder is carried as it is: who signs, and whom to trust, is not the store's to say.

        Raises:
            BadInput: the manifest breaks the format, or `run_id` already holds another published bundle.
            TornBundle, DigestMismatch: the folder, or what was read back, is not what the manifest lists.
            EngineryError: the registry or a disk failed (nothing is visible), or the sequence number was given twice.
        """

    def take_sequence(self, model: str) -> int:
        """A sequence number for the next engine of `model`: higher than any before, and never given again.

        Raises:
            PromotionRefused: the model's lock was not to be had.
        """

    def versions(self, model: str | None = None, *, newest: int | None = None) -> tuple[EngineVersion, ...]:
        """Every complete version of one model, or of all, by model and number; or only the `newest` so many."""

    def version(self, model: str, version: int) -> EngineVersion:
        """One complete version.

        Raises:
            NotFound: there is none of that number.
            TornBundle: its publishing never ended.
        """

    def checked(self, model: str, version: int) -> EngineVersion:
        """One complete version whose row says what its manifest says: tags can be edited in MLflow's own pages.

        Raises:
            NotFound, TornBundle, DigestMismatch: as `manifest`; also where the two disagree.
        """

    def manifest(self, model: str, version: int) -> EngineManifest:
        """The manifest of a complete version.

        Raises:
            NotFound, TornBundle: as `version`.
            DigestMismatch: it is not the manifest that was published.
        """

    def builds(self, build_key: str) -> tuple[EngineVersion, ...]:
        """Every complete version with this build key, of any model and target, oldest first."""

    def find_build(self, build_key: str) -> EngineVersion | None:
        """The newest complete version with this build key, of any model."""

    def aliases(self, model: str) -> dict[str, int]:
        """Alias to version number."""

    def aliased(self, model: str, alias: str) -> int | None:
        """The version number an alias points at, without reading the model's other aliases."""

    def resolve(self, model: str, alias: str) -> EngineVersion:
        """The version an alias points at.

        Raises:
            NotFound: no such model or alias.
        """

    def set_alias(self, model: str, alias: str, version: int) -> None:
        """Point an alias at a complete version. Promotion calls this under `lock`.

        Raises:
            BadName: not an alias name.
            NotFound, TornBundle: as `version`.
        """

    def delete_alias(self, model: str, alias: str) -> None:
        """Remove an alias; one that is not there is fine."""

    def open_bundle(self, model: str, version: int) -> Bundle:
        """The bundle of a complete version, for reading; `registry.serving.download` copies and checks its files.

        Raises:
            NotFound, TornBundle, DigestMismatch: as `manifest`.
            BadInput: its manifest or signature is larger than any can be.
        """

    def append_event(self, event: PromotionEvent) -> None:
        """Add a line to the model's history, which is in the order of the events' ids.

        Raises:
            BadInput: the event's text is too long to keep whole.
        """

    def finish_event(self, model: str, event_id: str, outcome: str) -> None:
        """Give a pending event its outcome, once.

        Raises:
            NotFound: no such event.
            BadInput: it already has an outcome: history is append-only.
        """

    def events(
        self, model: str, *, alias: str | None = None, outcome: str | None = None, newest: int | None = None
    ) -> tuple[PromotionEvent, ...]:
        """The model's history, oldest first: of one alias, of one outcome, the `newest` so many."""

    def lock(self, model: str) -> "AbstractContextManager[Lease]":
        """Serialise promotion of one model between processes and hosts; not re-entrant.

        Events, and aliases that events speak of, are written inside the lease's `guard`.

        Raises:
            PromotionRefused: another holder did not finish in time.
        """


@dataclass(frozen=True)
class Unfinished:
    """What a publish left that did not come to its end, or is still at work on.

    `since_seconds` is seconds since the epoch; `pin` the sha256 that its manifest must have, None where no version
    was made yet. `complete`: only the run is open still.
    """

    model: str
    run_id: str
    version: int | None
    complete: bool
    source: str
    since_seconds: float
    owner: str | None
    pin: str | None


class Repairable(Protocol):
    """A registry in which a crash leaves things behind; what becomes of them is decided in registry/repair.py."""

    def unfinished(self, model: str | None = None) -> tuple[Unfinished, ...]:
        """What is not finished, of one model or of all: left by a crash, or being worked on."""

    def download_unfinished(self, left: Unfinished, into: Path) -> EngineManifest:
        """Copy what is there into the folder `into`, where its listing is exactly that of a signed bundle.

        Raises:
            TornBundle, DigestMismatch: it is not; the bytes of listed files are not looked at.
            EngineryError: the registry could not be asked.
        """

    def finish(self, left: Unfinished, manifest: EngineManifest) -> int:
        """Make a verified bundle a complete version; its number.

        Raises:
            TornBundle: the same engine was published since.
            DigestMismatch: the manifest is another model's.
        """

    def close(self, left: Unfinished) -> None:
        """End the run of a complete version."""

    def tear(self, left: Unfinished, reason: str) -> None:
        """Set it aside for good, with the reason."""


def no_alias(model: str, alias: str, there: Collection[str]) -> NotFound:
    """The error for an alias that a model does not have, with those it has."""
    found = f"it has {', '.join(sorted(there))}" if there else "it has none, or there is no such model"
    return NotFound(f"{model} has no alias {alias} ({found}): promote a version, or name another")


def row_of(manifest: EngineManifest, version: int) -> EngineVersion:
    """The registry row of a published manifest, without aliases.

    Metrics carry the measured name; those of something else than the engine carry `subject.` before it.
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
        metrics=tuple(sorted({**metrics, "build_seconds": build.build_seconds}.items())),
        measured_on=machine.label if machine else "",
        compute_capability=build.target.compute_capability,
        backend_version=build.backend_version,
        minimum_driver=manifest.minimum_driver,
        format_version=manifest.format_version,
        complete=True,
    )
