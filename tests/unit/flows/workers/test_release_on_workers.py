"""A release that workers build is checked like one of this machine, before anything is asked of a worker."""

from typing import cast

import pytest
import yaml

from flows.inputs.fleet import load_fleet
from flows.workers.release_on_workers import ReleaseRequest, resolve_request
from registry.errors import BadInput
from registry.mlflow.store import MlflowStore
from tests.support.tiny_recipe import RECIPE, TinyRecipe

NOT_ASKED = cast("MlflowStore", None)


def test_all_mistakes_of_a_recipe_are_told_before_a_worker_is_asked(tiny: TinyRecipe) -> None:
    (tiny.folder / "checkpoint" / "model.safetensors").unlink()
    (tiny.folder / "rows" / "evaluation.parquet").unlink()
    tiny.recipe.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    with pytest.raises(BadInput) as refused:
        resolve_request(ReleaseRequest(tiny.recipe, tiny.fleet), load_fleet(tiny.fleet), NOT_ASKED)
    assert "no weights" in str(refused.value)
    assert "no split 'evaluation'" in str(refused.value)
