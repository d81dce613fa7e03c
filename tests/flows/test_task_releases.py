"""Every model task goes the whole way: check, release, promote, fetch and an answer."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from flows.inputs.fleet import load_fleet
from flows.inputs.plan import why_not_here
from flows.inputs.recipe import load_recipe
from flows.release.check import check_recipe
from registry.bundle.signing import local_trust
from registry.mlflow.store import embedded_store
from registry.promotion.promote import promote
from registry.promotion.rules import Decision
from registry.records import Precision
from registry.serving.fetch import Policy, fetch
from tasks.bundle.answer import answer
from tasks.bundle.check_golden import Outcome, check_golden
from tasks.model_tasks import MODEL_TASKS, model_task
from tasks.report.rows import ReleaseReport
from tests.support.audio import save_spectrogram_listener
from tests.support.task_recipes import TASKS, write_task_recipe
from tests.support.tiny_recipe import TinyRecipe, release_into

pytest.importorskip("tensorrt_rtx")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_offline")]

QUESTIONS = {
    "audio-classification": ("sound.wav", "sound.wav"),
    "automatic-speech-recognition": ("sound.wav", "sound.wav"),
    "feature-extraction": ("a good film", "the music"),
    "fill-mask": ("a [MASK] film", "the music"),
    "image-classification": ("shape.png", "shape.png"),
    "object-detection": ("shape.png", "shape.png"),
    "semantic-segmentation": ("shape.png", "shape.png"),
    "multi-label-classification": ("a good film", "the music"),
    "text-pair-classification": ("a good film ||| the film", "music ||| a library"),
    "text-ranking": ("film ||| a good film", "music ||| a library"),
    "text-regression": ("a good film ||| the film", "music ||| a library"),
    "question-answering": ("film ||| the film of a library", "music ||| good music for the editor"),
    "sentence-similarity": ("a good film ||| the film", "music ||| a library"),
    "speech-to-text": ("sound.wav", "sound.wav"),
    "text2text-generation": ("a good film", "the editor for music and a library"),
    "token-classification": ("a good film", "the editor for music and a library"),
}


# One of texts, one of images and one whose engine has parts; `make check` releases all.
QUICK = ("image-classification", "question-answering", "text2text-generation")


@pytest.fixture(
    params=[task if task in QUICK else pytest.param(task, marks=pytest.mark.long) for task in sorted(TASKS)]
)
def tiny(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyRecipe:
    tiny = write_task_recipe(tmp_path / "recipe", request.param)
    monkeypatch.chdir(tiny.folder)
    return tiny


def test_every_task_has_a_recipe_here() -> None:
    assert {*TASKS, "text-classification"} == set(MODEL_TASKS)


def test_a_task_is_checked_released_promoted_fetched_and_answers(tiny: TinyRecipe, tmp_path: Path) -> None:
    recipe, fleet, home = load_recipe(tiny.recipe), load_fleet(tiny.fleet), tmp_path / "home"
    check = check_recipe(recipe, fleet, why_not_here, home)
    assert not check.problems
    report: ReleaseReport = release_into(home, recipe, fleet)
    states = {(row.target, row.precision.value): row.state for row in report.rows}
    assert states.pop(("rtx-4090", "int8-dynamic")) == "skipped"
    assert len(states) == 5
    assert set(states.values()) == {"built"}
    metric = model_task(recipe.task).metrics[0].name
    assert report.metric == metric
    reference = next(row.quality for row in report.rows if row.target == "cpu" and row.precision is Precision.FP32)
    assert reference is not None
    assert reference.low is not None
    assert reference.high is not None
    assert reference.low <= reference.value <= reference.high
    store = embedded_store(home)
    candidate = store.resolve("tiny", "candidate-cpu")
    promote(store, "tiny", {"cpu": candidate.version}, Decision("ada", "first", datetime.now(UTC)), {})
    fetched = fetch(
        store, "tiny", into=tmp_path / "models", alias="production-cpu", policy=Policy(local_trust(home), host=None)
    )
    checks = check_golden(fetched.path, fetched.manifest)
    assert [(check.outcome, check.inputs) for check in checks] == [(Outcome.SAME, 8), (Outcome.SAME, 8)]
    answers = answer(fetched.path, fetched.manifest, QUESTIONS[recipe.task])
    assert len(answers) == len(QUESTIONS[recipe.task])
    assert all(one.shown.line for one in answers)


@pytest.mark.long
def test_a_model_of_spectrograms_is_released_by_profiles_of_the_batch_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = write_task_recipe(tmp_path / "recipe", "audio-classification")
    monkeypatch.chdir(tiny.folder)
    shutil.rmtree("checkpoint")
    save_spectrogram_listener(Path("checkpoint"))
    fleet, home = load_fleet(tiny.fleet), tmp_path / "home"
    (problem,) = check_recipe(load_recipe(tiny.recipe), fleet, why_not_here, home).problems
    assert "remove samples from the profiles" in problem
    recipe = yaml.safe_load(tiny.recipe.read_text(encoding="utf-8"))
    recipe["profiles"] = [{"batch": profile["batch"]} for profile in recipe["profiles"]]
    tiny.recipe.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    report: ReleaseReport = release_into(home, load_recipe(tiny.recipe), fleet)
    states = {(row.target, row.precision.value): row.state for row in report.rows}
    assert states.pop(("rtx-4090", "int8-dynamic")) == "skipped"
    assert set(states.values()) == {"built"}
