"""The registry on MLflow: what is there, and aliases; publishing is in registry/mlflow/publish.py.

A registered model and an experiment per model name; an engine is a version whose source is its run's artifact
folder `bundle`, and whose tags are its row.
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
from registry.errors import BadInput, NotFound, TornBundle
from registry.mlflow.artifacts import open_source
from registry.mlflow.errors import existing_is_fine, pages, plainly, quotable
from registry.mlflow.history import History
from registry.mlflow.publish import Publications
from registry.mlflow.rows import COMPLETE, STATE, bundle_of, manifest_of, row_from
from registry.mlflow.unfinished import Repairs
from registry.names import check_name
from registry.records import EngineManifest, EngineVersion, PromotionEvent
from registry.store import Bundle, BundleFiles, Lease, Leases, no_alias

_PAGE = 1000


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
        if not tracking_uri.startswith(("http://", "https://")):
            # mlflow would import them in its first call; what is imported by now, a command line can freeze.
            import mlflow.store.model_registry.sqlalchemy_store
            import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
        self._uri = tracking_uri
        with plainly("the registry"):
            self.client = MlflowClient(tracking_uri, tracking_uri)
        self._state = state_directory
        self._artifact_root = artifact_root
        self._history = History(self.client, self.experiment)
        self._lease_database = lease_database
        self._publications = Publications(
            self.client, self._files, self.experiment, self._scratch, lambda model: self.leases.hold(model)
        )
        self.repairs = Repairs(self._publications)

    @cached_property
    def leases(self) -> Leases:
        """Where turns at promoting are kept."""
        # SQLAlchemy takes a while to import, and a fetch from a server has no use for it.
        from registry.mlflow.leases import leases_for

        return leases_for(self._uri, self._state, self._lease_database)

    def publish(self, manifest: EngineManifest, directory: Path, *, run_id: str | None = None) -> EngineVersion:
        """See `Store.publish`."""
        return self.version(manifest.model, self._publications.publish(manifest, directory, run_id))

    def take_sequence(self, model: str) -> int:
        """See `Store.take_sequence`."""
        return self._publications.take_sequence(model)

    def versions(self, model: str | None = None, *, newest: int | None = None) -> tuple[EngineVersion, ...]:
        """See `Store.versions`."""
        named = f"name = '{check_name(model, what='model')}'" if model else ""
        # Within a model the number is an index of the database, and the time is not.
        order = ["version_number DESC"] if model else ["creation_timestamp DESC"]
        size = min(_PAGE, newest or _PAGE)
        with plainly(f"versions of {model or 'all models'}"):
            every = pages(lambda token: self.client.search_model_versions(named, size, order, page_token=token))
            # `publish_state` is looked at here: the database would go through every tag of every version for it.
            found = list(islice((row for row in every if row.tags.get(STATE) == COMPLETE), newest))
        # A search leaves the aliases of a version empty: they come from the registered model.
        aliases = {name: self.aliases(name) for name in {version.name for version in found}}
        rows = (row_from(version, aliases[version.name]) for version in found)
        return tuple(sorted(rows, key=lambda row: (row.model, row.version)))

    def version(self, model: str, version: int) -> EngineVersion:
        """See `Store.version`."""
        return row_from(self._complete(model, version))

    def checked(self, model: str, version: int) -> EngineVersion:
        """See `Store.checked`."""
        found = self._complete(model, version)
        row = row_from(found)
        check_agrees(row, read_manifest(manifest_of(found, self._source(found))))
        return row

    def manifest(self, model: str, version: int) -> EngineManifest:
        """See `Store.manifest`."""
        found = self._complete(model, version)
        return read_manifest(manifest_of(found, self._source(found)))

    def builds(self, build_key: str) -> tuple[EngineVersion, ...]:
        """See `Store.builds`."""
        # `publish_state` is looked at here, as in `versions`.
        with plainly(f"versions of build {quotable(build_key)}"):
            every = self._publications.search(f"tags.build_key = '{build_key}'")
        found = [version for version in every if version.tags.get(STATE) == COMPLETE]
        aliases = {name: self.aliases(name) for name in {version.name for version in found}}
        oldest_first = sorted(found, key=lambda version: (version.creation_timestamp, int(version.version)))
        return tuple(row_from(version, aliases[version.name]) for version in oldest_first)

    def find_build(self, build_key: str) -> EngineVersion | None:
        """See `Store.find_build`."""
        return next(reversed(self.builds(build_key)), None)

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
            raise no_alias(model, alias, self.aliases(model))
        return row_from(_finished(found))

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

    def open_bundle(self, model: str, version: int) -> Bundle:
        """See `Store.open_bundle`."""
        found = self._complete(model, version)
        return bundle_of(found, self._source(found))

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
        check_name(model, what="model")
        try:
            with plainly(f"{model} version {version}"):
                return _finished(self.client.get_model_version(model, str(version)))
        except NotFound as error:
            raise NotFound(f"{model} has no version {version}: `enginery list {model}` shows what there is") from error

    def _source(self, found: Any) -> BundleFiles:
        return open_source(found.source, self._uri, probe=MANIFEST_FILE)

    def experiment(self, model: str) -> str:
        """The id of the model's experiment, made where there is none."""
        with plainly(f"experiment of {model}"):
            return self.named_experiment(check_name(model, what="model"))

    def named_experiment(self, name: str) -> str:
        """Return the id of an experiment that is no model's, made where there is none."""
        if (found := self.client.get_experiment_by_name(name)) is None:
            place = (self._artifact_root.absolute() / name).as_uri() if self._artifact_root else None
            with existing_is_fine():
                return str(self.client.create_experiment(name, artifact_location=place))
            found = self.client.get_experiment_by_name(name)
        if found.lifecycle_stage != "active":
            raise BadInput(f"the MLflow experiment {name} was deleted: restore it, its history is in it")
        return str(found.experiment_id)

    def _files(self, source: str) -> Any:
        return get_artifact_repository(source, self._uri, self._uri)

    def _scratch(self) -> AbstractContextManager[Path]:
        return _temporary(self._state / "scratch")


def _finished(found: Any) -> Any:
    if found.tags.get(STATE) != COMPLETE:
        raise TornBundle(
            f"{found.name} version {found.version} was never published to its end: publish the engine again"
        )
    return found


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
