"""A registry of 10,000 engine versions in PostgreSQL: list, resolve an alias, promote; beside MLflow's own client.

    python -m benchmarks.registry [VERSIONS]

PostgreSQL is a real one, started here with fsync on; the registry is opened as the commands open it. The engines that
are promoted are published as a release does it; the others, and 1,000 past promotions, are copies of their rows made in
SQL, with runs, tags and numbers of their own.
"""

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.commands.promotion import NEWEST
from registry.digest import record_tree
from registry.mlflow.connect import open_store
from registry.mlflow.rows import history_experiment
from registry.mlflow.store import MlflowStore
from registry.promotion.promote import promote, rollback
from registry.promotion.rules import Decision
from registry.store import Store
from tests.support.manifests import make_manifest
from tests.support.postgres import Postgres, running_postgres
from tests.support.servers import mlflow_server

MODEL, TARGET, ALIAS = "sst2", "l4", "production-l4"
PROMOTED, PAST = 60, 1000
GOAL_MS = 200
DIRECT, BEHIND_A_SERVER = "direct", "behind-a-server"
DECISION = Decision("ana", "the benchmark", datetime.now(UTC))

# One more of everything that a publish writes for version 1, with numbers, digests and times of its own.
COPIES = [
    """INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time,
           end_time, source_version, lifecycle_stage, artifact_uri, experiment_id)
       SELECT md5('run' || n), name, source_type, source_name, entry_point_name, user_id, status, start_time + n,
           end_time + n, source_version, lifecycle_stage, artifact_uri, experiment_id
       FROM runs, generate_series({first}, {last}) n
       WHERE run_uuid = (SELECT run_id FROM model_versions WHERE name = '{model}' AND version = 1)""",
    """INSERT INTO tags (key, value, run_uuid) SELECT key, value, md5('run' || n)
       FROM tags, generate_series({first}, {last}) n
       WHERE run_uuid = (SELECT run_id FROM model_versions WHERE name = '{model}' AND version = 1)""",
    """INSERT INTO model_versions (name, version, creation_time, last_updated_time, description, user_id,
           current_stage, source, run_id, run_link, status, status_message, storage_location, workspace)
       SELECT name, n, creation_time + n, last_updated_time + n, description, user_id,
           current_stage, source, md5('run' || n), run_link, status, status_message, storage_location, workspace
       FROM model_versions, generate_series({first}, {last}) n WHERE name = '{model}' AND version = 1""",
    """INSERT INTO model_version_tags (name, version, workspace, key, value)
       SELECT name, n, workspace, key, CASE key WHEN 'version.sequence' THEN n::text
           WHEN 'version.build_key' THEN md5('key' || n) || md5('more' || n)
           WHEN 'version.record' THEN jsonb_set(value::jsonb, '{{digest}}',
               to_jsonb(md5('engine' || n) || md5('bytes' || n)))::text ELSE value END
       FROM model_version_tags, generate_series({first}, {last}) n WHERE name = '{model}' AND version = 1""",
]
PAST_EVENTS = [
    """INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time,
           end_time, source_version, lifecycle_stage, artifact_uri, experiment_id)
       SELECT md5('event' || n), name, source_type, source_name, entry_point_name,
           user_id, status, start_time - {past} + n, end_time - {past} + n, source_version, lifecycle_stage,
           artifact_uri, experiment_id
       FROM runs, generate_series(1, {past}) n WHERE run_uuid = '{event}'""",
    """INSERT INTO tags (key, value, run_uuid)
       SELECT key, CASE key WHEN 'enginery.alias' THEN 'production-other'
           WHEN 'enginery.event' THEN lpad(n::text, 12, '0') || '-000-past' ELSE value END, md5('event' || n)
       FROM tags, generate_series(1, {past}) n WHERE run_uuid = '{event}'""",
]


def main() -> None:
    if sys.argv[1:] in ([DIRECT], [BEHIND_A_SERVER]):
        for name, calls in (measured if sys.argv[1] == DIRECT else measured_behind_a_server)(open_store()):
            report(name, calls)
        return
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with running_postgres(durable=True) as server, tempfile.TemporaryDirectory() as folder:
        uri, home = server.uri(server.create()), Path(folder) / "home"
        fill(MlflowStore(uri, home, Path(folder) / "artifacts"), server, Path(folder), total)
        print(f"{total} versions of one model, {PAST} past promotions, PostgreSQL, load {os.getloadavg()[0]:.1f}")
        print(f"{'':44}{'p50 ms':>8}{'p95 ms':>8}{'calls':>7}", flush=True)
        told = {"ENGINERY_HOME": str(home), "ENGINERY_LEASE_DATABASE": uri}
        measure(DIRECT, told | {"MLFLOW_TRACKING_URI": uri})
        with mlflow_server(uri, str(home / "proxied")) as address:
            measure(BEHIND_A_SERVER, told | {"MLFLOW_TRACKING_URI": address})


def measure(how: str, told: Mapping[str, str]) -> None:
    """Measure in a process of its own, which has done nothing else before."""
    subprocess.run([sys.executable, "-m", "benchmarks.registry", how], env={**os.environ, **told}, check=True)


def fill(store: MlflowStore, server: Postgres, folder: Path, total: int) -> None:
    """Publish what will be promoted, and copy its rows until there are `total` versions."""
    started = time.perf_counter()
    for sequence in range(1, PROMOTED + 1):
        bundle = folder / "bundle"
        bundle.mkdir(exist_ok=True)
        (bundle / "engine.plan").write_bytes(b"plan %d" % sequence)
        store.publish(make_manifest(record_tree(bundle), model=MODEL, sequence=sequence), bundle)
    promote(store, MODEL, {TARGET: 1}, DECISION, {})
    (event,) = store.client.search_runs([store.named_experiment(history_experiment(MODEL))])
    values = {"first": PROMOTED + 1, "last": total, "model": MODEL, "past": PAST, "event": event.info.run_id}
    for statement in (*COPIES, *PAST_EVENTS, "ANALYZE"):
        server.sql(statement.format(**values), database="test0")
    print(f"filled in {time.perf_counter() - started:.0f} s")


def measured(store: Any) -> Iterator[tuple[str, list[float]]]:
    """Name and milliseconds of each call, ours beside MLflow's."""
    client = store.client

    def search() -> Any:
        return client.search_model_versions(f"name = '{MODEL}'", NEWEST, ["version_number DESC"])

    yield f"list, the newest {NEWEST}", timed(lambda _: store.versions(MODEL, newest=NEWEST))
    yield "  MLflow: search_model_versions, as many", timed(lambda _: search())
    yield "resolve an alias", timed(lambda _: store.resolve(MODEL, ALIAS))
    yield "  MLflow: get_model_version_by_alias", timed(lambda _: client.get_model_version_by_alias(MODEL, ALIAS))
    yield "  MLflow: get_registered_model (its aliases)", timed(lambda _: client.get_registered_model(MODEL), 5)
    decide = replace(DECISION, at=datetime.now(UTC))
    forward = timed(lambda call: promote(store, MODEL, {TARGET: call + 2}, decide, {}), PROMOTED - 1)
    yield "promote", forward
    yield "roll back", timed(lambda _: rollback(store, MODEL, [TARGET], decide, {}), 30)
    yield (
        "  MLflow: set_registered_model_alias",
        timed(lambda call: client.set_registered_model_alias(MODEL, "peer", call + 1)),
    )


def measured_behind_a_server(store: Store) -> Iterator[tuple[str, list[float]]]:
    """Measure the same through `mlflow server` with one worker on these cores."""
    yield f"  mlflow server: list, the newest {NEWEST}", timed(lambda _: store.versions(MODEL, newest=NEWEST))
    yield "  mlflow server: resolve an alias", timed(lambda _: store.resolve(MODEL, ALIAS))
    decide = replace(DECISION, at=datetime.now(UTC))
    yield (
        "  mlflow server: promote",
        timed(lambda call: promote(store, MODEL, {TARGET: PROMOTED - 19 + call}, decide, {}), 20),
    )


def timed(call: Callable[[int], object], times: int = 50) -> list[float]:
    """Return the milliseconds of each of `times` calls, the first one included, sorted."""
    found = []
    for number in range(times):
        started = time.perf_counter()
        call(number)
        found.append(1000 * (time.perf_counter() - started))
    return sorted(found)


def report(name: str, calls: list[float]) -> None:
    # Nearest rank, as for latencies.
    p50, p95 = (calls[math.ceil(share * len(calls)) - 1] for share in (0.5, 0.95))
    claim = f"   (claim: p95 under {GOAL_MS})" if not name.startswith("  ") else ""
    print(f"{name:44}{p50:8.1f}{p95:8.1f}{len(calls):7}{claim}")


if __name__ == "__main__":
    main()
