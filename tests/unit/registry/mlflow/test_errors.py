"""MLflow's errors in one sentence that says what to do."""

import pytest
from mlflow.exceptions import MlflowException

from registry.errors import EngineryError
from registry.mlflow.errors import translate_errors

AUTOFLUSH = "(raised as a result of Query-invoked autoflush; consider using a session.no_autoflush block)"


@pytest.mark.parametrize(
    "reason",
    [
        "(sqlite3.OperationalError) database or disk is full",
        "(sqlite3.OperationalError) disk I/O error",
        "(psycopg.errors.DiskFull) could not extend file: No space left on device",
    ],
)
def test_a_full_disk_is_named_wherever_sqlalchemy_writes_it(reason: str) -> None:
    with pytest.raises(EngineryError) as raised, translate_errors("runs of releases"):
        raise MlflowException(f"{AUTOFLUSH}\n{reason}\n[SQL: UPDATE runs]")
    sentence = str(raised.value)
    assert sentence.startswith("MLflow, runs of releases: ")
    assert sentence.endswith("free space on the disk of the registry's database, then run the same command again")
    assert "SQL" not in sentence
    assert "\n" not in sentence
