"""A task of a user's own over a tiny graph: series of any length, an input of rank 1, outputs of different ranks."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

from tasks.model_tasks.own.module_task import ModuleTask, open_module_task
from tests.support.given_graphs import Axes
from tests.support.tiny_recipe import FLEET, RECIPE, TinyRecipe

AXES = ("batch", "time")
PROFILE = {"batch": {"min": 1, "opt": 4, "max": 8}, "time": {"min": 1, "opt": 6, "max": 12}}
WIDTH, CHANNELS = 16, 3
ROWS = 64
MODULE = '''"""Forecast a series."""

from pathlib import Path

import numpy as np

COLUMNS = ("series", "next")
METRIC = {"name": "absolute_error", "unit": "points", "higher_is_better": False}
FILES = ("scale.txt",)
OUTPUTS = 2


def rows(row):
    return None if not row["series"] else (row["series"], row["next"])


def preprocess(inputs):
    scale = float((Path(__file__).parent / "scale.txt").read_text())
    longest = max(map(len, inputs))
    series = np.zeros((len(inputs), longest, 3), np.float32)
    for at, each in enumerate(inputs):
        series[at, : len(each)] = np.array(each) / scale
    return {"series": series, "length": np.array([len(each) for each in inputs], np.int64)}


def answers(outputs, inputs):
    return list(outputs[0])


def score(answers, targets):
    return [abs(float(answer) - target) for answer, target in zip(answers, targets, strict=True)]
'''


def make_series_graph(
    *, axes: Axes = ("batch", "time", CHANNELS), length: Axes = ("batch",), answer: Axes = ("batch",)
) -> onnx.ModelProto:
    """The mean over the steps that are no padding, through two layers to a number; and what each step gives."""
    draw = np.random.default_rng(0)
    first, last = (
        numpy_helper.from_array(draw.normal(size=shape).astype(np.float32), name)
        for shape, name in (((CHANNELS, WIDTH), "first"), ((WIDTH, 1), "last"))
    )
    constants = {"zero": np.array(0, np.int64), "one": np.array(1, np.int64), "ones": np.array([1], np.int64)}
    constants |= {"two": np.array([2], np.int64), "steps_axis": np.array(1, np.int64)}
    nodes = [
        helper.make_node("Shape", ["series"], ["shape"]),
        helper.make_node("Gather", ["shape", "steps_axis"], ["steps"]),
        helper.make_node("Range", ["zero", "steps", "one"], ["positions"]),
        helper.make_node("Unsqueeze", ["length", "ones"], ["lengths"]),
        helper.make_node("Less", ["positions", "lengths"], ["is_real"]),
        helper.make_node("Cast", ["is_real"], ["mask_2"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask_2", "two"], ["mask"]),
        helper.make_node("MatMul", ["series", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Mul", ["active", "mask"], ["per_step"]),
        helper.make_node("ReduceSum", ["per_step", "ones"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "ones"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("MatMul", ["mean", "last"], ["product"]),
        helper.make_node("Squeeze", ["product", "ones"], ["forecast"]),
    ]
    for number, node in enumerate(nodes):
        node.name = f"node_{number}"
    inputs = [
        helper.make_tensor_value_info("series", TensorProto.FLOAT, axes),
        helper.make_tensor_value_info("length", TensorProto.INT64, length),
    ]
    outputs = [
        helper.make_tensor_value_info("forecast", TensorProto.FLOAT, answer),
        helper.make_tensor_value_info(
            "per_step", TensorProto.FLOAT, (*(answer[:1] if answer else ("batch",)), "time", WIDTH)
        ),
    ]
    stored = [first, last, *(numpy_helper.from_array(value, name) for name, value in constants.items())]
    graph = helper.make_graph(nodes, "series", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_module(folder: Path, code: str = MODULE) -> Path:
    """Write a task module, and the file beside it that it reads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scale.txt").write_text("10", encoding="utf-8")
    file = folder / "my_task.py"
    file.write_text(code, encoding="utf-8")
    return file


def open_task(folder: Path, code: str = MODULE) -> ModuleTask:
    """Write a task module and open it."""
    return open_module_task(write_module(folder, code), AXES)


def draw_series(seed: int, count: int) -> list[list[list[float]]]:
    """Draw different series of 1 to 12 steps."""
    draw = random.Random(seed)  # noqa: S311  # rows, not secrets
    return [
        [[draw.uniform(-20, 20) for _ in range(CHANNELS)] for _ in range(draw.randint(1, 12))] for _ in range(count)
    ]


def write_own_recipe(folder: Path, **changes: Any) -> TinyRecipe:
    """Write the graph, the module, disjoint splits, recipe and fleet under `folder`."""
    import datasets

    datasets.disable_progress_bars()
    write_module(folder)
    onnx.save(make_series_graph(), str(folder / "net.onnx"))
    (folder / "rows").mkdir()
    series = draw_series(7, 2 * ROWS)
    for split, part in {"evaluation": series[:ROWS], "calibration": series[ROWS:]}.items():
        columns = {"series": part, "next": [each[-1][0] / 10 for each in part]}
        datasets.Dataset.from_dict(columns).to_parquet(str(folder / "rows" / f"{split}.parquet"))
    own = {"task": "module", "module": "my_task.py", "source": {"onnx": "net.onnx"}, "profiles": [PROFILE]}
    data = {"path": "rows", "calibration": {"samples": 16}}
    recipe = {**RECIPE, **own, "data": data, "targets": ["cpu"], "gates": {"loss_max": 0.5}, **changes}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    (folder / "fleet.yaml").write_text(yaml.safe_dump(FLEET), encoding="utf-8")
    return TinyRecipe(folder)
