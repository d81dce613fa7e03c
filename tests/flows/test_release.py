"""One release on the real path: PyTorch -> ONNX -> ONNX Runtime and TensorRT for RTX -> MLflow on SQLite."""

import datetime
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.inputs.fleet import load_fleet
from flows.inputs.plan import list_steps, plan_target, why_not_here
from flows.inputs.recipe import load_recipe
from flows.promotion.compare import compare_versions, measure_here
from flows.release.reporting import read_answered
from registry.bundle.manifest import verify_bundle
from registry.bundle.signing import local_trust
from registry.errors import Incompatible, PromotionRefused
from registry.host.compatibility import read_host
from registry.mlflow.runs.addresses import report_address
from registry.mlflow.runs.lineage import Lineage
from registry.mlflow.store import MlflowStore, embedded_store
from registry.promotion.promote import promote
from registry.promotion.rules import Decision
from registry.records import GateResult, Precision, Verdict
from registry.serving.fetch import Policy, fetch
from tasks.bundle.answer import answer
from tasks.bundle.check_golden import Outcome, check_golden
from tasks.bundle.golden import read_golden
from tasks.execution.progress import StepEnd, ignore_progress
from tasks.report.rows import EngineRow, ReleaseReport
from tasks.verdicts.gates import find
from tests.support.tiny_recipe import LABELS, TinyRecipe, copy_home, release_into, write_split

pytest.importorskip("tensorrt_rtx")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_offline")]


@dataclass(frozen=True)
class Released:
    """A home, the report of the release in it, and the steps that ended."""

    home: Path
    report: ReleaseReport
    steps: tuple[StepEnd, ...]

    @property
    def store(self) -> MlflowStore:
        return embedded_store(self.home)


def release(home: Path, tiny: TinyRecipe) -> ReleaseReport:
    report: ReleaseReport = release_into(home, load_recipe(tiny.recipe), load_fleet(tiny.fleet))
    return report


def stages(home: Path, kind: str = "*") -> dict[str, int]:
    """Stage folders by `kind/key`, with when each was written."""
    return {
        str(record.parent.relative_to(home / "stages")): record.stat().st_mtime_ns
        for record in (home / "stages").glob(f"{kind}/*/stage.json")
    }


@pytest.fixture(scope="session")
def first_release(
    recipe_template: TinyRecipe,
    tmp_path_factory: pytest.TempPathFactory,
    migrated_database: Path,
    prefect_offline: None,
) -> Released:
    """The expensive one, made once and never changed: tests work on a copy of it."""
    home = tmp_path_factory.mktemp("released") / "home"
    home.mkdir()
    shutil.copy(migrated_database, home / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(recipe_template.folder)
        steps: list[StepEnd] = []
        recipe, fleet = load_recipe(recipe_template.recipe), load_fleet(recipe_template.fleet)
        return Released(home, release_into(home, recipe, fleet, steps.append), tuple(steps))


@pytest.fixture
def released(first_release: Released, tmp_path: Path) -> Released:
    home = copy_home(first_release.home, tmp_path / "home")
    return Released(home, first_release.report, first_release.steps)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def test_every_engine_of_a_release_is_built_and_published(released: Released) -> None:
    rows = released.report.rows
    states = {(row.target, row.precision.value): row.state for row in rows}
    assert states == {
        ("cpu", "fp32"): "built",
        ("cpu", "int8-dynamic"): "built",
        ("cpu", "int8"): "built",
        ("rtx-4090", "fp32"): "built",
        ("rtx-4090", "int8-dynamic"): "skipped",
        ("rtx-4090", "int8"): "built",
    }
    built = [(row.version, row.digest) for row in rows if row.state == "built"]
    assert [(engine.version, engine.digest) for engine in released.store.versions("tiny")] == built
    assert not released.report.failed


def test_a_release_ends_the_planned_steps_and_no_other(released: Released, tiny_recipe: TinyRecipe) -> None:
    recipe, fleet = load_recipe(tiny_recipe.recipe), load_fleet(tiny_recipe.fleet)
    plans = [plan_target(recipe, fleet.target(name), why_not_here) for name in recipe.targets]
    assert {end.name for end in released.steps} == set(list_steps(recipe, plans))
    figures = {end.name: end.figure for end in released.steps}
    assert figures["calibration calibration"] == "16 rows"
    assert figures["publish tiny"] == "5 versions"
    assert figures["benchmark cpu"].startswith("p50 fp32 ")
    assert figures["build rtx-4090 fp32"].endswith(" MB")


def test_every_published_bundle_verifies_and_carries_its_release(released: Released, tmp_path: Path) -> None:
    for engine in released.store.versions("tiny"):
        policy = Policy(local_trust(released.home), host=None)
        into = tmp_path / "models"
        fetched = fetch(released.store, "tiny", into=into, version=engine.version, policy=policy)
        manifest = verify_bundle(fetched.path)
        assert manifest.release == released.report.release
        assert (manifest.build.digest, manifest.verdict) == (engine.digest, engine.verdict)


def test_only_calibrated_engines_name_a_calibration_set(released: Released) -> None:
    calibrated = {
        manifest.build.precision
        for engine in released.store.versions("tiny")
        if (manifest := released.store.manifest("tiny", engine.version)).calibration_set is not None
    }
    assert calibrated == {Precision.INT8}


def test_the_calibration_table_the_choice_and_their_figures_lie_beside_calibrated_engines_only(
    released: Released,
) -> None:
    files = (
        "calibration/calibration.json",
        "calibration/autopilot.json",
        "figures/calibration.png",
        "figures/int8.png",
    )
    client, expected = released.store.client, set(files)
    runs = client.search_runs([released.store.experiment("tiny")], "tags.`enginery.kind` = 'engine'")
    logged = {
        run.data.params["target"] + " " + run.data.params["precision"]: _files(client, run.info.run_id) for run in runs
    }
    calibrated = {name for name, files in logged.items() if expected <= files}
    assert calibrated == {"cpu int8", "rtx-4090 int8"}
    assert all(name in calibrated or not expected & files for name, files in logged.items())


def test_every_int8_row_says_how_its_graph_was_chosen(released: Released) -> None:
    remarks = {row.precision: row.remark for row in released.report.rows}
    assert "holdout rows" in remarks[Precision.INT8]
    assert not any(remark for precision, remark in remarks.items() if precision is not Precision.INT8)


def _files(client: Any, run_id: str) -> set[str]:
    return {item.path for folder in ("calibration", "figures") for item in client.list_artifacts(run_id, folder)}


def test_the_report_lies_beside_the_release_and_names_what_ran_and_what_did_not(
    released: Released, tmp_path: Path
) -> None:
    file = Path(report_address(released.store, released.report.run_id))
    page, document = file.read_text(encoding="utf-8"), json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    assert page.startswith("<!doctype html>")
    ran = {(each["target"], each["precision"]): each for each in document["engines"] if each["ran"]}
    assert set(ran) == {("cpu", "fp32"), ("cpu", "int8-dynamic"), ("cpu", "int8")}
    rows = {(row.target, row.precision.value): row for row in released.report.rows}
    for name, engine in ran.items():
        p50, flips = rows[name].figure("latency_p50_ms"), rows[name].figure("flips")
        assert p50 is not None
        assert flips is not None
        assert engine["figures"]["latency_p50_ms"]["value"] == p50.value
        assert engine["flips"]["count"] >= flips.value  # a flip from wrong to wrong changes no score
        assert (len(engine["layers"]) > 0) is (name != ("cpu", "fp32"))
    assert str(rows["cpu", "int8"].digest) in page


def test_what_an_engine_answered_is_kept_with_its_run_where_it_ran(released: Released) -> None:
    lineage = Lineage(released.store)
    for engine in released.store.versions("tiny"):
        answered = read_answered(lineage, "tiny", engine.version)
        if engine.target != "cpu":
            assert answered is None
            continue
        assert answered is not None
        manifest = released.store.manifest("tiny", engine.version)
        assert answered.evaluation_set == manifest.evaluation_set
        accuracy = find(manifest.measurements, "accuracy")
        assert accuracy is not None
        assert answered.numbers.mean() == accuracy.value


def test_the_report_compares_with_production_row_by_row(released: Released, tiny_recipe: TinyRecipe) -> None:
    serving = released.store.resolve("tiny", "candidate-cpu")
    promote(released.store, "tiny", {"cpu": serving.version}, Decision("ada", "first", now()), {})
    recipe = yaml.safe_load(tiny_recipe.recipe.read_text(encoding="utf-8"))
    recipe["gates"]["size_mb_max"] = 51.0  # another release of the same engines
    recipe["targets"] = ["cpu"]
    tiny_recipe.recipe.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    again = release(released.home, tiny_recipe)
    file = Path(report_address(released.store, again.run_id)).with_suffix(".json")
    for engine in json.loads(file.read_text(encoding="utf-8"))["engines"]:
        reasons = {gate["gate"]: gate["reason"] for gate in engine["against_production"]}
        if engine["digest"] == serving.digest:
            assert reasons == {}
        else:
            assert engine["production"] == serving.version
            assert reasons["accuracy_against_production"].startswith("paired accuracy loss")


def test_two_versions_are_compared_row_by_row_and_timed_here(released: Released) -> None:
    versions = {(row.target, row.precision.value): row.version or 0 for row in released.report.rows}
    before, after = versions["cpu", "fp32"], versions["cpu", "int8"]
    found = compare_versions(released.store, "tiny", before, after)
    row = next(row for row in released.report.rows if row.version == after)
    loss = row.figure("accuracy_loss")
    assert found.loss is not None
    assert loss is not None
    assert (found.loss.loss, found.loss.low, found.loss.high) == (loss.value, loss.low, loss.high)
    assert found.layers
    trust, host = local_trust(released.home), read_host()
    timed = measure_here(released.store, found, trust, host, ignore_progress).interleaved
    assert timed is not None
    assert dict(timed.sizes) == {"batch": 2, "sequence": 8}
    assert 0 < timed.speedup[1] <= timed.speedup[0] <= timed.speedup[2]


def test_an_engine_that_did_not_run_is_compared_by_nothing_that_its_graph_scored(released: Released) -> None:
    versions = {(row.target, row.precision.value): row.version or 0 for row in released.report.rows}
    found = compare_versions(released.store, "tiny", versions["cpu", "fp32"], versions["rtx-4090", "fp32"])
    assert found.loss is None
    assert "no machine ran it" in found.not_paired
    assert found.after.quality is None
    with pytest.raises(Incompatible):
        measure_here(released.store, found, local_trust(released.home), read_host(), ignore_progress)


def test_an_engine_that_no_machine_here_runs_is_unmeasured(released: Released) -> None:
    engines = [engine for engine in released.store.versions("tiny") if engine.target == "rtx-4090"]
    assert [engine.verdict for engine in engines] == [Verdict.UNMEASURED] * 2
    for engine in engines:
        measured = dict(engine.metrics)
        del measured["build_seconds"]  # the build did happen here
        assert measured
        assert all(name.startswith("onnx-graph.") for name in measured), measured
        assert engine.measured_on == ""


def test_an_unmeasured_engine_is_refused_with_the_gates_reason(released: Released) -> None:
    engine = next(engine for engine in released.store.versions("tiny") if engine.target == "rtx-4090")
    with pytest.raises(PromotionRefused) as refusal:
        promote(released.store, "tiny", {"rtx-4090": engine.version}, Decision("ada", "hope", now()), {})
    assert engine.reason in str(refusal.value)
    assert "production-rtx-4090" not in released.store.aliases("tiny")


def test_engines_that_ran_pass_and_say_where_they_ran(released: Released) -> None:
    for row in released.report.rows:
        if row.target == "cpu":
            assert row.verdict is Verdict.PASSED, row.reason
            assert {"accuracy", "accuracy_loss", "latency_p50_ms", "latency_p99_ms"} <= {
                measurement.metric for measurement in row.measurements if measurement.subject == "engine"
            }
            assert released.store.version("tiny", row.version or 0).measured_on


def test_the_fastest_passed_engine_of_a_target_is_its_candidate(released: Released) -> None:
    passed = [engine for engine in released.store.versions("tiny") if engine.verdict is Verdict.PASSED]
    fastest = max(passed, key=lambda engine: dict(engine.metrics).get("speedup", 1.0))
    assert released.store.aliases("tiny") == {"candidate-cpu": fastest.version}


def test_a_promoted_engine_is_fetched_and_answers(released: Released, tmp_path: Path) -> None:
    store = released.store
    candidate = store.resolve("tiny", "candidate-cpu")
    promote(store, "tiny", {"cpu": candidate.version}, Decision("ada", "first", now()), {})
    policy = Policy(local_trust(released.home), host=None)
    fetched = fetch(store, "tiny", into=tmp_path / "models", alias="production-cpu", policy=policy)
    assert (fetched.version, fetched.manifest.build.digest) == (candidate.version, candidate.digest)
    answers = [vars(one.shown) for one in answer(fetched.path, fetched.manifest, ["a good film", "the bad music"])]
    assert {one["label"] for one in answers} <= set(LABELS)
    assert all(0.5 <= one["score"] <= 1 for one in answers)


def test_every_published_bundle_carries_golden_inputs_and_says_what_answered_them(
    released: Released, tiny_recipe: TinyRecipe, tmp_path: Path
) -> None:
    policy, evaluation = Policy(local_trust(released.home), host=None), tiny_recipe.rows("evaluation")
    for engine in released.store.versions("tiny"):
        fetched = fetch(released.store, "tiny", into=tmp_path / "models", version=engine.version, policy=policy)
        golden = read_golden(fetched.path, fetched.manifest)
        texts = [str(row.row_input) for row in golden.rows]
        assert len(texts) == 8
        assert set(texts) <= set(evaluation)
        assert {len(texts[0]), len(texts[-1])} == {min(map(len, evaluation)), max(map(len, evaluation))}
        prepared, answers = check_golden(fetched.path, fetched.manifest)
        runs_here = engine.target == "cpu"
        assert golden.subject == ("engine" if runs_here else "onnx-graph")
        assert (golden.subject_digest == engine.digest) is runs_here
        assert prepared.outcome is Outcome.SAME
        assert answers.outcome is (Outcome.SAME if runs_here else Outcome.NOT_RUN)
        assert answers.largest_difference == (0.0 if runs_here else None)


def test_a_second_release_finds_everything_and_writes_nothing(released: Released, tiny_recipe: TinyRecipe) -> None:
    before = stages(released.home)
    again = release(released.home, tiny_recipe)
    assert again.found
    assert again.release == released.report.release
    assert {row.state for row in again.rows if row.digest} == {"found"}
    assert stages(released.home) == before
    assert len(released.store.versions("tiny")) == sum(row.version is not None for row in again.rows)


def test_a_new_calibration_row_remakes_only_what_saw_the_rows(released: Released, tiny_recipe: TinyRecipe) -> None:
    before = stages(released.home)
    rows = tiny_recipe.rows("calibration")
    write_split(tiny_recipe.folder / "rows", "calibration", [f"{text} and a film" for text in rows])
    again = release(released.home, tiny_recipe)
    assert again.release != released.report.release
    after = stages(released.home)
    assert {name: after[name] for name in before} == before
    kinds = sorted(name.split("/")[0] for name in after.keys() - before.keys())
    # One evaluation: the cpu engine is the int8 graph that the rtx engine is scored by.
    assert kinds == ["benchmark", "build", "build", "calibration", "evaluate", "quantize"]
    states = {(row.target, row.precision.value): row.state for row in again.rows}
    assert {where for where, state in states.items() if state == "built"} == {("cpu", "int8"), ("rtx-4090", "int8")}
    old = {(row.target, row.precision): row.digest for row in released.report.rows}
    new = {(row.target, row.precision): row.digest for row in again.rows}
    assert {precision for (_, precision), digest in new.items() if digest not in old.values()} == {Precision.INT8}


def test_published_engines_are_reused_where_the_workspace_was_cleared(
    released: Released, tiny_recipe: TinyRecipe
) -> None:
    old = {(row.target, row.precision): row.digest for row in released.report.rows}
    shutil.rmtree(released.home / "stages")
    # Another size limit makes another release of the same engines.
    text = tiny_recipe.recipe.read_text(encoding="utf-8")
    tiny_recipe.recipe.write_text(text.replace("size_mb_max: 50.0", "size_mb_max: 51.0"), encoding="utf-8")
    again = release(released.home, tiny_recipe)
    assert again.release != released.report.release
    # TensorRT's rebuilds differ byte for byte: equal digests are the published bytes.
    assert {(row.target, row.precision): row.digest for row in again.rows} == old
    assert len(stages(released.home, "build")) == sum(digest is not None for digest in old.values())
    assert not list((released.home / "stages" / ".tmp").iterdir())


def test_an_undecided_release_is_measured_on_from_the_windows_that_were_kept(
    released: Released, tiny_recipe: TinyRecipe
) -> None:
    recipe = yaml.safe_load(tiny_recipe.recipe.read_text(encoding="utf-8"))
    recipe["gates"]["latency_p99_ms_max"] = 60_000.0  # twenty calls cannot bound p99, however fast they are
    recipe["latency"]["seconds_max"] = 0.001
    recipe["targets"] = ["cpu"]
    tiny_recipe.recipe.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    finished = stages(released.home, "benchmark")
    first = release(released.home, tiny_recipe)
    assert {row.verdict for row in first.rows} == {Verdict.INCONCLUSIVE}
    assert stages(released.home, "benchmark") == finished
    others = stages(released.home)
    again = release(released.home, tiny_recipe)
    assert (again.release, again.found) == (first.release, False)
    assert {row.state for row in again.rows} == {"found"}
    for before, after in zip(first.rows, again.rows, strict=True):
        assert count_calls(after) >= count_calls(before) + 10
    assert stages(released.home) == others
    assert {row.version for row in again.rows} == {row.version for row in first.rows}


def test_the_sizes_of_the_profile_are_timed_and_stand_in_the_report(
    released: Released, tiny_recipe: TinyRecipe
) -> None:
    recipe = yaml.safe_load(tiny_recipe.recipe.read_text(encoding="utf-8"))
    recipe["latency"]["sweep_seconds_max"] = 1.0
    recipe["targets"] = ["cpu"]
    tiny_recipe.recipe.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    reports = {*released.home.rglob("report.json")}
    release(released.home, tiny_recipe)
    assert len(stages(released.home, "sweep")) == 1
    (report,) = {*released.home.rglob("report.json")} - reports
    for engine in json.loads(report.read_text(encoding="utf-8"))["engines"]:
        sizes = [tuple(each["sizes"].values()) for each in engine["sizes"]]
        assert sizes[0] == (2, 8)
        assert {*sizes} == {(batch, sequence) for batch in (1, 2, 4) for sequence in (4, 8, 16)}
        assert engine["sizes"][0]["p50_ms"] > 0
        assert engine["sizes"][0]["calls"] >= 3
        assert engine["sizes"][0]["compute_ms"] is None


def count_calls(row: EngineRow) -> int:
    """Calls that were timed, those of dropped windows too."""
    timed, dropped = row.figure("latency_p50_ms"), row.figure("windows_dropped")
    under_load = row.figure("latency_under_load")
    assert timed
    assert dropped
    assert under_load
    return timed.samples + (5 * int(dropped.value) if under_load.value == 0 else 0)


def test_an_engine_that_passes_when_measured_again_can_be_promoted(
    released: Released, tiny_recipe: TinyRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = yaml.safe_load(tiny_recipe.recipe.read_text(encoding="utf-8"))
    recipe["gates"]["size_mb_max"] = 999  # a release of its own
    recipe["targets"] = ["cpu"]
    tiny_recipe.recipe.write_text(yaml.safe_dump(recipe), encoding="utf-8")

    def release_with(verdict: Verdict) -> ReleaseReport:
        gates = (GateResult("latency", verdict, "as this machine's noise has it"),)
        monkeypatch.setattr("flows.release.build_target.judge", lambda *_, **__: gates)
        return release(released.home, tiny_recipe)

    first, again = release_with(Verdict.INCONCLUSIVE), release_with(Verdict.PASSED)
    assert again.release == first.release
    assert {row.version for row in again.rows}.isdisjoint(row.version for row in first.rows)
    for row in again.rows:
        assert row.version is not None
        assert released.store.version(row.model, row.version).verdict is Verdict.PASSED
    assert release(released.home, tiny_recipe).found
