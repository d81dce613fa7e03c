"""Images become pixels to the last bit as transformers' own processors make them; anything else is refused."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from registry.errors import BadInput
from tasks.model_tasks.inputs import image_files
from tasks.model_tasks.inputs.image_files import check_image, decode_image
from tasks.model_tasks.inputs.images import PIXELS, open_image_encoder, read_processor
from tests.support.images import draw_image, save_image

HALF = [0.5, 0.5, 0.5]
VIT = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 8, "width": 6},
    "image_mean": HALF,
    "image_std": HALF,
}
RESNET = {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "crop_pct": 0.875, "resample": 3,
          "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}  # fmt: skip
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTImageProcessor", {}),
    "vit, not square": ("ViTImageProcessor", {"size": {"height": 37, "width": 53}, "resample": 3}),
    "vit, only resized": ("ViTImageProcessor", {"do_rescale": False, "do_normalize": False}),
    "vit, not normalized": ("ViTImageProcessor", {"do_normalize": False, "resample": 0}),
    "vit, not rescaled": ("ViTImageProcessor", {"do_rescale": False}),
    "vit, as published": ("ViTImageProcessor", {"rescale_factor": 0.00392156862745098, "image_mean": HALF}),
    "convnext": ("ConvNextImageProcessor", {}),
    "convnext, cropped": ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}, "resample": 3}),
    "convnext, cropped less": ("ConvNextImageProcessor", {"size": {"shortest_edge": 31}, "crop_pct": 0.95}),
    "resnet": ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3}),
    "deit": ("DeiTImageProcessor", {}),
    "deit, resized": ("DeiTImageProcessor", {"do_center_crop": False, "size": {"height": 20, "width": 31}}),
    "bit": ("BitImageProcessor", {}),
    "bit, odd": ("BitImageProcessor", {"size": {"shortest_edge": 45}, "crop_size": {"height": 33, "width": 44}}),
    "bit, resized": ("BitImageProcessor", {"do_center_crop": False, "size": {"height": 20, "width": 31}}),
    "clip": ("CLIPImageProcessor", {}),
    "detr": ("DetrImageProcessor", {"size": {"height": 37, "width": 53}}),
    "yolos": ("YolosImageProcessor", {"size": {"height": 64, "width": 64}}),
    "rt-detr": ("RTDetrImageProcessor", {}),
    "rt-detr, normalized": ("RTDetrImageProcessor", {"do_normalize": True, "size": {"height": 37, "width": 53}}),
    "segformer": ("SegformerImageProcessor", {}),
    "segformer, odd": ("SegformerImageProcessor", {"size": {"height": 37, "width": 53}, "do_reduce_labels": True}),
}  # fmt: skip
IMAGES = {
    "rgb": draw_image(1, (300, 200)),
    "odd": draw_image(2, (37, 501)),
    "small": draw_image(3, (5, 7)),
    "grey": draw_image(4, (61, 40), "L"),
    "alpha": draw_image(5, (64, 65), "RGBA"),
    "grey and alpha": draw_image(6, (33, 32), "LA"),
    "palette": save_image(Image.open(io.BytesIO(draw_image(7, (50, 41)))).quantize(16)),
    "jpeg": draw_image(8, (129, 77), file_type="JPEG", quality=80),
    "turned jpeg": draw_image(9, (90, 60), file_type="JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01"
                              b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    import transformers
    from transformers.image_utils import load_image

    kind, settings = PROCESSORS[name]
    getattr(transformers, kind)(**settings).save_pretrained(tmp_path)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, local_files_only=True, use_fast=False)
    ours = open_image_encoder(tmp_path, [PIXELS])
    for image, content in IMAGES.items():
        expected = theirs(load_image(Image.open(io.BytesIO(content))), return_tensors="np")[PIXELS]
        given = ours.encode([content])[PIXELS]
        assert given.dtype == np.float32
        assert given.shape == (1, 3, *ours.processor.size)
        np.testing.assert_array_equal(given, expected.astype(np.float32), err_msg=image)


def write(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_files_of_older_versions_have_one_number_and_another_name(tmp_path: Path) -> None:
    processor = read_processor(write(tmp_path, RESNET))
    assert (processor.resize, processor.crop, processor.resample) == (256, (224, 224), 3)
    assert processor.scale == pytest.approx(1 / 255)
    assert read_processor(write(tmp_path, VIT | {"size": 8})).size == (8, 8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"image_processor_type": None}, "has the type None, and only those of ViT, ConvNext, Segformer"),
        ({"image_processor_type": "BeitImageProcessor"}, "has the type 'Beit'"),
        ({"do_flip_channel_order": True}, "has a step do_flip_channel_order"),
        ({"do_resize": False}, "images are not resized"),
        ({"size": {"height": 0, "width": 8}}, "size is missing, or has a value that no image processor has"),
        ({"size": {"height": 10**6, "width": 8}}, "size is missing"),
        ({"size": {"shortest_edge": 8}}, "a size has no height and width"),
        ({"resample": 9}, "resample is missing, or has a value"),
        ({"image_std": [0.5, 0.5, 0.0]}, "image_std is missing, or"),
        ({"image_mean": None}, "image_mean or image_std is missing"),
        ({"image_processor_type": "BitImageProcessor"}, "crop_size is missing"),
        ({"image_processor_type": "BitImageProcessor", "crop_size": 9}, "but padded"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "size has no shortest_edge"),
        (
            {"image_processor_type": "BitImageProcessor", "do_center_crop": False, "size": 8},
            "without a crop the images keep their shape",
        ),
    ],
)
def test_a_processor_with_other_steps_is_refused(content: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=words):
        read_processor(write(tmp_path, VIT | content))


def test_a_folder_without_a_processor_and_a_torn_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=r"has no preprocessor_config.json: save the checkpoint with its image processor"
    ):
        read_processor(tmp_path)
    write(tmp_path, VIT)
    with pytest.raises(BadInput, match="the graph has inputs input_ids, pixel_values, and an image gives one"):
        open_image_encoder(tmp_path, ["input_ids", PIXELS])
    (tmp_path / "preprocessor_config.json").write_text('{"size":', encoding="utf-8")
    with pytest.raises(BadInput, match="it is not a JSON object"):
        read_processor(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"0 bytes cannot be decoded \(no image\): give a PNG, JPEG or WebP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image"),
        (IMAGES["rgb"][:500], "bytes cannot be decoded"),
        (IMAGES["jpeg"][:900], "bytes cannot be decoded"),
        (draw_image(1, (330, 10)), "is 330 by 10 pixels, more than 32 to 1"),
    ],
    ids=["empty", "PostScript", "torn PNG", "torn JPEG", "stretched"],
)
def test_what_is_no_image_is_refused(content: bytes, words: str) -> None:
    for read in (check_image, decode_image):
        with pytest.raises(BadInput, match=words):
            read(content)


def test_an_image_is_refused_by_its_size_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = save_image(Image.new("1", (15_000, 14_000)))
    assert len(bomb) < 100_000
    with pytest.raises(BadInput, match="more than 50 megapixels: make it smaller"):
        check_image(bomb)
    monkeypatch.setattr(image_files, "MOST_PIXELS", 100)
    with pytest.raises(BadInput, match="megapixels"):
        check_image(draw_image(0, (12, 9)))


def test_every_image_is_in_one_batch(tmp_path: Path) -> None:
    encoder = open_image_encoder(write(tmp_path, VIT), [PIXELS])
    images = [draw_image(seed) for seed in range(5)]
    groups = list(encoder.batches(images, 2))
    assert [positions for positions, _ in groups] == [[0, 1], [2, 3], [4]]
    assert [image for _, batch in groups for image in batch] == images
    assert encoder.encode(groups[0][1])[PIXELS].shape == (2, 3, 8, 6)
