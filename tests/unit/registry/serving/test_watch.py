"""A host follows its alias: `current` always leads to a whole bundle, and an unhealthy engine is rolled back."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry.errors import EngineryError, Interrupted
from registry.serving.fetch import Fetched, fetch, verify_placed
from registry.serving.watch import Followed, Watch, current_version, follow, watch
from registry.store import Store
from tests.support.deciding import promote
from tests.support.memory_store import MemoryStore
from tests.support.publisher import Publisher

ROOT = Path(__file__).parents[4]
ALIAS = "production-l4"


@pytest.fixture
def registry(memory_store: MemoryStore, manifest_factory: Any, publisher: Publisher) -> MemoryStore:
    for number in (1, 2, 3, 4):
        publisher.publish(memory_store, manifest_factory(bytes([number]), sequence=number))
    return memory_store


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def look(registry: MemoryStore, publisher: Publisher, models: Path) -> Callable[[int], Fetched]:
    def to(version: int) -> Fetched:
        promote(registry, "l4", version)
        return fetch(registry, "sst2", alias=ALIAS, into=models, policy=publisher.policy)

    return to


def shell(script: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script, "sh")


def versions(model_folder: Path) -> list[str]:
    return sorted(path.name for path in model_folder.iterdir() if not path.name.startswith("."))


def test_each_version_is_placed_beside_the_last_and_current_leads_to_it(
    look: Callable[[int], Fetched], models: Path, publisher: Publisher
) -> None:
    model_folder = models / "sst2"
    for number in (1, 2):
        assert follow(look(number), model_folder, Watch()) == Followed(number)
        assert current_version(model_folder) == number
        assert verify_placed(model_folder / "current", publisher.trust).sequence == number
    assert (model_folder / "current").readlink() == Path("2")
    assert versions(model_folder) == ["1", "2", "current"]


def test_hook_gets_the_current_version(look: Callable[[int], Fetched], models: Path, tmp_path: Path) -> None:
    log, model_folder = tmp_path / "log", models / "sst2"
    arguments = '"$@" $ENGINERY_MODEL $ENGINERY_VERSION $ENGINERY_PATH before:$ENGINERY_PREVIOUS'
    options = Watch(hook=shell(f"echo {arguments} $(readlink {model_folder}/current) >> {log}"))
    for number in (1, 2, 2):
        follow(look(number), model_folder, options)
    assert log.read_text().splitlines() == [
        f"sst2 1 {model_folder}/1 sst2 1 {model_folder}/1 before: 1",
        f"sst2 2 {model_folder}/2 sst2 2 {model_folder}/2 before:1 2",
    ]


def test_unhealthy_engine_rolls_back_and_is_not_tried_again(
    look: Callable[[int], Fetched], models: Path, tmp_path: Path
) -> None:
    log, model_folder = tmp_path / "log", models / "sst2"
    options = Watch(hook=shell(f"echo $2 >> {log}"), health=shell("test $2 != 2"))
    assert follow(look(1), model_folder, options) == Followed(1)
    assert follow(look(2), model_folder, options) == Followed(1, refused=2)
    assert current_version(model_folder) == 1
    assert log.read_text().split() == ["1", "2", "1"]  # the hook ran for the rollback too
    assert follow(look(2), model_folder, options, refused=2) == Followed(1, refused=2)
    assert log.read_text().split() == ["1", "2", "1"]
    assert follow(look(3), model_folder, options, refused=2) == Followed(3)


@pytest.mark.parametrize("failing", [shell("exit 1"), ("/none/such",), shell("sleep 60")])
@pytest.mark.parametrize("which", ["hook", "health"])
def test_unhealthy_first_engine_leaves_nothing_current(
    which: str, failing: tuple[str, ...], look: Callable[[int], Fetched], models: Path
) -> None:
    options = replace(Watch(command_seconds=0.2), **{which: failing})  # type: ignore[arg-type]
    assert follow(look(1), models / "sst2", options) == Followed(None, refused=1)
    assert versions(models / "sst2") == ["1"]


def test_only_the_last_versions_are_kept_and_never_those_in_use(
    look: Callable[[int], Fetched], models: Path, publisher: Publisher, registry: MemoryStore
) -> None:
    model_folder = models / "sst2"
    for number in (1, 2, 3, 4):
        follow(look(number), model_folder, Watch(keep=2))
    assert versions(model_folder) == ["3", "4", "current"]
    back = fetch(registry, "sst2", version=1, into=models, policy=publisher.older("a test"))
    assert follow(back, model_folder, Watch(keep=1)) == Followed(1)
    assert versions(model_folder) == ["1", "4", "current"]


def test_interrupted_check_restores_the_previous_version(
    look: Callable[[int], Fetched], models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_folder = models / "sst2"
    follow(look(1), model_folder, Watch())

    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    fetched = look(2)
    monkeypatch.setattr("registry.serving.watch._wait_for_exit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        follow(fetched, model_folder, Watch(health=("check",)))
    assert current_version(model_folder) == 1


def test_polls_become_rarer_while_the_registry_is_down(
    look: Callable[[int], Fetched], models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answers: Iterator[Callable[[], Fetched]] = iter(
        [lambda: look(1), *[lambda: fail(Interrupted("the registry is down"))] * 8, lambda: look(2)]
    )
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) == 10

    watch(lambda: next(answers)(), models / "sst2", Watch(interval_seconds=10), wait)
    assert waits == [10, 20, 40, 80, 160, 300, 300, 300, 300, 10]
    assert caplog.text.count("the registry is down") == 8
    assert current_version(models / "sst2") == 2


def fail(error: EngineryError) -> Fetched:
    raise error


def test_link_set_by_hand_does_not_count_as_a_version(tmp_path: Path) -> None:
    assert current_version(tmp_path) is None
    (tmp_path / "current").symlink_to("/etc")
    assert current_version(tmp_path) is None
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to("7")
    assert current_version(tmp_path) is None


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_the_command_follows_a_real_alias_and_ends_cleanly(
    sent: signal.Signals, mlflow_store: Store, manifest_factory: Any, publisher: Publisher, tmp_path: Path
) -> None:
    for number in (1, 2):
        publisher.publish(mlflow_store, manifest_factory(bytes([number]), sequence=number))
    promote(mlflow_store, "l4", 1)
    environment = {"ENGINERY_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
    environment |= {"ENGINERY_VERIFY_KEY": str(publisher.trust.public_keys[0])}
    command = [sys.executable, "-c", "from flows.cli import main; main()", "watch", "sst2", "--any-host"]
    options = ["--target", "l4", "--to", str(tmp_path / "models"), "--interval", "0.2"]
    with subprocess.Popen(
        [*command, *options, "--health", "test 0 -lt"],  # `test 0 -lt MODEL …` is an error: never healthy
        env={name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")} | environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as unhealthy:
        assert unhealthy.stderr
        line = next(line for line in unhealthy.stderr if "not healthy" in line)
        assert "version 1 is not healthy; back to none" in line
        unhealthy.send_signal(sent)
        unhealthy.communicate(timeout=60)
    model_folder = tmp_path / "models" / "sst2"
    with subprocess.Popen(
        [*command, *options],
        env={name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")} | environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            until(lambda: current_version(model_folder) == 1, process)
            promote(mlflow_store, "l4", 2)
            until(lambda: current_version(model_folder) == 2, process)
            process.send_signal(sent)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert errors.splitlines()[-1] == "stopped; the current version stays"
    assert "Traceback" not in errors
    assert current_version(model_folder) == 2
