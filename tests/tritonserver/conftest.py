"""A real tritonserver on loopback, of the nvidia-pytriton wheel in `.venv-triton`; Python backend only, no GPU."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tritonclient.grpc import InferenceServerClient

from registry.triton.control import TritonServer, triton_server

VENV = Path(__file__).parents[2] / ".venv-triton"
SECRET = "admin=let-me-in"
START_SECONDS = 60.0


@dataclass(frozen=True)
class Running:
    """A server, its empty model repository, and its log."""

    address: str
    repository: Path
    log: Path

    @property
    def control(self) -> TritonServer:
        """The server as Enginery controls it, with the header."""
        return triton_server(self.address, SECRET)

    def unload(self, model: str) -> None:
        """Stop serving a model."""
        with InferenceServerClient(self.address) as client:
            client.unload_model(model, headers=dict(self.control.headers))

    def ready_versions(self, model: str) -> list[int]:
        """List the versions of a model that answer now."""
        with InferenceServerClient(self.address) as client:
            index = client.get_model_repository_index(headers=dict(self.control.headers))
        return sorted(int(row.version) for row in index.models if row.name == model and row.state == "READY")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def wheel() -> Path:
    """The folder of tritonserver inside the wheel."""
    if not (VENV / ".installed").is_file():
        pytest.skip("no tritonserver: run `make .venv-triton/.installed`")
    return next(VENV.glob("lib/python3.*/site-packages/pytriton/tritonserver"))


@pytest.fixture(scope="module")
def server(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server for a test file, with explicit model control that wants a header."""
    home = tmp_path_factory.mktemp("triton")
    repository, log, port = home / "repository", home / "server.log", free_port()
    repository.mkdir()
    command = [
        str(wheel / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={wheel / 'backends'}",
        "--model-control-mode=explicit",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={port}",
        f"--grpc-restricted-protocol=model-repository:{SECRET}",
        "--allow-http=false",
        "--allow-metrics=false",
        "--disable-auto-complete-config",
    ]
    # Its stub is started as `python3` of this PATH.
    environment = os.environ | {"PATH": f"{VENV / 'bin'}:{os.environ['PATH']}"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_until_ready(process, port, log)
        yield Running(f"127.0.0.1:{port}", repository, log)
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail(f"tritonserver did not start:\n{log.read_text(errors='replace')[-3000:]}")
