"""The wheel has every folder, and its base install is enough for a serving host."""

import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from registry.bundle.manifest import verify_bundle
from registry.store import Store
from tests.support.deciding import promote
from tests.support.publisher import Publisher

ROOT = Path(__file__).parents[2]
PACKAGES = ("flows", "tasks", "registry", "calibration_data", "recipes/fleet.yaml", "tools")
Enginery = Callable[..., str]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the files that git knows: nothing that lies about in a checkout is in it."""
    source, into = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    files = subprocess.run(
        ["git", "ls-files", "-z", "-c", "-o", "--exclude-standard", *PACKAGES, "pyproject.toml", "*.md", "LICENSE"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, files):
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(into),
        ".",
    ]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    return next(into.glob("*.whl"))


def test_the_wheel_has_every_module_and_data_file(wheel: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", *PACKAGES], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    kinds = (".py", ".json", ".parquet", ".yaml", ".txt")
    expected = {name for name in tracked if name.endswith(kinds) and (ROOT / name).exists()}
    assert expected - set(ZipFile(wheel).namelist()) == set()


@pytest.fixture(scope="module")
def enginery(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Enginery:
    """`enginery(*arguments, **environment)` of a base install in an environment of its own; what it prints."""
    folder = tmp_path_factory.mktemp("base")
    venv.create(folder, with_pip=True)
    install = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", "--retries", "1"]
    done = subprocess.run(
        [*install, "-c", str(ROOT / "constraints.txt"), str(wheel)], capture_output=True, text=True, check=False
    )
    if "No matching distribution" in done.stderr or "Connection" in done.stderr:
        pytest.skip("no package index to install the base from")
    assert done.returncode == 0, done.stderr

    def run(*arguments: str, **environment: str) -> str:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PYTHON"))}
        return subprocess.run(
            [str(folder / "bin" / "enginery"), *arguments],
            env=inherited | environment, cwd=folder, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip

    return run


@pytest.mark.long
def test_a_base_install_lists_fetches_and_verifies(
    enginery: Enginery, mlflow_store: Store, manifest_factory: Any, publisher: Publisher, tmp_path: Path
) -> None:
    publisher.publish(mlflow_store, manifest_factory(b"plan"))
    promote(mlflow_store, "l4", 1)
    host = {"ENGINERY_HOME": str(tmp_path / "home"), "ENGINERY_VERIFY_KEY": str(publisher.trust.public_keys[0])}
    assert "fetch" in enginery("--help")
    assert "sst2" in enginery("list", **host)
    enginery("fetch", "sst2", "--target", "l4", "--any-host", "--to", str(tmp_path / "models"), **host)
    assert verify_bundle(tmp_path / "models" / "sst2" / "1").model == "sst2"
    assert "is intact and signed" in enginery("verify", str(tmp_path / "models" / "sst2" / "1"), **host)
