"""Splits that were prepared differently are refused, with both ranges."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from registry.errors import BadInput
from tasks.calibration.spread import check_spread
from tasks.model_tasks.contract import Encoder
from tasks.model_tasks.inputs.images import PROCESSOR_FILE, open_image_encoder
from tasks.model_tasks.inputs.texts import open_text_encoder
from tests.support.images import save_image
from tests.support.tiny import write_tokenizer


def draw(count: int, brightest: int) -> list[bytes]:
    """Draw noise up to a brightness."""
    draws = np.random.default_rng(brightest)
    return [
        save_image(Image.fromarray(draws.integers(0, brightest + 1, (8, 8, 3), dtype=np.uint8))) for _ in range(count)
    ]


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 8, "width": 8},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (tmp_path / PROCESSOR_FILE).write_text(json.dumps(processor), encoding="utf-8")
    return open_image_encoder(tmp_path, ["pixel_values"])


def test_images_that_were_divided_by_255_in_one_split_are_refused_with_both_ranges(encoder: Encoder) -> None:
    one, other = draw(20, 1), draw(20, 255)
    for calibration, evaluation in ((one, other), (other, one)):
        with pytest.raises(BadInput, match="a forgotten division by 255") as caught:
            check_spread(encoder, calibration, evaluation)
        split = "calibration" if calibration is one else "evaluation"
        assert f"-1 to -0.9922 in {split} rows" in str(caught.value)
        assert "to 1 in " in str(caught.value)


def test_images_that_are_half_as_bright_in_one_split_are_taken(encoder: Encoder) -> None:
    check_spread(encoder, draw(20, 100), draw(20, 255))


def test_rows_that_are_all_alike_in_both_splits_are_taken(encoder: Encoder) -> None:
    grey = [save_image(Image.new("RGB", (5, 5), "grey"))] * 3
    check_spread(encoder, grey, grey)


def test_texts_have_no_range(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    check_spread(open_text_encoder(tmp_path, ["input_ids"], {"sequence": 16}), ["good"], ["a film " * 9])
