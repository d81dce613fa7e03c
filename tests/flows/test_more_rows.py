"""A release whose first evaluation rows prove too little: what they leave undecided is judged on more of the split."""

import random
import shutil
from pathlib import Path

import pytest
import yaml

from flows.inputs.fleet import load_fleet
from flows.inputs.recipe import load_recipe
from flows.refresh.lineage import read_engines, read_facts
from flows.release.reporting import read_answered
from registry.mlflow.runs.lineage import Lineage
from registry.mlflow.store import embedded_store
from registry.records import Precision, Verdict
from tasks.verdicts.gates import find
from tests.support.tiny import WORDS
from tests.support.tiny_recipe import RECIPE, TinyRecipe, release_into, write_split

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_offline")]
FIRST, MOST = 50, 200


def write_more_rows(tiny: TinyRecipe) -> None:
    words, draw = [word for word in WORDS if not word.startswith("##")], random.Random(3)  # noqa: S311  # no secrets
    calibration, texts = {*tiny.rows("calibration")}, dict[str, None]()
    while len(texts) < 2 * MOST:
        texts[" ".join(draw.choices(words, k=draw.randint(3, 12)))] = None
    write_split(tiny.folder / "rows", "evaluation", [text for text in texts if text not in calibration])


def test_what_the_first_rows_leave_undecided_is_judged_on_more(
    tiny_recipe: TinyRecipe, tmp_path: Path, migrated_database: Path
) -> None:
    """Fifty rows of which none flips bound a loss at 7 %, two hundred at 2 %."""
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    shutil.copy(migrated_database, home / "mlflow.db")
    write_more_rows(tiny_recipe)
    changed = {
        "targets": ["cpu"],
        "precisions": ["fp32"],
        "data": RECIPE["data"] | {"evaluation": {"samples": FIRST}},  # type: ignore[operator]
        "gates": {"loss_max": 0.05},
    }
    tiny_recipe.recipe.write_text(yaml.safe_dump(RECIPE | changed), encoding="utf-8")
    recipe, fleet = load_recipe(tiny_recipe.recipe), load_fleet(tiny_recipe.fleet)
    (row,) = release_into(home, recipe, fleet).rows
    assert row.verdict is Verdict.PASSED, row.reason
    assert "97.5 % bounds" in row.reason
    assert f"judged on {MOST} rows, since {FIRST} left it undecided" in row.remark
    store = embedded_store(home)
    answered, manifest = read_answered(Lineage(store), "tiny", row.version), store.manifest("tiny", row.version)
    quality = find(manifest.measurements, "accuracy")
    assert answered is not None
    assert quality is not None
    assert quality.samples == len(answered.scores) == MOST
    assert answered.evaluation_set == manifest.evaluation_set
    assert answered.first_rows == FIRST
    facts = read_facts(recipe, fleet)
    assert facts.evaluation_set == answered.first_set
    engines = read_engines(store, facts)
    assert [engine.evaluation_set for engine in engines] == [facts.evaluation_set]  # and nothing is stale
    assert engines[0].precision is Precision.FP32
    assert release_into(home, recipe, fleet).found
