"""The registry in memory: the same Protocol as MlflowStore, for tests of the code that uses it."""

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from threading import Lock

from registry.bundle.manifest import (
    MANIFEST_FILE,
    SIGNATURE_FILE,
    UNLISTED,
    check_agrees,
    read_manifest,
    write_manifest,
)
from registry.digest import record_file, verify_tree
from registry.errors import BadInput, DigestMismatch, EngineryError, NotFound
from registry.names import check_name
from registry.records import EngineManifest, EngineVersion, PromotionEvent
from registry.store import Bundle, Lease, no_alias, row_of


class MemoryFiles:
    """`BundleFiles` in memory, read in small chunks."""

    def __init__(self, files: dict[str, bytes], *, ranged: bool = True) -> None:
        self.files, self.ranged = files, ranged

    def read(self, path: str, start: int = 0, stop: int | None = None) -> Generator[bytes]:
        if path not in self.files:
            raise NotFound(f"no {path}")
        content = self.files[path][start:stop] if self.ranged else self.files[path]
        yield from (content[at : at + 1000] for at in range(0, len(content), 1000))


@dataclass(frozen=True)
class MemoryLease:
    """A lease that nobody can take away."""

    fencing: int

    def guard(self) -> AbstractContextManager[object]:
        return nullcontext()


class MemoryStore:
    """`Store` in memory."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], EngineVersion] = {}
        self.files: dict[tuple[str, int], dict[str, bytes]] = {}
        self._pins: dict[tuple[str, int], str] = {}
        self._runs: set[str] = set()
        self._aliases: dict[str, dict[str, int]] = {}
        self._events: dict[str, list[PromotionEvent]] = {}
        self._sequences: dict[str, int] = {}
        self._fencing: dict[str, int] = {}
        self._lock = Lock()

    def publish(self, manifest: EngineManifest, directory: Path, *, run_id: str | None = None) -> EngineVersion:
        raw = write_manifest(manifest)
        unlisted = [record_file(directory / name, root=directory) for name in UNLISTED if (directory / name).is_file()]
        verify_tree(directory, (*manifest.files, *unlisted))
        new = row_of(manifest, 0)
        for row in self.versions(manifest.model):
            if all(getattr(row, name) == getattr(new, name) for name in ("build_key", "digest", "release", "target")):
                return row
        if any(row.sequence == new.sequence for row in self.versions(manifest.model)):
            raise EngineryError(f"sequence {new.sequence} of {manifest.model} is taken")
        if run_id in self._runs:
            raise BadInput(f"run {run_id} already holds a published engine")
        if run_id:
            self._runs.add(run_id)
        key = (manifest.model, 1 + max((n for name, n in self.rows if name == manifest.model), default=0))
        names = [record.path for record in (*manifest.files, *unlisted)]
        self.files[key] = {name: (directory / name).read_bytes() for name in names} | {MANIFEST_FILE: raw}
        self._pins[key] = sha256(raw).hexdigest()
        self.rows[key] = replace(new, version=key[1])
        return self.version(*key)

    def take_sequence(self, model: str) -> int:
        with self.lock(model):
            highest = max((row.sequence for row in self.versions(model)), default=0)
            self._sequences[model] = 1 + max(highest, self._sequences.get(model, 0))
            return self._sequences[model]

    def versions(self, model: str | None = None, *, newest: int | None = None) -> tuple[EngineVersion, ...]:
        if model is not None:
            check_name(model, what="model")
        keys = [key for key in self.rows if model in (None, key[0])]  # in the order they were published
        return tuple(self.version(*key) for key in sorted(keys[-newest:] if newest else keys))

    def version(self, model: str, version: int) -> EngineVersion:
        if (row := self.rows.get((model, version))) is None:
            raise NotFound(f"no {model} version {version}")
        aliases = self.aliases(model).items()
        return replace(row, aliases=tuple(sorted(alias for alias, number in aliases if number == version)))

    def checked(self, model: str, version: int) -> EngineVersion:
        row = self.version(model, version)
        check_agrees(row, self.manifest(model, version))
        return row

    def manifest(self, model: str, version: int) -> EngineManifest:
        self.version(model, version)
        raw = self.files[model, version][MANIFEST_FILE]
        if sha256(raw).hexdigest() != self._pins[model, version]:
            raise DigestMismatch(f"the manifest of {model} version {version} was changed")
        return read_manifest(raw)

    def builds(self, build_key: str) -> tuple[EngineVersion, ...]:
        return tuple(row for row in self.versions() if row.build_key == build_key)

    def find_build(self, build_key: str) -> EngineVersion | None:
        return next(reversed(self.builds(build_key)), None)

    def aliases(self, model: str) -> dict[str, int]:
        return dict(self._aliases.get(check_name(model, what="model"), {}))

    def aliased(self, model: str, alias: str) -> int | None:
        return self.aliases(model).get(check_name(alias, what="alias"))

    def resolve(self, model: str, alias: str) -> EngineVersion:
        if (version := self.aliases(model).get(alias)) is None:
            raise no_alias(model, alias, self.aliases(model))
        return self.version(model, version)

    def set_alias(self, model: str, alias: str, version: int) -> None:
        self.version(model, version)
        self._aliases.setdefault(model, {})[check_name(alias, what="alias")] = version

    def delete_alias(self, model: str, alias: str) -> None:
        self._aliases.get(model, {}).pop(alias, None)

    def open_bundle(self, model: str, version: int) -> Bundle:
        self.manifest(model, version)
        files = self.files[model, version]
        return Bundle(files[MANIFEST_FILE], files.get(SIGNATURE_FILE), MemoryFiles(files))

    def append_event(self, event: PromotionEvent) -> None:
        if len(event.why) > 7000:
            raise BadInput("the promotion's text is too long")
        self._events.setdefault(event.model, []).append(event)

    def finish_event(self, model: str, event_id: str, outcome: str) -> None:
        for index, event in enumerate(self._events.get(model, ())):
            if event.event == event_id:
                if event.outcome != "pending":
                    raise BadInput(f"event {event_id} is {event.outcome} already")
                self._events[model][index] = replace(event, outcome=outcome)
                return
        raise NotFound(f"{model} has no promotion event {event_id}")

    def events(
        self, model: str, *, alias: str | None = None, outcome: str | None = None, newest: int | None = None
    ) -> tuple[PromotionEvent, ...]:
        matching = [
            event
            for event in sorted(self._events.get(model, ()), key=lambda event: event.event)
            if alias in (None, event.alias) and outcome in (None, event.outcome)
        ]
        return tuple(matching[-newest:] if newest else matching)

    @contextmanager
    def lock(self, model: str) -> Iterator[Lease]:
        check_name(model, what="model")
        with self._lock:
            self._fencing[model] = self._fencing.get(model, 0) + 1
            yield MemoryLease(self._fencing[model])
