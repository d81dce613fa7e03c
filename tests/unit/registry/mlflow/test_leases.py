"""One holder at a time: between threads, processes and hosts, and after a holder that died or was paused."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from registry.errors import BadInput, BadName, EngineryError, PromotionRefused
from registry.mlflow.leases import PostgresLeases, SqliteLeases, choose_leases
from registry.store import Lease, Leases
from tests.support.postgres import Postgres

ROOT = Path(__file__).parents[4]
LONG = 60.0
MakeLeases = Callable[..., Leases]


@pytest.fixture
def empty_uri(postgres: Postgres) -> str:
    """A database without any table."""
    return postgres.uri(postgres.create())


@pytest.fixture(params=["sqlite", "postgresql"])
def make_leases(request: pytest.FixtureRequest, tmp_path: Path) -> MakeLeases:
    """Return what opens the same leases as another host does."""
    if request.param == "sqlite":
        return lambda **limits: SqliteLeases(tmp_path / "mlflow.db", shared=True, **limits)
    uri = request.getfixturevalue("empty_uri")
    return lambda **limits: PostgresLeases(uri, **limits)


def change(uri: str, statement: str) -> None:
    engine = create_engine(uri)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def address(leases: Any) -> str:
    return str(leases._engine.url.render_as_string(hide_password=False))


def test_each_holder_has_a_higher_number_than_the_one_before(make_leases: MakeLeases) -> None:
    numbers = []
    for _ in range(3):
        with make_leases().hold("sst2") as lease, lease.guard():
            numbers.append(lease.fencing)
    assert numbers == sorted(set(numbers))


def test_a_model_has_one_holder_and_another_model_its_own(make_leases: MakeLeases) -> None:
    with make_leases().hold("sst2"):
        with (
            pytest.raises(PromotionRefused, match=f"process {os.getpid()}"),
            make_leases(wait_seconds=0.1).hold("sst2"),
        ):
            pass
        with make_leases(wait_seconds=0.1).hold("mnist"):
            pass


def test_threads_that_all_begin_on_an_empty_database_take_turns(make_leases: MakeLeases) -> None:
    inside: list[int] = []
    most: list[int] = []

    def turn(_: int) -> int:
        with make_leases(wait_seconds=LONG).hold("sst2") as lease, lease.guard():
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()
            return lease.fencing

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(turn, range(16)))
    assert len(set(numbers)) == 16
    assert max(most) == 1


def test_counter_ahead_of_the_clock_continues(make_leases: MakeLeases) -> None:
    leases = make_leases()
    with leases.hold("sst2"):
        pass
    change(address(leases), "UPDATE enginery_lease SET fencing = 99999999999")  # then the clock was set back
    with make_leases().hold("sst2") as lease:
        assert lease.fencing == 100000000000


def test_lost_table_does_not_start_below_the_history(make_leases: MakeLeases) -> None:
    leases = make_leases()
    with leases.hold("sst2") as before:
        pass
    change(address(leases), "DROP TABLE enginery_lease")
    with make_leases().hold("sst2") as after:
        assert after.fencing >= before.fencing > 1_700_000_000


def test_the_lease_is_free_again_after_an_error(make_leases: MakeLeases) -> None:
    with pytest.raises(RuntimeError), make_leases().hold("sst2") as lease, lease.guard():
        raise RuntimeError
    with make_leases(wait_seconds=0.1).hold("sst2"):
        pass


@pytest.mark.parametrize("name", ["../sst2", "a b", ""])
def test_names_are_checked_before_they_become_files(make_leases: MakeLeases, name: str) -> None:
    with pytest.raises(BadName), make_leases().hold(name):
        pass


def test_paused_holder_cannot_write_after_another_took_over(empty_uri: str) -> None:
    with PostgresLeases(empty_uri, seconds=0.0).hold("sst2") as stale:
        with PostgresLeases(empty_uri).hold("sst2") as fresh, fresh.guard():
            assert fresh.fencing > stale.fencing
        with pytest.raises(PromotionRefused, match="another one took over the lock"), stale.guard():
            pytest.fail("the stale holder may not write")


def test_late_holder_that_nobody_replaced_may_write(empty_uri: str) -> None:
    with PostgresLeases(empty_uri, seconds=0.0).hold("sst2") as lease:
        for _ in range(2):
            with lease.guard():
                pass


def test_stale_holder_does_not_free_the_lease_of_its_successor(empty_uri: str) -> None:
    with PostgresLeases(empty_uri, seconds=0.0).hold("sst2"):
        fresh = PostgresLeases(empty_uri).hold("sst2")
        fresh.__enter__()
    with pytest.raises(PromotionRefused), PostgresLeases(empty_uri, wait_seconds=0.1).hold("sst2"):
        pass
    fresh.__exit__(None, None, None)


def test_take_over_waits_for_the_holder_that_is_writing(empty_uri: str) -> None:
    order: list[str] = []
    waiting = threading.Event()

    def take_over() -> None:
        waiting.set()
        with PostgresLeases(empty_uri, wait_seconds=LONG).hold("sst2"):
            order.append("taken")

    other = threading.Thread(target=take_over)
    with PostgresLeases(empty_uri, seconds=0.0).hold("sst2") as lease, lease.guard():
        other.start()
        waiting.wait()
        with pytest.raises(PromotionRefused), PostgresLeases(empty_uri, wait_seconds=0.2).hold("sst2"):
            pytest.fail("taken while its holder was writing")
        order.append("written")
    other.join()
    assert order == ["written", "taken"]


def test_lost_connection_of_a_guard_is_reported(empty_uri: str, postgres: Postgres) -> None:
    leases = PostgresLeases(empty_uri)

    def cut(lease: Lease) -> None:
        with lease.guard():
            postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")

    with pytest.raises(EngineryError, match="or lost, the promotion lock"), leases.hold("sst2") as lease:
        cut(lease)


def test_a_killed_holder_does_not_stop_the_next_one(make_leases: MakeLeases) -> None:
    leases = make_leases()
    constructor = (
        f"SqliteLeases(Path({str(leases._database)!r}), shared=True)"
        if isinstance(leases, SqliteLeases)
        else f"PostgresLeases({address(leases)!r}, seconds=0.5)"
    )
    program = f"""
from pathlib import Path
from registry.mlflow.leases import PostgresLeases, SqliteLeases
with {constructor}.hold("sst2") as lease, lease.guard():
    print(lease.fencing, flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        fencing = int(holder.stdout.readline())
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with make_leases(wait_seconds=LONG).hold("sst2") as lease:
            assert lease.fencing > fencing


def test_a_registry_behind_a_server_needs_a_database_for_its_leases(tmp_path: Path) -> None:
    alone = choose_leases("http://mlflow:5000", tmp_path)
    assert not alone.shared
    with alone.hold("sst2"):
        pass
    assert (tmp_path / "leases.db").is_file()
    assert choose_leases("http://mlflow:5000", tmp_path, "postgresql+psycopg://db/enginery").shared
    assert not choose_leases("http://mlflow:5000", tmp_path, f"sqlite:///{tmp_path}/leases.db").shared
    assert choose_leases(f"sqlite:///{tmp_path}/mlflow.db", tmp_path).shared
    assert isinstance(choose_leases("postgresql+psycopg://db/mlflow", tmp_path), PostgresLeases)


@pytest.mark.parametrize(
    "uri",
    [
        *("http://db", "mysql://db/x", "no address", "postgresql", "sqlite://", "postgresql://me:secret@db:word/x"),
        *("postgresql+nosuchdriver://me:secret@db/x", "postgresql+psycopg2cffi://me:secret@db/x"),
    ],
)
def test_uri_that_cannot_hold_leases_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="ENGINERY_LEASE_DATABASE") as caught:
        choose_leases("http://mlflow:5000", tmp_path, uri)
    assert "secret" not in str(caught.value)


def test_a_folder_instead_of_the_lease_file_is_one_sentence(tmp_path: Path) -> None:
    leases = choose_leases("http://mlflow:5000", tmp_path, f"sqlite:///{tmp_path}")
    with pytest.raises(EngineryError, match="unable to open database file"), leases.hold("sst2"):
        pass


def test_unreachable_database_is_one_sentence_without_the_password() -> None:
    leases = PostgresLeases("postgresql+psycopg://me:secret@127.0.0.1:1/enginery")
    with pytest.raises(EngineryError, match="check the registry's database") as caught, leases.hold("sst2"):
        pass
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
