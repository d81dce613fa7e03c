"""A tiny recipe in the working directory, for tests of what reads recipes."""

import shutil
from pathlib import Path

import pytest

from tests.support.tiny_recipe import TinyRecipe, write_tiny_recipe


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> TinyRecipe:
    return write_tiny_recipe(tmp_path_factory.mktemp("checked") / "recipe")


@pytest.fixture
def tiny(template: TinyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyRecipe:
    shutil.copytree(template.folder, tmp_path / "recipe")
    monkeypatch.chdir(tmp_path / "recipe")
    return TinyRecipe(tmp_path / "recipe")
