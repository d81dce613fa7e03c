"""What a refresh says about a recipe whose production alias was moved past Enginery."""

from pathlib import Path
from typing import cast

from flows.inputs.recipe import Recipe
from flows.refresh.results import Plan, Refreshed, describe_refresh, refresh_json, refresh_rows

MOVED = "production-cpu points at version 5, but the history's last move is to 3: moved past Enginery"


def test_alias_that_moved_past_enginery_is_in_every_output() -> None:
    plan = Plan(Path("r.yaml"), cast("Recipe", None), (), (), moved_past=(MOVED,))
    fresh = Refreshed(Path("r.yaml"), "fresh", plan)
    assert describe_refresh(fresh) == f"fresh; {MOVED}"
    assert refresh_json([fresh])[0]["moved_past"] == [MOVED]
    assert refresh_rows([fresh])[0]["said"] == MOVED
