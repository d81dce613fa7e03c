"""Real servers on loopback: MLflow with proxied artifacts, Prefect, and S3 by moto."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE_SECONDS = 120.0
BUCKET = "engines"
# moto accepts any keys; without a region boto3 looks for one on the network.
S3_KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


def free_port() -> int:
    """Return a TCP port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def mlflow_server(
    database: Path | str,
    artifacts: str,
    more: Mapping[str, str] | None = None,
    workers: int = 1,
    port: int | None = None,
) -> Iterator[str]:
    """Run `mlflow server` on an SQLite file or a database's URI, and yield its address.

    It stores the artifacts that it proxies at `artifacts`, a folder or a bucket's URI.
    """
    port = port or free_port()
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]
    backend = f"sqlite:///{database}" if isinstance(database, Path) else database
    stores = ["--backend-store-uri", backend, "--artifacts-destination", artifacts]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    address = f"http://127.0.0.1:{port}"
    with served(
        [sys.executable, "-m", "mlflow", "server", *options, *stores], quiet | dict(more or {}), f"{address}/health"
    ):
        yield address


@contextmanager
def prefect_server(home: Path, more: Mapping[str, str] | None = None, port: int | None = None) -> Iterator[str]:
    """Run `prefect server start` and yield its API's address; on SQLite under `home` unless `more` names a database."""
    port = port or free_port()
    address = f"http://127.0.0.1:{port}/api"
    own = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_API_URL": address,
        "PREFECT_SERVER_UI_API_URL": address,
        "DO_NOT_TRACK": "1",
        # As in docs/deploy.md: in memory, the default, a restart forgets every lease.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # A worker that misses two heartbeats is offline; tests do not wait for Prefect's three of 30 s.
        "PREFECT_SERVER_SERVICES_FOREMAN_LOOP_SECONDS": "3",
        "PREFECT_SERVER_SERVICES_FOREMAN_INACTIVITY_HEARTBEAT_MULTIPLE": "2",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with served(command, own | dict(more or {}), f"{address}/health", home / "server.log"):
        yield address


@contextmanager
def served(command: list[str], own: Mapping[str, str], health: str, log: Path = Path(os.devnull)) -> Iterator[None]:
    """Run a server without inherited MLflow or Prefect settings until the block ends; enter it once healthy."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PREFECT_"))}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=inherited | dict(own), stdout=output, stderr=output, start_new_session=True
        )
    try:
        _wait_until_healthy(health, process)
        yield
    finally:
        # A signal to the process alone would leave its workers running.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Run moto's S3 with an empty BUCKET, and yield the environment that points clients at it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        client = boto3.client(
            "s3", endpoint_url=address, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
        )
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield S3_KEYS | {"MLFLOW_S3_ENDPOINT_URL": address}
    finally:
        server.stop()


def _wait_until_healthy(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        if process.poll() is not None:
            raise AssertionError(f"the server at {address} ended with {process.returncode}")
        with suppress(OSError), urllib.request.urlopen(address, timeout=5):  # noqa: S310  # loopback
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"the server at {address} did not start")
        time.sleep(0.1)
