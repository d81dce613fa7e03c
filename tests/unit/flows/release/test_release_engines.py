"""What failed first ends a release, also where the registry cannot note that it failed."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from flows.release.release_engines import abandon_on_error
from registry.errors import EngineryError


def test_the_first_failure_is_told_where_the_run_cannot_be_marked() -> None:
    asked: list[str] = []

    def abandon(run_id: str) -> None:
        asked.append(run_id)
        raise EngineryError("database or disk is full")

    release = cast("Any", SimpleNamespace(run_id="7", log=SimpleNamespace(abandon=abandon)))
    with pytest.raises(EngineryError, match="stage export"), abandon_on_error(release):
        raise EngineryError("stage export: no space")
    assert asked == ["7"]
