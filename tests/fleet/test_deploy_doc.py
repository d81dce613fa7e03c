"""docs/deploy.md, run: its units before systemd, its nginx before the two servers that its units start."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import requests

from registry.mlflow.store import MlflowStore
from tests.support.authority import make_authority
from tests.support.manifests import ManifestFactory
from tests.support.publisher import make_publisher
from tests.support.servers import free_port, served
from tests.support.stacks import wait

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
UNITS = ("enginery-mlflow.service", "enginery-prefect.service", "enginery-worker@.service")
MODULES = {"mlflow": "mlflow", "prefect": "prefect", "enginery": "flows.cli"}
ADMIN, RELEASE, SERVING, PREFECT = (
    "admin-of-the-test",
    "release-of-the-test",
    "serving-of-the-test",
    "admin:of-the-test",
)
WRONG = "nobody-has-this-one"
pytestmark = [pytest.mark.slow, pytest.mark.long]


def block(kind: str, first: str) -> str:
    """Return the code block of a language whose first line holds `first`."""
    return next(str(text) for language, text in BLOCKS if language == kind and first in text.partition("\n")[0])


def unit_environment(unit: str, file: Mapping[str, str]) -> dict[str, str]:
    """Return what systemd gives a unit: its own variables, and those of its file."""
    lines = [line.removeprefix("Environment=") for line in unit.splitlines() if line.startswith("Environment=")]
    return dict(word.split("=", 1) for line in lines for word in shlex.split(line)) | dict(file)


def unit_command(unit: str, environment: Mapping[str, str]) -> list[str]:
    """Return ExecStart as module and arguments, its variables filled in."""
    started = re.search(r"^ExecStart=(.*)$", unit.replace("\\\n", " "), re.MULTILINE)
    assert started
    program, *arguments = shlex.split(started[1])
    filled = [re.sub(r"\$\{(\w+)\}", lambda match: environment[match[1]], word) for word in arguments]
    return [MODULES[Path(program).name], *filled]


@pytest.mark.parametrize("name", UNITS)
def test_systemd_takes_the_units(name: str, tmp_path: Path) -> None:
    if not (analyze := shutil.which("systemd-analyze")):
        pytest.skip("systemd-analyze is missing: apt-get install systemd")
    unit = re.sub(r"(?<=^ExecStart=)/opt/enginery/\S+", sys.executable, block("ini", name), flags=re.MULTILINE)
    file = tmp_path / name.replace("@", "@l4-0")
    file.write_text(unit, encoding="utf-8")
    done = subprocess.run([analyze, "verify", "--man=no", file], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@dataclass(frozen=True)
class Team:
    """Both servers behind nginx; `authority` is the file of who signed its certificate."""

    mlflow: str
    prefect: str
    authority: str

    def environment(self, home: Path, user: str = "release", password: str = RELEASE) -> dict[str, str]:
        """Return what the document tells a client to set."""
        return {
            "MLFLOW_TRACKING_URI": self.mlflow,
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": password,
            "PREFECT_API_URL": self.prefect,
            "PREFECT_API_AUTH_STRING": PREFECT,
            "REQUESTS_CA_BUNDLE": self.authority,
            "SSL_CERT_FILE": self.authority,
            "ENGINERY_HOME": str(home),
            "PREFECT_HOME": str(home / "prefect"),
        }


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path, prefect_database: Path) -> Iterator[Team]:
    if not (nginx := shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")):
        pytest.skip("nginx is missing: apt-get install nginx-light")
    if not find_spec("flask_wtf"):
        pytest.skip("MLflow's basic auth lacks Flask-WTF: pip install 'mlflow[auth]'")
    folder = tmp_path_factory.mktemp("deploy")
    shutil.copy(migrated_database, folder / "mlflow.db")
    (folder / "home").mkdir()
    shutil.copy(prefect_database, folder / "home")
    ports = {"443": free_port(), "4200": free_port(), "5000": free_port()}
    public = {"prefect.example.com": free_port(), "mlflow.example.com": free_port()}
    authority = make_authority(folder, "localhost")
    with ExitStack() as stack:
        for server, health, file in (
            ("mlflow", f"http://127.0.0.1:{ports['5000']}/health", _mlflow_env(folder)),
            ("prefect", f"http://127.0.0.1:{ports['4200']}/api/health", {"PREFECT_SERVER_API_AUTH_STRING": PREFECT}),
        ):
            unit = block("ini", f"enginery-{server}.service").replace("/var/lib/enginery/prefect", str(folder / "home"))
            unit = re.sub(r"--port (\d+)", lambda match: f"--port {ports[match[1]]}", unit)
            unit = unit.replace("s3://engines/bundles", str(folder / "bundles")).replace("--workers 4", "--workers 1")
            environment = unit_environment(unit.replace("mlflow.example.com", "localhost"), file)
            command = unit_command(unit.replace("mlflow.example.com", "localhost"), environment)
            stack.enter_context(served([sys.executable, "-m", *command], environment, health, folder / f"{server}.log"))
        configuration = _nginx_file(folder, ports, public)
        health = f"http://127.0.0.1:{ports['443']}/"
        stack.enter_context(served([nginx, "-c", str(configuration), "-g", "daemon off;"], {}, health))
        addresses = [f"https://localhost:{public[name]}" for name in ("mlflow.example.com", "prefect.example.com")]
        team = Team(addresses[0], f"{addresses[1]}/api", str(authority))
        for user, password in (("release", RELEASE), ("serving", SERVING)):
            account = {"username": user, "password": password}
            _post(f"{team.mlflow}/api/2.0/mlflow/users/create", team, ("admin", ADMIN), account)
        yield team


def _mlflow_env(folder: Path) -> dict[str, str]:
    users = re.sub(r"(?<=database_uri = ).*", f"sqlite:///{folder}/users.db", block("ini", "basic_auth.ini"))
    (folder / "basic_auth.ini").write_text(users, encoding="utf-8")
    return {
        "DATABASE": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "0" * 32,
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN,
    }


def _nginx_file(folder: Path, ports: Mapping[str, int], public: Mapping[str, int]) -> Path:
    servers = block("nginx", "server").replace("/etc/ssl/enginery", str(folder / "server"))
    for port in ("4200", "5000"):
        servers = servers.replace(f"127.0.0.1:{port}", f"127.0.0.1:{ports[port]}")
    for name, own in public.items():
        servers = servers.replace(f"listen 443 ssl;\n  server_name {name};", f"listen 127.0.0.1:{own} ssl;", 1)
    assert "443 ssl" not in servers
    assert "example.com" not in servers
    places = [f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")]
    ready = f"server {{ listen 127.0.0.1:{ports['443']}; return 204; }}"
    user = "user root;" if os.geteuid() == 0 else ""  # pytest's folders are closed to others
    text = f"{user} pid {folder}/nginx.pid; error_log {folder}/nginx.log; events {{}}\n"
    text += "http {\naccess_log off;\n" + "\n".join([*places, ready, servers]) + "}\n"
    (folder / "nginx.conf").write_text(text, encoding="utf-8")
    return folder / "nginx.conf"


def _post(address: str, team: Team, user: tuple[str, str], body: Any, **headers: str) -> requests.Response:
    answer = requests.post(address, json=body, auth=user, verify=team.authority, headers=headers, timeout=30)
    assert answer.ok, f"{answer.status_code} {answer.text}"
    return answer


def _run(environment: Mapping[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PREFECT_"))}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    everything = inherited | dict(environment) | {"PYTHONPATH": path}
    call = [sys.executable, *command]
    return subprocess.run(call, env=everything, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def _refusal(environment: Mapping[str, str], *arguments: str) -> str:
    """Run `enginery`, which must refuse, and return the one line in which it does."""
    done = _run(environment, "-m", "flows.cli", *arguments)
    assert done.returncode in (1, 2), done.stdout
    lines = [line for line in done.stderr.splitlines() if "ENGINERY_LEASE_DATABASE" not in line]
    assert len(lines) == 1, done.stderr
    assert not any(secret in lines[0] for secret in (WRONG, RELEASE, SERVING, PREFECT))
    return lines[0]


def test_a_serving_host_fetches_and_changes_nothing(
    team: Team, manifest_factory: ManifestFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = make_publisher(tmp_path)
    with monkeypatch.context() as patched:
        for name, value in team.environment(tmp_path).items():
            patched.setenv(name, value)
        # A body beyond nginx's own limit.
        bundle = manifest_factory(content=os.urandom(3_000_000))
        publisher.publish(MlflowStore(team.mlflow, tmp_path / "state"), bundle)
    reader = team.environment(tmp_path, "serving", SERVING)
    arguments = ("sst2", "--version", "1", "--any-host", "--to", str(tmp_path / "models"))
    done = _run(reader, "-m", "flows.cli", "fetch", *arguments)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "models" / "sst2" / "1" / "engine.plan").stat().st_size == 3_000_000
    assert "has no permission to change" in _refusal(reader, "promote", "sst2", "--target", "l4", "--version", "1")


def test_a_refused_client_is_told_what_to_set(team: Team, tmp_path: Path) -> None:
    right = team.environment(tmp_path)
    assert "MLFLOW_TRACKING_PASSWORD" in _refusal(right | {"MLFLOW_TRACKING_PASSWORD": WRONG}, "list")
    assert "PREFECT_API_AUTH_STRING" in _refusal(right | {"PREFECT_API_AUTH_STRING": f"admin:{WRONG}"}, "targets")


def test_a_server_that_is_not_trusted_is_named_at_once(team: Team, tmp_path: Path) -> None:
    strangers = team.environment(tmp_path) | {"REQUESTS_CA_BUNDLE": "", "SSL_CERT_FILE": ""}
    assert "set REQUESTS_CA_BUNDLE" in _refusal(strangers, "list")
    assert "set SSL_CERT_FILE" in _refusal(strangers, "targets")


def test_mlflows_pages_may_ask_their_server(team: Team) -> None:
    search, origin = f"{team.mlflow}/ajax-api/2.0/mlflow/experiments/search", "https://localhost"
    assert _post(search, team, ("serving", SERVING), {"max_results": 1}, Origin=origin).json()["experiments"]


CHATTY = """
from prefect import flow, get_run_logger
from prefect.events import emit_event

@flow
def chatty():
    for number in range(150):
        get_run_logger().info(f"{number} " + "x" * 20_000)
    emit_event("enginery.test", resource={"prefect.resource.id": "enginery.test"})

chatty()
"""


def test_pools_logs_and_events_reach_prefect(team: Team, tmp_path: Path) -> None:
    environment = team.environment(tmp_path)
    for command in (("-m", "flows.cli", "deployments", "--pools"), ("-c", CHATTY)):
        done = _run(environment, *command)
        assert done.returncode == 0, done.stderr[-2000:]
    user = ("admin", PREFECT.partition(":")[2])
    logs = _post(f"{team.prefect}/logs/filter", team, user, {"limit": 200}).json()
    assert sum("xxx" in log["message"] for log in logs) == 150
    # From the client, over the web socket; the server writes events down every few seconds.
    query = {"filter": {"event": {"name": ["enginery.test"]}}}
    wait(lambda: _post(f"{team.prefect}/events/filter", team, user, query).json()["total"] == 1, "the event", 30)
    # A redirect that leads to plain http would lead a client out of the proxy.
    slash = f"{team.prefect}/work_pools/filter/"
    moved = requests.post(slash, auth=user, verify=team.authority, json={}, allow_redirects=False, timeout=30)
    assert moved.headers["Location"].startswith("https://")
