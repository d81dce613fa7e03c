"""Promoters that race, die and are paused: history and aliases agree, and no reported promotion is lost."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

pytest.importorskip("mlflow")
from registry.promotion.moves import settle_pending
from registry.promotion.promote import promote, read_history, rollback
from tests.support.manifests import ManifestFactory
from tests.support.postgres import Postgres
from tests.support.promoters import (
    MODEL,
    VERSIONS,
    Registry,
    decide,
    do_once,
    find_disagreement,
    keep_promoting,
    make_barrier,
    make_queue,
    pause_then_promote,
    promote_and_die,
    running,
)
from tests.support.servers import mlflow_server

pytestmark = pytest.mark.timeout(600)

# The promise is a minute: ENGINERY_STRESS_SECONDS=60.
STRESS_SECONDS = float(os.environ.get("ENGINERY_STRESS_SECONDS", "10"))
PROMOTERS = 8
PATIENCE_SECONDS = 120.0


def publish_versions(registry: Registry, manifest_factory: ManifestFactory) -> Registry:
    store = registry.store()
    for target, versions in VERSIONS.items():
        for version in versions:
            bundle = manifest_factory(bytes([version]), model=registry.model, target=target, sequence=version)
            assert store.publish(*bundle).version == version
    return registry


@pytest.fixture
def on_postgres(postgres_uri: str, manifest_factory: ManifestFactory, tmp_path: Path) -> Registry:
    return publish_versions(Registry(postgres_uri, tmp_path), manifest_factory)


@pytest.fixture
def on_sqlite(migrated_database: Path, manifest_factory: ManifestFactory, tmp_path: Path) -> Registry:
    (tmp_path / "mlflow.db").write_bytes(migrated_database.read_bytes())
    return publish_versions(Registry(f"sqlite:///{tmp_path}/mlflow.db", tmp_path), manifest_factory)


@pytest.fixture(scope="module")
def server_on_postgres(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The URIs of an MLflow server and of the database behind it."""
    database = postgres.uri(postgres.create("migrated"))
    with mlflow_server(database, str(tmp_path_factory.mktemp("artifacts"))) as uri:
        yield uri, database


@pytest.fixture
def on_server(server_on_postgres: tuple[str, str], manifest_factory: ManifestFactory, tmp_path: Path) -> Registry:
    uri, database = server_on_postgres
    return publish_versions(Registry(uri, tmp_path, f"sst2-{uuid4().hex[:8]}", database), manifest_factory)


@pytest.fixture(params=["sqlite", "postgres"])
def registry(request: pytest.FixtureRequest) -> Registry:
    chosen: Registry = request.getfixturevalue(f"on_{request.param}")
    return chosen


BEHIND_A_SERVER_TOO = ["sqlite", "postgres", pytest.param("server", marks=pytest.mark.long)]


@pytest.mark.parametrize("registry", BEHIND_A_SERVER_TOO, indirect=True)
def test_eight_promoters_on_two_hosts_lose_nothing_and_history_always_agrees_with_aliases(
    registry: Registry,
) -> None:
    store, results, start, model = registry.store(), make_queue(), make_barrier(PROMOTERS + 1), registry.model
    looks, reported = 0, []
    with ExitStack() as processes:
        for seed in range(PROMOTERS):
            host = registry.on_host(seed % 2)
            processes.enter_context(running(keep_promoting, host, seed, start, STRESS_SECONDS, results))
        start.wait(PATIENCE_SECONDS)
        end = time.monotonic() + STRESS_SECONDS
        while time.monotonic() < end:
            with store.lock(model):
                assert find_disagreement(store, model) is None
            looks += 1
            time.sleep(0.05)
        for _ in range(PROMOTERS):
            reported += results.get(timeout=PATIENCE_SECONDS)
    assert find_disagreement(store, model) is None
    done = [event.event for event in read_history(store, model) if event.outcome == "done"]
    assert sorted(reported) == sorted(done)
    assert {event.outcome for event in read_history(store, model)} == {"done"}
    assert done
    assert looks
    print(f"{len(done)} moves by {PROMOTERS} processes in {STRESS_SECONDS:.0f} s, looked at {looks} times")  # noqa: T201


@pytest.mark.parametrize("registry", BEHIND_A_SERVER_TOO, indirect=True)
def test_two_promoters_that_race_with_a_rollback_take_turns(registry: Registry) -> None:
    store, results, start, model = registry.store(), make_queue(), make_barrier(3), registry.model
    promote(store, model, {"l4": 1}, decide("first"), {})
    with ExitStack() as processes:
        for host, version in enumerate((2, 3, None)):
            processes.enter_context(running(do_once, registry.on_host(host), version, start, results))
        reported = [event for _ in range(3) for event in results.get(timeout=PATIENCE_SECONDS)]
    assert find_disagreement(store, model) is None
    assert sorted(reported) == [event.event for event in read_history(store, model)][1:]
    # A rollback that came first had nothing to go back to, and 2 may not follow 3.
    assert len(reported) in (1, 2, 3)


def test_a_clock_set_back_between_promotions_keeps_the_history_in_order(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, model, now = registry.store(), registry.model, decide("ana")
    promote(store, model, {"l4": 1}, now, {})
    with monkeypatch.context() as set_back:
        set_back.setattr("time.time", lambda: 0.0)
        promote(store, model, {"l4": 2}, replace(now, at=now.at - timedelta(days=400)), {})
    promote(store, model, {"l4": 3}, now, {})
    rollback(store, model, ["l4"], replace(now, at=now.at - timedelta(days=800)), {})
    assert [event.to_version for event in read_history(store, model)] == [1, 2, 3, 2]
    assert find_disagreement(store, model) is None


# Two records, two aliases, two outcomes.
@pytest.mark.parametrize("writes", range(6))
def test_promotion_killed_at_any_write_is_settled_by_the_next(registry: Registry, writes: int) -> None:
    die_and_settle(registry, writes)


@pytest.mark.parametrize("writes", [3, 5])
@pytest.mark.long
def test_a_host_that_died_between_the_aliases_is_settled_by_another_behind_a_server(
    on_server: Registry, writes: int
) -> None:
    die_and_settle(on_server, writes)


def die_and_settle(registry: Registry, writes: int) -> None:
    store, model = registry.store(), registry.model
    promote(store, model, {"l4": 1, "h100": 4}, decide("first"), {})
    with running(promote_and_die, registry.on_host(1), writes) as victim:
        victim.join(PATIENCE_SECONDS)
        assert victim.exitcode == -signal.SIGKILL
    with store.lock(model) as lease:
        settle_pending(store, model, lease)
    assert find_disagreement(store, model) is None
    moved = writes >= 4  # both aliases
    now = {"production-l4": 2, "production-h100": 5} if moved else {"production-l4": 1, "production-h100": 4}
    assert store.aliases(model) == now
    promote(store, model, {"l4": 3}, decide("next"), {})
    assert find_disagreement(store, model) is None


def test_promoter_paused_during_a_take_over_moves_nothing(on_postgres: Registry) -> None:
    store, results = on_postgres.store(), make_queue()
    with running(pause_then_promote, on_postgres, 2, results) as sleeper:
        assert sleeper.pid is not None
        wait_until_stopped(sleeper.pid)
        promote(store, MODEL, {"l4": 1}, decide("awake"), {})
        os.kill(sleeper.pid, signal.SIGCONT)
        refusal: Any = results.get(timeout=PATIENCE_SECONDS)
    assert "another one took over the lock" in refusal
    assert store.aliases(MODEL) == {"production-l4": 1}
    assert [event.who for event in read_history(store, MODEL)] == ["awake"]


def wait_until_stopped(pid: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline, "it was never stopped"
        time.sleep(0.01)
