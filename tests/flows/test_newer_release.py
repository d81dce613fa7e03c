"""A checkpoint that only transformers 5 reads goes the whole way, and its graph gives transformers 5's answers."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement

from flows.inputs.fleet import load_fleet
from flows.inputs.plan import why_not_here
from flows.inputs.recipe import load_recipe
from flows.release.check import check_recipe
from registry.bundle.manifest import verify_bundle
from registry.bundle.signing import local_trust
from registry.errors import BadInput
from registry.mlflow.store import embedded_store
from registry.records import Precision
from registry.serving.fetch import Policy, fetch
from tasks.bundle.answer import answer
from tasks.checkpoints.architectures import NEWER_TOOL, list_newer_types
from tasks.checkpoints.source import from_folder
from tasks.execution.tools.catalog import find_tool
from tasks.graphs.compare import run_graph
from tasks.graphs.exporter import run_exporter
from tasks.model_tasks.texts.text_classification import TEXT_CLASSIFICATION
from tasks.report.table import list_notes
from tests.conftest import made_once
from tests.flows.test_release import release
from tests.support.newer_checkpoints import install_newer, save_newer
from tests.support.tiny_recipe import RECIPE, TinyRecipe

# The tool is installed from an index, and each process of an export imports torch.
pytestmark = pytest.mark.long
TEXTS = ("a good film", "bad music for the editor of the library", "the film", "fine", "poor films and music")
ASK = """
import json, sys
import torch
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
ids = torch.tensor(json.loads(sys.argv[2]))
with torch.inference_mode():
    print(json.dumps(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.tolist()))
"""
TYPES = """
import json
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
print(json.dumps(list(CONFIG_MAPPING_NAMES)))
"""


@pytest.fixture(scope="module")
def newer_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "newer", install_newer)


@pytest.fixture
def packages(newer_home: Path, tmp_path: Path) -> Path:
    """The tool's packages, installed in the test's home too: a link to the one installation."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "tools").symlink_to(newer_home / "tools")
    return install_newer(newer_home)


def run_newer(packages: Path, code: str, *arguments: str) -> Any:
    command = [sys.executable, "-P", "-c", code, *arguments]
    done = subprocess.run(command, env={"PYTHONPATH": str(packages)}, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


@pytest.mark.usefixtures("prefect_offline")
def test_an_architecture_of_transformers_5_is_checked_released_and_answers(
    packages: Path, tiny_recipe: TinyRecipe, tmp_path: Path
) -> None:
    labels = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    save_newer(packages, Path("newer"), "eurobert", "AutoModelForSequenceClassification", **labels)
    document = {**RECIPE, "source": {"path": "newer"}, "targets": ["cpu"]}
    tiny_recipe.recipe.write_text(yaml.safe_dump(document), encoding="utf-8")

    check = check_recipe(
        load_recipe(tiny_recipe.recipe), load_fleet(tiny_recipe.fleet), why_not_here, tmp_path / "home"
    )
    assert check.problems == ()
    (export,) = [each.found for each in check.checks if each.what == "export"]
    assert export.endswith("transformers 4 has no model type eurobert; the tool transformers5 is installed")

    report = release(tmp_path / "home", tiny_recipe)
    exporter = f"transformers {find_tool(NEWER_TOOL).version} with torch {importlib.metadata.version('torch')}"
    assert {row.precision: row.state for row in report.rows} == dict.fromkeys(
        (Precision.FP32, Precision.INT8, Precision.INT8_DYNAMIC), "built"
    )
    assert any(note.startswith(f"cpu fp32: exported by {exporter}") for note in list_notes(report))

    store = embedded_store(tmp_path / "home")
    versions = {engine.precision: engine.version for engine in store.versions("tiny")}
    fetched = fetch(
        store, "tiny", into=tmp_path / "models", version=versions[Precision.FP32],
        policy=Policy(local_trust(tmp_path / "home"), host=None),
    )  # fmt: skip
    assert verify_bundle(fetched.path).exporter == exporter
    assert len(answer(fetched.path, fetched.manifest, ("a good film", "the music"))) == 2
    runs = store.client.search_runs([each.experiment_id for each in store.client.search_experiments()])
    assert {run.data.params["exporter"] for run in runs if "exporter" in run.data.params} == {exporter}


def test_the_rotary_positions_are_those_of_the_checkpoint(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers 4 knows ModernBERT, and would give it the positions of its defaults."""
    monkeypatch.setenv("ENGINERY_HOME", str(tmp_path / "home"))
    rotary = {"rope_type": "default", "rope_theta": 20.0}
    made = save_newer(
        packages, tmp_path / "made", "modernbert", "AutoModelForSequenceClassification",
        rope_parameters={"full_attention": rotary, "sliding_attention": rotary},
    )  # fmt: skip
    source = from_folder(made, name="tiny", task="text-classification", into=tmp_path / "taken")
    graph = run_exporter(source, TEXT_CLASSIFICATION, TEXTS, {"sequence": 16}, into=tmp_path / "graph")
    assert {tensor.name: tensor.shape for tensor in graph.inputs} == {
        "input_ids": ("batch_size", "sequence_length"),
        "attention_mask": ("batch_size", "sequence_length"),
    }
    ids = np.array([[2, 5, 7, 11, 9, 13, 6, 3]])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    expected = run_newer(packages, ASK, str(made), json.dumps(ids.tolist()))
    np.testing.assert_allclose(run_graph(graph.path, [feed])["logits"][0], expected, rtol=1e-3, atol=1e-4)


def test_a_checkpoint_without_the_tasks_head_is_refused_in_a_sentence(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINERY_HOME", str(tmp_path / "home"))
    made = save_newer(packages, tmp_path / "made", "eurobert", "AutoModel")
    source = from_folder(made, name="tiny", task="text-classification", into=tmp_path / "taken")
    with pytest.raises(BadInput, match=r"^tiny has no weights for classifier\..*, which text-classification needs"):
        run_exporter(source, TEXT_CLASSIFICATION, TEXTS, {"sequence": 16}, into=tmp_path / "graph")
    assert not (tmp_path / "graph").exists()


def test_the_listed_model_types_are_those_that_are_installed(packages: Path) -> None:
    assert set(run_newer(packages, TYPES)) == list_newer_types()


def test_what_the_tools_packages_require_is_there(packages: Path) -> None:
    """In the tool's folder, or else in the environment that is under it."""
    own = {each.name.lower().replace("_", "-"): each for each in importlib.metadata.distributions(path=[str(packages)])}
    assert {name: each.version for name, each in own.items()}.keys() >= {"transformers", "huggingface-hub"}
    unmet = []
    for distribution in own.values():
        for requirement in map(Requirement, distribution.requires or ()):
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            found = own.get(requirement.name.lower().replace("_", "-"))
            version = found.version if found else importlib.metadata.version(requirement.name)
            if not requirement.specifier.contains(version, prereleases=True):
                unmet.append(f"{distribution.name}: {requirement}, but {version} is there")
    assert unmet == []
