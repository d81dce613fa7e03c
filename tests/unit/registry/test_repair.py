"""What a crash left unfinished is finished or torn, and a publish that is still running is left alone."""

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.doctor import examine, repair_registry
from registry.bundle.manifest import MANIFEST_FILE, write_manifest
from registry.bundle.signing import Trust, local_signer, local_trust, sign_bundle
from registry.errors import BadInput, EngineryError
from registry.host.process import has_ended, this_process
from registry.mlflow.rows import PUBLISHER, RECORD
from registry.mlflow.store import MlflowStore
from registry.records import EngineManifest
from registry.repair import PATIENCE_SECONDS, RepairOutcome, RepairResult, repair_unfinished
from tests.support.manifests import ManifestFactory


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def much_later() -> datetime.datetime:
    return now() + datetime.timedelta(seconds=PATIENCE_SECONDS + 60)


@pytest.fixture
def key_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("SIGNING_KEY", "SIGNING_CERTIFICATE", "SIGNING_CHAIN", "VERIFY_KEY", "VERIFY_ROOTS"):
        monkeypatch.delenv(f"ENGINERY_{name}", raising=False)
    local_signer(tmp_path / "home")
    return tmp_path / "home"


def signed_bundle(manifest_factory: ManifestFactory, key_home: Path, **fields: object) -> tuple[EngineManifest, Path]:
    manifest, folder = manifest_factory(**fields)
    (folder / MANIFEST_FILE).write_bytes(write_manifest(manifest))
    sign_bundle(folder, local_signer(key_home))
    return manifest, folder


def repair(
    store: MlflowStore, key_home: Path, clock: Callable[[], datetime.datetime] = now, trust: Trust | None = None
) -> list[RepairResult]:
    return list(repair_unfinished(store.repairs, lambda: trust or local_trust(key_home), clock=clock))


def reopen(store: MlflowStore, owner: str = "elsewhere 1 1") -> None:
    """Undo the last step of a publish by another host."""
    store.client.set_model_version_tag("sst2", "1", "version.publish_state", "uploading")
    record = json.loads(store.client.get_model_version("sst2", "1").tags[RECORD]) | {PUBLISHER: owner}
    store.client.set_model_version_tag("sst2", "1", RECORD, json.dumps(record))


def test_whole_bundle_is_finished_once(
    mlflow_store: MlflowStore, manifest_factory: ManifestFactory, key_home: Path
) -> None:
    published = mlflow_store.publish(*signed_bundle(manifest_factory, key_home))
    reopen(mlflow_store)
    (repaired,) = repair(mlflow_store, key_home, much_later)
    assert (repaired.outcome, repaired.version) == (RepairOutcome.FINISHED, 1), repaired.reason
    assert mlflow_store.versions("sst2") == (published,)
    assert repair(mlflow_store, key_home, much_later) == []


def test_running_publish_is_left_alone(
    mlflow_store: MlflowStore, manifest_factory: ManifestFactory, key_home: Path
) -> None:
    mlflow_store.publish(*signed_bundle(manifest_factory, key_home))
    for owner in ("elsewhere 1 1", this_process()):
        reopen(mlflow_store, owner)
        (repaired,) = repair(mlflow_store, key_home)
        assert (repaired.outcome, repaired.reason) == (RepairOutcome.LEFT, f"still being published by {owner}")
        assert mlflow_store.versions("sst2") == ()


def test_whole_upload_without_a_version_becomes_one(
    mlflow_store: MlflowStore,
    manifest_factory: ManifestFactory,
    key_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest, folder = signed_bundle(manifest_factory, key_home)
    with monkeypatch.context() as patched:
        patched.setattr(mlflow_store.client, "create_model_version", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mlflow_store.publish(manifest, folder)
    (repaired,) = repair(mlflow_store, key_home, much_later)
    assert (repaired.outcome, repaired.version) == (RepairOutcome.FINISHED, 1), repaired.reason
    assert mlflow_store.manifest("sst2", 1) == manifest
    assert mlflow_store.publish(manifest, folder).version == 1
    run = mlflow_store.client.get_run(repaired.run_id)
    assert (run.info.status, run.data.tags["enginery.version"]) == ("FINISHED", "1")


def test_engine_published_again_meanwhile_stays_one_version(
    mlflow_store: MlflowStore, manifest_factory: ManifestFactory, key_home: Path
) -> None:
    manifest, folder = signed_bundle(manifest_factory, key_home)
    mlflow_store.publish(manifest, folder)
    reopen(mlflow_store)
    again = replace(manifest, sequence=2)
    (folder / MANIFEST_FILE).write_bytes(write_manifest(again))
    sign_bundle(folder, local_signer(key_home))
    published = mlflow_store.publish(again, folder)
    (repaired,) = repair(mlflow_store, key_home, much_later)
    assert repaired.outcome is RepairOutcome.TORN
    assert "is version 2 already" in repaired.reason
    assert mlflow_store.versions("sst2") == (published,)


def test_run_of_a_complete_version_is_ended_and_never_torn(
    mlflow_store: MlflowStore, manifest_factory: ManifestFactory, key_home: Path, tmp_path: Path
) -> None:
    published = mlflow_store.publish(*signed_bundle(manifest_factory, key_home))
    run_id = str(mlflow_store.client.get_model_version("sst2", "1").run_id)
    mlflow_store.client.update_run(run_id, "RUNNING")
    (path,) = (tmp_path / "home").rglob("engine.plan")
    path.write_bytes(b"other")
    (repaired,) = repair(mlflow_store, key_home, much_later)
    assert (repaired.outcome, repaired.version) == (RepairOutcome.FINISHED, 1)
    assert mlflow_store.client.get_run(run_id).info.status == "FINISHED"
    assert mlflow_store.versions("sst2") == (published,)


def test_finishing_a_version_restores_its_deleted_run(
    mlflow_store: MlflowStore, manifest_factory: ManifestFactory, key_home: Path
) -> None:
    mlflow_store.publish(*signed_bundle(manifest_factory, key_home))
    reopen(mlflow_store)
    run_id = str(mlflow_store.client.get_model_version("sst2", "1").run_id)
    mlflow_store.client.delete_run(run_id)
    (repaired,) = repair(mlflow_store, key_home, much_later)
    assert repaired.outcome is RepairOutcome.FINISHED
    assert mlflow_store.client.get_run(run_id).info.lifecycle_stage == "active"


def test_bundle_of_another_publisher_is_not_judged_for_a_day(
    mlflow_store: MlflowStore, manifest_factory: ManifestFactory, key_home: Path, tmp_path: Path
) -> None:
    mlflow_store.publish(*signed_bundle(manifest_factory, tmp_path / "colleague"))
    reopen(mlflow_store, this_process().rpartition(" ")[0] + " 1")
    (repaired,) = repair(mlflow_store, key_home)
    assert repaired.outcome is RepairOutcome.LEFT
    assert "does not verify" in repaired.reason
    (repaired,) = repair(mlflow_store, key_home, much_later)
    assert repaired.outcome is RepairOutcome.TORN


def test_host_without_a_key_judges_nothing(
    mlflow_store: MlflowStore, manifest_factory: ManifestFactory, key_home: Path, tmp_path: Path
) -> None:
    mlflow_store.publish(*signed_bundle(manifest_factory, key_home))
    reopen(mlflow_store)
    (repaired,) = repair(mlflow_store, tmp_path / "none", much_later)
    assert repaired.outcome is RepairOutcome.LEFT
    assert "ENGINERY_VERIFY_KEY" in repaired.reason


def test_bundle_moved_to_another_model_is_torn(
    mlflow_store: MlflowStore, manifest_factory: ManifestFactory, key_home: Path
) -> None:
    mlflow_store.publish(*signed_bundle(manifest_factory, key_home))
    client = mlflow_store.client
    version = client.get_model_version("sst2", "1")
    client.create_registered_model("other")
    client.create_model_version(
        "other", str(version.source), str(version.run_id), tags={**version.tags, "version.publish_state": "uploading"}
    )
    (repaired,) = repair(mlflow_store, key_home, much_later)
    assert (repaired.model, repaired.outcome) == ("other", RepairOutcome.TORN)
    assert mlflow_store.versions("other") == ()


def test_invalid_manifest_is_torn(
    mlflow_store: MlflowStore, manifest_factory: ManifestFactory, key_home: Path, tmp_path: Path
) -> None:
    mlflow_store.publish(*signed_bundle(manifest_factory, key_home))
    reopen(mlflow_store)
    (path,) = (tmp_path / "home" / "artifacts").rglob(MANIFEST_FILE)
    path.write_bytes(b"{}")
    (repaired,) = repair(mlflow_store, key_home, much_later)
    assert repaired.outcome is RepairOutcome.TORN


def test_unreachable_store_marks_nothing_torn(
    mlflow_store: MlflowStore, manifest_factory: ManifestFactory, key_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow_store.publish(*signed_bundle(manifest_factory, key_home))
    reopen(mlflow_store)

    def fail(*_: object) -> Any:
        raise ConnectionError("no route to the bucket")

    with monkeypatch.context() as patched:
        patched.setattr("mlflow.store.artifact.local_artifact_repo.LocalArtifactRepository.list_artifacts", fail)
        (repaired,) = repair(mlflow_store, key_home, much_later)
    assert repaired.outcome is RepairOutcome.LEFT
    assert "no route to the bucket" in repaired.reason
    assert repair(mlflow_store, key_home, much_later)[0].outcome is RepairOutcome.FINISHED


def test_edited_counter_is_reported(mlflow_store: MlflowStore) -> None:
    assert mlflow_store.take_sequence("sst2") == 1
    mlflow_store.client.set_experiment_tag(mlflow_store.experiment("sst2"), "enginery.sequence", "many")
    with pytest.raises(BadInput, match="edited a tag"):
        mlflow_store.take_sequence("sst2")


def test_counter_set_back_gives_no_number_twice(
    mlflow_store: MlflowStore, manifest_factory: ManifestFactory, key_home: Path
) -> None:
    mlflow_store.publish(*signed_bundle(manifest_factory, key_home, sequence=5))
    mlflow_store.client.set_experiment_tag(mlflow_store.experiment("sst2"), "enginery.sequence", "1")
    assert mlflow_store.take_sequence("sst2") == 6


def test_version_marked_torn_during_a_publish_is_not_completed(
    mlflow_store: MlflowStore, manifest_factory: ManifestFactory, key_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = mlflow_store.client.create_model_version

    def create_torn(*arguments: Any, **named: Any) -> Any:
        version = create(*arguments, **named)
        mlflow_store.client.set_model_version_tag("sst2", version.version, "version.publish_state", "torn")
        return version

    monkeypatch.setattr(mlflow_store.client, "create_model_version", create_torn)
    with pytest.raises(EngineryError, match="was marked torn"):
        mlflow_store.publish(*signed_bundle(manifest_factory, key_home))
    assert mlflow_store.versions() == ()


def test_doctor_counts_and_repairs_what_a_crash_left(
    mlflow_store: MlflowStore, manifest_factory: ManifestFactory, key_home: Path
) -> None:
    mlflow_store.publish(*signed_bundle(manifest_factory, key_home))
    reopen(mlflow_store)
    before = {found.what: found for found in examine(key_home, lambda: mlflow_store, much_later)}["publishing"]
    assert (before.ok, before.found) == (False, "0 in progress, 1 interrupted by a crash")
    assert "enginery doctor --repair" in before.advice
    (mended,) = repair_registry(mlflow_store, key_home, much_later)
    assert (mended.what, mended.ok) == ("repair of sst2 version 1", True)
    after = {found.what: found for found in examine(key_home, lambda: mlflow_store, much_later)}["publishing"]
    assert (after.ok, after.found, after.advice) == (True, "0 in progress, 0 interrupted by a crash", "")


@pytest.mark.parametrize(
    ("database", "shared"), [(None, False), ("sqlite:///leases.db", False), ("postgresql+psycopg://db/leases", True)]
)
def test_doctor_reports_whether_the_lock_covers_other_hosts(
    database: str | None, shared: bool, server_uri: str, tmp_path: Path
) -> None:
    store = MlflowStore(server_uri, tmp_path / "home", lease_database=database)
    promotion = {finding.what: finding for finding in examine(tmp_path / "home", lambda: store, now)}["promotion"]
    assert promotion.ok is shared
    assert ("ENGINERY_LEASE_DATABASE" in promotion.advice) is not shared
    assert not promotion.needed


def test_process_can_be_checked_only_on_its_own_host() -> None:
    code = "from registry.host.process import this_process; print(this_process())"
    root = Path(__file__).parents[3]
    ended = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    host, pid, started = ended.split()
    assert has_ended(ended.strip())
    assert not has_ended(this_process())
    # Its number given to another process since, and a process of another host.
    assert has_ended(f"{host} {os.getpid()} {started}")
    assert not has_ended(f"elsewhere {pid} {started}")
    for hostile in ("", "x", f"{host}", f"{host} -1 1", f"{host} 1/../.. 1"):
        assert not has_ended(hostile)
