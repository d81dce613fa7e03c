"""A disk that is full under a release: one sentence, nothing half-made, and the next release completes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.disks import Disk, mounted
from tests.support.releasing import PATIENCE_SECONDS, assert_only_whole_things, releasing, until
from tests.support.tiny_recipe import TinyRecipe, write_tiny_recipe

pytest.importorskip("tensorrt_rtx")
pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]

TINY, ROOMY = 6 * 2**20, 96 * 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "home", ROOMY) as disk:
        if disk is None:
            pytest.skip("mounting a tmpfs needs root, on Linux")
        yield disk


def assert_one_sentence(errors: str) -> None:
    """The last line is ours, and no package has logged a failure of its own."""
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("enginery: "), errors
    assert len([line for line in errors.splitlines() if "rror" in line]) <= 1, errors


def assert_completes(tiny: TinyRecipe, home: Path) -> None:
    with releasing(tiny, home) as process:
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors


# Prefect's and MLflow's databases are on the disk too: which of them fails first differs from stage to stage.
@pytest.mark.parametrize("finished", ["source", "export", "evaluate"])
def test_a_disk_that_fills_in_mid_release_ends_it_with_one_sentence(
    finished: str, disk: Disk, home: Path, tmp_path: Path
) -> None:
    tiny = write_tiny_recipe(tmp_path / "recipe")
    with releasing(tiny, home) as process:
        until(lambda: any((home / "stages").glob(f"{finished}/*/stage.json")), process)
        with disk.full():
            output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1, errors
    assert output == ""
    assert_one_sentence(errors)
    assert_only_whole_things(home, tmp_path / "after")
    assert_completes(tiny, home)


def test_a_disk_too_small_is_refused_before_anything_is_made(disk: Disk, tmp_path: Path) -> None:
    tiny = write_tiny_recipe(tmp_path / "recipe")
    disk.resize(TINY)
    with releasing(tiny, disk.folder) as process:
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2, errors
    assert output == ""
    assert_one_sentence(errors)
    assert " MB free, a release needs 16 MB at least" in errors
    assert not (disk.folder / "stages").exists()


@pytest.mark.parametrize("setting", ["PREFECT_HOME", "TMPDIR"])
def test_the_disk_that_has_no_room_for_prefect_is_named_at_once(setting: str, home: Path, tmp_path: Path) -> None:
    tiny, place = write_tiny_recipe(tmp_path / "recipe"), tmp_path / "other"
    with mounted(place, 10**6) as small:
        if small is None:
            pytest.skip("mounting a tmpfs needs root, on Linux")
        with releasing(tiny, home, **{setting: str(place)}) as process:
            output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1, errors
    assert output == ""
    assert_one_sentence(errors)
    assert f"{place} ({setting}) has " in errors
    assert f"needs 8 MB: free some, or set {setting} to a folder on another disk" in errors
