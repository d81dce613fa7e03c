"""Load a placed version through Triton's model control API over gRPC, and roll back if the load fails.

The server runs with `--model-control-mode=explicit`. Its control API is open to all by default: restrict it with
`--grpc-restricted-protocol=model-repository:NAME=VALUE`, and pass the same NAME=VALUE to `triton_server`.
https://github.com/triton-inference-server/server/blob/main/docs/customization_guide/inference_protocols.md
"""

import time
from dataclasses import dataclass, field
from typing import Any

from registry.errors import BadInput, EngineryError
from registry.triton.config import DIGEST_PARAMETER
from registry.triton.repository import PlacedModel, restore

# Triton looks for a restricted protocol's header under this prefix.
_HEADER_PREFIX = "triton-grpc-protocol-"
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class TritonServer:
    """A running Triton server: its gRPC address, and the header of a restricted control API."""

    address: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    timeout_seconds: float = 300.0


def triton_server(address: str, restricted: str | None = None) -> TritonServer:
    """Return a server at HOST:PORT; `restricted` is NAME=VALUE, as in the server's own option.

    Raises:
        BadInput: the address is not HOST:PORT, or `restricted` is not NAME=VALUE. The message hides the secret value.
    """
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise BadInput(f"Triton's address {address[:80]!r} is not HOST:PORT, such as localhost:8001 (gRPC)")
    if restricted is None:
        return TritonServer(address)
    name, equals, value = restricted.partition("=")
    if not (equals and value and name.replace("-", "").isalnum() and name.isascii()):
        raise BadInput("Triton's restricted header is not NAME=VALUE, as in --grpc-restricted-protocol")
    return TritonServer(address, ((f"{_HEADER_PREFIX}{name.lower()}", value),))


def load_version(server: TritonServer, placed: PlacedModel) -> None:
    """Load a placed version and wait until it is ready; if that fails, the previous version serves again.

    Raises:
        EngineryError: the version did not load, or the server reads another repository. config.pbtxt is restored, and
            the message tells which version is served.
        BadInput: tritonclient is not installed.
    """
    client = _connect(server)
    try:
        _load_and_check(server, client, placed)
    except EngineryError as error:
        restore(placed)
        raise EngineryError(f"{error}; {_reload_previous(server, client, placed)}") from error
    finally:
        client.close()


def _load_and_check(server: TritonServer, client: Any, placed: PlacedModel) -> None:
    _call(server, client.load_model, placed.model)
    deadline = time.monotonic() + server.timeout_seconds
    while not _call(server, client.is_model_ready, placed.model, str(placed.version)):
        if time.monotonic() > deadline:
            raise EngineryError(
                f"Triton at {server.address}: {placed.model} version {placed.version} was loaded but is not ready "
                f"after {server.timeout_seconds:g} s: see the server's log"
            )
        time.sleep(_POLL_SECONDS)
    config = _call(server, client.get_model_config, placed.model, str(placed.version)).config
    if config.parameters[DIGEST_PARAMETER].string_value != placed.digest:
        raise EngineryError(
            f"Triton at {server.address} serves another {placed.model} than the one in {placed.repository}: start it "
            f"with --model-repository={placed.repository}"
        )


def _reload_previous(server: TritonServer, client: Any, placed: PlacedModel) -> str:
    if placed.previous_config is None:
        return "the model was new, so nothing is served, and it was removed from the repository"
    try:
        _call(server, client.load_model, placed.model)
    except EngineryError as error:
        return f"config.pbtxt is restored, but the previous version could not be loaded again ({error})"
    return "the previous version is served, and config.pbtxt is restored"


def _call(server: TritonServer, method: Any, *arguments: str) -> Any:
    from tritonclient.utils import InferenceServerException  # of the `triton` extra, like the client

    try:
        return method(*arguments, headers=dict(server.headers), client_timeout=server.timeout_seconds)
    except InferenceServerException as error:
        request = f"{method.__name__.replace('_', ' ')} {' '.join(arguments)}".strip()
        reason = " ".join(str(error.message()).split())
        raise EngineryError(f"Triton at {server.address} refused to {request} ({reason})") from error


def _connect(server: TritonServer) -> Any:
    try:
        # gRPC is slow to import, and the base install leaves out the `triton` extra.
        from tritonclient.grpc import InferenceServerClient
    except ImportError as error:
        raise BadInput("loading a model on Triton needs tritonclient: pip install 'enginery[triton]'") from error
    return InferenceServerClient(server.address)
