"""Prefect offline and quick, and a recipe over a tiny BERT that takes seconds to release."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tiny_recipe import TinyRecipe, write_tiny_recipe


def pytest_configure(config: pytest.Config) -> None:
    """Prefect reads its settings when it is first imported, so they stand before any test file is."""
    scratch = tempfile.TemporaryDirectory(prefix="enginery-prefect-", ignore_cleanup_errors=True)
    config.add_cleanup(scratch.cleanup)
    os.environ.pop("PREFECT_API_URL", None)
    os.environ |= {
        "PREFECT_HOME": scratch.name,
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }


@pytest.fixture(scope="session")
def prefect_offline(tmp_path_factory: pytest.TempPathFactory, prefect_database: Path) -> Iterator[None]:
    """A Prefect server of the session's own: no network, no analytics, nothing in the user's home."""
    from prefect.testing import utilities

    folder = tmp_path_factory.mktemp("prefect-offline")
    shutil.copy(prefect_database, folder / "prefect-test.db")  # where the harness would make it anew
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utilities, "mkdtemp", lambda: str(folder))
        with utilities.prefect_test_harness(server_startup_timeout=120):
            yield


@pytest.fixture(scope="session")
def recipe_template(tmp_path_factory: pytest.TempPathFactory) -> TinyRecipe:
    return write_tiny_recipe(tmp_path_factory.mktemp("tiny") / "recipe")


@pytest.fixture
def tiny_recipe(recipe_template: TinyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyRecipe:
    """A copy of the test's own, in the current folder: its relative paths make the same release everywhere."""
    folder = tmp_path / "recipe"
    shutil.copytree(recipe_template.folder, folder)
    monkeypatch.chdir(folder)
    return TinyRecipe(folder)


@pytest.fixture(autouse=True)
def _home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINERY_HOME", str(tmp_path / "home"))
    for name in ("MLFLOW_TRACKING_URI", "ENGINERY_DEBUG"):
        monkeypatch.delenv(name, raising=False)
