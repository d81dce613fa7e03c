"""A running tritonserver of the tests."""

import socket
from dataclasses import dataclass
from pathlib import Path

from tritonclient.grpc import InferenceServerClient

from registry.triton.control import TritonServer, triton_server

SECRET = "admin=let-me-in"


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
