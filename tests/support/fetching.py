"""What a fetch that went wrong may show, and that the next one goes on."""

import os
from pathlib import Path

from registry.serving.fetch import fetch, verify_placed
from registry.store import Store
from tests.support.publisher import Publisher

ENGINE = os.urandom(200_000)


def visible(models: Path) -> list[str]:
    return sorted(path.name for path in (models / "sst2").glob("*") if not path.name.startswith("."))


def hidden(models: Path) -> list[str]:
    return sorted(path.name for path in (models / "sst2").glob(".*"))


def assert_goes_on(store: Store, models: Path, publisher: Publisher, version: int = 1) -> None:
    """The next fetch succeeds, and leaves nothing behind of what went wrong."""
    fetched = fetch(store, "sst2", version=version, into=models, policy=publisher.policy)
    assert verify_placed(fetched.path, publisher.trust).sequence == version
    assert hidden(models) == [".placed.json"]
