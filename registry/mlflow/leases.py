"""Who may promote a model: one holder at a time, between the processes of all hosts that share the registry.

A table `enginery_lease` in the registry's own database counts the holders of each model (`fencing`). PostgreSQL
hands the lease over when the holder gives it back, or when its time is up by the database's clock; SQLite leaves
that to a kernel lock on a file beside the database, which falls with its process. Why: docs/adr/0014.
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

from registry.errors import BadInput, EngineryError, PromotionRefused
from registry.names import check_name
from registry.store import Lease, Leases

# Checks read a manifest, perhaps from a bucket, between two guards; nobody waits longer than this for a dead host.
LEASE_SECONDS = 30.0
WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.03
# Any number, the same everywhere: one process at a time makes the table.
_MAKING_THE_TABLE = 0x656E67696E

_TABLE = """CREATE TABLE IF NOT EXISTS enginery_lease (
    model VARCHAR(63) PRIMARY KEY, fencing BIGINT NOT NULL, holder VARCHAR(250) NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE)"""
# One more than the last, and no less than the clock's seconds: so a table that was lost, or is another host's, does
# not begin before the history. After a wait for the row PostgreSQL looks at it again, as its holder left it.
_TAKE = """INSERT INTO enginery_lease AS lease (model, fencing, holder, expires_at)
    VALUES (:model, extract(epoch FROM clock_timestamp())::bigint, :holder,
        clock_timestamp() + make_interval(secs => :seconds))
    ON CONFLICT (model) DO UPDATE SET fencing = greatest(lease.fencing + 1, excluded.fencing),
        holder = excluded.holder, expires_at = clock_timestamp() + make_interval(secs => :seconds)
    WHERE lease.expires_at <= clock_timestamp()
    RETURNING fencing"""
_GIVE_BACK = "UPDATE enginery_lease SET expires_at = clock_timestamp() WHERE model = :model AND fencing = :fencing"
_MINE = "SELECT fencing FROM enginery_lease WHERE model = :model AND fencing = :fencing"
_COUNT = """INSERT INTO enginery_lease (model, fencing, holder)
    VALUES (:model, CAST(strftime('%s', 'now') AS INTEGER), :holder)
    ON CONFLICT (model) DO UPDATE SET fencing = max(enginery_lease.fencing + 1, excluded.fencing),
        holder = excluded.holder
    RETURNING fencing"""


def leases_for(tracking_uri: str, state: Path, lease_database: str | None = None) -> Leases:
    """The leases of a registry: in its own database, or in `lease_database` (a URI) where it is behind a server.

    Without either they are in a file under `state`, which holds between the processes of one host only.

    Raises:
        BadInput: `lease_database` is no PostgreSQL or SQLite URI.
    """
    for uri in (lease_database, tracking_uri):
        kind = _kind(uri)
        if uri and kind == "postgresql":
            return PostgresLeases(uri)
        if uri and kind == "sqlite" and (path := make_url(uri).database):
            # Behind a server, other hosts have no file of ours.
            return SqliteLeases(Path(path).absolute(), shared=uri == tracking_uri)
        if uri and uri == lease_database:
            raise BadInput("ENGINERY_LEASE_DATABASE is not a postgresql:// or sqlite:/// address: mend or unset it")
    return SqliteLeases(state.absolute() / "leases.db", shared=False)


@dataclass(frozen=True)
class _Turn:
    connection: Connection
    model: str
    fencing: int
    locks_row: bool

    @contextmanager
    def guard(self) -> Iterator[None]:
        # The row stays locked until the block ends: a take-over waits for it, even past the lease's time.
        query = text(f"{_MINE} FOR UPDATE" if self.locks_row else _MINE)
        values = {"model": self.model, "fencing": self.fencing}
        with _plainly(self.model):
            held = self.connection.execute(query, values).scalar()
            if held is None or not self.locks_row:
                self.connection.rollback()
        if held is None:
            raise PromotionRefused(
                f"this promotion of {self.model} stood still for so long that another one took its turn, and "
                "nothing was moved: look at the history, and start again"
            )
        try:
            yield
        except BaseException:
            with suppress(SQLAlchemyError):
                self.connection.rollback()
            raise
        with _plainly(self.model):
            self.connection.commit()  # fails where the database let go of the row in the meantime


class PostgresLeases:
    """Leases in PostgreSQL, for every host that reaches it; its clock alone counts."""

    shared = True

    def __init__(self, uri: str, *, seconds: float = LEASE_SECONDS, wait_seconds: float = WAIT_SECONDS) -> None:
        self._engine: Engine = create_engine(uri, poolclass=NullPool, isolation_level="READ COMMITTED")
        self._seconds = seconds
        self._wait_seconds = wait_seconds

    @contextmanager
    def hold(self, model: str) -> Iterator[Lease]:
        """See `Leases.hold`."""
        check_name(model, what="model")
        with _plainly(model):
            connection = self._engine.connect()
        with connection:
            fencing = self._wait(connection, model)
            try:
                yield _Turn(connection, model, fencing, locks_row=True)
            finally:
                # Where the database is gone, the lease's own time ends it.
                with suppress(SQLAlchemyError), connection.begin():
                    connection.execute(text(_GIVE_BACK), {"model": model, "fencing": fencing})

    def _wait(self, connection: Connection, model: str) -> int:
        deadline = time.monotonic() + self._wait_seconds
        with _plainly(model):
            _make_table(connection)
            while (fencing := self._take(connection, model, deadline - time.monotonic())) is None:
                if time.monotonic() >= deadline:
                    raise _refusal(connection, model)
                time.sleep(_POLL_SECONDS)
        return fencing

    def _take(self, connection: Connection, model: str, patience_seconds: float) -> int | None:
        values = {"model": model, "holder": _holder(), "seconds": self._seconds}
        try:
            with connection.begin():
                milliseconds = max(1, int(1000 * patience_seconds))  # 0 would wait for ever
                connection.execute(text(f"SET LOCAL lock_timeout = {milliseconds}"))
                taken: int | None = connection.execute(text(_TAKE), values).scalar()
                return taken
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != "55P03":  # lock_not_available: the holder is writing
                raise
            return None


class SqliteLeases:
    """Leases beside an SQLite database: a file lock decides, the table counts. A paused holder keeps its turn."""

    def __init__(self, database: Path, *, shared: bool, wait_seconds: float = WAIT_SECONDS) -> None:
        self.shared = shared
        self._database = database
        # SQLite waits for MLflow's writers to the same file; none of theirs takes long.
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
        with self._engine.connect() as connection:
            try:
                lock.acquire()
            except Timeout as error:
                raise _refusal(connection, model) from error
            try:
                yield _Turn(connection, model, self._count(connection, model), locks_row=False)
            finally:
                lock.release()

    def _count(self, connection: Connection, model: str) -> int:
        with _plainly(model), connection.begin():
            connection.execute(text(_TABLE))
            return int(connection.execute(text(_COUNT), {"model": model, "holder": _holder()}).scalar_one())


def _kind(uri: str | None) -> str:
    if not uri:
        return ""
    try:
        return make_url(uri).get_backend_name()
    except (ArgumentError, ValueError):
        return ""


def _make_table(connection: Connection) -> None:
    with connection.begin():
        if connection.execute(text("SELECT to_regclass('enginery_lease')")).scalar() is None:
            # IF NOT EXISTS alone races: two sessions can both find it missing, and the second one fails.
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MAKING_THE_TABLE})
            connection.execute(text(_TABLE))


def _refusal(connection: Connection, model: str) -> PromotionRefused:
    with suppress(SQLAlchemyError):
        query = text("SELECT holder FROM enginery_lease WHERE model = :model")
        holder = connection.execute(query, {"model": model}).scalar()
        return PromotionRefused(f"another promotion of {model} is running ({holder}): wait for it and try again")
    return PromotionRefused(f"another promotion of {model} is running: wait for it and try again")


def _holder() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user} at {socket.gethostname()}, process {os.getpid()}"[:250]


@contextmanager
def _plainly(model: str) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        sentence = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise EngineryError(
            f"the lease on {model} was not to be had or got lost: {sentence}; check the registry's database"
        ) from error
