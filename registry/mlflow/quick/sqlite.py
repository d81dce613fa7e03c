"""Rows of a registry without a server, read from its SQLite database.

mlflow checks the tables' migrations at each start, which takes as long as its import.
"""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote, urlsplit

from registry.mlflow.files.folder import FolderFiles
from registry.mlflow.quick.store import VersionRow
from registry.mlflow.rows import COMPLETE, EVENT_ALIAS, EVENT_ID, EVENT_OUTCOME, EVENT_RECORD, STATE, history_experiment

T = TypeVar("T")
# The tables as the pinned mlflow makes them (its newest Alembic revision). Others are left to mlflow.
KNOWN_SCHEMA = "dc11669786a5"
# As long as mlflow waits for another process that writes.
_BUSY_SECONDS = 20.0

_ALIASES = "SELECT alias, version FROM registered_model_aliases WHERE workspace = 'default' AND name = ?"
_VERSIONS = """
    SELECT name, version, source FROM model_versions AS row
    WHERE workspace = 'default' AND current_stage != 'Deleted_Internal'
"""
_IS_COMPLETE = """
    AND EXISTS (SELECT 1 FROM model_version_tags AS tag WHERE tag.workspace = row.workspace AND tag.name = row.name
                AND tag.version = row.version AND tag.key = ? AND tag.value = ?)
"""
_VERSION_TAGS = "SELECT key, value FROM model_version_tags WHERE workspace = 'default' AND name = ? AND version = ?"
_EVENTS = """
    SELECT run.run_uuid FROM experiments AS history JOIN runs AS run ON run.experiment_id = history.experiment_id
    JOIN tags AS event ON event.run_uuid = run.run_uuid AND event.key = ?
    WHERE history.workspace = 'default' AND history.name = ? AND run.lifecycle_stage = 'active' AND event.value != ''
"""
_HAS_TAG = "AND EXISTS (SELECT 1 FROM tags WHERE tags.run_uuid = run.run_uuid AND tags.key = ? AND tags.value = ?)"
_EVENT_TAGS = "SELECT key, value FROM tags WHERE run_uuid = ? AND key IN (?, ?, ?)"


class SqliteRows:
    """`QuickRows` of the database at `path`; one that does not exist is a registry without engines."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def aliases(self, model: str) -> dict[str, int] | None:
        """See `QuickRows.aliases`."""
        return self._read(lambda database: dict(database.execute(_ALIASES, (model,))), {})

    def version(self, model: str, version: int) -> VersionRow | None:
        """See `QuickRows.version`."""
        query = f"{_VERSIONS} AND name = ? AND version = ?"
        found = self._read_versions(query, (model, version))
        return found[0] if found else None

    def versions(self, model: str | None, newest: int | None) -> list[VersionRow] | None:
        """See `QuickRows.versions`."""
        if model is None:
            query = f"{_VERSIONS} {_IS_COMPLETE} ORDER BY creation_time DESC LIMIT ?"
            return self._read_versions(query, (STATE, COMPLETE, _limit(newest)))
        # Within a model the database has an index of the number, and none of the time.
        query = f"{_VERSIONS} {_IS_COMPLETE} AND name = ? ORDER BY version DESC LIMIT ?"
        return self._read_versions(query, (STATE, COMPLETE, model, _limit(newest)))

    def events(
        self, model: str, alias: str | None, outcome: str | None, newest: int | None
    ) -> list[Mapping[str, str]] | None:
        """See `QuickRows.events`."""
        wanted = [(key, value) for key, value in ((EVENT_ALIAS, alias), (EVENT_OUTCOME, outcome)) if value is not None]
        query = " ".join([_EVENTS, *(_HAS_TAG for _ in wanted), "ORDER BY event.value DESC LIMIT ?"])

        def search(database: sqlite3.Connection) -> list[Mapping[str, str]]:
            arguments = (EVENT_ID, history_experiment(model), *chain.from_iterable(wanted), _limit(newest))
            runs = database.execute(query, arguments).fetchall()
            return [dict(database.execute(_EVENT_TAGS, (*run, EVENT_ID, EVENT_OUTCOME, EVENT_RECORD))) for run in runs]

        nothing: list[Mapping[str, str]] = []
        return self._read(search, nothing)

    def open_files(self, source: str) -> FolderFiles | None:
        """See `QuickRows.open_files`."""
        try:
            parts = urlsplit(source)
        except ValueError:
            return None
        is_folder = parts.scheme == "file" and not (parts.netloc or parts.query or parts.fragment)
        return FolderFiles(Path(unquote(parts.path))) if is_folder else None

    def _read_versions(self, query: str, arguments: Sequence[str | int]) -> list[VersionRow] | None:
        def read(database: sqlite3.Connection) -> list[VersionRow]:
            return _read_versions(database, query, arguments)

        nothing: list[VersionRow] = []
        return self._read(read, nothing)

    def _read(self, read: Callable[[sqlite3.Connection], T], nothing: T) -> T | None:
        if not self._path.exists():
            return nothing
        if not self._path.is_file():  # opening a pipe would wait until somebody writes into it
            return None
        try:
            address = f"file:{quote(str(self._path))}?mode=ro"
            with closing(sqlite3.connect(address, timeout=_BUSY_SECONDS, uri=True)) as database:
                revision = database.execute("SELECT version_num FROM alembic_version").fetchall()
                return read(database) if revision == [(KNOWN_SCHEMA,)] else None
        except sqlite3.Error:
            return None


def _limit(newest: int | None) -> int:
    return -1 if newest is None else newest


def _read_versions(database: sqlite3.Connection, query: str, arguments: Sequence[str | int]) -> list[VersionRow]:
    found, aliases = database.execute(query, arguments).fetchall(), dict[str, dict[str, int]]()
    for name in {name for name, _, _ in found}:
        aliases[name] = dict(database.execute(_ALIASES, (name,)))
    return [
        VersionRow(
            name,
            str(version),
            dict(database.execute(_VERSION_TAGS, (name, version))),
            tuple(sorted(alias for alias, at in aliases[name].items() if at == version)),
            source,
        )
        for name, version, source in found
    ]
