"""Small images as files, and tiny image classifiers in Hugging Face layout."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SHAPES = ("bright", "dark", "striped")
CHANNELS = {"RGB": 3, "RGBA": 4, "LA": 2, "L": 1}


def draw_image(
    seed: int, size: tuple[int, int] = (12, 9), mode: str = "RGB", file_type: str = "PNG", **options: Any
) -> bytes:
    """Draw noise of a mode and (width, height), as a file."""
    width, height = size
    values = np.random.default_rng(seed).integers(0, 256, (height, width, CHANNELS[mode]), dtype=np.uint8)
    return save_image(Image.fromarray(values.squeeze(-1) if mode == "L" else values, mode), file_type, **options)


def save_image(image: Image.Image, file_type: str = "PNG", **options: Any) -> bytes:
    """Return an image's file."""
    file = io.BytesIO()
    image.save(file, file_type, **options)
    return file.getvalue()


def save_classifier(folder: Path, labels: tuple[str, ...] = SHAPES, *, edge: int = 16) -> Path:
    """Save a random ConvNext classifier and its image processor."""
    import torch
    from transformers import ConvNextConfig, ConvNextForImageClassification, ViTImageProcessor

    folder.mkdir(parents=True, exist_ok=True)
    config = ConvNextConfig(
        hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2, image_size=edge, initializer_range=0.5,
        id2label=dict(enumerate(labels)), label2id={label: number for number, label in enumerate(labels)},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ConvNextForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": edge, "width": edge}).save_pretrained(folder)
    return folder


def draw_mask(image: bytes) -> bytes:
    """Return a mask of the size of an image, as a PNG file: 1 where it is bright, 0 where it is dark."""
    values = np.asarray(Image.open(io.BytesIO(image)).convert("L"))
    return save_image(Image.fromarray((values > 127).astype(np.uint8)))


def save_segmenter(folder: Path, labels: tuple[str, ...] = ("dark", "bright"), *, edge: int = 32) -> Path:
    """Save a random Segformer that gives a class per pixel, and its image processor."""
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    folder.mkdir(parents=True, exist_ok=True)
    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[16, 16], patch_sizes=[7, 3],
        strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, initializer_range=0.5,
        id2label=dict(enumerate(labels)), label2id={label: number for number, label in enumerate(labels)},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        SegformerForSemanticSegmentation(config).save_pretrained(folder)
    SegformerImageProcessor(size={"height": edge, "width": edge}).save_pretrained(folder)
    return folder


def draw_boxes(image: bytes, seed: int, labels: tuple[str, ...] = SHAPES[:2]) -> tuple[list[list[float]], list[str]]:
    """Draw up to 3 boxes inside an image, (left, top, width, height), and a label for each.

    The first is where the network of `save_detector` sees one in each image.
    """
    width, height = Image.open(io.BytesIO(image)).size
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 4))
    corners = random.uniform(0, 0.6, (count, 2)) * (width, height)
    sides = random.uniform(0.1, 0.4, (count, 2)) * (width, height)
    corners[0], sides[0] = (0.5 * width, 0), (0.5 * width, 0.7 * height)
    return np.hstack([corners, sides]).tolist(), [
        labels[1], *(labels[int(at)] for at in random.integers(0, len(labels), count - 1))
    ]  # fmt: skip


def save_detector(folder: Path, labels: tuple[str, ...] = SHAPES[:2], *, edge: int = 32) -> Path:
    """Save a random YOLOS that gives boxes, and its image processor."""
    import torch
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    folder.mkdir(parents=True, exist_ok=True)
    config = YolosConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=[edge, edge],
        patch_size=8, num_detection_tokens=7, use_mid_position_embeddings=False, initializer_range=0.5,
        id2label=dict(enumerate(labels)), label2id={label: number for number, label in enumerate(labels)},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        YolosForObjectDetection(config).save_pretrained(folder)
    YolosImageProcessor(size={"height": edge, "width": edge}).save_pretrained(folder)
    return folder
