"""A real tritonserver on loopback, of the nvidia-pytriton wheel in `.venv-triton`; Python backend only, no GPU."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.triton_server import SECRET, Running, free_port

VENV = Path(__file__).parents[2] / ".venv-triton"
START_SECONDS = 60.0


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
