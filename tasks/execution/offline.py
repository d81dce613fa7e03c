"""A process without a network: what reads a stranger's checkpoint runs in one, whatever its files ask for."""

import os
import sys

from registry.errors import EngineryError

# huggingface_hub, transformers and datasets read these when they are imported.
_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_CONNECTING = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg")


def go_offline() -> None:
    """Take the network from this process, for good: called first in a process of its own.

    The switches keep Hugging Face's libraries from trying; the audit hook (https://peps.python.org/pep-0578/), which
    nothing can remove, refuses what tries all the same through Python's sockets.
    """
    os.environ |= dict.fromkeys(_SWITCHES, "1")
    sys.addaudithook(_refuse_network)


def _refuse_network(event: str, _arguments: tuple[object, ...]) -> None:
    if event in _CONNECTING:
        raise EngineryError("a checkpoint asked for a download while it was exported: use a model without it")
