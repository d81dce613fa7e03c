"""The registry on MLflow: versions, bundles, aliases and history; publishing is in registry/mlflow/publish.py.

A model name has one registered model, one experiment, and one for its history. An engine is a version whose source is
its run's artifact folder `bundle`, and whose tags are its row.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

from registry.bundle.manifest import MANIFEST_FILE, check_agrees, read_manifest
from registry.errors import BadInput, NotFound, TornBundle, shown_address
from registry.mlflow.errors import check_id, ignore_existing, read_pages, translate_errors
from registry.mlflow.files.artifacts import open_files
from registry.mlflow.history import History
from registry.mlflow.publish import Publications
from registry.mlflow.rows import (
    COMPLETE,
    STATE,
    VERSION_BUILD_KEY,
    bundle_of,
    history_experiment,
    read_manifest_bytes,
    row_from,
)
from registry.mlflow.unfinished import Repairs
from registry.names import check_name
from registry.records import EngineManifest, EngineVersion, PromotionEvent
from registry.store import Bundle, BundleFiles, Lease, Leases, no_alias

_log = logging.getLogger(__name__)
# Without it MLflow 3 guesses from its runs and traces whether an experiment is GenAI.
_MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}


def embedded_store(home: Path) -> "MlflowStore":
    """Open the registry without a server: SQLite and artifacts under `home` (ENGINERY_HOME)."""
    home.mkdir(parents=True, exist_ok=True)
    return MlflowStore(f"sqlite:///{home.absolute()}/mlflow.db", home, home / "artifacts")


class MlflowStore:
    """`Store` on an MLflow tracking and registry server, or on a database of its own.

    `artifact_root` is where a new model's artifacts go; None leaves it to the server. `state_directory` holds
    what is read back after an upload. `lease_database` (a URI) serialises promotion between the hosts of a server;
    a database of its own does that itself.
    """

    # Rows per request of a search, which reads as many pages as it needs.
    page_size = 1000

    def __init__(
        self,
        tracking_uri: str,
        state_directory: Path,
        artifact_root: Path | None = None,
        lease_database: str | None = None,
    ) -> None:
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        # It logs what it raises too, with a traceback.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        if not tracking_uri.startswith(("http://", "https://")):
            # mlflow would import them in its first call; imported now, they are frozen by `open_store`.
            import mlflow.store.model_registry.sqlalchemy_store
            import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
        self._uri = tracking_uri
        try:
            self.client = MlflowClient(tracking_uri, tracking_uri)
        except MlflowException as error:  # whose text repeats the address, and with it a password
            raise BadInput(
                f"{shown_address(tracking_uri)} is not the address of a registry: set MLFLOW_TRACKING_URI to "
                "http(s)://HOST:PORT, or unset it for the local registry"
            ) from error
        self._state = state_directory
        self._artifact_root = artifact_root
        self._history = History(self.client, self.named_experiment)
        self._lease_database = lease_database
        self._publications = Publications(
            self.client,
            self._open_repository,
            self.experiment,
            lambda model: self.named_experiment(history_experiment(model)),
            self._scratch,
            lambda model: self.leases.hold(model),
        )
        self.repairs = Repairs(self._publications)

    @cached_property
    def leases(self) -> Leases:
        """The leases that serialise promotion."""
        # SQLAlchemy takes a while to import, and a fetch from a server does not need it.
        from registry.mlflow.leases import choose_leases

        return choose_leases(self._uri, self._state, self._lease_database)

    def publish(self, manifest: EngineManifest, directory: Path, *, run_id: str | None = None) -> EngineVersion:
        """See `Store.publish`."""
        return self.version(manifest.model, self._publications.publish(manifest, directory, run_id))

    def take_sequence(self, model: str) -> int:
        """See `Store.take_sequence`."""
        return self._publications.take_sequence(model)

    def versions(self, model: str | None = None, *, newest: int | None = None) -> tuple[EngineVersion, ...]:
        """See `Store.versions`."""
        return tuple(
            sorted(self._rows_from(self._search_complete(model, newest)), key=lambda row: (row.model, row.version))
        )

    def _search_complete(self, model: str | None, newest: int | None) -> list[Any]:
        query = f"name = '{check_name(model, what='model')}'" if model else ""
        # Within a model the database has an index of the number, and none of the time.
        order = ["version_number DESC"] if model else ["creation_timestamp DESC"]
        size = min(self.page_size, newest or self.page_size)
        with translate_errors(f"versions of {model or 'all models'}"):
            versions = read_pages(lambda token: self.client.search_model_versions(query, size, order, page_token=token))
            # `publish_state` is filtered here: the database would go through every tag of every version for it.
            return list(islice((version for version in versions if version.tags.get(STATE) == COMPLETE), newest))

    def unreadable(self) -> tuple[str, ...]:
        """Return a sentence for each row that `versions` and `builds` leave out, because its tags were edited.

        One edited tag must not stop the work on all other engines.
        """
        problems = []
        for version in self._search_complete(None, None):
            try:
                row_from(version)
            except BadInput as error:
                problems.append(str(error))
        return tuple(problems)

    def version(self, model: str, version: int) -> EngineVersion:
        """See `Store.version`."""
        return row_from(self._read_complete(model, version))

    def checked(self, model: str, version: int) -> EngineVersion:
        """See `Store.checked`."""
        complete = self._read_complete(model, version)
        row = row_from(complete)
        check_agrees(row, self._read_manifest(complete))
        return row

    def manifest(self, model: str, version: int) -> EngineManifest:
        """See `Store.manifest`."""
        return self._read_manifest(self._read_complete(model, version))

    def builds(self, build_key: str) -> tuple[EngineVersion, ...]:
        """See `Store.builds`."""
        # `publish_state` is filtered here, as in `versions`.
        with translate_errors(f"versions of build {check_id(build_key)}"):
            versions = self._publications.search_versions(f"tags.`{VERSION_BUILD_KEY}` = '{build_key}'")
        complete = [version for version in versions if version.tags.get(STATE) == COMPLETE]
        oldest_first = sorted(complete, key=lambda version: (version.creation_timestamp, int(version.version)))
        return self._rows_from(oldest_first)

    def find_build(self, build_key: str) -> EngineVersion | None:
        """See `Store.find_build`."""
        return next(reversed(self.builds(build_key)), None)

    def aliases(self, model: str) -> dict[str, int]:
        """See `Store.aliases`."""
        query = f"name = '{check_name(model, what='model')}'"
        with translate_errors(f"aliases of {model}"):
            # Not get_registered_model: it reads every version of the model (seconds at 10,000 of them).
            models = self.client.search_registered_models(query, max_results=1)
            return {alias: int(version) for row in models for alias, version in row.aliases.items()}

    def aliased(self, model: str, alias: str) -> int | None:
        """See `Store.aliased`."""
        version = self._read_aliased(model, alias)
        return int(version.version) if version else None

    def resolve(self, model: str, alias: str) -> EngineVersion:
        """See `Store.resolve`."""
        if (version := self._read_aliased(model, alias)) is None:
            raise no_alias(model, alias, self.aliases(model))
        return row_from(_check_complete(version))

    def _read_aliased(self, model: str, alias: str) -> Any:
        check_name(alias, what="alias")
        with translate_errors(f"alias {alias} of {model}"):
            try:
                version = self.client.get_model_version_by_alias(check_name(model, what="model"), alias)
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise
        # MLflow resolves `latest` even if nobody has set it.
        return version if alias in version.aliases else None

    def set_alias(self, model: str, alias: str, version: int) -> None:
        """See `Store.set_alias`."""
        self._read_complete(model, version)
        check_name(alias, what="alias")
        with translate_errors(f"alias {alias} of {model}"):
            # Not through the public client, which first reads every version of the model to see whether it is a prompt.
            registry: Any = self.client._get_registry_client()  # type: ignore[no-untyped-call]  # noqa: SLF001
            retry_alias_race(lambda: registry.set_registered_model_alias(model, alias, str(version)))

    def delete_alias(self, model: str, alias: str) -> None:
        """See `Store.delete_alias`."""
        if self.aliased(model, alias) is not None:
            with translate_errors(f"alias {alias} of {model}"):
                self.client.delete_registered_model_alias(model, alias)

    def open_bundle(self, model: str, version: int) -> Bundle:
        """See `Store.open_bundle`."""
        complete = self._read_complete(model, version)
        return bundle_of(complete, self._open_files(complete))

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
        return self._history.read(model, alias=alias, outcome=outcome, newest=newest)

    def lock(self, model: str) -> AbstractContextManager[Lease]:
        """See `Store.lock`."""
        return self.leases.hold(model)

    def _rows_from(self, versions: list[Any]) -> tuple[EngineVersion, ...]:
        # A search leaves the aliases of a version empty: they come from the registered model.
        aliases = {name: self.aliases(name) for name in {version.name for version in versions}}
        rows = []
        for version in versions:
            try:
                rows.append(row_from(version, aliases[version.name]))
            except BadInput as error:
                _log.warning("%s", error)
        return tuple(rows)

    def _read_manifest(self, version: Any) -> EngineManifest:
        return read_manifest(read_manifest_bytes(version, self._open_files(version)))

    def _read_complete(self, model: str, version: int) -> Any:
        check_name(model, what="model")
        try:
            with translate_errors(f"{model} version {version}"):
                return _check_complete(self.client.get_model_version(model, str(version)))
        except NotFound as error:
            raise NotFound(f"{model} has no version {version}: `enginery list {model}` shows its versions") from error

    def _open_files(self, version: Any) -> BundleFiles:
        return open_files(version.source, self._uri, probe=MANIFEST_FILE)

    def experiment(self, model: str) -> str:
        """Return the id of the model's experiment, created if missing."""
        with translate_errors(f"experiment of {model}"):
            return self.named_experiment(check_name(model, what="model"))

    def find_experiment(self, name: str) -> str | None:
        """Return the id of any experiment, or None: looking for runs leaves no empty experiment behind.

        Raises:
            BadInput: it was deleted.
        """
        with translate_errors("experiments"):
            experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            return None
        if experiment.lifecycle_stage != "active":
            raise BadInput(f"the MLflow experiment {name} was deleted: restore it, its history is in it")
        return str(experiment.experiment_id)

    def named_experiment(self, name: str) -> str:
        """Return the id of any experiment, created if missing."""
        if (found := self.find_experiment(name)) is not None:
            return found
        location = (self._artifact_root.absolute() / name).as_uri() if self._artifact_root else None
        with ignore_existing():
            return str(self.client.create_experiment(name, artifact_location=location, tags=_MODEL_TRAINING))
        return str(self.find_experiment(name))

    def _open_repository(self, uri: str) -> Any:
        return get_artifact_repository(uri, self._uri, self._uri)

    def _scratch(self) -> AbstractContextManager[Path]:
        return _temporary_folder(self._state / "scratch")


def _check_complete(version: Any) -> Any:
    if version.tags.get(STATE) != COMPLETE:
        raise TornBundle(
            f"{version.name} version {version.version} is incomplete: publishing was interrupted; publish the engine "
            "again"
        )
    return version


def retry_alias_race(set_alias: Callable[[], None], *, attempts: int = 5, pause_seconds: float = 0.05) -> None:
    """Set an alias again after another process created it at the same time.

    The database's unique key refuses the second of two writers of a new alias, who then finds a row to update.
    """
    for attempt in range(1, attempts + 1):
        try:
            set_alias()
        except MlflowException as error:
            if attempt == attempts or error.error_code in (
                "RESOURCE_DOES_NOT_EXIST",
                "INVALID_PARAMETER_VALUE",
            ):
                raise
            time.sleep(pause_seconds * attempt)
        else:
            return


@contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as name:
        yield Path(name)
