"""A fleet on one host: real Prefect and MLflow servers, work pools, deployments, workers with homes of their own."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fleet import RestartableFleet, deploy, serving


@pytest.fixture(scope="session")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, migrated_database: Path, prefect_database: Path
) -> Iterator[RestartableFleet]:
    """Start both servers, with work pools and deployments."""
    folder = tmp_path_factory.mktemp("fleet")
    shutil.copy(migrated_database, folder / "mlflow.db")
    (folder / "prefect").mkdir()
    shutil.copy(prefect_database, folder / "prefect")
    with serving(folder, folder / "mlflow.db", folder / "artifacts") as fleet:
        deploy(fleet)
        yield fleet
