"""A PostgreSQL of the stack's own: the system's programs, its data in ENGINERY_HOME, on a Unix socket."""

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from flows.stack.processes import Service
from registry.errors import BadInput, EngineryError

NAME = "postgres"
DATABASES = ("mlflow", "prefect")
_ROLE = "enginery"
_PORT = 5432
# sockaddr_un of Linux has room for 107 characters.
_LONGEST_SOCKET = 107


@dataclass(frozen=True)
class Cluster:
    """Where the data, the socket and the programs are; `user` runs them where we are root, which they refuse."""

    folder: Path
    programs: Path
    user: str | None

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.folder / "data"

    def uri(self, database: str, driver: str) -> str:
        """The address of a database for SQLAlchemy with a driver such as psycopg or asyncpg."""
        return f"postgresql+{driver}://{_ROLE}@/{database}?host={quote(str(self.folder))}&port={_PORT}"

    def service(self, environment: Mapping[str, str]) -> Service:
        """The server: no network, only the socket, in a folder that nobody else can enter."""
        command = (str(self.programs / "postgres"), "-D", str(self.data), "-k", str(self.folder), "-h", "")
        # SIGINT is its "fast" shutdown: open transactions are rolled back, and nothing needs recovery.
        return Service(NAME, (*command, "-p", str(_PORT)), environment, self._answers, signal.SIGINT, self.user)

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self._where(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _where(self) -> str:
        return self.uri("postgres", "psycopg").replace("+psycopg", "", 1)

    def make_databases(self) -> None:
        """Make the databases that are not there."""
        import psycopg

        with psycopg.connect(self._where(), autocommit=True) as connection:
            there = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
            for name in DATABASES:
                if name not in there:
                    connection.execute(f'CREATE DATABASE "{name}"'.encode())


def make_cluster(folder: Path) -> Cluster:
    """The cluster in `folder`, made where it is not there.

    Raises:
        BadInput: no PostgreSQL, no driver, a path that is too long, or one that its user cannot enter.
        EngineryError: initdb failed.
    """
    if len(os.fsencode(folder / f".s.PGSQL.{_PORT}")) > _LONGEST_SOCKET:
        raise BadInput(f"{folder} is too long a path for a Unix socket: choose a shorter ENGINERY_HOME")
    if find_spec("psycopg") is None:
        raise BadInput("the stack needs psycopg, the driver of PostgreSQL: pip install 'enginery[postgres]'")
    cluster = Cluster(folder, _programs(), _unprivileged())
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if cluster.user:
        shutil.chown(folder, cluster.user)
        _check_entrance(folder, cluster.user)
    if not cluster.data.exists():
        _initdb(cluster)
    return cluster


def _initdb(cluster: Cluster) -> None:
    made = cluster.folder / "incoming"
    shutil.rmtree(made, ignore_errors=True)
    command = [
        str(cluster.programs / "initdb"),
        "-D",
        str(made),
        "-U",
        _ROLE,
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--locale=C.UTF-8",
    ]
    done = subprocess.run(command, user=cluster.user, cwd="/", capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise EngineryError(f"initdb failed: {' '.join(done.stderr.split())[:500]}")
    made.rename(cluster.data)  # whole or not there: a killed initdb leaves a folder that no server starts on


def _programs() -> Path:
    for found in sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=_major, reverse=True):
        return found.parent
    if found_here := shutil.which("postgres"):
        return Path(found_here).resolve().parent
    # Not the wheel that the tests use: it has no extensions, and Prefect needs pg_trgm.
    raise BadInput("PostgreSQL is missing, with its extension pg_trgm: apt-get install postgresql")


def _major(program: Path) -> int:
    version = program.parts[-3]
    return int(version) if version.isdecimal() else 0


def _unprivileged() -> str | None:
    if os.geteuid() != 0:
        return None
    users = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in users else "nobody"


def _check_entrance(folder: Path, user: str) -> None:
    if subprocess.run(["test", "-w", folder], user=user, cwd="/", check=False).returncode:
        raise BadInput(
            f"PostgreSQL refuses to be root, and user {user} cannot reach {folder}: choose an ENGINERY_HOME that it "
            "can, or be another user"
        )
