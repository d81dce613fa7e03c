"""What a failed fetch may leave visible, and that the next one succeeds."""

import os
from pathlib import Path

from registry.serving.fetch import fetch, verify_placed
from registry.store import Store
from tests.support.publisher import Publisher

ENGINE = os.urandom(200_000)


def list_visible(models: Path) -> list[str]:
    return sorted(path.name for path in (models / "sst2").glob("*") if not path.name.startswith("."))


def list_hidden(models: Path) -> list[str]:
    return sorted(path.name for path in (models / "sst2").glob(".*"))


def assert_next_fetch_succeeds(store: Store, models: Path, publisher: Publisher, version: int = 1) -> None:
    """Fetch again, and check that nothing of the failed fetch is left."""
    fetched = fetch(store, "sst2", version=version, into=models, policy=publisher.policy)
    assert verify_placed(fetched.path, publisher.trust).sequence == version
    assert list_hidden(models) == [".placed.json"]
