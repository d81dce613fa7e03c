"""`enginery promote`, `rollback`, `history` and `list` for several targets, with the fleet's rules."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.cli import app, run_command
from flows.inputs.fleet import load_fleet
from registry.errors import BadInput
from registry.promotion.rules import TargetRules
from registry.records import Verdict
from registry.store import Store
from tests.support.manifests import ManifestFactory
from tests.support.publisher import Publisher

FLEET = """
targets:
  l4: {backend: tensorrt, compute_capability: "8.9", serving: "11.0"}
  h100: {backend: tensorrt, compute_capability: "9.0", protected: true}
  t4: {backend: tensorrt, compute_capability: "7.5", serving: "10.13"}
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET, encoding="utf-8")
    return path


@pytest.fixture
def run(tmp_path: Path, fleet: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("ENGINERY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ENGINERY_DEBUG", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)

    def command(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        names_fleet = ("--fleet", fleet) if arguments[0] in ("promote", "rollback") else ()
        code = run_command(
            lambda: app([str(argument) for argument in (*arguments, *names_fleet)], standalone_mode=False)
        )
        return code, *capsys.readouterr()

    return command


@pytest.fixture
def published(mlflow_store: Store, manifest_factory: ManifestFactory) -> Store:
    """Versions 1 (l4), 2 (h100), 3 (l4) and 4 (t4), all passed and built with TensorRT 11.0."""
    for number, target in enumerate(("l4", "h100", "l4", "t4"), start=1):
        mlflow_store.publish(*manifest_factory(bytes([number]), sequence=number, target=target))
    for target, version in (("l4", 1), ("h100", 2)):
        mlflow_store.set_alias("sst2", f"candidate-{target}", version)
    return mlflow_store


def read_json(ran: tuple[int, str, str]) -> Any:
    assert ran[0] == 0, ran[2]
    return json.loads(ran[1])


def test_all_targets_with_a_candidate_move_together_once_two_people_agree(published: Store, run: Run) -> None:
    to_all = ("promote", "sst2", "--target", "all", "--json")
    assert [event["action"] for event in read_json(run(*to_all, "--who", "ana"))] == ["approve"]
    assert "production-l4" not in published.aliases("sst2")
    moved = read_json(run(*to_all, "--who", "ben"))
    assert {(event["alias"], event["to_version"], event["approved_by"]) for event in moved} == {
        ("production-l4", 1, None),
        ("production-h100", 2, "ana"),
    }
    aliases = published.aliases("sst2")
    assert (aliases["production-l4"], aliases["production-h100"]) == (1, 2)


def test_one_named_target_is_one_object_and_several_are_a_list(published: Store, run: Run) -> None:
    assert read_json(run("promote", "sst2", "--target", "l4", "--json"))["outcome"] == "done"
    read_json(run("promote", "sst2", "--target", "h100", "--who", "ana", "--json"))
    several = read_json(run("promote", "sst2", "--target", "l4", "--target", "h100", "--who", "ben", "--json"))
    assert [event["outcome"] for event in several] == ["unchanged", "done"]
    read_json(run("promote", "sst2", "--target", "l4", "--version", 3, "--json"))
    (back,) = [event for event in [read_json(run("rollback", "sst2", "--target", "l4", "--json"))] if event]
    assert (back["from_version"], back["to_version"]) == (3, 1)


def test_approval_says_that_it_waits_for_another(published: Store, run: Run) -> None:
    code, output, _ = run("promote", "sst2", "--target", "h100", "--who", "ana")
    assert code == 0
    assert "approved by ana" in output
    assert "someone else" in output
    code, output, error = run("promote", "sst2", "--target", "h100", "--who", "ana")
    assert (code, output) == (1, "")
    assert "someone else must promote it too" in error
    _, output, _ = run("history", "sst2")
    assert "approve" in output
    assert "UTC" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--target", "t4", "--version", 4), "t4 serves 10.13"),
        (("--target", "l4", "--target", "h100", "--version", 1), "one target"),
        (("--target", "all", "--target", "l4"), "every target"),
        (("--target", "l4", "--target", "t4"), "no candidate for t4: promote --version 4 (fp16), which passed"),
        (("--target", "a100", "--version", 1), "no target 'a100'"),
    ],
)
def test_refusals_are_one_sentence(arguments: tuple[object, ...], words: str, published: Store, run: Run) -> None:
    code, output, error = run("promote", "sst2", *arguments)
    assert code in (1, 2)
    assert output == ""
    assert words in error
    assert len(error.splitlines()) == 1
    assert published.events("sst2") == ()


def test_without_a_candidate_the_best_version_and_the_way_out_are_named(
    mlflow_store: Store, manifest_factory: ManifestFactory, publisher: Publisher, run: Run
) -> None:
    for number, verdict in enumerate((Verdict.UNMEASURED, Verdict.INCONCLUSIVE, Verdict.UNMEASURED), start=1):
        manifest = manifest_factory(bytes([number]), sequence=number, verdict=verdict, reason=f"reason {number}")
        publisher.publish(mlflow_store, manifest)
    code, _, error = run("promote", "sst2", "--target", "l4")
    assert code == 2
    assert "no engine passed its gates. The best is version 2 (fp16, inconclusive: reason 2)" in error
    assert "--version 2 --waiver" in error
    code, _, error = run("promote", "sst2", "--target", "l4", "--version", 2, "--waiver", "tried by hand")
    assert code == 0, error


def test_without_the_fleet_nothing_is_promoted(published: Store, run: Run, fleet: Path) -> None:
    fleet.unlink()
    code, _, error = run("promote", "sst2", "--target", "h100")
    assert code == 2
    assert "fleet.yaml" in error


def test_all_without_any_candidate_says_so(mlflow_store: Store, manifest_factory: ManifestFactory, run: Run) -> None:
    mlflow_store.publish(*manifest_factory(b"1"))
    code, _, error = run("promote", "sst2", "--target", "all")
    assert code == 2
    assert "no candidate for any target" in error


@pytest.mark.parametrize("command", ["list", "history", "promote", "rollback"])
def test_a_model_that_does_not_exist_is_told_with_those_that_do(command: str, published: Store, run: Run) -> None:
    target = ("--target", "l4") if command in ("promote", "rollback") else ()
    code, output, error = run(command, "ssst2", *target)
    assert (code, output) == (2, "")
    assert "no engine of 'ssst2'; it has sst2" in error


def test_an_empty_registry_and_an_empty_history_say_what_to_do(
    mlflow_store: Store, manifest_factory: ManifestFactory, run: Run
) -> None:
    assert "no engines yet: run `enginery release" in run("list")[1]
    assert read_json(run("list", "--json")) == []
    mlflow_store.publish(*manifest_factory(b"1"))
    assert "Nothing of sst2 was promoted yet" in run("history", "sst2")[1]


def test_list_and_history_are_bounded_by_their_limit(published: Store, run: Run) -> None:
    assert [row["version"] for row in read_json(run("list", "sst2", "--limit", 2, "--json"))] == [3, 4]
    assert [row["version"] for row in read_json(run("list", "sst2", "--limit", 0, "--json"))] == [1, 2, 3, 4]
    read_json(run("promote", "sst2", "--target", "l4", "--json"))
    read_json(run("promote", "sst2", "--target", "l4", "--version", 3, "--json"))
    assert [event["to_version"] for event in read_json(run("history", "sst2", "--limit", 1, "--json"))] == [3]


def test_lock_on_this_host_only_is_a_warning_on_stderr(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, published: Store
) -> None:
    monkeypatch.setattr(type(published), "leases", property(lambda _: type("Alone", (), {"shared": False})()))
    _, output, error = run("rollback", "sst2", "--target", "all")
    assert output == ""
    assert "ENGINERY_LEASE_DATABASE" in error.splitlines()[0]


def test_the_fleet_gives_each_targets_rules(fleet: Path) -> None:
    loaded = load_fleet(fleet)
    assert loaded.rules("h100") == TargetRules(None, protected=True)
    assert loaded.rules("t4") == TargetRules("10.13", protected=False)
    with pytest.raises(BadInput, match="no target"):
        loaded.rules("none")


@pytest.mark.parametrize("serving", ["10.x", '"10."', '""', "10.13", "true"])
def test_a_serving_version_is_digits_in_quotes(serving: str, tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET.replace('"10.13"', serving), encoding="utf-8")
    with pytest.raises(BadInput, match="serving"):
        load_fleet(path)
