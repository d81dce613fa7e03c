"""PostgreSQL is refused before anything is created where it cannot run."""

from pathlib import Path

import pytest

from flows.stack.postgres import open_cluster
from registry.errors import BadInput


def test_a_path_too_long_for_a_socket_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    with pytest.raises(BadInput, match="too long a path"):
        open_cluster(folder)
    assert not folder.exists()
