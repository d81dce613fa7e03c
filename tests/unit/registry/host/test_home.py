"""A home that cannot be used is one sentence that names ENGINERY_HOME; root is refused too."""

from pathlib import Path

import pytest

from registry.errors import BadInput
from registry.host.home import home, writable_home


@pytest.mark.parametrize("name", ["x" * 300, "/".join(["x" * 200] * 25)], ids=["component", "path"])
def test_a_home_that_is_too_long_is_refused_without_being_repeated(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINERY_HOME", str(tmp_path / name))
    with pytest.raises(BadInput, match=r"^ENGINERY_HOME cannot be used \(File name too long\)") as caught:
        home()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("place", ["{}/file/home", "{}/loop/home", "/proc/enginery", "/proc/enginery/below"])
def test_a_home_that_cannot_be_made_is_refused_before_anything_is_written(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setenv("ENGINERY_HOME", place.format(tmp_path))
    with pytest.raises(BadInput, match="may not write"):
        writable_home()


@pytest.mark.parametrize("place", ["{}/file", "/dev/null"])
def test_a_home_that_is_no_folder_is_refused(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ENGINERY_HOME", place.format(tmp_path))
    with pytest.raises(BadInput, match="is not a folder"):
        home()
