"""A disk that fills while a stage is written: one sentence, nothing half-made, and the next run goes on."""

import errno
from pathlib import Path

import pytest

from registry.errors import EngineryError
from tasks.execution.workspace import Workspace, verify_stage


def full(*_args: object, **_options: object) -> str:
    raise OSError(errno.ENOSPC, "No space left on device")


def everything(root: Path) -> list[str]:
    """What a workspace holds, less its locks."""
    return sorted(
        str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and ".locks" not in path.parts
    )


def write(text: str, into: Path) -> str:
    (into / "weights.bin").write_text(text)
    return text


def half_written(into: Path) -> str:
    write("half", into)
    return full()


def test_a_full_disk_is_one_sentence_that_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(EngineryError) as error:
        Workspace(tmp_path).stage("export", "key", str, half_written)
    sentence = str(error.value)
    assert "ENGINERY_HOME" in sentence
    assert "No space left on device" in sentence
    assert str(tmp_path) in sentence
    assert "\n" not in sentence
    assert error.value.exit_code == 1


def test_a_full_disk_leaves_nothing_half_made(tmp_path: Path) -> None:
    with pytest.raises(EngineryError):
        Workspace(tmp_path).stage("export", "key", str, half_written)
    assert everything(tmp_path) == []


def test_the_next_run_goes_on_and_finished_stages_are_kept(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.stage("source", "key", str, lambda into: write("source", into))
    before = everything(tmp_path)
    with pytest.raises(EngineryError):
        workspace.stage("export", "key", str, half_written)
    assert everything(tmp_path) == before
    assert workspace.stage("source", "key", str, full) == ("source", True)
    assert workspace.stage("export", "key", str, lambda into: write("export", into)) == ("export", False)
    assert workspace.stage("export", "key", str, full) == ("export", True)
    for folder in tmp_path.glob("[!.]*/*"):
        verify_stage(folder)


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_disk_that_fills_while_the_record_is_written_leaves_no_stage(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr({"fsync": "os.fsync", "rename": "pathlib.Path.rename"}[step], full)
        with pytest.raises(EngineryError, match="ENGINERY_HOME"):
            Workspace(tmp_path).stage("build", "key", str, lambda into: write("engine", into))
    assert everything(tmp_path) == []
    assert Workspace(tmp_path).stage("build", "key", str, lambda into: write("engine", into)) == ("engine", False)


def test_a_full_disk_keeps_the_old_stage_until_a_new_one_is_whole(tmp_path: Path) -> None:
    """A damaged stage is remade; where that fails, what was there is still there to look at."""
    workspace = Workspace(tmp_path)
    workspace.stage("build", "key", str, lambda into: write("engine", into))
    (folder,) = tmp_path.glob("build/*")
    (folder / "weights.bin").write_text("cut")
    with pytest.raises(EngineryError, match="No space left"):
        workspace.stage("build", "key", str, half_written)
    assert (folder / "weights.bin").read_text() == "cut"
    assert workspace.stage("build", "key", str, lambda into: write("engine", into)) == ("engine", False)
    verify_stage(folder)


def test_a_disk_that_cannot_even_hold_a_scratch_folder_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(EngineryError, match="ENGINERY_HOME"):
        Workspace(tmp_path).stage("build", "key", str, lambda into: write("engine", into))
