"""`enginery run --output`: the file that an answer is, or a sentence before anything is answered."""

from pathlib import Path

import pytest

from registry.bundle.signing import sign_bundle
from registry.errors import BadInput
from tasks.model_tasks.inputs.image_files import decode_mask, read_size
from tests.support.commands import Enginery
from tests.support.images import draw_image
from tests.support.publisher import Publisher
from tests.support.task_bundles import write_task_bundle
from tests.support.triton_bundles import write_bundle


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "street.png"
    file.write_bytes(draw_image(3, (40, 25)))
    return file


@pytest.fixture
def segmenter(tmp_path: Path, publisher: Publisher) -> Path:
    bundle = write_task_bundle(tmp_path / "release", "semantic-segmentation")
    sign_bundle(bundle, publisher.signer)
    return bundle


@pytest.mark.slow
def test_the_map_of_an_image_is_written_as_it_is_numbered(
    segmenter: Path, image: Path, tmp_path: Path, enginery: Enginery
) -> None:
    ran = enginery("run", segmenter, image, "--output", tmp_path / "map.PNG")
    assert ran.code == 0, ran.err
    answer, written = ran.out.splitlines()
    assert answer.endswith("street.png")
    assert written == f"written to {tmp_path / 'map.PNG'}"
    found = decode_mask((tmp_path / "map.PNG").read_bytes())
    assert found.shape == read_size(image.read_bytes())
    (shown,) = enginery("run", segmenter, image, "--output", tmp_path / "map.png", "--json").json
    assert len(shown["shares"]) >= len(set(found.ravel().tolist()))

    for arguments, reason in (
        ((image, image, "--output", tmp_path / "two.png"), "--output writes one answer, and there are 2 inputs"),
        ((image, "--output", tmp_path / "map.jpg"), "an answer of tiny is a .png file: give it that ending"),
        ((image, "--output", tmp_path / "nowhere" / "map.png"), "cannot be written (No such file or directory)"),
    ):
        ran = enginery("run", segmenter, *arguments)
        assert (ran.code, len(ran.err.splitlines())) == (BadInput.exit_code, 1), ran
        assert reason in ran.err
        assert ran.out == ""


def test_a_task_whose_answers_are_no_files_writes_none(
    tmp_path: Path, enginery: Enginery, publisher: Publisher
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    sign_bundle(bundle, publisher.signer)
    ran = enginery("run", bundle, "a good film", "--output", tmp_path / "answer.png")
    assert (ran.code, ran.out) == (BadInput.exit_code, "")
    assert "the answers of opinions (text-classification) are no files: leave --output out" in ran.err
    assert not (tmp_path / "answer.png").exists()
