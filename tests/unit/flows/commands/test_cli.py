"""The command line's promises: exit codes, one sentence instead of a traceback, and JSON that programs can read."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pynvml
import pytest

from flows.cli import run_command
from flows.doctor import Finding, RegistryFinding
from flows.inputs.fleet import load_fleet
from flows.inputs.recipe import Recipe, load_recipe
from registry.errors import BadInput
from registry.mlflow.runs.releases import ReleaseLog
from registry.mlflow.store import embedded_store
from registry.records import Backend, Precision, Verdict
from registry.store import Store
from tasks.report.rows import EngineRow, ReleaseReport
from tests.support.commands import Enginery, Ran
from tests.support.deciding import promote
from tests.support.manifests import ManifestFactory
from tests.support.publisher import Publisher

FLEET = Path(__file__).parents[4] / "recipes" / "fleet.yaml"
RECIPE = """
model: tiny
source: {path: checkpoint}
data: {path: rows, max_length: 16}
precisions: [fp32]
targets: [cpu]
profiles: [{batch: {min: 1, opt: 2, max: 4}, sequence: {min: 4, opt: 8, max: 16}}]
"""
VERSION_FIELDS = {
    *("model", "version", "target", "precision", "backend", "verdict", "reason", "aliases", "digest", "size_bytes"),
    *("metrics", "measured_on"),
}


@pytest.fixture
def published(mlflow_store: Store, manifest_factory: ManifestFactory, publisher: Publisher) -> Store:
    """The embedded registry with two engines for l4 that passed and one that was not measured."""
    for sequence, verdict in enumerate((Verdict.PASSED, Verdict.PASSED, Verdict.UNMEASURED), start=1):
        reason = "every gate passed" if verdict is Verdict.PASSED else "[latency] was not measured"
        publisher.publish(
            mlflow_store, manifest_factory(b"plan %d" % sequence, sequence=sequence, verdict=verdict, reason=reason)
        )
    return mlflow_store


@pytest.fixture
def empty(mlflow_store: Store) -> Store:
    return mlflow_store


def assert_one_sentence(ran: Ran, *words: str, code: int = 2) -> None:
    assert ran.code == code, ran.err
    assert ran.out == ""
    assert ran.err.startswith("enginery: ")
    assert len(ran.err.splitlines()) == 1
    assert "Traceback" not in ran.err
    for word in words:
        assert word in ran.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: [", ("recipe.yaml", "YAML")),
        (RECIPE + "colour: red\n", ("colour", "choose from")),
        (RECIPE.replace("[fp32]", "[fp32, int9]"), ("`int9`", "did you mean int8?")),
        ("model: tiny", ("the recipe lacks source, data, precisions, targets and profiles",)),
        (RECIPE.replace("max_length: 16", "max_length: .nan"), ("max_length",)),
        (RECIPE.replace("[fp32]", "[fp31]"), ("precisions",)),
        (RECIPE.replace("model: tiny", "model: ../tiny"), ("model",)),
        (RECIPE.replace("opt: 8", "opt: 80"), ("sequence", "out of order")),
        ("a: &a [x]\nb: *a\n", ("aliases", "line 2")),
        ("", ("recipe.yaml",)),
    ],
)
def test_a_bad_recipe_is_one_sentence_and_exit_2(
    text: str, words: tuple[str, ...], enginery: Enginery, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    assert_one_sentence(enginery("release", tmp_path / "recipe.yaml", "--fleet", FLEET), *words)


def test_a_recipe_that_is_not_there_is_one_sentence(enginery: Enginery, tmp_path: Path) -> None:
    assert_one_sentence(enginery("release", tmp_path / "none.yaml", "--fleet", FLEET), "none.yaml", "cannot be read")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("release",), ("pass either a recipe", "--resume")),
        (("release", "recipe.yaml", "--resume", "0123456789ab"), ("pass either a recipe",)),
        (
            ("release", "recipe.yaml", "--on-workers"),
            ("`enginery release --on-workers` needs a Prefect server: set PREFECT_API_URL",),
        ),
        (("release", "--resume", "0123456789ab"), ("`enginery release --resume` needs", "set PREFECT_API_URL")),
        (("worker", "--target", "nobody", "--fleet", FLEET), ("no target 'nobody'",)),
        (("worker", "--target", "cpu", "--fleet", FLEET), ("`enginery worker` needs", "set PREFECT_API_URL")),
    ],
)
def test_what_needs_a_fleet_is_said_in_one_sentence(
    arguments: tuple[object, ...], words: tuple[str, ...], enginery: Enginery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert_one_sentence(enginery(*arguments), *words)


def test_debug_gives_the_traceback(enginery: Enginery, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.yaml"):
        enginery("--debug", "release", tmp_path / "none.yaml", "--fleet", FLEET)


@pytest.mark.parametrize(
    "command",
    [
        ("list", "nosuch"),
        ("fetch", "nosuch", "--version", "1"),
        ("fetch", "nosuch", "--target", "cpu"),
        ("fetch", "nosuch"),
        ("promote", "nosuch", "--target", "cpu"),
        ("promote", "nosuch", "--target", "cpu", "--version", "1"),
        ("rollback", "nosuch", "--target", "cpu"),
    ],
    ids=" ".join,
)
def test_an_unknown_model_is_one_sentence_and_exit_2(
    command: tuple[str, ...], empty: Store, enginery: Enginery, tmp_path: Path
) -> None:
    to = ("--to", tmp_path / "models") if command[0] == "fetch" else ()
    assert_one_sentence(enginery(*command, *to), "nosuch")


def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENGINERY_VERIFY_KEY")


@pytest.mark.parametrize(
    "command", [("fetch", "nosuch"), ("fetch", "nosuch", "--target", "l4"), ("run", "nosuch", "a text")], ids=" ".join
)
@pytest.mark.parametrize("spoil", [None, no_key], ids=["key", "no key"])
def test_an_unknown_model_is_told_first_with_those_that_exist(
    command: tuple[str, ...], spoil: Any, published: Store, enginery: Enginery, monkeypatch: pytest.MonkeyPatch
) -> None:
    if spoil:
        spoil(monkeypatch)
    assert_one_sentence(enginery(*command), "no engine of 'nosuch'", "it has sst2")


def test_an_unknown_target_is_told_with_the_aliases_that_exist(published: Store, enginery: Enginery) -> None:
    published.set_alias("sst2", "production-l4", 2)
    assert_one_sentence(enginery("fetch", "sst2", "--target", "nobody"), "production-nobody", "production-l4")


def report(*verdicts: Verdict, found: bool = False) -> ReleaseReport:
    rows = [
        EngineRow("tiny", "cpu", precision, Backend.ONNXRUNTIME, "built", "", verdict, "d" * 64, version=number)
        for number, (precision, verdict) in enumerate(zip(Precision, verdicts, strict=False), start=1)
    ]
    return ReleaseReport("abc123", "tiny", tuple(rows), found=found, run_id="abc123")


@pytest.mark.parametrize(
    ("released", "code"),
    [
        (report(Verdict.PASSED, Verdict.FAILED), 0),
        (report(Verdict.FAILED, Verdict.INCONCLUSIVE), 3),
        (report(Verdict.UNMEASURED), 3),
        (report(Verdict.FAILED, found=True), 0),
        (report(), 1),
    ],
    ids=["one passed", "none passed", "unmeasured", "found", "none built"],
)
@pytest.mark.parametrize("option", [(), ("--json",)], ids=["text", "json"])
def test_the_exit_code_of_a_release_tells_whether_an_engine_passed(
    released: ReleaseReport,
    code: int,
    option: tuple[str, ...],
    enginery: Enginery,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flows.commands.release.release_here", lambda *_, **__: released)
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    assert enginery("release", tmp_path / "recipe.yaml", "--fleet", FLEET, *option).code == code


def test_measure_releases_the_recipe_that_the_versions_release_kept(
    published: Store, enginery: Enginery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_one_sentence(enginery("measure", "sst2", "--version", 1), "kept no recipe")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    recipe, log = load_recipe(tmp_path / "recipe.yaml"), ReleaseLog(embedded_store(tmp_path / "home"))
    log.keep_recipe(log.start("sst2", published.version("sst2", 1).release, {}, {}), recipe.model_dump_json())
    released: list[Recipe] = []

    def release(asked: Recipe, *_: object, **__: object) -> ReleaseReport:
        released.append(asked)
        return report(Verdict.PASSED)

    monkeypatch.setattr("flows.commands.release.release_here", release)
    assert enginery("measure", "sst2", "--version", 1, "--fleet", FLEET).code == 0
    assert released == [recipe]
    assert_one_sentence(enginery("measure", "sst2", "--version", 99), "99")


@pytest.mark.parametrize("name", ["../escape", "[red]sst2", "a b", ""])
def test_a_name_that_is_none_is_refused_whole(name: str, empty: Store, enginery: Enginery, tmp_path: Path) -> None:
    assert_one_sentence(enginery("fetch", name, "--version", 1, "--to", tmp_path / "models"))
    assert not (tmp_path / "escape").exists()


@pytest.mark.parametrize("command", [("list",), ("doctor",), ("history", "sst2"), ("fetch", "sst2")], ids=" ".join)
def test_a_home_that_is_a_file_is_one_sentence(command: tuple[str, ...], enginery: Enginery, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("not a folder", encoding="utf-8")
    assert_one_sentence(enginery(*command), "ENGINERY_HOME", str(tmp_path / "home"))
    assert (tmp_path / "home").read_text(encoding="utf-8") == "not a folder"


def test_a_worker_whose_home_cannot_be_written_says_so_before_it_asks_for_work(
    enginery: Enginery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINERY_HOME", "/proc/nobody-may-write-here")  # not even root
    assert_one_sentence(enginery("worker", "--target", "cpu", "--fleet", str(FLEET)), "may not write", "/proc/nobody")


@pytest.mark.parametrize("place", ["/proc/enginery", "{}/file/home"])
@pytest.mark.parametrize(
    "command",
    [
        ("promote", "sst2", "--target", "l4"),
        ("rollback", "sst2", "--target", "l4"),
        ("release", "{}/recipe.yaml", "--fleet", str(FLEET)),
        ("release", "{}/recipe.yaml", "--fleet", str(FLEET), "--on-workers"),
        ("refresh", "--fleet", str(FLEET), "--dry-run"),
        ("doctor", "--repair"),
    ],
    ids=" ".join,
)
def test_a_home_that_cannot_be_made_is_one_sentence(
    command: tuple[str, ...], place: str, enginery: Enginery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.setenv("ENGINERY_HOME", place.format(tmp_path))
    ran = enginery(*(word.format(tmp_path) for word in command))
    assert_one_sentence(ran, "ENGINERY_HOME is", place.format(tmp_path), "may not write")


@pytest.mark.parametrize(
    "command", [("verify", "{}"), ("run", "{}", "a text"), ("fetch", "sst2", "--version", "1", "--to", "{}")]
)
@pytest.mark.parametrize("name", ["x" * 300, "/".join(["x" * 200] * 25), "file/below", "loop"])
def test_a_path_that_cannot_be_used_is_one_sentence(
    command: tuple[str, ...], name: str, published: Store, enginery: Enginery, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    ran = enginery(*(word.format(tmp_path / name) for word in command), *(["--any-host"] * (command[0] == "fetch")))
    assert_one_sentence(ran, code=ran.code)
    assert ran.code in (1, 2)


@pytest.mark.parametrize(
    "command",
    [
        *(("fetch", "sst2", "--any-host", "--version"), ("triton", "fetch", "sst2", "--any-host", "--version")),
        ("promote", "sst2", "--target", "l4", "--version"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("version", [0, -7, 2**31, 10**20])
def test_a_version_that_cannot_exist_is_one_sentence(
    command: tuple[str, ...], version: int, published: Store, enginery: Enginery
) -> None:
    assert_one_sentence(enginery(*command, version), f"version {version} cannot exist")


@pytest.mark.parametrize("command", [("list",), ("history", "sst2")], ids=" ".join)
def test_a_limit_that_no_database_takes_is_a_wrong_call(
    command: tuple[str, ...], published: Store, enginery: Enginery
) -> None:
    ran = enginery(*command, "--limit", 10**20)
    assert ran.code == 2
    assert "--limit" in ran.err


@pytest.mark.parametrize("arguments", [("nosuch",), ("promote", "sst2"), ("list", "--colour")], ids=" ".join)
def test_a_wrong_call_shows_the_usage_and_exits_2(arguments: tuple[str, ...], enginery: Enginery) -> None:
    ran = enginery(*arguments)
    assert ran.code == 2
    assert "Traceback" not in ran.err
    assert ran.err


def test_an_interrupt_is_exit_130_and_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert run_command(interrupted) == 130
    assert capsys.readouterr().err.splitlines() == [
        "stopped; finished work is kept: run the same command again to resume"
    ]


def test_the_command_line_imports_no_heavy_package() -> None:
    """The base install lacks most of them, and each costs every command its seconds, or pydantic 0.1 s."""
    heavy = {"prefect", "mlflow", "torch", "transformers", "onnx", "onnxruntime", "pandas", "sqlalchemy", "pydantic"}
    code = f"import sys, flows.cli; print(*(sys.modules.keys() & {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


def test_a_release_that_is_found_complete_never_waits_for_torch() -> None:
    code = "import sys, flows.release.release_engines; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_check_never_waits_for_prefect_or_torch() -> None:
    code = "import sys, flows.release.check; print(sys.modules.keys() & {'prefect', 'torch', 'mlflow'})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_help_lists_what_one_person_needs_before_what_a_team_needs(enginery: Enginery) -> None:
    ran = enginery("--help")
    assert ran.code == 0
    listed = [words[1] for words in (line.split() for line in ran.out.splitlines()) if words and words[0] == "│"]
    commands = ["release", "list", "promote", "fetch", "doctor", "worker", "refresh", "up", "triton"]
    assert [name for name in listed if name in commands] == commands


def test_version_is_the_installed_one(enginery: Enginery) -> None:
    ran = enginery("--version")
    assert (ran.code, ran.out) == (0, f"enginery {importlib.metadata.version('enginery')}\n")


def test_list_json_has_the_promised_fields(published: Store, enginery: Enginery) -> None:
    published.set_alias("sst2", "candidate-l4", 2)
    rows = enginery("list", "sst2", "--json").json
    assert [row["version"] for row in rows] == [1, 2, 3]
    for row, engine in zip(rows, published.versions("sst2"), strict=True):
        assert row.keys() >= VERSION_FIELDS
        assert row["metrics"] == dict(engine.metrics)
        assert row["metrics"]["latency_p50_ms"] == 1.25
        assert (row["digest"], row["size_bytes"]) == (engine.digest, engine.size_bytes)
        assert (row["target"], row["precision"], row["backend"]) == ("l4", "fp16", "tensorrt")
        assert row["measured_on"] == "NVIDIA L4"
    assert [row["aliases"] for row in rows] == [[], ["candidate-l4"], []]
    assert [row["verdict"] for row in rows] == ["passed", "passed", "unmeasured"]


def test_list_json_of_an_empty_registry_is_an_empty_list(empty: Store, enginery: Enginery) -> None:
    assert enginery("list", "--json").json == []


def test_the_table_shows_each_engine(published: Store, enginery: Enginery) -> None:
    ran = enginery("list")
    assert ran.code == 0
    assert ran.out.count("sst2") == 3
    assert "unmeasured" in ran.out


def test_fetch_json_names_a_folder_that_verifies(published: Store, enginery: Enginery, tmp_path: Path) -> None:
    promote(published, "l4", 2)
    asked = ("fetch", "sst2", "--target", "l4", "--any-host", "--to", tmp_path / "models", "--json")
    fetched = enginery(*asked).json
    assert fetched["version"] == 2
    assert fetched["digest"] == published.version("sst2", 2).digest
    assert (Path(fetched["path"]) / "engine.plan").read_bytes() == b"plan 2"
    assert fetched["reused"] is False
    assert enginery(*asked).json == fetched | {"reused": True}
    intact = enginery("verify", fetched["path"], "--json").json
    current = Path(fetched["path"]).parent / "current"
    current.symlink_to(Path(fetched["path"]).name)
    # Resolved once, because `enginery watch` may move it at any time.
    assert enginery("verify", str(current), "--json").json["path"] == fetched["path"]
    assert (intact["model"], intact["digest"], intact["intact"]) == ("sst2", fetched["digest"], True)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--target", "l4", "--tensorrt", "11.0"), "compute capability 8.9"),
        (("--target", "l4", "--tensorrt", "eleven"), "not a version"),
        (("--version", 1, "--alias", "production-l4"), "not both"),
    ],
)
def test_what_fetch_will_not_do_is_said_in_one_sentence(
    options: tuple[object, ...],
    word: str,
    published: Store,
    enginery: Enginery,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("registry.host.gpu.pynvml.nvmlInit", no_driver)
    promote(published, "l4", 2)
    assert_one_sentence(enginery("fetch", "sst2", *options, "--to", tmp_path / "models"), word)
    assert not (tmp_path / "models" / "sst2").exists()


def test_alias_moved_past_enginery_is_reported_and_not_fetched(
    published: Store, enginery: Enginery, tmp_path: Path
) -> None:
    promote(published, "l4", 1)
    published.set_alias("sst2", "production-l4", 3)  # as MLflow's own button does; version 3 passed no gate
    sentence = "production-l4 points at version 3, but the history's last move is to 1: moved past Enginery"
    history = enginery("history", "sst2", "--json")
    assert sentence in history.err
    assert [event["to_version"] for event in history.json] == [1]
    (finding,) = [each for each in enginery("doctor", "--json").json if each["what"] == "alias of sst2"]
    assert (finding["found"], finding["ok"], finding["needed"]) == (sentence, False, False)
    options = ("--target", "l4", "--any-host", "--to", tmp_path / "models")
    for command in (("fetch", "sst2"), ("fetch", "sst2", "--alias", "production-l4")):
        assert_one_sentence(enginery(*command, *options), sentence, code=1)
    assert not (tmp_path / "models").exists()
    assert enginery("fetch", "sst2", *options, "--allow-unrecorded", "--json").json["version"] == 3


def test_a_watch_refuses_a_hook_with_an_open_quote(published: Store, enginery: Enginery, tmp_path: Path) -> None:
    options = ("--target", "l4", "--any-host", "--to", tmp_path / "models", "--hook", "'open")
    assert_one_sentence(enginery("watch", "sst2", *options), "open quote")
    assert not (tmp_path / "models" / "sst2").exists()


def no_driver() -> None:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)


def test_a_damaged_bundle_fails_verification_with_one_sentence(
    published: Store, enginery: Enginery, tmp_path: Path
) -> None:
    fetched = enginery("fetch", "sst2", "--version", 1, "--any-host", "--to", tmp_path / "models", "--json").json
    (Path(fetched["path"]) / "engine.plan").write_bytes(b"plan X")
    assert_one_sentence(enginery("verify", fetched["path"]), "engine.plan", code=1)
    shutil.rmtree(fetched["path"])
    assert_one_sentence(enginery("verify", fetched["path"]), code=1)


def test_promotion_rollback_and_history_are_told_as_json(published: Store, enginery: Enginery) -> None:
    to_l4 = ("sst2", "--target", "l4", "--who", "ada", "--json")
    assert enginery("promote", *to_l4, "--version", 1).json["outcome"] == "done"
    published.set_alias("sst2", "candidate-l4", 2)
    moved = enginery("promote", *to_l4, "--why", "faster").json
    assert (moved["from_version"], moved["to_version"], moved["alias"]) == (1, 2, "production-l4")
    back = enginery("rollback", *to_l4).json
    assert (back["from_version"], back["to_version"]) == (2, 1)
    told = enginery("history", "sst2", "--json").json
    assert [(event["action"], event["to_version"], event["who"], event["outcome"]) for event in told] == [
        ("promote", 1, "ada", "done"),
        ("promote", 2, "ada", "done"),
        ("rollback", 1, "ada", "done"),
    ]
    assert told[1]["why"] == "faster"
    assert published.aliases("sst2")["production-l4"] == 1


def test_a_refused_promotion_is_one_sentence_with_the_gates_reason(published: Store, enginery: Enginery) -> None:
    ran = enginery("promote", "sst2", "--target", "l4", "--version", 3)
    # The reason holds brackets, which rich would take for markup.
    assert_one_sentence(ran, "[latency] was not measured", code=1)
    assert published.aliases("sst2") == {}


def test_a_waiver_lets_an_unmeasured_engine_through_on_the_record(published: Store, enginery: Enginery) -> None:
    given = enginery("promote", "sst2", "--target", "l4", "--version", 3, "--waiver", "canary host", "--json").json
    assert (given["waiver"], given["outcome"]) == ("canary host", "done")
    assert published.aliases("sst2") == {"production-l4": 3}


def test_targets_json_says_what_this_machine_can_do(enginery: Enginery) -> None:
    rows = {row["target"]: row for row in enginery("targets", "--fleet", FLEET, "--json").json}
    assert {"cpu", "rtx-4090", "l4"} <= rows.keys()
    assert (rows["cpu"]["builds"], rows["cpu"]["measures"], rows["cpu"]["compute_capability"]) == (True, True, None)
    for row in rows.values():
        assert row["builds"] is (row["why_not_build"] is None)
        assert row["measures"] is (row["why_not_measure"] is None)
    assert rows["l4"]["backend"] == "tensorrt"


def test_targets_names_the_extra_to_install(enginery: Enginery) -> None:
    assert "enginery[trt]" in enginery("targets", "--fleet", FLEET).out


def test_a_named_fleet_that_is_not_there_is_one_sentence(
    enginery: Enginery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("none.yaml", "recipes/fleet.yaml"):  # the default too, where somebody names it
        assert_one_sentence(enginery("targets", "--fleet", name), name, "cannot be read")


def test_a_folder_without_a_fleet_gets_the_built_in_one(
    enginery: Enginery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "This is the built-in fleet" in enginery("targets").out
    assert [row["target"] for row in enginery("targets", "--json").json] == list(load_fleet(FLEET).targets)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "fleet.yaml").write_text("targets: {mine: {backend: onnxruntime}}", encoding="utf-8")
    assert [row["target"] for row in enginery("targets", "--json").json] == ["mine"]
    assert "built-in" not in enginery("targets").out


def test_a_promotion_needs_no_fleet_file_unless_the_registry_is_shared(
    published: Store, enginery: Enginery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert enginery("promote", "sst2", "--target", "l4", "--version", 1).code == 0
    assert published.aliases("sst2") == {"production-l4": 1}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/home/mlflow.db")
    for command in ("promote", "rollback"):
        refused = enginery(command, "sst2", "--target", "l4")
        assert_one_sentence(refused, "no recipes/fleet.yaml here to say which of its targets are protected", "--fleet")
    assert published.aliases("sst2") == {"production-l4": 1}


@pytest.mark.parametrize("command", [("worker", "--target", "cpu"), ("refresh",), ("deployments",)], ids=" ".join)
def test_a_teams_commands_need_its_fleet_file(
    command: tuple[str, ...], enginery: Enginery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_sentence(enginery(*command), "recipes/fleet.yaml cannot be read")


def test_doctor_json_says_what_to_fix(empty: Store, enginery: Enginery) -> None:
    ran = enginery("doctor", "--json")
    findings = {found["what"]: found for found in json.loads(ran.out)}
    assert {"python", "GPU", "ENGINERY_HOME", "registry", "extra pipeline"} <= findings.keys()
    assert findings["registry"]["found"] == "0 published engines"
    for found in findings.values():
        assert found.keys() == {"what", "found", "ok", "needed", "advice"}
        assert found["ok"] or found["advice"]
    broken = any(found["needed"] and not found["ok"] for found in findings.values())
    assert ran.code == int(broken)


@pytest.mark.parametrize(
    ("finding", "mark"),
    [
        (Finding("python", "3.11", True, needed=True), "ok"),
        (Finding("python", "3.9", False, needed=True), "fix"),
        (Finding("GPU", "none found", False), "missing (optional)"),
        (RegistryFinding("publishing", "0 in progress, 1 interrupted by a crash", False), "fix"),
    ],
)
def test_doctor_marks_what_to_fix_and_what_is_optional(finding: Finding, mark: str) -> None:
    assert finding.mark == mark
