"""`enginery` in a home of the test's own."""

from pathlib import Path

import pytest

from flows.cli import app, run_command
from tests.support.commands import Enginery, Ran
from tests.support.publisher import Publisher


@pytest.fixture
def enginery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], publisher: Publisher
) -> Enginery:
    """Run `enginery(*arguments)` as main() does, in a home of the test's own."""
    monkeypatch.setenv("ENGINERY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ENGINERY_DEBUG", "")  # set and not deleted, so that what --debug sets is undone
    # What a release would set by itself is undone after the test; Prefect may read it here first.
    prefect = {"HOME": str(tmp_path / "prefect"), "LOGGING_LEVEL": "WARNING", "SERVER_ANALYTICS_ENABLED": "false"}
    for name, value in (prefect | {"SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180"}).items():
        monkeypatch.setenv(f"PREFECT_{name}", value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("ENGINERY_VERIFY_KEY", str(publisher.trust.public_keys[0]))

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        code = run_command(lambda: app([str(argument) for argument in arguments], standalone_mode=False))
        return Ran(code, *capsys.readouterr())

    return run
