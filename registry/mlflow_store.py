"""The registry on MLflow: what is there, aliases and history; publishing is in registry/mlflow_publish.py.

A registered model and an experiment per model name; an engine is a version whose source is its run's artifact
folder `bundle`, and whose tags are its row. A promotion event is a run of its own, made of tags.
"""

import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from pydantic import TypeAdapter

from registry.errors import BadInput, DigestMismatch, NotFound, PromotionRefused, TornBundle
from registry.manifest import MANIFEST_FILE, SIGNATURE_FILE, read_manifest
from registry.mlflow_errors import existing_is_fine, pages, plainly, quotable
from registry.mlflow_publish import COMPLETE, KIND, PIN, STATE, Publications, copy_files
from registry.mlflow_repair import Repairs
from registry.names import check_name
from registry.records import EngineManifest, EngineVersion, PromotionEvent

_ROW = TypeAdapter(EngineVersion)
_EVENT = TypeAdapter(PromotionEvent)
_RECORD, _OUTCOME, _POSITION = "enginery.record", "enginery.outcome", "enginery.position"
_PAGE = 1000
# MLflow cuts a run's tag at 8000 characters without a word; a record is kept whole or refused.
_MAX_RECORD = 8000
_LOCK_SECONDS = 60.0


def embedded_store(home: Path) -> "MlflowStore":
    """The registry without a server: SQLite and artifacts under `home` (ENGINERY_HOME)."""
    home.mkdir(parents=True, exist_ok=True)
    return MlflowStore(f"sqlite:///{home.absolute()}/mlflow.db", home, home / "artifacts")


class MlflowStore:
    """`Store` on an MLflow tracking and registry server, or on a database of its own.

    `artifact_root` is where a new model's artifacts go; None leaves it to the server. `state_directory` holds
    locks and what is read back after an upload.
    """

    def __init__(self, tracking_uri: str, state_directory: Path, artifact_root: Path | None = None) -> None:
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._uri = tracking_uri
        self.client = MlflowClient(tracking_uri, tracking_uri)
        self._state = state_directory
        self._artifact_root = artifact_root
        # Asked for late: a lock is the store's own, and may be another one by then.
        self._publications = Publications(
            self.client, self._files, self.experiment, self._scratch, lambda model: self.lock(model)
        )
        self.repairs = Repairs(self._publications)

    def publish(self, manifest: EngineManifest, directory: Path, *, run_id: str | None = None) -> EngineVersion:
        """See `Store.publish`."""
        return self.version(manifest.model, self._publications.publish(manifest, directory, run_id))

    def take_sequence(self, model: str) -> int:
        """See `Store.take_sequence`."""
        return self._publications.take_sequence(model)

    def versions(self, model: str | None = None) -> tuple[EngineVersion, ...]:
        """See `Store.versions`."""
        named = f"name = '{check_name(model, what='model')}' and " if model else ""
        found = self._search_versions(f"{named}tags.{STATE} = '{COMPLETE}'")
        # A search leaves the aliases of a version empty: they come from the registered model.
        aliases = {name: self.aliases(name) for name in {version.name for version in found}}
        rows = (_row(version, aliases[version.name]) for version in found)
        return tuple(sorted(rows, key=lambda row: (row.model, row.version)))

    def version(self, model: str, version: int) -> EngineVersion:
        """See `Store.version`."""
        return _row(self._complete(model, version), self.aliases(model))

    def manifest(self, model: str, version: int) -> EngineManifest:
        """See `Store.manifest`."""
        with self._scratch() as scratch:
            return self._manifest(model, version, scratch)

    def builds(self, build_key: str) -> tuple[EngineVersion, ...]:
        """See `Store.builds`."""
        key = quotable(build_key)
        found = self._search_versions(f"tags.build_key = '{key}' and tags.{STATE} = '{COMPLETE}'")
        aliases = {name: self.aliases(name) for name in {version.name for version in found}}
        oldest_first = sorted(found, key=lambda version: (version.creation_timestamp, int(version.version)))
        return tuple(_row(version, aliases[version.name]) for version in oldest_first)

    def find_build(self, build_key: str) -> EngineVersion | None:
        """See `Store.find_build`."""
        return next(reversed(self.builds(build_key)), None)

    def aliases(self, model: str) -> dict[str, int]:
        """See `Store.aliases`."""
        try:
            with plainly(f"aliases of {model}"):
                found = self.client.get_registered_model(check_name(model, what="model")).aliases
        except NotFound:
            return {}
        return {alias: int(version) for alias, version in found.items()}

    def resolve(self, model: str, alias: str) -> EngineVersion:
        """See `Store.resolve`."""
        if (version := self.aliases(model).get(alias)) is None:
            raise NotFound(f"{model} has no alias {alias}: promote a version, or list the model's aliases")
        return self.version(model, version)

    def set_alias(self, model: str, alias: str, version: int) -> None:
        """See `Store.set_alias`."""
        self._complete(model, version)
        check_name(alias, what="alias")
        with plainly(f"alias {alias} of {model}"):
            _retry(lambda: self.client.set_registered_model_alias(model, alias, str(version)))

    def delete_alias(self, model: str, alias: str) -> None:
        """See `Store.delete_alias`."""
        if alias in self.aliases(model):
            with plainly(f"alias {alias} of {model}"):
                self.client.delete_registered_model_alias(model, alias)

    def download(self, model: str, version: int, into: Path) -> EngineManifest:
        """See `Store.download`."""
        manifest = self._manifest(model, version, into)
        source = self._complete(model, version).source
        with plainly(f"{model} version {version}"):
            # The listed files only: what was added to the run since is not copied to a host.
            copy_files(self._files(source), [record.path for record in manifest.files], into)
            if any(item.path == SIGNATURE_FILE for item in self._files(source).list_artifacts()):
                copy_files(self._files(source), [SIGNATURE_FILE], into)
        return manifest

    def append_event(self, event: PromotionEvent) -> None:
        """See `Store.append_event`."""
        record = json.dumps(asdict(event))
        if len(record) > _MAX_RECORD:
            raise BadInput(f"the promotion's text has {len(record)} characters; {_MAX_RECORD} are kept: shorten it")
        runs = self._event_runs(event.model)
        if any(run.info.run_name == event.event for run in runs):
            raise BadInput(f"event {event.event} is already in the history of {event.model}")
        tags = {KIND: "promotion", _RECORD: record, _OUTCOME: event.outcome, _POSITION: str(len(runs))}
        with plainly(f"history of {event.model}"):
            self.client.create_run(self.experiment(event.model), tags=tags, run_name=event.event)

    def finish_event(self, model: str, event_id: str, outcome: str) -> None:
        """See `Store.finish_event`."""
        run = next((run for run in self._event_runs(model) if run.info.run_name == event_id), None)
        if run is None:
            raise NotFound(f"{model} has no promotion event {event_id}")
        if run.data.tags[_OUTCOME] != "pending":
            raise BadInput(f"event {event_id} of {model} is {run.data.tags[_OUTCOME]} already: history is append-only")
        with plainly(f"history of {model}"):
            self.client.set_tag(run.info.run_id, _OUTCOME, outcome)
            self.client.set_terminated(run.info.run_id, "FINISHED" if outcome == "done" else "FAILED")

    def events(self, model: str) -> tuple[PromotionEvent, ...]:
        """See `Store.events`."""
        return tuple(
            replace(_EVENT.validate_json(run.data.tags[_RECORD]), outcome=run.data.tags[_OUTCOME])
            for run in self._event_runs(model)
        )

    @contextmanager
    def lock(self, model: str) -> Iterator[None]:
        """See `Store.lock`. Between the processes of one host; a lease across hosts comes later."""
        folder = self._state / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / f"{check_name(model, what='model')}.lock", timeout=_LOCK_SECONDS):
                yield
        except Timeout as error:
            raise PromotionRefused(f"another promotion of {model} is running: wait for it and try again") from error

    def _complete(self, model: str, version: int) -> Any:
        with plainly(f"{model} version {version}"):
            found = self.client.get_model_version(check_name(model, what="model"), str(version))
        if found.tags.get(STATE) != COMPLETE:
            raise TornBundle(f"{model} version {version} was never published to its end: publish the engine again")
        return found

    def _manifest(self, model: str, version: int, into: Path) -> EngineManifest:
        found = self._complete(model, version)
        with plainly(f"manifest of {model} version {version}"):
            copy_files(self._files(found.source), [MANIFEST_FILE], into)
        raw = (into / MANIFEST_FILE).read_bytes()
        # MLflow lets anyone overwrite a version's files; the row says which manifest was published.
        if sha256(raw).hexdigest() != found.tags.get(PIN):
            raise DigestMismatch(f"{model} version {version}: its manifest was changed since: do not trust it")
        return read_manifest(raw)

    def _search_versions(self, query: str) -> list[Any]:
        with plainly(f"versions where {query}"):
            return pages(lambda token: self.client.search_model_versions(query, _PAGE, page_token=token))

    def _event_runs(self, model: str) -> list[Any]:
        with plainly(f"history of {model}"):
            found = self.client.get_experiment_by_name(check_name(model, what="model"))
            if found is None:
                return []
            query, scope = f"tags.`{KIND}` = 'promotion'", [found.experiment_id]
            runs = pages(lambda token: self.client.search_runs(scope, query, max_results=_PAGE, page_token=token))
        return sorted(runs, key=lambda run: (int(run.data.tags[_POSITION]), run.info.start_time))

    def experiment(self, model: str) -> str:
        """The id of the model's experiment, made where there is none."""
        place = (self._artifact_root.absolute() / model).as_uri() if self._artifact_root else None
        with existing_is_fine():
            return str(self.client.create_experiment(check_name(model, what="model"), artifact_location=place))
        found = self.client.get_experiment_by_name(model)
        if found.lifecycle_stage != "active":
            raise BadInput(f"the MLflow experiment {model} was deleted: restore it, its history is in it")
        return str(found.experiment_id)

    def _files(self, source: str) -> Any:
        return get_artifact_repository(source, self._uri, self._uri)

    def _scratch(self) -> AbstractContextManager[Path]:
        return _temporary(self._state / "scratch")


def _row(found: Any, aliases: dict[str, int]) -> EngineVersion:
    number = int(found.version)
    tags = {name: value for name, value in found.tags.items() if name in EngineVersion.__dataclass_fields__}
    mine = tuple(sorted(alias for alias, version in aliases.items() if version == number))
    fields = {
        "compute_capability": None,
        "minimum_driver": None,
        **tags,
        "metrics": json.loads(tags.get("metrics", "[]")),
        "model": found.name,
        "version": number,
        "aliases": mine,
        "complete": found.tags.get(STATE) == COMPLETE,
    }
    try:
        return _ROW.validate_python(fields)
    except ValueError as error:
        raise BadInput(f"{found.name} version {number} has tags that were edited: {error}") from error


def _retry(call: Callable[[], None], attempts: int = 5) -> None:
    # Two writers of a new alias: the database's unique key refuses the second, which then finds a row.
    for attempt in range(1, attempts + 1):
        try:
            call()
        except MlflowException as error:
            if attempt == attempts or error.error_code in (
                "RESOURCE_DOES_NOT_EXIST",
                "INVALID_PARAMETER_VALUE",
            ):
                raise
            time.sleep(0.05 * attempt)
        else:
            return


@contextmanager
def _temporary(parent: Path) -> Iterator[Path]:
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as name:
        yield Path(name)
