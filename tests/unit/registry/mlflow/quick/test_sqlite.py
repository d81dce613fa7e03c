"""The embedded registry is read without mlflow, says the same, and is left to mlflow where it is not as known."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from registry.mlflow.quick.open import open_to_read
from registry.mlflow.quick.sqlite import KNOWN_SCHEMA, SqliteRows
from registry.mlflow.quick.store import QuickStore
from registry.mlflow.store import MlflowStore
from registry.promotion.promote import promote
from registry.promotion.rules import Decision
from registry.store import ServingStore
from tests.support.publisher import Publisher

ROOT = Path(__file__).parents[5]
MODEL = "sst2"
COMMAND = """
import sys
from flows.cli import main
try:
    main()
finally:
    print(*sorted({"mlflow", "sqlalchemy", "pandas", "torch", "prefect"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.fixture
def home(mlflow_store: MlflowStore, manifest_factory: Any, publisher: Publisher, tmp_path: Path) -> Path:
    for sequence in (1, 2, 3):
        publisher.publish(mlflow_store, manifest_factory(model=MODEL, release=f"r{sequence}", sequence=sequence))
    decision = Decision("ana", "first", datetime(2026, 11, 26, tzinfo=UTC))
    promote(mlflow_store, MODEL, {"l4": 1}, decision, {})
    promote(mlflow_store, MODEL, {"l4": 3}, decision, {})
    return tmp_path / "home"


def refuses() -> ServingStore:
    raise AssertionError("the whole store was opened")


def execute(home: Path, query: str, *arguments: object) -> None:
    with closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        database.execute(query, arguments)


def test_the_known_tables_are_those_of_the_mlflow_that_is_installed(migrated_database: Path) -> None:
    with closing(sqlite3.connect(migrated_database)) as database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchall() == [(KNOWN_SCHEMA,)]


def test_all_answers_are_those_of_the_whole_store(home: Path, mlflow_store: MlflowStore) -> None:
    quick = QuickStore(SqliteRows(home / "mlflow.db"), refuses)
    assert len(quick.versions()) == 3
    for newest in (None, 1, 2):
        assert quick.versions(MODEL, newest=newest) == mlflow_store.versions(MODEL, newest=newest)
        assert quick.versions(newest=newest) == mlflow_store.versions(newest=newest)
        assert quick.events(MODEL, newest=newest) == mlflow_store.events(MODEL, newest=newest)
    assert quick.events(MODEL, alias="production-l4", outcome="done") == mlflow_store.events(MODEL)
    assert quick.events(MODEL, outcome="pending") == quick.events(MODEL, alias="production-x") == ()
    assert quick.resolve(MODEL, "production-l4") == mlflow_store.resolve(MODEL, "production-l4")
    mine, its = quick.open_bundle(MODEL, 2), mlflow_store.open_bundle(MODEL, 2)
    assert (mine.manifest, mine.signature) == (its.manifest, its.signature)


@pytest.mark.parametrize("change", ["delete_version", "delete_run", "unfinished"])
def test_what_mlflow_does_not_show_is_not_shown(home: Path, mlflow_store: MlflowStore, change: str) -> None:
    client = mlflow_store.client
    if change == "delete_version":
        client.delete_model_version(MODEL, "2")
    elif change == "delete_run":
        experiment = client.get_experiment_by_name(f"{MODEL}/history")
        assert experiment is not None
        client.delete_run(client.search_runs([experiment.experiment_id])[0].info.run_id)
    else:
        client.set_model_version_tag(MODEL, "2", "version.publish_state", "uploading")
    quick = QuickStore(SqliteRows(home / "mlflow.db"), refuses)
    assert quick.versions() == mlflow_store.versions()
    assert quick.events(MODEL) == mlflow_store.events(MODEL)
    assert (len(quick.versions()), len(quick.events(MODEL))) == ((3, 1) if change == "delete_run" else (2, 2))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda home: execute(home, "UPDATE alembic_version SET version_num = 'newer'"),
        lambda home: execute(home, "DROP TABLE alembic_version"),
        lambda home: (home / "mlflow.db").write_bytes(b"no database"),
    ],
    ids=["newer tables", "no revision", "damaged"],
)
def test_tables_that_are_not_known_are_left_to_mlflow(home: Path, spoil: Callable[[Path], object]) -> None:
    spoil(home)
    rows = SqliteRows(home / "mlflow.db")
    answers = (rows.aliases(MODEL), rows.version(MODEL, 1), rows.versions(None, None))
    assert (*answers, rows.events(MODEL, None, None, None)) == (None,) * 4


def test_a_row_that_was_edited_is_left_out_by_the_whole_store(home: Path, mlflow_store: MlflowStore) -> None:
    mlflow_store.client.set_model_version_tag(MODEL, "2", "version.record", "[]")
    quick = QuickStore(SqliteRows(home / "mlflow.db"), lambda: mlflow_store)
    assert [row.version for row in quick.versions(MODEL)] == [1, 3]


def test_reading_where_no_registry_is_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINERY_HOME", str(tmp_path / "none"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = open_to_read()
    assert (store.versions(), store.aliases(MODEL), store.events(MODEL)) == ((), {}, ())
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("command", [["list"], ["list", MODEL], ["history", MODEL]], ids=["all", "model", "history"])
@pytest.mark.parametrize("by_uri", [False, True], ids=["home", "uri"])
def test_commands_that_only_read_import_no_mlflow(home: Path, command: list[str], by_uri: bool) -> None:
    environment = os.environ | {"ENGINERY_HOME": str(home)}
    if by_uri:
        environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{home}/mlflow.db"
    run = [sys.executable, "-c", COMMAND, *command]
    done = subprocess.run(run, cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=120)
    assert done.stderr.strip() == ""
    assert "l4" in done.stdout
