"""A release killed at any instant leaves whole stages and whole versions, and the same command goes on."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from registry.mlflow.store import embedded_store
from tests.support.releasing import PATIENCE_SECONDS, Stamps, assert_only_whole_things, finished, releasing, until
from tests.support.tiny_recipe import write_tiny_recipe

pytest.importorskip("tensorrt_rtx")
pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]


def test_a_release_killed_again_and_again_goes_on_where_it_was(tmp_path: Path, home: Path) -> None:
    tiny = write_tiny_recipe(tmp_path / "recipe")
    stages, store = home / "stages", embedded_store(home)

    def published() -> bool:
        return bool(finished(home)) and bool(store.versions("tiny"))

    instants: dict[str, Callable[[], bool]] = {
        "source made": lambda: any(stages.glob("source/*/stage.json")),
        "export under way": lambda: any(stages.glob(".tmp/export-*/*")) or any(stages.glob("export/*")),
        "engine being built": lambda: any(stages.glob(".tmp/build-*/.building-*")) and any(stages.glob("build/*")),
        "first version published": published,
    }
    kept: Stamps = {}
    for instant, struck in instants.items():
        with releasing(tiny, home) as process:
            until(struck, process)
            process.kill()
            assert process.wait() == -signal.SIGKILL, instant
        assert_only_whole_things(home, tmp_path / f"after {instant}")
        now = finished(home)
        assert {name: now.get(name) for name in kept} == kept, f"remade after {instant}"
        kept = now
    with releasing(tiny, home) as process:
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors
    report = json.loads(output)
    now = finished(home)
    assert {name: now.get(name) for name in kept} == kept
    assert list((stages / ".tmp").iterdir()) == []
    versions = store.versions("tiny")
    assert [(engine.version, engine.digest) for engine in versions] == [
        (row["version"], row["digest"]) for row in report["engines"] if row["version"] is not None
    ]
    # Those that were published before the last kill too: it is the same release.
    assert {engine.release for engine in versions} == {report["release"]}
    assert_only_whole_things(home, tmp_path / "after all")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_signal_ends_a_release_with_one_sentence(tmp_path: Path, home: Path, sent: signal.Signals) -> None:
    tiny = write_tiny_recipe(tmp_path / "recipe")
    with releasing(tiny, home) as process:
        # Our process waits for a child then; inside an import an interrupt can be lost in the imported package.
        until(lambda: any((home / "stages").glob(".tmp/evaluate-*")), process)
        children = psutil.Process(process.pid).children(recursive=True)
        if sent is signal.SIGINT:
            os.killpg(process.pid, sent)  # as a terminal does
        else:
            process.send_signal(sent)  # as `timeout` and systemd do
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130, errors
    assert output == ""
    assert errors.splitlines()[-1] == "stopped; finished work is kept: run the same command again to resume"
    # Packages may have logged a line before; neither they nor Prefect show a traceback of the interrupt.
    assert "Traceback" not in errors
    assert "interrupt" not in errors
    # Prefect's temporary server too is gone.
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
    assert_only_whole_things(home, tmp_path / "models")


def test_a_killed_release_leaves_no_server_and_closes_its_callers_pipe(tmp_path: Path, home: Path) -> None:
    """A CI step `enginery release … | tee` waits for the end of the pipe, whoever holds it open."""
    tiny = write_tiny_recipe(tmp_path / "recipe")
    with releasing(tiny, home) as process:
        until(lambda: any((home / "stages").glob("source/*/stage.json")), process)
        children = psutil.Process(process.pid).children(recursive=True)
        assert [child for child in children if any("serve.py" in word for word in child.cmdline())]
        process.kill()  # this process alone: its session is still there
        output, _ = process.communicate(timeout=30)
        assert output == ""
        _, alive = psutil.wait_procs(children, timeout=30)
        assert alive == []
