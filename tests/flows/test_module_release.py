"""A release of a plain torch.nn.Module named in a recipe, on real parts."""

from pathlib import Path

import pytest
import yaml

from registry.records import Precision, Verdict
from tests.flows.test_release import release
from tests.support.tiny_recipe import LABELS, RECIPE, TinyRecipe

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_offline")]


def test_a_module_named_in_a_recipe_is_released_like_a_checkpoint(tmp_path: Path, tiny_recipe: TinyRecipe) -> None:
    source = {"module": "tests.support.text_module:classifier", "processor": "checkpoint", "labels": list(LABELS)}
    tiny_recipe.recipe.write_text(yaml.safe_dump({**RECIPE, "source": source, "targets": ["cpu"]}), encoding="utf-8")
    report = release(tmp_path / "home", tiny_recipe)
    verdicts = {row.precision: row.verdict for row in report.rows}
    assert set(verdicts) == {Precision.FP32, Precision.INT8, Precision.INT8_DYNAMIC}
    assert Verdict.PASSED in verdicts.values()
    assert None not in verdicts.values()
    assert release(tmp_path / "home", tiny_recipe).found
