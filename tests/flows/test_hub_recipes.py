"""The recipes of hub models resolve, read and fit against a hub that has repositories of their names and layout.

The networks and rows behind the names are tiny and random: no hub is reached from here, so that the names exist on the
real one, and what the real models score, is not shown.
"""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.inputs.recipe import load_recipe
from tasks.model_tasks import MODEL_TASKS, model_task
from tests.support.hub_server import Hub, Tree, serve_hub
from tests.support.task_recipes import TASKS, draw_texts
from tests.support.tiny_recipe import PROFILES

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes" / "hub").glob("*.yaml"))
pytestmark = pytest.mark.slow
# What repositories of models have beside the checkpoint, none of which may be downloaded or loaded.
BESIDE = ("pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "README.md", ".gitattributes", "training_args.bin")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as hub:
        yield hub


def commit_checkpoint(hub: Hub, repo: str, task: str, folder: Path) -> None:
    TASKS[task][0](folder)
    tree: Tree = {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()
    }
    hub.commit(repo, tree | dict.fromkeys(BESIDE, b"\x80not to be read"))


def commit_dataset(hub: Hub, recipe: dict[str, Any]) -> None:
    """Store splits in Parquet under a subset's folder, and the card that names them, as the hub's own datasets do."""
    import datasets

    datasets.disable_progress_bars()
    data, task = recipe["data"], recipe["task"]
    texts = draw_texts(7, 192)
    parts = {data["calibration"]["split"]: texts[:96], data["evaluation"]["split"]: texts[96:]}
    subset = data.get("subset", "default")
    tree: Tree = {}
    for split, part in parts.items():
        drawn = TASKS[task][1](part)
        if data.get("box_format") == "pascal_voc":
            drawn["boxes"] = [[[x, y, x + w, y + h] for x, y, w, h in boxes] for boxes in drawn["boxes"]]
        columns = {data.get(name, name): values for name, values in drawn.items()}
        rows = io.BytesIO()
        datasets.Dataset.from_dict(nest_columns(columns)).to_parquet(rows)
        tree[f"{subset}/{split}-00000-of-00001.parquet"] = rows.getvalue()
    files = [{"split": split, "path": f"{subset}/{split}-*"} for split in parts]
    card = yaml.safe_dump({"configs": [{"config_name": subset, "data_files": files}]})
    hub.commit(f"datasets/{data['hub']}", tree | {"README.md": f"---\n{card}---\n# Rows\n".encode()})


def nest_columns(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Put columns whose names have a dot into one column of mappings."""
    nested: dict[str, list[Any]] = {name: values for name, values in columns.items() if "." not in name}
    for name in columns.keys() - nested.keys():
        outer, _, field = name.partition(".")
        for row, value in zip(nested.setdefault(outer, [{} for _ in columns[name]]), columns[name], strict=True):
            row[field] = value
    return nested


def shrink(recipe: dict[str, Any], into: Path) -> Path:
    """Write the recipe with sizes that the tiny network has; what names the model and the rows stays."""
    others = {"samples": {"min": 1600, "opt": 4000, "max": 6400}, "new_tokens": {"min": 1, "opt": 4, "max": 8}}
    axes = model_task(recipe["task"]).axes
    recipe["profiles"] = [{axis: (others | PROFILES[0])[axis] for axis in axes}]
    recipe["data"] |= {"max_length": 16} if "max_length" in recipe["data"] else {}
    recipe["data"]["calibration"]["samples"] = 16
    recipe["data"]["evaluation"].pop("samples", None)
    recipe |= {"targets": ["cpu"], "precisions": ["fp32", "int8"], "gates": {"loss_max": 1.0}}
    recipe["latency"] = {"windows": 4, "iterations": 5, "warmup": 1}
    into.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return into


def serve(path: Path, hub: Hub, folder: Path) -> Path:
    """Give the hub what a recipe names, and return the recipe in the sizes of that."""
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    folder.mkdir()
    commit_checkpoint(hub, recipe["source"]["hub"], recipe["task"], folder / "checkpoint")
    commit_dataset(hub, recipe)
    return shrink(recipe, folder / "recipe.yaml")


def run_python(arguments: list[str], hub: Hub, home: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own: datasets reads HF_ENDPOINT when it is imported."""
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
    environment = os.environ | own | {"ENGINERY_HOME": str(home), "COLUMNS": "300"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)


def test_every_task_has_a_recipe_of_a_hub_model() -> None:
    own = {load_recipe(path).task for path in RECIPES} | {load_recipe(ROOT / "recipes/distilbert-sst2.yaml").task}
    assert own == set(MODEL_TASKS)


READ_ALL = """
import sys
from pathlib import Path
from calibration_data.reader import load_split
from flows.inputs.fleet import load_fleet
from flows.inputs.plan import why_not_here
from flows.inputs.recipe import load_recipe
from flows.inputs.rows import evaluation_rows
from flows.release.check import check_recipe
from flows.release.identity import pin_recipe
from tasks.checkpoints.source import from_hub

for number, path in enumerate(map(Path, sys.argv[1:])):
    recipe = pin_recipe(load_recipe(path))
    check = check_recipe(recipe, load_fleet(Path("recipes/fleet.yaml")), why_not_here, path.parent / "home")
    into = path.parent / "source"
    source = from_hub(recipe.source.hub, recipe.source.revision, name=recipe.model, task=recipe.task, into=into)
    rows = evaluation_rows(recipe, source.source)
    drawn = load_split(recipe.dataset, recipe.model_task, recipe.data.calibration.split, samples=16)
    files = sorted(file.name for file in into.rglob("*"))
    print(recipe.model, len(check.problems), len(rows.inputs), len(drawn.inputs), files)
"""


@pytest.mark.long
def test_recipes_of_hub_models_resolve_and_their_rows_fit(hub: Hub, tmp_path: Path) -> None:
    recipes = [str(serve(path, hub, tmp_path / path.stem)) for path in RECIPES]
    done = run_python(["-c", READ_ALL, *recipes], hub, tmp_path / "home")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(" ", 4)[:4] for line in lines] == [[path.stem, "0", "96", "16"] for path in RECIPES]
    assert not any(name.rpartition("/")[2] in done.stdout for name in BESIDE)
    asked = {part for request in hub.requests for part in request.split("/")}
    assert asked >= set(hub.refs.values())


@pytest.mark.long
@pytest.mark.parametrize("task", ["multi-label-classification", "image-classification", "audio-classification"])
def test_recipe_of_a_hub_model_is_released(task: str, hub: Hub, tmp_path: Path) -> None:
    recipe = serve(next(path for path in RECIPES if load_recipe(path).task == task), hub, tmp_path / task)
    done = run_python(
        ["-m", "flows.cli", "release", str(recipe), "--fleet", "recipes/fleet.yaml"], hub, tmp_path / "home"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "candidate-cpu" in done.stdout
