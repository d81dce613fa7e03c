"""A release whose task is the user's own Python code: series of any length, an input of rank 1, two outputs."""

import json
from datetime import UTC, datetime
from pathlib import Path

import onnx
import pytest

from flows.inputs.fleet import load_fleet
from flows.inputs.plan import why_not_here
from flows.inputs.recipe import load_recipe
from flows.promotion.compare import compare_versions
from flows.release.check import check_recipe
from flows.release.identity import find_release
from registry.bundle.signing import local_trust
from registry.errors import BadInput
from registry.mlflow.store import embedded_store
from registry.promotion.promote import promote
from registry.promotion.rules import Decision
from registry.records import Precision
from registry.serving.fetch import Fetched, Policy, fetch
from tasks.bundle.answer import answer
from tasks.bundle.check_golden import Outcome, check_golden
from tasks.model_tasks.own.code import TASK_FILE
from tests.flows.test_release import release
from tests.support.own_tasks import CHANNELS, MODULE, PROFILE, draw_series, make_series_graph, write_own_recipe
from tests.support.tiny_recipe import TinyRecipe

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_offline")]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyRecipe:
    own = write_own_recipe(tmp_path / "recipe")
    monkeypatch.chdir(own.folder)
    return own


def fetch_promoted(home: Path, into: Path) -> Fetched:
    store = embedded_store(home)
    candidate = store.resolve("tiny", "candidate-cpu")
    promote(store, "tiny", {"cpu": candidate.version}, Decision("ada", "first", datetime.now(UTC)), {})
    return fetch(store, "tiny", into=into, policy=Policy(local_trust(home), host=None), alias="production-cpu")


def test_an_own_task_goes_the_whole_way_and_its_code_runs_where_it_is_trusted(tmp_path: Path, own: TinyRecipe) -> None:
    recipe, fleet, home = load_recipe(own.recipe), load_fleet(own.fleet), tmp_path / "home"
    assert check_recipe(recipe, fleet, why_not_here, home).problems == ()
    report = release(home, own)
    assert {row.precision for row in report.rows if row.version is not None} == set(recipe.precisions)
    assert {Precision.FP32, Precision.INT8, Precision.INT8_DYNAMIC} == set(recipe.precisions)
    assert release(home, own).found

    fetched = fetch_promoted(home, tmp_path / "models")
    series = [json.dumps(each) for each in draw_series(9, 3)]
    with pytest.raises(BadInput, match="runs only where allowed: read it and add --allow-module"):
        answer(fetched.path, fetched.manifest, series)
    with pytest.raises(BadInput, match="--allow-module"):
        check_golden(fetched.path, fetched.manifest)
    shown = answer(fetched.path, fetched.manifest, series, trust_module=Path("my_task.py"))
    assert len(shown) == len(series)
    checks = check_golden(fetched.path, fetched.manifest, trust_module=True)
    assert [check.outcome for check in checks] == [Outcome.SAME, Outcome.SAME]
    assert sorted(file.path for file in fetched.manifest.files if "scale" in file.path or "task" in file.path) == [
        "scale.txt",
        TASK_FILE,
    ]

    other = Path("my_task.py")
    other.write_text(MODULE + "\n# as read by somebody else\n", encoding="utf-8")
    with pytest.raises(BadInput, match="is not the module that tiny was released with"):
        answer(fetched.path, fetched.manifest, series, trust_module=other)
    first, second = sorted(engine.version for engine in embedded_store(home).versions("tiny"))[:2]
    compared = compare_versions(embedded_store(home), "tiny", first, second)
    assert compared.metric == "absolute_error"


def test_a_graph_of_a_fixed_batch_is_released_and_answers_any_number_of_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = {"min": 4, "opt": 4, "max": 4}
    own = write_own_recipe(tmp_path / "recipe", profiles=[PROFILE | {"batch": batch}], precisions=["fp32", "int8"])
    monkeypatch.chdir(own.folder)
    model = make_series_graph(axes=(4, "time", CHANNELS), length=(4,), answer=(4,))
    onnx.save(model, "net.onnx")
    report = release(tmp_path / "home", own)
    assert {row.precision for row in report.rows if row.version is not None} == {Precision.FP32, Precision.INT8}
    fetched = fetch_promoted(tmp_path / "home", tmp_path / "models")
    series = [json.dumps(each) for each in draw_series(9, 6)]
    shown = [vars(each.shown) for each in answer(fetched.path, fetched.manifest, series, trust_module=True)]
    assert len(shown) == 6
    (alone,) = answer(fetched.path, fetched.manifest, series[5:], trust_module=True)
    assert vars(alone.shown)["answer"] == pytest.approx(shown[5]["answer"], rel=1e-4)
    checks = check_golden(fetched.path, fetched.manifest, trust_module=True)
    assert [check.outcome for check in checks] == [Outcome.SAME, Outcome.SAME]


def test_another_module_or_another_file_beside_it_is_another_release(own: TinyRecipe, tmp_path: Path) -> None:
    recipe, fleet, store = load_recipe(own.recipe), load_fleet(own.fleet), embedded_store(tmp_path / "home")
    ids = [find_release(recipe, fleet, store)[1]]
    Path("my_task.py").write_text(MODULE + "\n", encoding="utf-8")
    ids.append(find_release(recipe, fleet, store)[1])
    Path("scale.txt").write_text("11", encoding="utf-8")
    ids.append(find_release(recipe, fleet, store)[1])
    assert len(set(ids)) == 3


def test_a_module_that_changes_during_its_release_is_not_run(own: TinyRecipe) -> None:
    from flows.release.identity import pin_recipe

    pinned = pin_recipe(load_recipe(own.recipe))
    Path("my_task.py").write_text(MODULE + "\n", encoding="utf-8")
    with pytest.raises(BadInput, match=r"and .* was asked for"):
        _ = pinned.model_task
