"""A process that went offline reaches nobody, whatever a library in it tries."""

import os
import socket

import pytest

from registry.errors import EngineryError
from tasks.execution.isolate import run_isolated
from tasks.execution.offline import go_offline
from tasks.execution.progress import OnProgress, ignore_progress


def connect(port: int, _progress: OnProgress) -> None:
    go_offline()
    with socket.socket() as each:
        each.connect(("127.0.0.1", port))


def resolve(_progress: OnProgress) -> None:
    go_offline()
    socket.getaddrinfo("localhost", 80)


def ask_hub(_progress: OnProgress) -> tuple[bool, str]:
    go_offline()
    import huggingface_hub
    from transformers.utils.hub import is_offline_mode

    return bool(huggingface_hub.constants.HF_HUB_OFFLINE) and is_offline_mode(), os.environ["HF_DATASETS_OFFLINE"]


def test_sockets_are_refused_where_they_worked() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()
        with pytest.raises(EngineryError, match="asked for a download"):
            run_isolated(connect, port, on_progress=ignore_progress)
    with pytest.raises(EngineryError, match="asked for a download"):
        run_isolated(resolve, on_progress=ignore_progress)


def test_hugging_face_libraries_are_told() -> None:
    assert run_isolated(ask_hub, on_progress=ignore_progress) == (True, "1")
    assert "HF_HUB_OFFLINE" not in os.environ
