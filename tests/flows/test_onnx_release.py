"""A release of an ONNX graph that the user has already, on real parts."""

import shutil
from pathlib import Path

import pytest
import yaml

from flows.inputs.recipe import load_recipe
from flows.release.identity import identify_release
from registry.bundle.manifest import verify_bundle
from registry.bundle.signing import local_trust
from registry.digest import file_sha256
from registry.mlflow.store import embedded_store
from registry.records import Precision
from registry.serving.fetch import Policy, fetch
from tasks.bundle.answer import answer
from tasks.checkpoints.source import from_folder
from tasks.graphs.export import export_checkpoint
from tasks.model_tasks.contract import ShownAnswer
from tests.flows.test_release import release
from tests.support.given_graphs import make_classifier, make_image_classifier, save_classifier
from tests.support.images import SHAPES
from tests.support.task_recipes import write_task_recipe
from tests.support.tiny import write_tokenizer
from tests.support.tiny_recipe import LABELS, RECIPE, TinyRecipe

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_offline")]


@pytest.mark.long
def test_a_given_graph_is_released_with_the_answers_of_its_checkpoint(tmp_path: Path, tiny_recipe: TinyRecipe) -> None:
    document = {**RECIPE, "precisions": ["fp32", "int8-dynamic"], "targets": ["cpu"]}
    tiny_recipe.recipe.write_text(yaml.safe_dump(document), encoding="utf-8")
    release(tmp_path / "home", tiny_recipe)
    (tmp_path / "checkpoint").mkdir()
    checkpoint = from_folder(Path("checkpoint"), name="tiny", task="text-classification", into=tmp_path / "checkpoint")
    shutil.copy(export_checkpoint(checkpoint, into=tmp_path / "export").path, "net.onnx")

    spec = {"onnx": "net.onnx", "processor": "checkpoint", "labels": list(LABELS)}
    given = {**document, "model": "given", "source": spec}
    tiny_recipe.recipe.write_text(yaml.safe_dump(given), encoding="utf-8")
    report = release(tmp_path / "home", tiny_recipe)
    assert {row.precision for row in report.rows if row.version is not None} == {
        Precision.FP32,
        Precision.INT8_DYNAMIC,
    }
    assert release(tmp_path / "home", tiny_recipe).found

    exact, same = (fetch_fp32(tmp_path / "home", model, tmp_path / "models") for model in ("tiny", "given"))
    texts = tiny_recipe.rows("evaluation")
    assert ask(same, texts) == ask(exact, texts)
    source = verify_bundle(same).source
    assert (source.origin, source.revision) == ("onnx:net.onnx", file_sha256(Path("net.onnx")))


def test_another_graph_under_the_same_name_is_another_release(tiny_recipe: TinyRecipe) -> None:
    source = {"onnx": "net.onnx", "processor": "checkpoint", "labels": list(LABELS)}
    tiny_recipe.recipe.write_text(yaml.safe_dump({**RECIPE, "source": source}), encoding="utf-8")
    recipe, ids = load_recipe(tiny_recipe.recipe), set()
    for opset in (17, 18):
        save_classifier(Path("net.onnx"), make_classifier(opset=opset))
        ids.add(identify_release(recipe, (), None))
    write_tokenizer(Path("checkpoint"))
    tokenizer = Path("checkpoint/tokenizer.json")
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    ids.add(identify_release(recipe, (), None))
    assert len(ids) == 3


def ask(bundle: Path, texts: list[str]) -> list[ShownAnswer]:
    return [one.shown for one in answer(bundle, verify_bundle(bundle), texts)]


def fetch_fp32(home: Path, model: str, into: Path) -> Path:
    store = embedded_store(home)
    (version,) = (each.version for each in store.versions(model) if each.precision is Precision.FP32)
    return fetch(store, model, into=into, version=version, policy=Policy(local_trust(home), host=None)).path


@pytest.mark.parametrize("batch", ["n", pytest.param(1, marks=pytest.mark.long)])
def test_a_given_graph_of_images_is_released_and_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: str | int
) -> None:
    tiny = write_task_recipe(tmp_path / "recipe", "image-classification")
    monkeypatch.chdir(tiny.folder)
    save_classifier(
        Path("net.onnx"), make_image_classifier(axes=(batch, 3, "h", "w"), batch=batch, classes=len(SHAPES))
    )
    document = yaml.safe_load(tiny.recipe.read_text(encoding="utf-8"))
    source = {"onnx": "net.onnx", "processor": "checkpoint", "labels": list(SHAPES)}
    document |= {"source": source, "targets": ["cpu"], "precisions": ["fp32", "int8"]}
    if batch == 1:
        document |= {"profiles": [{"batch": {"min": 1, "opt": 1, "max": 1}}]}
    tiny.recipe.write_text(yaml.safe_dump(document), encoding="utf-8")
    report = release(tmp_path / "home", tiny)
    assert {row.precision for row in report.rows if row.version is not None} == {Precision.FP32, Precision.INT8}
    bundle = fetch_fp32(tmp_path / "home", "tiny", tmp_path / "models")
    answers = answer(bundle, verify_bundle(bundle), ["shape.png"] * 3)
    assert len(answers) == 3
    assert all(any(name in each.shown.line for name in SHAPES) for each in answers)
