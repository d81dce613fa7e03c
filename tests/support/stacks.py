"""A running stack, and what its servers and state file report."""

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
    """A running stack: its checkout, its ENGINERY_HOME, and the variables that `up` exports."""

    checkout: Checkout
    home: Path
    environment: dict[str, str]

    @property
    def pids(self) -> dict[str, int]:
        state = json.loads((self.home / "stack.json").read_text(encoding="utf-8"))
        return {name: record["pid"] for name, record in state["services"].items()}

    def api(self, path: str, **body: Any) -> Any:
        answer = requests.post(f"{self.environment['PREFECT_API_URL']}{path}", json=body, timeout=30)
        assert answer.ok, answer.text
        return answer.json()

    def read(self, path: str) -> Any:
        return requests.get(f"{self.environment['PREFECT_API_URL']}{path}", timeout=30).json()

    def start(self, deployment: str, **parameters: Any) -> requests.Response:
        record = self.read(f"/deployments/name/{deployment}")
        address = f"{self.environment['PREFECT_API_URL']}/deployments/{record['id']}/create_flow_run"
        return requests.post(address, json={"parameters": parameters, "state": {"type": "SCHEDULED"}}, timeout=30)

    def end_of(self, started: requests.Response) -> Any:
        """Return the final state of a flow run, once it has ended."""
        assert started.ok, started.text
        path = f"/flow_runs/{started.json()['id']}"
        ends = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        return wait(lambda: (state := self.read(path)["state"])["type"] in ends and state, f"the end of {path}")

    def engine_events(self) -> list[Any]:
        """Return Enginery's events, oldest first."""
        answer = self.api("/events/filter", filter={"event": {"prefix": ["enginery."]}}, limit=50)
        return list(reversed(answer["events"]))


def wait(condition: Callable[[], Any], what: str, seconds: float = 200) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.5)
    raise AssertionError(f"{what} did not come in {seconds} s")


def marked(home: Path) -> list[int]:
    """Return the id of every process that carries the stack's mark."""
    mark = f"ENGINERY_STACK={json.loads((home / 'stack.json').read_text(encoding='utf-8'))['mark']}".encode()
    pids = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and mark in (folder / "environ").read_bytes():
                pids.append(int(folder.name))
        except OSError:
            continue
    return pids
