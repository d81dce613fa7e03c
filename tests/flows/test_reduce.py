"""`enginery reduce` after a release: a spoiled graph is reduced to its layer, and a sound one has nothing to show."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import numpy_helper
from typer.testing import CliRunner

from flows.cli import app
from flows.inputs.fleet import load_fleet
from flows.inputs.recipe import load_recipe
from registry.errors import BadInput, NotFound
from tasks.report.rows import ReleaseReport
from tests.support.tiny_recipe import TinyRecipe, release_into

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.usefixtures("prefect_offline")]


def spoil_one_scale(home: Path) -> str:
    """Make the weight of one layer ten times as large in the kept int8 graph, and return the layer's name."""
    for file in home.glob("stages/quantize/*/model.onnx"):
        model = onnx.load(file)
        scales = [each for each in model.graph.initializer if each.name.endswith("quantized_4/weight/scale")]
        if scales:
            spoiled = numpy_helper.to_array(scales[0]) * np.float32(10)
            scales[0].CopyFrom(numpy_helper.from_array(spoiled, scales[0].name))
            file.write_bytes(model.SerializeToString(deterministic=True))
            return str(scales[0].name.removesuffix("/quantized_4/weight/scale"))
    raise AssertionError("no int8 graph was kept")


def test_a_spoiled_layer_of_a_release_is_found_and_shown(tiny_recipe: TinyRecipe, tmp_path: Path) -> None:
    home, recipe = tmp_path / "home", yaml.safe_load(tiny_recipe.recipe.read_text(encoding="utf-8"))
    recipe |= {"targets": ["cpu"], "precisions": ["fp32", "int8"]}
    tiny_recipe.recipe.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    report: ReleaseReport = release_into(home, load_recipe(tiny_recipe.recipe), load_fleet(tiny_recipe.fleet))
    version = next(row.version for row in report.rows if row.precision.value == "int8")

    def run(*options: str) -> str:
        ran = CliRunner().invoke(app, ["reduce", "tiny", "--fleet", "fleet.yaml", *options])
        if ran.exception is not None:
            raise ran.exception
        return ran.output

    sound = run("--version", str(version), "--tolerance", "2")
    assert "nothing to show: graph and fp32 agree within 200.00%" in sound
    assert "note:" not in sound
    assert not list(Path().glob("reduced-*"))

    layer = spoil_one_scale(home)
    shown = run("--target", "cpu", "--precision", "int8")
    assert f"{layer} alone is " in shown
    folder = Path("reduced-tiny-cpu-int8")
    assert f"written to {folder}" in shown
    moved = tmp_path / "elsewhere"
    shutil.move(folder, moved)
    script = subprocess.run([sys.executable, "-I", str(moved / "show.py")], capture_output=True, text=True, check=False)
    assert script.returncode == 1, script.stderr
    assert "they differ" in script.stdout
    assert layer.encode() not in b"".join(file.read_bytes() for file in moved.iterdir())

    for wrong in ((), ("--version", "1", "--target", "cpu"), ("--target", "cpu")):
        with pytest.raises(BadInput, match="name --version N, or --target T and --precision P"):
            run(*wrong)
    with pytest.raises(NotFound, match="no release of tiny has built an engine with target cpu, precision fp16"):
        run("--target", "cpu", "--precision", "fp16")
    with pytest.raises(BadInput, match="fp32 is what other precisions are compared with"):
        run("--target", "cpu", "--precision", "fp32")
    with pytest.raises(BadInput, match="exists already"):
        run("--target", "cpu", "--precision", "int8", "--into", "rows")
