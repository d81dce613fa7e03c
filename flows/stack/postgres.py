"""The stack's own PostgreSQL: the system's programs, with data in ENGINERY_HOME, on a Unix socket."""

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
# sockaddr_un on Linux has room for 107 characters.
_LONGEST_SOCKET = 107


@dataclass(frozen=True)
class Cluster:
    """A database cluster: its folder and programs; `user` runs them for root, as whom they refuse to run."""

    folder: Path
    programs: Path
    user: str | None

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.folder / "data"

    def uri(self, database: str, driver: str) -> str:
        """Return a database's address for SQLAlchemy, with a driver such as psycopg or asyncpg."""
        return f"postgresql+{driver}://{_ROLE}@/{database}?host={quote(str(self.folder))}&port={_PORT}"

    def make_service(self, environment: Mapping[str, str]) -> Service:
        """Describe the server: no network, only the socket, in a folder that no other user can enter."""
        command = (str(self.programs / "postgres"), "-D", str(self.data), "-k", str(self.folder), "-h", "")
        # SIGINT is its "fast" shutdown: open transactions are rolled back, and nothing needs recovery.
        return Service(NAME, (*command, "-p", str(_PORT)), environment, self._is_ready, signal.SIGINT, self.user)

    def _is_ready(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self._connection_string(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _connection_string(self) -> str:
        return self.uri("postgres", "psycopg").replace("+psycopg", "", 1)

    def create_databases(self) -> None:
        """Create the databases that do not exist yet."""
        import psycopg

        with psycopg.connect(self._connection_string(), autocommit=True) as connection:
            existing = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
            for name in DATABASES:
                if name not in existing:
                    connection.execute(f'CREATE DATABASE "{name}"'.encode())


def open_cluster(folder: Path) -> Cluster:
    """Return the cluster in `folder`, and create it if it does not exist.

    Raises:
        BadInput: PostgreSQL or its driver is not installed, or the path is too long or out of its user's reach.
        EngineryError: initdb failed.
    """
    if len(os.fsencode(folder / f".s.PGSQL.{_PORT}")) > _LONGEST_SOCKET:
        raise BadInput(f"{folder} is too long a path for a Unix socket: choose a shorter ENGINERY_HOME")
    if find_spec("psycopg") is None:
        raise BadInput("`enginery up` needs psycopg, PostgreSQL's driver: pip install 'enginery[postgres]'")
    cluster = Cluster(folder, _find_programs(), _choose_user())
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if cluster.user:
        shutil.chown(folder, cluster.user)
        _check_access(folder, cluster.user)
    if not cluster.data.exists():
        _initialize(cluster)
    return cluster


def _initialize(cluster: Cluster) -> None:
    incoming = cluster.folder / "incoming"
    shutil.rmtree(incoming, ignore_errors=True)
    program = str(cluster.programs / "initdb")
    command = [program, "-D", str(incoming), "-U", _ROLE, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"]
    done = subprocess.run(command, user=cluster.user, cwd="/", capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise EngineryError(f"{program} failed in {cluster.folder}: {' '.join(done.stderr.split())[:500]}")
    incoming.rename(cluster.data)  # complete or absent: a killed initdb leaves a folder that no server starts on


def _find_programs() -> Path:
    # Debian installs each major version in a folder of its own, outside of PATH.
    if packaged := list(Path("/usr/lib/postgresql").glob("*/bin/postgres")):
        return max(packaged, key=_read_major).parent
    if program := shutil.which("postgres"):
        return Path(program).resolve().parent
    # Not the wheel that the tests use: it has no extensions, and Prefect needs pg_trgm.
    raise BadInput("PostgreSQL with its extension pg_trgm is not installed: apt-get install postgresql")


def _read_major(program: Path) -> int:
    version = program.parts[-3]
    return int(version) if version.isdecimal() else 0


def _choose_user() -> str | None:
    if os.geteuid() != 0:
        return None
    users = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in users else "nobody"


def _check_access(folder: Path, user: str) -> None:
    if subprocess.run(["test", "-w", folder], user=user, cwd="/", check=False).returncode:
        raise BadInput(
            f"PostgreSQL refuses to run as root, and user {user} cannot write to {folder}: set ENGINERY_HOME to a "
            f"folder in reach of {user}, or run `enginery up` as another user"
        )
