"""The contract of every Store: what promotion and fetch rely on."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from registry.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE, verify_bundle, write_manifest
from registry.errors import BadInput, BadName, DigestMismatch, EngineryError, NotFound, TornBundle
from registry.records import PromotionEvent
from registry.serving.download import copy_bundle
from registry.store import Store

EVENT = PromotionEvent(
    event="e1",
    model="sst2",
    alias="production-l4",
    action="promote",
    from_version=None,
    to_version=1,
    who="ana",
    why="faster",
    evidence="passed",
    at=datetime(2026, 11, 23, tzinfo=UTC).isoformat(),
    outcome="pending",
    operation="o1",
    digest="f" * 64,
    fencing=1,
    waiver="w",
)


def test_unknown_model_is_empty(store: Store) -> None:
    assert store.versions("none") == ()
    assert store.aliases("none") == {}
    assert store.events("none") == ()
    assert store.find_build("f" * 64) is None
    store.delete_alias("none", "candidate-l4")


def test_published_row_says_what_the_manifest_says(store: Store, manifest_factory: Any) -> None:
    manifest, directory = manifest_factory()
    row = store.publish(manifest, directory)
    assert (row.version, row.target, row.precision, row.verdict) == (1, "l4", "fp16", "passed")
    assert row.metrics == (("latency_p50_ms", 1.25), ("build_seconds", 12.5))
    assert (row.measured_on, row.compute_capability, row.size_bytes) == ("NVIDIA L4", "8.9", 4)
    assert store.versions() == store.versions("sst2") == (row,)
    assert store.version("sst2", 1) == row
    assert store.find_build(manifest.build.build_key) == row
    assert store.builds(manifest.build.build_key) == (row,)
    assert store.take_sequence("sst2") == 2


def test_cpu_engine_has_no_compute_capability(store: Store, manifest_factory: Any) -> None:
    manifest, directory = manifest_factory()
    target = replace(manifest.build.target, compute_capability=None)
    manifest = replace(manifest, build=replace(manifest.build, target=target), measurements=())
    row = store.publish(manifest, directory)
    assert (row.compute_capability, row.measured_on) == (None, "")


def test_same_engine_of_same_release_is_published_once(store: Store, manifest_factory: Any) -> None:
    manifest, directory = manifest_factory()
    first = store.publish(manifest, directory)
    assert store.publish(manifest, directory) == first
    again = store.publish(replace(manifest, release="r2", sequence=2), directory)
    assert again.version == 2
    assert store.find_build(manifest.build.build_key) == again


def test_one_build_key_serves_two_targets(store: Store, manifest_factory: Any) -> None:
    manifest, directory = manifest_factory(target="h100")
    first = store.publish(manifest, directory)
    build = replace(manifest.build, target=replace(manifest.build.target, name="h200"))
    second = store.publish(replace(manifest, build=build, sequence=2), directory)
    assert (first.version, second.version) == (1, 2)
    assert store.builds(manifest.build.build_key) == (first, second)


def test_sequence_numbers_only_grow_and_are_never_given_twice(store: Store, manifest_factory: Any) -> None:
    assert [store.take_sequence("sst2") for _ in range(3)] == [1, 2, 3]
    store.publish(*manifest_factory(sequence=7))
    assert store.take_sequence("sst2") == 8


def test_engine_with_a_sequence_that_another_has_is_not_published(store: Store, manifest_factory: Any) -> None:
    published = store.publish(*manifest_factory())
    with pytest.raises(EngineryError, match="sequence 1 of sst2"):
        store.publish(*manifest_factory(b"other"))
    assert store.versions("sst2") == (published,)


def test_folder_that_differs_from_its_manifest_is_not_published(store: Store, manifest_factory: Any) -> None:
    manifest, directory = manifest_factory()
    (directory / "extra").write_bytes(b"")
    with pytest.raises(TornBundle, match="extra"):
        store.publish(manifest, directory)
    (directory / "extra").unlink()
    (directory / "empty").mkdir()
    with pytest.raises(TornBundle, match="empty folder"):
        store.publish(manifest, directory)
    (directory / "empty").rmdir()
    (directory / "engine.plan").write_bytes(b"PLAN")
    with pytest.raises(DigestMismatch):
        store.publish(manifest, directory)
    assert store.versions("sst2") == ()


def test_download_is_a_whole_bundle_with_its_signature(store: Store, manifest_factory: Any, tmp_path: Path) -> None:
    manifest, directory = manifest_factory()
    (directory / MANIFEST_FILE).write_bytes(write_manifest(manifest))
    (directory / SIGNATURE_FILE).write_bytes(b"signed")
    store.publish(manifest, directory)
    into = tmp_path / "into"
    into.mkdir()
    assert copy_bundle(store, "sst2", 1, into) == manifest
    assert verify_bundle(into) == manifest == store.manifest("sst2", 1)
    assert (into / SIGNATURE_FILE).read_bytes() == b"signed"
    assert (into / "tokenizer" / "vocab.txt").read_text(encoding="utf-8") == "a\nb\n"


def test_alias_moves_and_goes(store: Store, manifest_factory: Any) -> None:
    for number in (1, 2):
        store.publish(*manifest_factory(bytes([number]), sequence=number))
    store.set_alias("sst2", "production-l4", 1)
    store.set_alias("sst2", "production-l4", 2)
    store.set_alias("sst2", "candidate-l4", 2)
    assert store.resolve("sst2", "production-l4").version == 2
    assert store.version("sst2", 2).aliases == ("candidate-l4", "production-l4")
    assert [row.aliases for row in store.versions("sst2")] == [(), ("candidate-l4", "production-l4")]
    store.delete_alias("sst2", "production-l4")
    store.delete_alias("sst2", "production-l4")
    assert store.aliases("sst2") == {"candidate-l4": 2}
    with pytest.raises(NotFound):
        store.resolve("sst2", "production-l4")


def test_missing_versions_are_not_found(store: Store, manifest_factory: Any, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        store.version("sst2", 1)
    store.publish(*manifest_factory())
    for read in (store.version, store.manifest, lambda m, v: store.set_alias(m, "a", v)):
        with pytest.raises(NotFound):
            read("sst2", 9)
    with pytest.raises(NotFound):
        store.open_bundle("sst2", 9)


@pytest.mark.parametrize("name", ["../up", "a@b", "A", "a'b", "", "a\n"])
def test_names_from_outside_are_checked(store: Store, name: str, manifest_factory: Any) -> None:
    store.publish(*manifest_factory())
    with pytest.raises(BadName):
        store.set_alias("sst2", name, 1)
    with pytest.raises(BadName):
        store.aliases(name)


def test_history_is_in_order_and_finished_once(store: Store) -> None:
    for number in range(3):
        store.append_event(replace(EVENT, event=f"e{number}"))
    store.finish_event("sst2", "e1", "done")
    assert [(event.event, event.outcome) for event in store.events("sst2")] == [
        ("e0", "pending"),
        ("e1", "done"),
        ("e2", "pending"),
    ]
    assert store.events("sst2")[0] == replace(EVENT, event="e0")
    with pytest.raises(BadInput, match="already"):
        store.finish_event("sst2", "e1", "failed")
    with pytest.raises(NotFound):
        store.finish_event("sst2", "e9", "done")


def test_history_is_filtered_by_alias_outcome_and_age(store: Store) -> None:
    store.append_event(replace(EVENT, event="e2", alias="production-h100"))
    for number in (1, 3):
        store.append_event(replace(EVENT, event=f"e{number}"))
    store.finish_event("sst2", "e3", "done")

    def ids(**filters: Any) -> list[str]:
        return [event.event for event in store.events("sst2", **filters)]

    assert ids() == ["e1", "e2", "e3"]  # in the order of their ids, not of their writing
    assert ids(alias="production-l4") == ["e1", "e3"]
    assert ids(outcome="pending") == ["e1", "e2"]
    assert ids(newest=2) == ["e2", "e3"]
    assert ids(alias="production-l4", outcome="pending", newest=5) == ["e1"]
    assert ids(alias="production-none") == []


def test_the_newest_versions_are_the_last_ones(store: Store, manifest_factory: Any) -> None:
    for number in (1, 2, 3):
        store.publish(*manifest_factory(bytes([number]), sequence=number))
    assert [row.version for row in store.versions("sst2", newest=2)] == [2, 3]
    assert [row.version for row in store.versions(newest=1)] == [3]
    assert len(store.versions("sst2", newest=9)) == 3


def test_one_alias_is_read_by_name(store: Store, manifest_factory: Any) -> None:
    assert store.aliased("sst2", "production-l4") is None
    store.publish(*manifest_factory())
    assert store.aliased("sst2", "production-l4") is None
    store.set_alias("sst2", "production-l4", 1)
    assert store.aliased("sst2", "production-l4") == 1
    assert store.aliased("sst2", "latest") is None


def test_each_lease_has_a_higher_number(store: Store) -> None:
    with store.lock("sst2") as first, first.guard():
        pass
    with store.lock("sst2") as second:
        assert second.fencing > first.fencing


def test_text_too_long_to_store_whole_is_refused(store: Store) -> None:
    with pytest.raises(BadInput, match="text"):
        store.append_event(replace(EVENT, why="x" * 9000))
    assert store.events("sst2") == ()


def test_lock_is_free_again_after_an_error(store: Store) -> None:
    with pytest.raises(RuntimeError), store.lock("sst2"):
        raise RuntimeError
    with store.lock("sst2"):
        pass
