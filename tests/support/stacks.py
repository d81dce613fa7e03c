"""A stack that runs, and what it says of itself."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from tests.support.checkouts import Checkout


@dataclass(frozen=True)
class Stack:
    """A stack that runs: its checkout, its ENGINERY_HOME, and what `up` said to export."""

    checkout: Checkout
    home: Path
    environment: dict[str, str]

    @property
    def pids(self) -> dict[str, int]:
        state = json.loads((self.home / "stack.json").read_text(encoding="utf-8"))
        return {name: record["pid"] for name, record in state["services"].items()}

    def api(self, path: str, **asked: Any) -> Any:
        answer = requests.post(f"{self.environment['PREFECT_API_URL']}{path}", json=asked, timeout=30)
        assert answer.ok, answer.text
        return answer.json()

    def read(self, path: str) -> Any:
        return requests.get(f"{self.environment['PREFECT_API_URL']}{path}", timeout=30).json()

    def start(self, deployment: str, **parameters: Any) -> requests.Response:
        found = self.read(f"/deployments/name/{deployment}")
        address = f"{self.environment['PREFECT_API_URL']}/deployments/{found['id']}/create_flow_run"
        return requests.post(address, json={"parameters": parameters, "state": {"type": "SCHEDULED"}}, timeout=30)

    def end_of(self, started: requests.Response) -> Any:
        """The final state of a flow run."""
        assert started.ok, started.text
        path = f"/flow_runs/{started.json()['id']}"
        ends = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        return wait(lambda: (state := self.read(path)["state"])["type"] in ends and state, f"the end of {path}")

    def engine_events(self) -> list[Any]:
        """Enginery's events, the oldest first."""
        answer = self.api("/events/filter", filter={"event": {"prefix": ["enginery."]}}, limit=50)
        return list(reversed(answer["events"]))


def wait(said: Callable[[], Any], what: str, seconds: float = 200) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := said():
            return found
        time.sleep(0.5)
    raise AssertionError(f"{what} did not come in {seconds} s")


def marked(home: Path) -> list[int]:
    """Every process that carries the stack's mark."""
    mark = f"ENGINERY_STACK={json.loads((home / 'stack.json').read_text(encoding='utf-8'))['mark']}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and mark in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found
