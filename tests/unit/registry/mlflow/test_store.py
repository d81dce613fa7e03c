"""What only MLflow can get wrong: torn uploads, files changed afterwards, races and edited tags."""

from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from flows.doctor import examine
from registry.errors import BadInput, DigestMismatch, EngineryError, TornBundle
from registry.host.clock import now
from registry.mlflow.errors import ignore_existing, translate_errors
from registry.mlflow.store import MlflowStore, retry_alias_race
from registry.promotion.promote import promote
from registry.promotion.unrecorded import find_moved_past
from tests.support.deciding import ANA


def client(store: MlflowStore) -> Any:
    return store.client


def test_publish_that_died_before_its_last_tag_is_invisible(mlflow_store: MlflowStore, manifest_factory: Any) -> None:
    mlflow_store.publish(*manifest_factory())
    client(mlflow_store).set_model_version_tag("sst2", "1", "version.publish_state", "uploading")
    assert mlflow_store.versions("sst2") == ()
    assert mlflow_store.find_build(manifest_factory()[0].build.build_key) is None
    for read in (mlflow_store.version, mlflow_store.manifest, lambda m, v: mlflow_store.set_alias(m, "a", v)):
        with pytest.raises(TornBundle):
            read("sst2", 1)
    assert mlflow_store.take_sequence("sst2") == 2
    # Its files were read back before it was created: publishing the engine again completes this version.
    assert mlflow_store.publish(*manifest_factory()).version == 1


def test_manifest_overwritten_after_publishing_is_refused(
    mlflow_store: MlflowStore, manifest_factory: Any, tmp_path: Path
) -> None:
    mlflow_store.publish(*manifest_factory())
    (path,) = (tmp_path / "home").rglob("manifest.json")
    path.write_bytes(path.read_bytes().replace(b"every gate passed", b"each gate passed!"))
    with pytest.raises(DigestMismatch, match="changed since"):
        mlflow_store.manifest("sst2", 1)


def test_run_of_the_pipeline_holds_one_bundle(mlflow_store: MlflowStore, manifest_factory: Any) -> None:
    api = client(mlflow_store)
    run_id = api.create_run(api.create_experiment("sst2")).info.run_id
    mlflow_store.publish(*manifest_factory(), run_id=run_id)
    assert api.get_model_version("sst2", "1").run_id == run_id
    with pytest.raises(BadInput, match="already holds"):
        mlflow_store.publish(*manifest_factory(b"other"), run_id=run_id)
    with pytest.raises(BadInput, match="is not an id"):
        mlflow_store.find_build("' or 1")


def test_new_alias_that_lost_a_race_is_set_again() -> None:
    calls: list[int] = []

    def race(times: int) -> None:
        calls.append(1)
        if len(calls) < times:
            raise MlflowException("UniqueViolation")

    retry_alias_race(lambda: race(3), pause_seconds=0)
    assert len(calls) == 3
    with pytest.raises(MlflowException):
        retry_alias_race(lambda: race(99), pause_seconds=0)


def test_deleted_experiment_is_named(mlflow_store: MlflowStore, manifest_factory: Any) -> None:
    api = client(mlflow_store)
    api.delete_experiment(api.create_experiment("sst2"))
    with pytest.raises(BadInput, match="restore it"):
        mlflow_store.publish(*manifest_factory())


def test_edited_tag_is_named(mlflow_store: MlflowStore, manifest_factory: Any) -> None:
    mlflow_store.publish(*manifest_factory())
    client(mlflow_store).set_model_version_tag("sst2", "1", "verdict", "splendid")
    with pytest.raises(BadInput, match="tags that were edited"):
        mlflow_store.version("sst2", 1)


@pytest.mark.parametrize("record", ["", "{", "[]", "[" * 50_000])
def test_edited_record_is_named(record: str, mlflow_store: MlflowStore, manifest_factory: Any) -> None:
    mlflow_store.publish(*manifest_factory())
    client(mlflow_store).set_model_version_tag("sst2", "1", "version.record", record)
    with pytest.raises(BadInput, match="tags that were edited"):
        mlflow_store.version("sst2", 1)
    with pytest.raises(DigestMismatch):
        mlflow_store.manifest("sst2", 1)


def test_a_row_that_cannot_be_read_is_named_and_the_others_go_on(
    mlflow_store: MlflowStore, manifest_factory: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for number, model in enumerate(("sst2", "sst2", "other"), 1):
        mlflow_store.publish(*manifest_factory(bytes([number]), sequence=number, model=model))
    for version in ("1", "2"):
        mlflow_store.set_alias("sst2", f"production-{version}", int(version))
    client(mlflow_store).set_model_version_tag("sst2", "1", "version.sequence", "\x1b[31mone")
    assert [(row.model, row.version) for row in mlflow_store.versions()] == [("other", 1), ("sst2", 2)]
    (sentence,) = mlflow_store.unreadable()
    assert sentence == caplog.messages[0]
    assert sentence.startswith("sst2 version 1 has tags that were edited (sequence): ")
    promote(mlflow_store, "sst2", {"l4": 2}, ANA, {})
    problems = find_moved_past(mlflow_store, "sst2")
    assert problems[0].startswith("production-1 points at version 1, but the history has no move of it")
    found = {finding.what: finding for finding in examine(mlflow_store._state, lambda: mlflow_store, now)}
    assert (found["row"].found, found["row"].ok) == (sentence, False)
    assert found["registry"].found == "2 published engines"


def test_tags_for_people_stand_first_and_the_rest_is_what_a_search_needs(
    mlflow_store: MlflowStore, manifest_factory: Any
) -> None:
    mlflow_store.publish(*manifest_factory())
    tags = client(mlflow_store).get_model_version("sst2", "1").tags
    people, searched = ["precision", "target", "verdict"], ["build_key", "publish_state", "record", "sequence"]
    # MLflow's page of a version sorts them by name; its list of versions shows them as they were written.
    assert sorted(tags) == [*people, *(f"version.{name}" for name in searched)]
    assert list(tags)[:3] == ["target", "precision", "verdict"]
    assert {name: tags[name] for name in people} == {"target": "l4", "precision": "fp16", "verdict": "passed"}


def test_model_and_version_are_described_in_words(mlflow_store: MlflowStore, manifest_factory: Any) -> None:
    mlflow_store.publish(*manifest_factory())
    mlflow_store.publish(*manifest_factory(b"second", sequence=2))
    api = client(mlflow_store)
    for number in ("1", "2"):
        words = api.get_model_version("sst2", number).description
        assert f"`enginery promote sst2 --target l4 --version {number}`" in words
    assert "`enginery fetch sst2`" in api.get_registered_model("sst2").description


def test_server_error_is_one_sentence() -> None:
    with pytest.raises(EngineryError, match="MLflow, asking: lost"), translate_errors("asking"):
        raise MlflowException("lost\nand more")
    with pytest.raises(MlflowException), ignore_existing():
        raise MlflowException("lost")


def test_long_lists_are_read_whole(mlflow_store: MlflowStore, manifest_factory: Any) -> None:
    mlflow_store.page_size = 1
    for number in (1, 2):
        mlflow_store.publish(*manifest_factory(bytes([number]), sequence=number))
    assert [row.version for row in mlflow_store.versions("sst2")] == [1, 2]
