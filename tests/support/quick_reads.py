"""The embedded registry, read as the command line reads it: without mlflow where its rows tell."""

from functools import cached_property
from pathlib import Path

from registry.mlflow.quick.sqlite import SqliteRows
from registry.mlflow.quick.store import QuickStore
from registry.mlflow.store import MlflowStore
from registry.records import EngineVersion, PromotionEvent
from registry.store import Bundle


class QuickReads(MlflowStore):
    """Writes as its base class; what a serving host reads comes from the SQLite file."""

    def __init__(self, home: Path) -> None:
        super().__init__(f"sqlite:///{home}/mlflow.db", home, home / "artifacts")
        self._home = home

    @cached_property
    def _quick(self) -> QuickStore:
        # Whatever the rows do not tell comes from a store of its own, as in a command.
        whole = MlflowStore(f"sqlite:///{self._home}/mlflow.db", self._home, self._home / "artifacts")
        return QuickStore(SqliteRows(self._home / "mlflow.db"), lambda: whole)

    def aliases(self, model: str) -> dict[str, int]:
        return self._quick.aliases(model)

    def version(self, model: str, version: int) -> EngineVersion:
        return self._quick.version(model, version)

    def versions(self, model: str | None = None, *, newest: int | None = None) -> tuple[EngineVersion, ...]:
        return self._quick.versions(model, newest=newest)

    def resolve(self, model: str, alias: str) -> EngineVersion:
        return self._quick.resolve(model, alias)

    def open_bundle(self, model: str, version: int) -> Bundle:
        return self._quick.open_bundle(model, version)

    def events(
        self, model: str, *, alias: str | None = None, outcome: str | None = None, newest: int | None = None
    ) -> tuple[PromotionEvent, ...]:
        return self._quick.events(model, alias=alias, outcome=outcome, newest=newest)
