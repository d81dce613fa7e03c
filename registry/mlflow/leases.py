"""The lease on promoting a model: one holder at a time, among the processes of all hosts that share the registry.

A table `enginery_lease` in the registry's own database counts the holders of each model (`fencing`). PostgreSQL
passes the lease on when the holder returns it, or when its time is up by the database's clock; SQLite leaves
that to a kernel lock on a file beside the database, which ends with its process. Why: docs/adr/0014.
"""

import getpass
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from sqlalchemy import Connection, Engine, NullPool, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError

from registry.errors import BadInput, EngineryError, PromotionRefused, first_line
from registry.names import check_name
from registry.store import Lease, Leases

# Between two guards a promoter reads a manifest, perhaps from a bucket. Others wait this long for a dead host.
LEASE_SECONDS = 30.0
WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.03
# The key of the advisory lock under which one process at a time creates the table: any number, the same everywhere.
_TABLE_LOCK = 0x656E67696E

_CREATE_TABLE = """CREATE TABLE IF NOT EXISTS enginery_lease (
    model VARCHAR(63) PRIMARY KEY, fencing BIGINT NOT NULL, holder VARCHAR(250) NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE)"""
# One more than the last, and at least the clock's seconds: a table that was lost, or belongs to another host, does not
# start below the numbers in the history. After waiting for the row, PostgreSQL reads it again as its holder left it.
_TAKE_LEASE = """INSERT INTO enginery_lease AS lease (model, fencing, holder, expires_at)
    VALUES (:model, extract(epoch FROM clock_timestamp())::bigint, :holder,
        clock_timestamp() + make_interval(secs => :seconds))
    ON CONFLICT (model) DO UPDATE SET fencing = greatest(lease.fencing + 1, excluded.fencing),
        holder = excluded.holder, expires_at = clock_timestamp() + make_interval(secs => :seconds)
    WHERE lease.expires_at <= clock_timestamp()
    RETURNING fencing"""
_RETURN_LEASE = "UPDATE enginery_lease SET expires_at = clock_timestamp() WHERE model = :model AND fencing = :fencing"
_SELECT_OWN = "SELECT fencing FROM enginery_lease WHERE model = :model AND fencing = :fencing"
_COUNT_HOLDER = """INSERT INTO enginery_lease (model, fencing, holder)
    VALUES (:model, CAST(strftime('%s', 'now') AS INTEGER), :holder)
    ON CONFLICT (model) DO UPDATE SET fencing = max(enginery_lease.fencing + 1, excluded.fencing),
        holder = excluded.holder
    RETURNING fencing"""


def choose_leases(tracking_uri: str, state: Path, lease_database: str | None = None) -> Leases:
    """Return a registry's leases: in its own database, or in `lease_database` (a URI) if it is behind a server.

    Without either they are in a file under `state`, which covers the processes of one host only.

    Raises:
        BadInput: `lease_database` is not a PostgreSQL or SQLite URI, or the driver that it names is not installed.
    """
    for uri in (lease_database, tracking_uri):
        kind = _database_kind(uri)
        if uri and kind == "postgresql":
            return _open_postgres(uri)
        if uri and kind == "sqlite" and (path := make_url(uri).database):
            # If the registry is behind a server, its other hosts do not have this file.
            return SqliteLeases(Path(path).absolute(), shared=uri == tracking_uri)
        if uri and uri == lease_database:
            raise BadInput("ENGINERY_LEASE_DATABASE is not a postgresql:// or sqlite:/// URI: correct or unset it")
    return SqliteLeases(state.absolute() / "leases.db", shared=False)


def _open_postgres(uri: str) -> "PostgresLeases":
    try:
        return PostgresLeases(uri)
    except (ImportError, SQLAlchemyError) as error:
        reason = f"no module {error.name}" if isinstance(error, ImportError) else first_line(error)
        raise BadInput(
            f"the driver of ENGINERY_LEASE_DATABASE is not installed ({reason}): install .[postgres], and set it to "
            "postgresql://…"
        ) from error


@dataclass(frozen=True)
class _DatabaseLease:
    connection: Connection
    model: str
    fencing: int
    locks_row: bool

    @contextmanager
    def guard(self) -> Iterator[None]:
        # The row stays locked until the block ends: another holder waits for it, even past the lease's time.
        query = text(f"{_SELECT_OWN} FOR UPDATE" if self.locks_row else _SELECT_OWN)
        values = {"model": self.model, "fencing": self.fencing}
        with _translate_database_errors(self.model):
            held = self.connection.execute(query, values).scalar()
            if held is None or not self.locks_row:
                self.connection.rollback()
        if held is None:
            raise PromotionRefused(
                f"this promotion of {self.model} was paused for so long that another one took over the lock, and "
                "it moved nothing: look at the history, and start again"
            )
        try:
            yield
        except BaseException:
            with suppress(SQLAlchemyError):
                self.connection.rollback()
            raise
        with _translate_database_errors(self.model):
            self.connection.commit()  # fails if the database released the row meanwhile


class PostgresLeases:
    """Leases in PostgreSQL, for every host that reaches it; only its clock counts."""

    shared = True

    def __init__(self, uri: str, *, seconds: float = LEASE_SECONDS, wait_seconds: float = WAIT_SECONDS) -> None:
        self._engine: Engine = create_engine(uri, poolclass=NullPool, isolation_level="READ COMMITTED")
        self._seconds = seconds
        self._wait_seconds = wait_seconds

    @contextmanager
    def hold(self, model: str) -> Iterator[Lease]:
        """See `Leases.hold`."""
        check_name(model, what="model")
        with _translate_database_errors(model):
            connection = self._engine.connect()
        with connection:
            fencing = self._wait_for_lease(connection, model)
            try:
                yield _DatabaseLease(connection, model, fencing, locks_row=True)
            finally:
                # If the database is gone, the lease ends when its time is up.
                with suppress(SQLAlchemyError), connection.begin():
                    connection.execute(text(_RETURN_LEASE), {"model": model, "fencing": fencing})

    def _wait_for_lease(self, connection: Connection, model: str) -> int:
        deadline = time.monotonic() + self._wait_seconds
        with _translate_database_errors(model):
            _create_table(connection)
            while (fencing := self._try_to_take(connection, model, deadline - time.monotonic())) is None:
                if time.monotonic() >= deadline:
                    raise _make_refusal(connection, model)
                time.sleep(_POLL_SECONDS)
        return fencing

    def _try_to_take(self, connection: Connection, model: str, patience_seconds: float) -> int | None:
        values = {"model": model, "holder": _describe_holder(), "seconds": self._seconds}
        try:
            with connection.begin():
                milliseconds = max(1, int(1000 * patience_seconds))  # 0 would be no limit
                connection.execute(text(f"SET LOCAL lock_timeout = {milliseconds}"))
                fencing: int | None = connection.execute(text(_TAKE_LEASE), values).scalar()
                return fencing
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != "55P03":  # lock_not_available: the holder is writing
                raise
            return None


class SqliteLeases:
    """Leases beside an SQLite database: a file lock decides, the table counts. A paused holder keeps its lease."""

    def __init__(self, database: Path, *, shared: bool, wait_seconds: float = WAIT_SECONDS) -> None:
        self.shared = shared
        self._database = database
        # SQLite waits for MLflow's writers to the same file, which take little time.
        self._engine = create_engine(
            f"sqlite:///{database}", poolclass=NullPool, connect_args={"timeout": wait_seconds}
        )
        self._wait_seconds = wait_seconds

    @contextmanager
    def hold(self, model: str) -> Iterator[Lease]:
        """See `Leases.hold`."""
        folder = self._database.with_name(f"{self._database.name}.locks")
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{check_name(model, what='model')}.lock", timeout=self._wait_seconds)
        with _translate_database_errors(model):
            opened = self._engine.connect()
        with opened as connection:
            try:
                lock.acquire()
            except Timeout as error:
                raise _make_refusal(connection, model) from error
            try:
                yield _DatabaseLease(connection, model, self._count_holder(connection, model), locks_row=False)
            finally:
                lock.release()

    def _count_holder(self, connection: Connection, model: str) -> int:
        with _translate_database_errors(model), connection.begin():
            connection.execute(text(_CREATE_TABLE))
            return int(
                connection.execute(text(_COUNT_HOLDER), {"model": model, "holder": _describe_holder()}).scalar_one()
            )


def _database_kind(uri: str | None) -> str:
    if not uri:
        return ""
    try:
        return make_url(uri).get_backend_name()
    except (ArgumentError, ValueError):
        return ""


def _create_table(connection: Connection) -> None:
    with connection.begin():
        if connection.execute(text("SELECT to_regclass('enginery_lease')")).scalar() is None:
            # IF NOT EXISTS alone is a race: two sessions can both see it missing, and the second one fails.
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _TABLE_LOCK})
            connection.execute(text(_CREATE_TABLE))


def _make_refusal(connection: Connection, model: str) -> PromotionRefused:
    with suppress(SQLAlchemyError):
        query = text("SELECT holder FROM enginery_lease WHERE model = :model")
        holder = connection.execute(query, {"model": model}).scalar()
        return PromotionRefused(f"another promotion of {model} is running ({holder}): wait for it and try again")
    return PromotionRefused(f"another promotion of {model} is running: wait for it and try again")


def _describe_holder() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user} at {socket.gethostname()}, process {os.getpid()}"[:250]


@contextmanager
def _translate_database_errors(model: str) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        reason = first_line(getattr(error, "orig", None) or error)
        raise EngineryError(
            f"could not get, or lost, the promotion lock on {model}: {reason}; check the registry's database"
        ) from error
