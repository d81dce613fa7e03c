"""A serving host sees a whole, signed, verified bundle or none, and never an older release than it had."""

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from registry.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE, write_manifest
from registry.errors import (
    BadInput,
    BadName,
    DigestMismatch,
    EngineryError,
    Incompatible,
    NotFound,
    Replayed,
    SignatureInvalid,
    TornBundle,
    Unrecorded,
)
from registry.promotion.promote import promote, rollback
from registry.promotion.rules import Decision
from registry.records import EngineVersion, PromotionEvent
from registry.serving.download import write_seal
from registry.serving.fetch import Policy, fetch, verify_placed
from registry.serving.placed import RECORD_FILE, HostRecord, read_record
from registry.store import Bundle, Store
from tests.support.memory_store import MemoryStore
from tests.support.publisher import HOST, Publisher, make_publisher

WHOLE = [f"sst2/1/{name}" for name in ("engine.plan", "manifest.json", "model.sig", "tokenizer/vocab.txt")]


@pytest.fixture
def registry(memory_store: MemoryStore, manifest_factory: Any, publisher: Publisher) -> MemoryStore:
    publisher.publish(memory_store, manifest_factory())
    promote(memory_store, "sst2", {"l4": 1}, decision("first"), {})
    return memory_store


@pytest.fixture
def policy(publisher: Publisher) -> Policy:
    return publisher.policy


def visible(into: Path) -> list[str]:
    """Files that a server would see, less what fetch keeps for itself."""
    names = (path.relative_to(into) for path in (into / "sst2").rglob("*") if not path.is_dir())
    return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))


def test_fetched_bundle_is_what_was_published(
    store: Store, manifest_factory: Any, publisher: Publisher, tmp_path: Path
) -> None:
    manifest, directory = manifest_factory()
    publisher.publish(store, (manifest, directory))
    promote(store, "sst2", {"l4": 1}, decision("first"), {})
    into = tmp_path / "models"
    fetched = fetch(store, "sst2", alias="production-l4", into=into, policy=publisher.policy)
    assert (fetched.version, fetched.manifest.build.digest, fetched.reused) == (1, manifest.build.digest, False)
    assert verify_placed(fetched.path, publisher.trust) == manifest
    assert visible(into) == WHOLE
    assert fetched.path.stat().st_mode & 0o777 == 0o755
    again = fetch(store, "sst2", version=1, into=into, policy=publisher.policy)
    assert again == replace(fetched, reused=True)
    assert sorted(path.name for path in (into / "sst2").iterdir()) == [RECORD_FILE, "1"]


@pytest.mark.parametrize("choice", [{}, {"alias": "production-l4", "version": 1}])
def test_exactly_one_of_alias_and_version_is_named(
    choice: dict[str, Any], registry: MemoryStore, policy: Policy, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="either"):
        fetch(registry, "sst2", into=tmp_path, policy=policy, **choice)


def test_unknown_things_are_not_found(registry: MemoryStore, policy: Policy, tmp_path: Path) -> None:
    for choice in ({"alias": "none"}, {"version": 9}):
        with pytest.raises(NotFound):
            fetch(registry, "sst2", into=tmp_path, policy=policy, **choice)
    with pytest.raises(BadName):
        fetch(registry, "../sst2", version=1, into=tmp_path, policy=policy)


def answer_with(store: MemoryStore, model: str, version: int, alias: str, lie: dict[str, Any]) -> None:
    """Let the registry answer for a model's version and alias with version 1 of sst2, whose row it changes by `lie`."""
    true, false = ("sst2", 1), (model, version)
    row = replace(store.rows[true], **lie)
    store.files[false], store._pins[false] = store.files[true], store._pins[true]
    store.rows[false] = row
    store._aliases.setdefault(model, {})[alias] = version


@pytest.mark.parametrize(
    ("model", "choice", "lie"),
    [
        ("other", {"version": 1}, {}),
        ("other", {"alias": "candidate-l4"}, {}),
        ("other", {"alias": "production-l4"}, {}),
        ("other", {"version": 1}, {"model": "other"}),
        ("sst2", {"version": 777}, {}),
        ("sst2", {"version": 777}, {"sequence": 777, "version": 777}),
        ("sst2", {"alias": "ours"}, {"version": -7}),
        ("sst2", {"alias": "ours"}, {"version": 0}),
        ("sst2", {"alias": "candidate-h100"}, {}),
        ("sst2", {"alias": "candidate-h100"}, {"target": "h100"}),
        ("sst2", {"alias": "production-h100"}, {}),
        ("sst2", {"alias": "production-l4"}, {"target": "h100"}),
    ],
)
def test_engine_of_another_model_version_or_target_than_asked_for_is_refused(
    model: str, choice: dict[str, Any], lie: dict[str, Any], registry: MemoryStore, policy: Policy, tmp_path: Path
) -> None:
    answer_with(registry, model, choice.get("version", 1), choice.get("alias", "none"), lie)
    with pytest.raises(DigestMismatch, match=r"not trust it|count from 1|was changed"):
        fetch(registry, model, into=tmp_path, policy=replace(policy, unrecorded=True), **choice)
    assert list(tmp_path.glob(f"{model}/[!.]*")) == []


@pytest.mark.parametrize("version", [0, -7])
def test_version_number_is_positive(version: int, registry: MemoryStore, policy: Policy, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="count from 1"):
        fetch(registry, "sst2", version=version, into=tmp_path, policy=policy)


class CountingStore(MemoryStore):
    """Counts how often a bundle is opened, and may change what comes out."""

    opened = 0
    spoil: Callable[[dict[str, bytes]], object] = staticmethod(len)

    def open_bundle(self, model: str, version: int) -> Bundle:
        self.opened += 1
        bundle = super().open_bundle(model, version)
        files = dict(self.files[model, version])
        self.spoil(files)
        return replace(bundle, files=type(bundle.files)(files))  # type: ignore[call-arg]


@pytest.fixture
def counting(manifest_factory: Any, publisher: Publisher) -> CountingStore:
    store = CountingStore()
    publisher.publish(store, manifest_factory())
    return store


@pytest.mark.parametrize(
    "host",
    [
        replace(HOST, compute_capability="9.0"),
        replace(HOST, driver="550.1"),
        replace(HOST, tensorrt="10.13"),
        replace(HOST, tensorrt=None),
    ],
)
def test_unsuitable_engine_is_refused_before_the_download(
    host: Any, counting: CountingStore, publisher: Publisher, tmp_path: Path
) -> None:
    counting.set_alias("sst2", "production-l4", 1)
    with pytest.raises(Incompatible, match="in production: l4"):
        fetch(counting, "sst2", version=1, into=tmp_path, policy=Policy(publisher.trust, host))
    assert counting.opened == 0
    assert list(tmp_path.glob("sst2*")) == []
    fetch(counting, "sst2", version=1, into=tmp_path, policy=Policy(publisher.trust, None))


def test_manifest_overrules_an_edited_registry_row_before_the_download(
    counting: CountingStore, publisher: Publisher, tmp_path: Path
) -> None:
    counting.rows["sst2", 1] = replace(counting.rows["sst2", 1], compute_capability="9.0")
    other = Policy(publisher.trust, replace(HOST, compute_capability="9.0"))
    with pytest.raises(Incompatible, match=r"compute capability 8\.9"):
        fetch(counting, "sst2", version=1, into=tmp_path, policy=other)
    assert visible(tmp_path) == []


def flip(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def link_outside(bundle: Path) -> None:
    (bundle / "engine.plan").rename(bundle.parents[1] / "outside")
    (bundle / "engine.plan").symlink_to(bundle.parents[1] / "outside")


def flip_unseen(bundle: Path) -> None:
    """Changes a byte, and puts the size and the time back."""
    before = (bundle / "engine.plan").stat()
    flip(bundle / "engine.plan")
    os.utime(bundle / "engine.plan", ns=(before.st_atime_ns, before.st_mtime_ns))


def put_pipe(bundle: Path) -> None:
    (bundle / "engine.plan").unlink()
    os.mkfifo(bundle / "engine.plan")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped byte": lambda bundle: flip(bundle / "engine.plan"),
    "flipped byte with the old time": flip_unseen,
    "flipped byte of the manifest": lambda bundle: flip(bundle / "manifest.json"),
    "flipped byte of the signature": lambda bundle: flip(bundle / "model.sig"),
    "no signature": lambda bundle: (bundle / "model.sig").unlink(),
    "truncated": lambda bundle: os.truncate(bundle / "engine.plan", 1),
    "added file": lambda bundle: (bundle / "extra").write_bytes(b""),
    "added dotfile": lambda bundle: (bundle / ".extra").write_bytes(b""),
    "added empty folder": lambda bundle: (bundle / "extra").mkdir(),
    "removed file": lambda bundle: (bundle / "tokenizer" / "vocab.txt").unlink(),
    "hard link": lambda bundle: os.link(bundle / "engine.plan", bundle.parents[1] / "outside"),
    "symbolic link": link_outside,
    "pipe": lambda bundle: put_pipe(bundle),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_bundle_is_refused_and_fetched_again(
    damage: Callable[[Path], object], registry: MemoryStore, publisher: Publisher, tmp_path: Path
) -> None:
    into = tmp_path / "models"
    fetched = fetch(registry, "sst2", version=1, into=into, policy=publisher.policy)
    damage(fetched.path)
    with pytest.raises((TornBundle, DigestMismatch, BadInput, SignatureInvalid)):
        verify_placed(fetched.path, publisher.trust)
    assert fetch(registry, "sst2", version=1, into=into, policy=publisher.policy) == fetched
    verify_placed(fetched.path, publisher.trust)
    assert visible(into) == WHOLE


def test_file_in_the_place_of_the_bundle_is_replaced(
    registry: MemoryStore, publisher: Publisher, tmp_path: Path
) -> None:
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "1").write_bytes(b"?")
    path = fetch(registry, "sst2", version=1, into=tmp_path, policy=publisher.policy).path
    verify_placed(path, publisher.trust)


def test_bundle_in_place_is_read_again_only_with_rehash(
    registry: MemoryStore, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(registry, "sst2", version=1, into=tmp_path, policy=policy)

    def reads(*_: object) -> None:
        raise AssertionError("read")

    monkeypatch.setattr("registry.serving.fetch.verify_files", reads)
    assert fetch(registry, "sst2", version=1, into=tmp_path, policy=policy).reused
    with pytest.raises(AssertionError, match="read"):
        fetch(registry, "sst2", version=1, into=tmp_path, policy=replace(policy, rehash=True))


def test_changed_file_times_cause_one_verification(registry: MemoryStore, policy: Policy, tmp_path: Path) -> None:
    path = fetch(registry, "sst2", version=1, into=tmp_path, policy=policy).path
    os.utime(path / "engine.plan")
    before = read_record(tmp_path / "sst2")
    assert fetch(registry, "sst2", version=1, into=tmp_path, policy=policy).reused
    assert read_record(tmp_path / "sst2") != before


def test_bundle_verified_with_other_keys_is_verified_again(
    registry: MemoryStore, policy: Policy, tmp_path: Path
) -> None:
    fetch(registry, "sst2", version=1, into=tmp_path / "models", policy=policy)
    stranger = make_publisher(tmp_path / "stranger").policy
    with pytest.raises(SignatureInvalid):
        fetch(registry, "sst2", version=1, into=tmp_path / "models", policy=stranger)
    assert visible(tmp_path / "models") == WHOLE


SPOILED: dict[str, Callable[[dict[str, bytes]], object]] = {
    "flipped byte": lambda files: files.update({"engine.plan": b"Plan"}),
    "truncated": lambda files: files.update({"engine.plan": b"pla"}),
    "longer": lambda files: files.update({"engine.plan": b"plan!"}),
    "removed file": lambda files: files.pop("tokenizer/vocab.txt"),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED.keys())
def test_bundle_spoiled_in_the_registry_is_not_placed(
    spoil: Callable[[dict[str, bytes]], object], counting: CountingStore, policy: Policy, tmp_path: Path
) -> None:
    counting.spoil = spoil
    with pytest.raises((TornBundle, DigestMismatch, NotFound)):
        fetch(counting, "sst2", version=1, into=tmp_path, policy=policy)
    assert visible(tmp_path) == []
    counting.spoil = len
    assert fetch(counting, "sst2", version=1, into=tmp_path, policy=policy).version == 1


def test_file_added_in_the_registry_is_not_copied(counting: CountingStore, policy: Policy, tmp_path: Path) -> None:
    counting.spoil = lambda files: files.update({"evil.so": b""})
    fetch(counting, "sst2", version=1, into=tmp_path, policy=policy)
    assert visible(tmp_path) == WHOLE


def test_an_unsigned_bundle_is_refused(
    memory_store: MemoryStore, manifest_factory: Any, policy: Policy, tmp_path: Path
) -> None:
    memory_store.publish(*manifest_factory())
    with pytest.raises(SignatureInvalid, match=SIGNATURE_FILE):
        fetch(memory_store, "sst2", version=1, into=tmp_path, policy=policy)
    assert visible(tmp_path) == []


def test_whole_bundle_of_another_engine_is_refused(
    memory_store: MemoryStore, manifest_factory: Any, publisher: Publisher, tmp_path: Path
) -> None:
    other, directory = manifest_factory(release="r0")
    publisher.sign(other, directory)
    publisher.publish(memory_store, manifest_factory())
    files = memory_store.files["sst2", 1]
    files |= {name: (directory / name).read_bytes() for name in (MANIFEST_FILE, SIGNATURE_FILE)}
    with pytest.raises(DigestMismatch, match="was changed"):  # by its pin
        fetch(memory_store, "sst2", version=1, into=tmp_path, policy=publisher.policy)
    memory_store._pins["sst2", 1] = sha256(write_manifest(other)).hexdigest()
    with pytest.raises(DigestMismatch, match="release"):  # and by its row
        fetch(memory_store, "sst2", version=1, into=tmp_path, policy=publisher.policy)
    assert visible(tmp_path) == []


def test_folder_that_cannot_be_created_is_one_sentence(registry: MemoryStore, policy: Policy, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EngineryError, match="nothing was placed"):
        fetch(registry, "sst2", version=1, into=tmp_path / "file", policy=policy)


@pytest.fixture
def two(memory_store: MemoryStore, manifest_factory: Any, publisher: Publisher) -> MemoryStore:
    """Releases 1 and 2, of which the second was promoted after the first."""
    for number in (1, 2):
        publisher.publish(memory_store, manifest_factory(bytes([number]), sequence=number))
        promote(memory_store, "sst2", {"l4": number}, decision("newer"), {})
    return memory_store


def decision(why: str) -> Decision:
    return Decision("ana", why, datetime(2026, 11, 23, tzinfo=UTC))


def take(store: MemoryStore, into: Path, policy: Policy) -> int:
    """Fetch what production serves, also where somebody moved the alias by hand."""
    accepting = replace(policy, unrecorded=True)
    return fetch(store, "sst2", alias="production-l4", into=into, policy=accepting).version


def take_recorded(store: MemoryStore, into: Path, policy: Policy) -> int:
    return fetch(store, "sst2", alias="production-l4", into=into, policy=policy).version


def test_alias_moved_past_enginery_is_refused_until_the_history_knows_it(
    two: MemoryStore, policy: Policy, tmp_path: Path
) -> None:
    assert take_recorded(two, tmp_path, policy) == 2
    two.set_alias("sst2", "production-l4", 1)
    with pytest.raises(Unrecorded, match=r"points at version 1, but the history's last move is to 2: moved past"):
        take_recorded(two, tmp_path, policy)
    rollback(two, "sst2", ["l4"], decision("put it back"), {})
    assert take_recorded(two, tmp_path, policy) == 2


def test_production_alias_without_a_history_is_refused_and_other_aliases_and_versions_are_not(
    counting: CountingStore, policy: Policy, tmp_path: Path
) -> None:
    for alias in ("production-l4", "candidate-l4", "ours"):
        counting.set_alias("sst2", alias, 1)
    with pytest.raises(Unrecorded, match="the history has no move of it"):
        fetch(counting, "sst2", alias="production-l4", into=tmp_path, policy=policy)
    assert counting.opened == 0
    for alias in ("candidate-l4", "ours"):
        assert fetch(counting, "sst2", alias=alias, into=tmp_path, policy=policy).version == 1
    assert fetch(counting, "sst2", version=1, into=tmp_path, policy=policy).version == 1
    assert take(counting, tmp_path, policy) == 1


def test_promotion_that_is_running_or_was_killed_is_followed(two: MemoryStore, policy: Policy, tmp_path: Path) -> None:
    pending = replace(two.events("sst2")[-1], event="9-pending", to_version=1, action="rollback", outcome="pending")
    two.append_event(pending)
    assert take_recorded(two, tmp_path, policy) == 2  # its record is written, its alias has not moved
    two.set_alias("sst2", "production-l4", 1)
    assert take_recorded(two, tmp_path, policy) == 1  # its alias has moved, and it is not finished


def test_promotion_between_the_reads_of_alias_and_history_is_followed(
    two: MemoryStore, publisher: Publisher, manifest_factory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.publish(two, manifest_factory(b"3", sequence=3))
    resolve = two.resolve

    def resolve_late(model: str, alias: str) -> EngineVersion:
        engine = resolve(model, alias)
        monkeypatch.undo()
        promote(two, "sst2", {"l4": 3}, decision("just now"), {})
        return engine

    monkeypatch.setattr(two, "resolve", resolve_late)
    assert take_recorded(two, tmp_path, publisher.policy) == 3


def test_replayed_release_is_refused_even_when_still_in_place(two: MemoryStore, policy: Policy, tmp_path: Path) -> None:
    two.set_alias("sst2", "production-l4", 1)
    assert take(two, tmp_path, policy) == 1
    two.set_alias("sst2", "production-l4", 2)
    assert take(two, tmp_path, policy) == 2
    two.set_alias("sst2", "production-l4", 1)
    with pytest.raises(Replayed, match=r"sequence 1\) is older than .* \(sequence 2\)"):
        take(two, tmp_path, policy)
    with pytest.raises(Replayed):
        fetch(two, "sst2", version=1, into=tmp_path, policy=policy)


def test_rollback_in_the_history_is_followed_and_so_is_the_next_promotion(
    two: MemoryStore, policy: Policy, tmp_path: Path
) -> None:
    take(two, tmp_path, policy)
    rollback(two, "sst2", ["l4"], decision("slow"), {})
    assert take(two, tmp_path, policy) == 1
    promote(two, "sst2", {"l4": 2}, decision("it was not"), {})
    assert take(two, tmp_path, policy) == 2
    two.set_alias("sst2", "production-l4", 1)  # the old rollback is no longer the last word
    with pytest.raises(Replayed):
        take(two, tmp_path, policy)


def test_alias_restored_with_its_operation_is_followed(two: MemoryStore, policy: Policy, tmp_path: Path) -> None:
    take(two, tmp_path, policy)
    last = two.events("sst2")[-1]
    two._events["sst2"][-1] = replace(last, outcome="undone")
    two.set_alias("sst2", "production-l4", 1)
    assert take(two, tmp_path, policy) == 1


def test_a_reason_admits_an_older_release_and_is_recorded(
    two: MemoryStore, publisher: Publisher, tmp_path: Path
) -> None:
    take(two, tmp_path, publisher.policy)
    two.set_alias("sst2", "production-l4", 1)
    assert take(two, tmp_path, publisher.older("restoring a backup")) == 1
    record = read_record(tmp_path / "sst2")
    assert record.older == ("version 1: restoring a backup",)
    assert record.newest_sequence("l4") == 2


def test_damaged_record_is_refused_rather_than_taken_as_empty(two: MemoryStore, policy: Policy, tmp_path: Path) -> None:
    take(two, tmp_path, policy)
    (tmp_path / "sst2" / RECORD_FILE).write_bytes(b"{}?")
    with pytest.raises(BadInput, match="delete it"):
        take(two, tmp_path, policy)


def test_events_of_another_alias_do_not_count(two: MemoryStore, policy: Policy, tmp_path: Path) -> None:
    take(two, tmp_path, policy)
    event: PromotionEvent = two.events("sst2")[-1]
    two.set_alias("sst2", "production-l4", 1)
    two._events["sst2"].append(replace(event, event="e9", alias="production-x", action="rollback", to_version=1))
    with pytest.raises(Replayed):
        take(two, tmp_path, policy)


def partial_of(store: MemoryStore, into: Path) -> Path:
    manifest = store.files["sst2", 1][MANIFEST_FILE]
    (into / "sst2").mkdir(parents=True)
    return into / "sst2" / f".partial-{sha256(manifest).hexdigest()}"


@pytest.mark.parametrize("name", ["manifest.json", "model.sig", "engine.plan", "tokenizer", ".", ".journal"])
def test_a_link_planted_in_the_download_is_not_followed(
    name: str, registry: MemoryStore, publisher: Publisher, tmp_path: Path
) -> None:
    partial, outside = partial_of(registry, tmp_path / "models"), tmp_path / "outside"
    if name in (".", "tokenizer"):
        outside.mkdir()
        (outside / "vocab.txt").write_bytes(b"mine")
    else:
        outside.write_bytes(b"mine")
    if name == ".":
        partial.symlink_to(outside)
    elif name == ".journal":
        partial.with_name(f"{partial.name}.journal").symlink_to(outside)
    else:
        partial.mkdir()
        (partial / name).symlink_to(outside)
    fetched = fetch(registry, "sst2", version=1, into=tmp_path / "models", policy=publisher.policy)
    verify_placed(fetched.path, publisher.trust)
    assert [path.read_bytes() for path in (outside, *outside.glob("*")) if path.is_file()] == [b"mine"]


def test_seal_is_written_beside_what_a_link_points_at(registry: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "into").mkdir()
    for name in (MANIFEST_FILE, SIGNATURE_FILE):
        (tmp_path / "into" / name).symlink_to(tmp_path / "mine")
    write_seal(registry.open_bundle("sst2", 1), tmp_path / "into")
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert not (tmp_path / "into" / SIGNATURE_FILE).is_symlink()


@pytest.mark.parametrize("name", [RECORD_FILE, ".journal"])
def test_a_pipe_does_not_stop_a_fetch_for_ever(
    name: str, registry: MemoryStore, policy: Policy, tmp_path: Path
) -> None:
    partial = partial_of(registry, tmp_path)
    if name == RECORD_FILE:
        os.mkfifo(tmp_path / "sst2" / RECORD_FILE)
        with pytest.raises(BadInput, match="no plain file"):
            fetch(registry, "sst2", version=1, into=tmp_path, policy=policy)
        return
    os.mkfifo(partial.with_name(f"{partial.name}.journal"))
    assert fetch(registry, "sst2", version=1, into=tmp_path, policy=policy).version == 1


def test_new_host_has_an_empty_record(tmp_path: Path) -> None:
    assert read_record(tmp_path) == HostRecord()
    assert HostRecord().newest_sequence("l4") == 0
