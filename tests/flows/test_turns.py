"""Whose turn it is to publish, by a real Prefect server that keeps leases in memory."""

import os
import subprocess
import sys
import time
from threading import Thread

import pytest
from prefect.client.orchestration import get_client

from flows.inputs.fleet import Fleet
from flows.prefect_server.setup import set_up_server
from flows.workers import release_on_workers as on_workers
from flows.workers.turn import one_at_a_time
from registry.errors import BadInput

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_offline")]


def test_a_server_that_a_restart_makes_forget_who_holds_a_slot_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with get_client(sync_client=True) as client:
        monkeypatch.setenv("PREFECT_API_URL", str(client.api_url))
        with pytest.raises(BadInput, match=r"LEASE_STORAGE=.*\.filesystem"):
            set_up_server(
                Fleet.model_validate_json('{"targets": {"cpu": {"backend": "onnxruntime", "work_pool": "unmade"}}}')
            )
        assert "unmade" not in {pool.name for pool in client.read_work_pools()}


def test_who_waits_for_long_is_told_how_to_free_a_forgotten_turn_and_then_gets_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(on_workers, "TURN_SECONDS", 1.0)
    said: list[str] = []
    had: list[bool] = []

    def publish() -> None:
        with one_at_a_time("forgotten", "r1", said.append):
            had.append(True)

    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name("enginery-release-forgotten", 1)
        client.increment_concurrency_slots(["enginery-release-forgotten"], 1, "concurrency")  # and nobody has a lease
        waiting = Thread(target=publish, daemon=True)
        waiting.start()
        deadline = time.monotonic() + 60
        while not said and time.monotonic() < deadline:
            time.sleep(0.1)
        assert had == []
        advice = said[0].split("`")[1].split()
        assert advice[0] == "prefect"
        here = os.environ | {"PREFECT_API_URL": str(client.api_url)}
        subprocess.run([sys.executable, "-m", *advice], env=here, check=True, capture_output=True)
        waiting.join(60)
        assert had == [True]
        assert client.read_global_concurrency_limit_by_name("enginery-release-forgotten").active_slots == 0
