"""The registry on MLflow.

A registered model and an experiment per model name; an engine is a version whose source is its run's artifact
folder `bundle`, and whose tags are its row.
"""

import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from functools import cached_property
from hashlib import sha256
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from pydantic import TypeAdapter

from registry.digest import record_file, verify_tree
from registry.errors import BadInput, DigestMismatch, NotFound, TornBundle
from registry.manifest import MANIFEST_FILE, SIGNATURE_FILE, check_agrees, read_manifest, write_manifest
from registry.mlflow_errors import pages, plainly, quotable
from registry.mlflow_history import History
from registry.names import check_name
from registry.records import EngineManifest, EngineVersion, FileRecord, PromotionEvent
from registry.store import Lease, Leases, row_of

_ROW = TypeAdapter(EngineVersion)
_STATE, _PIN = "publish_state", "manifest_sha256"
_PAGE = 1000
# Columns of the row that MLflow has itself, or that would go stale in a tag.
_NOT_TAGS = ("model", "version", "aliases", "complete")


def embedded_store(home: Path) -> "MlflowStore":
    """The registry without a server: SQLite and artifacts under `home` (ENGINERY_HOME)."""
    home.mkdir(parents=True, exist_ok=True)
    return MlflowStore(f"sqlite:///{home.absolute()}/mlflow.db", home, home / "artifacts")


class MlflowStore:
    """`Store` on an MLflow tracking and registry server, or on a database of its own.

    `artifact_root` is where a new model's artifacts go; None leaves it to the server. `state_directory` holds
    what is read back after an upload. `lease_database` (a URI) serialises promotion between the hosts of a server;
    a database of its own does that itself.
    """

    def __init__(
        self,
        tracking_uri: str,
        state_directory: Path,
        artifact_root: Path | None = None,
        lease_database: str | None = None,
    ) -> None:
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._uri = tracking_uri
        self.client = MlflowClient(tracking_uri, tracking_uri)
        self._state = state_directory
        self._artifact_root = artifact_root
        self._history = History(self.client, self.experiment)
        self._lease_database = lease_database

    @cached_property
    def leases(self) -> Leases:
        """Where turns at promoting are kept."""
        # SQLAlchemy takes a while to import, and a fetch from a server has no use for it.
        from registry.lease import leases_for

        return leases_for(self._uri, self._state, self._lease_database)

    def publish(self, manifest: EngineManifest, directory: Path, *, run_id: str | None = None) -> EngineVersion:
        """See `Store.publish`."""
        raw = write_manifest(manifest)
        row = row_of(manifest, 0)
        verify_tree(directory, (*manifest.files, *_seal(directory, raw)))
        for found in self.versions(manifest.model):
            if (found.build_key, found.digest, found.release) == (row.build_key, row.digest, row.release):
                return found
        with plainly(f"publish {manifest.model}"):
            source, run = self._upload(manifest, directory, raw, run_id)
            return self._register(row, source, run, sha256(raw).hexdigest())

    def _upload(self, manifest: EngineManifest, directory: Path, raw: bytes, run_id: str | None) -> tuple[str, str]:
        if run_id is not None and self._search_versions(f"run_id = '{quotable(run_id)}'"):
            # Its files are a published version's files: writing there would change that version.
            raise BadInput(f"run {run_id} already holds a published engine: publish from a run of its own")
        run = self.client.get_run(run_id) if run_id else self._make_run(manifest)
        source = f"{run.info.artifact_uri}/bundle"
        blobs = self._files(source)
        for record in manifest.files:
            folder = PurePosixPath(record.path).parent.as_posix()
            blobs.log_artifact(str(directory / record.path), None if folder == "." else folder)
        with self._scratch() as scratch:
            self._copy(source, [record.path for record in manifest.files], scratch)
            verify_tree(scratch, manifest.files)
        with self._scratch() as scratch:
            (scratch / MANIFEST_FILE).write_bytes(raw)
            blobs.log_artifact(str(scratch / MANIFEST_FILE))
        if (directory / SIGNATURE_FILE).is_file():
            blobs.log_artifact(str(directory / SIGNATURE_FILE))
        if run_id is None:
            self.client.set_terminated(run.info.run_id)
        return source, run.info.run_id

    def _register(self, row: EngineVersion, source: str, run_id: str, pin: str) -> EngineVersion:
        with _existing_is_fine():
            self.client.create_registered_model(row.model)
        columns = {name: value for name, value in asdict(row).items() if name not in _NOT_TAGS and value is not None}
        tags = {name: json.dumps(value) if name == "metrics" else str(value) for name, value in columns.items()}
        made = self.client.create_model_version(
            row.model, source, run_id=run_id, tags={**tags, _PIN: pin, _STATE: "uploading"}
        )
        # Last: what a killed publish leaves behind has no `complete`, and nothing here shows it.
        self.client.set_model_version_tag(row.model, made.version, _STATE, "complete")
        return self.version(row.model, int(made.version))

    def next_sequence(self, model: str) -> int:
        """See `Store.next_sequence`."""
        found = self._search_versions(f"name = '{check_name(model, what='model')}'")
        return 1 + max((int(version.tags.get("sequence", 0)) for version in found), default=0)

    def versions(self, model: str | None = None, *, newest: int | None = None) -> tuple[EngineVersion, ...]:
        """See `Store.versions`."""
        named = f"name = '{check_name(model, what='model')}'" if model else ""
        # Within a model the number is an index of the database, and the time is not.
        order = ["version_number DESC"] if model else ["creation_timestamp DESC"]
        size = min(_PAGE, newest or _PAGE)
        with plainly(f"versions of {model or 'all models'}"):
            every = pages(lambda token: self.client.search_model_versions(named, size, order, page_token=token))
            # `publish_state` is looked at here: the database would go through every tag of every version for it.
            found = list(islice((row for row in every if row.tags.get(_STATE) == "complete"), newest))
        # A search leaves the aliases of a version empty: they come from the registered model.
        aliases = {name: self.aliases(name) for name in {version.name for version in found}}
        rows = (_row(version, aliases[version.name]) for version in found)
        return tuple(sorted(rows, key=lambda row: (row.model, row.version)))

    def version(self, model: str, version: int) -> EngineVersion:
        """See `Store.version`."""
        return _row(self._complete(model, version))

    def checked(self, model: str, version: int) -> EngineVersion:
        """See `Store.checked`."""
        found = self._complete(model, version)
        with self._scratch() as scratch:
            row, manifest = _row(found), self._manifest(found, scratch)
        check_agrees(row, manifest)
        return row

    def manifest(self, model: str, version: int) -> EngineManifest:
        """See `Store.manifest`."""
        with self._scratch() as scratch:
            return self._manifest(self._complete(model, version), scratch)

    def find_build(self, build_key: str) -> EngineVersion | None:
        """See `Store.find_build`."""
        key = quotable(build_key)
        found = self._search_versions(f"tags.build_key = '{key}' and tags.{_STATE} = 'complete'")
        newest = max(found, key=lambda version: (version.creation_timestamp, int(version.version)), default=None)
        return self.version(newest.name, int(newest.version)) if newest else None

    def aliases(self, model: str) -> dict[str, int]:
        """See `Store.aliases`."""
        query = f"name = '{check_name(model, what='model')}'"
        with plainly(f"aliases of {model}"):
            # Not get_registered_model: it reads every version of the model (seconds at 10,000 of them).
            found = self.client.search_registered_models(query, max_results=1)
        return {alias: int(version) for row in found for alias, version in row.aliases.items()}

    def aliased(self, model: str, alias: str) -> int | None:
        """See `Store.aliased`."""
        found = self._aliased(model, alias)
        return int(found.version) if found else None

    def resolve(self, model: str, alias: str) -> EngineVersion:
        """See `Store.resolve`."""
        if (found := self._aliased(model, alias)) is None:
            raise NotFound(f"{model} has no alias {alias}: promote a version, or list the model's aliases")
        return _row(_finished(found))

    def _aliased(self, model: str, alias: str) -> Any:
        check_name(alias, what="alias")
        try:
            found = self.client.get_model_version_by_alias(check_name(model, what="model"), alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            with plainly(f"alias {alias} of {model}"):
                raise
        # MLflow gives `latest` without anybody having set it.
        return found if alias in found.aliases else None

    def set_alias(self, model: str, alias: str, version: int) -> None:
        """See `Store.set_alias`."""
        self._complete(model, version)
        check_name(alias, what="alias")
        with plainly(f"alias {alias} of {model}"):
            # Past the public client, which first reads every version of the model to see whether it is a prompt.
            registry: Any = self.client._get_registry_client()  # type: ignore[no-untyped-call]  # noqa: SLF001
            _retry(lambda: registry.set_registered_model_alias(model, alias, str(version)))

    def delete_alias(self, model: str, alias: str) -> None:
        """See `Store.delete_alias`."""
        if self.aliased(model, alias) is not None:
            with plainly(f"alias {alias} of {model}"):
                self.client.delete_registered_model_alias(model, alias)

    def download(self, model: str, version: int, into: Path) -> EngineManifest:
        """See `Store.download`."""
        found = self._complete(model, version)
        manifest, source = self._manifest(found, into), found.source
        with plainly(f"{model} version {version}"):
            # The listed files only: what was added to the run since is not copied to a host.
            self._copy(source, [record.path for record in manifest.files], into)
            if any(item.path == SIGNATURE_FILE for item in self._files(source).list_artifacts()):
                self._copy(source, [SIGNATURE_FILE], into)
        return manifest

    def append_event(self, event: PromotionEvent) -> None:
        """See `Store.append_event`."""
        self._history.append(event)

    def finish_event(self, model: str, event_id: str, outcome: str) -> None:
        """See `Store.finish_event`."""
        self._history.finish(model, event_id, outcome)

    def events(
        self, model: str, *, alias: str | None = None, outcome: str | None = None, newest: int | None = None
    ) -> tuple[PromotionEvent, ...]:
        """See `Store.events`."""
        return self._history.events(model, alias=alias, outcome=outcome, newest=newest)

    def lock(self, model: str) -> AbstractContextManager[Lease]:
        """See `Store.lock`."""
        return self.leases.hold(model)

    def _complete(self, model: str, version: int) -> Any:
        with plainly(f"{model} version {version}"):
            return _finished(self.client.get_model_version(check_name(model, what="model"), str(version)))

    def _manifest(self, found: Any, into: Path) -> EngineManifest:
        what = f"{found.name} version {found.version}"
        with plainly(f"manifest of {what}"):
            self._copy(found.source, [MANIFEST_FILE], into)
        raw = (into / MANIFEST_FILE).read_bytes()
        # MLflow lets anyone overwrite a version's files; the row says which manifest was published.
        if sha256(raw).hexdigest() != found.tags.get(_PIN):
            raise DigestMismatch(f"{what}: its manifest was changed since: do not trust it")
        return read_manifest(raw)

    def _search_versions(self, query: str) -> list[Any]:
        with plainly(f"versions where {query}"):
            return list(pages(lambda token: self.client.search_model_versions(query, _PAGE, page_token=token)))

    def _make_run(self, manifest: EngineManifest) -> Any:
        name = f"{manifest.build.target.name}-{manifest.build.precision}"
        tags = {
            "release": manifest.release,
            "verdict": str(manifest.verdict),
            "reason": manifest.reason[:5000],
        }
        return self.client.create_run(self.experiment(manifest.model), tags=tags, run_name=name)

    def experiment(self, model: str) -> str:
        """The id of the model's experiment, made where there is none."""
        if (found := self.client.get_experiment_by_name(check_name(model, what="model"))) is None:
            place = (self._artifact_root.absolute() / model).as_uri() if self._artifact_root else None
            with _existing_is_fine():
                return str(self.client.create_experiment(model, artifact_location=place))
            found = self.client.get_experiment_by_name(model)
        if found.lifecycle_stage != "active":
            raise BadInput(f"the MLflow experiment {model} was deleted: restore it, its history is in it")
        return str(found.experiment_id)

    def _files(self, source: str) -> Any:
        return get_artifact_repository(source, self._uri, self._uri)

    def _copy(self, source: str, paths: list[str], into: Path) -> None:
        files = self._files(source)
        for path in paths:
            (into / path).parent.mkdir(parents=True, exist_ok=True)
            files.download_artifacts(path, str(into))

    def _scratch(self) -> AbstractContextManager[Path]:
        return _temporary(self._state / "scratch")


def _finished(found: Any) -> Any:
    if found.tags.get(_STATE) != "complete":
        raise TornBundle(
            f"{found.name} version {found.version} was never published to its end: publish the engine again"
        )
    return found


def _row(found: Any, aliases: dict[str, int] | None = None) -> EngineVersion:
    number = int(found.version)
    tags = {name: value for name, value in found.tags.items() if name in EngineVersion.__dataclass_fields__}
    given = found.aliases if aliases is None else [alias for alias, at in aliases.items() if at == number]
    fields = {
        "compute_capability": None,
        "minimum_driver": None,
        **tags,
        "metrics": json.loads(tags.get("metrics", "[]")),
        "model": found.name,
        "version": number,
        "aliases": tuple(sorted(given)),
        "complete": found.tags.get(_STATE) == "complete",
    }
    try:
        return _ROW.validate_python(fields)
    except ValueError as error:
        raise BadInput(f"{found.name} version {number} has tags that were edited: {error}") from error


def _seal(directory: Path, raw: bytes) -> Iterator[FileRecord]:
    if (directory / MANIFEST_FILE).is_file():
        yield FileRecord(MANIFEST_FILE, sha256(raw).hexdigest(), len(raw))
    if (directory / SIGNATURE_FILE).is_file():
        yield record_file(directory / SIGNATURE_FILE, root=directory)


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
def _existing_is_fine() -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


@contextmanager
def _temporary(parent: Path) -> Iterator[Path]:
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as name:
        yield Path(name)
