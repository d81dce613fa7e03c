"""Write the rows and the checkpoint of recipes/digit-scenes.yaml: scans of digits on photographs, and a SegFormer.

Both are real and scikit-learn's: its handwritten digits (calibration_data/digits/make.py), one or two of them pasted
as squares of paper on a crop of its two photographs (china.jpg, flower.jpg). Only the pasting is ours, so the masks are
exact. No scan and no part of a photograph is in two splits. The same versions of the packages write the same bytes on
one machine.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration_data.digits.make import CLASSES, SEED, encode_png
from calibration_data.making import make_into

NAMES = ("background", *CLASSES)
# Scenes, scans, and the share of each photograph's columns where the part of a split ends.
SPLITS = {"fit": (2400, 1097, 0.6), "calibration": (400, 300, 0.8), "evaluation": (600, 400, 1.0)}
EDGE = 64
SMALLEST, LARGEST = 28, 44
MOST_SCANS = 2
EPOCHS, BATCH_ROWS, LEARNING_RATE = 16, 16, 3e-3

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Square:
    """Where a scan was pasted, in pixels, and its digit."""

    left: int
    top: int
    edge: int
    digit: int


@dataclass(frozen=True)
class Scene:
    """A crop with scans on it, uint8 [EDGE, EDGE, 3], and where they are."""

    image: Pixels
    squares: tuple[Square, ...]

    @property
    def mask(self) -> Pixels:
        """Return uint8 [EDGE, EDGE]: 0, or the digit and 1."""
        mask = np.zeros((EDGE, EDGE), dtype=np.uint8)
        for square in self.squares:
            mask[square.top : square.top + square.edge, square.left : square.left + square.edge] = square.digit + 1
        return mask


def write_rows(folder: Path) -> None:
    """Write fit.parquet, calibration.parquet and evaluation.parquet: columns `image` and `mask`."""
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    for split, scenes in draw_splits():
        columns = {
            name: [{"bytes": encode_png(getattr(scene, name)), "path": None} for scene in scenes]
            for name in ("image", "mask")
        }
        datasets.Dataset.from_dict(columns, features=features).to_parquet(str(folder / f"{split}.parquet"))


def draw_splits() -> Iterator[tuple[str, list[Scene]]]:
    """Yield the name and the scenes of each split."""
    from sklearn.datasets import load_digits, load_sample_images

    digits, photographs = load_digits(), load_sample_images().images
    scans = (255 - np.minimum(digits.images * 16, 255)).astype(np.uint8)
    order = np.random.default_rng(SEED).permutation(len(scans))
    first, start = 0, 0.0
    for split, (count, taken, end) in SPLITS.items():
        draw, own = np.random.default_rng([SEED, count]), order[first : first + taken]
        parts = [each[:, int(start * each.shape[1]) : int(end * each.shape[1])] for each in photographs]
        yield split, [draw_scene(draw, parts, scans[own], digits.target[own]) for _ in range(count)]
        first, start = first + taken, end


def draw_scene(draw: np.random.Generator, photographs: list[Pixels], scans: Pixels, digits: NDArray[Any]) -> Scene:
    """Draw a crop of a photograph and scans on it."""
    from PIL import Image

    photograph = photographs[draw.integers(len(photographs))]
    top, left = (int(draw.integers(size - EDGE + 1)) for size in photograph.shape[:2])
    image, is_taken = photograph[top : top + EDGE, left : left + EDGE].copy(), np.zeros((EDGE, EDGE), dtype=bool)
    squares = []
    for _ in range(int(draw.integers(1, MOST_SCANS + 1))):
        edge, chosen = int(draw.integers(SMALLEST, LARGEST + 1)), int(draw.integers(len(scans)))
        y, x = (int(draw.integers(EDGE - edge + 1)) for _ in range(2))
        place = slice(y, y + edge), slice(x, x + edge)
        if is_taken[place].any():
            continue  # scans do not cover each other
        paper = np.asarray(Image.fromarray(scans[chosen]).resize((edge, edge), Image.Resampling.BICUBIC))
        tint = draw.uniform(0.6, 1.0, 3)
        image[place] = (paper[:, :, None] * tint).astype(np.uint8)
        is_taken[place] = True
        squares.append(Square(x, y, edge, int(digits[chosen])))
    return Scene(image, tuple(squares))


def train(rows: Path, folder: Path, *, epochs: int = EPOCHS) -> float:
    """Train a small SegFormer on fit.parquet, save it with its processor, and return its pixel accuracy."""
    import torch
    from datasets import Dataset, Image
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    processor = SegformerImageProcessor(size={"height": EDGE, "width": EDGE})

    def read(split: str) -> tuple[torch.Tensor, torch.Tensor]:
        table = Dataset.from_parquet(str(rows / f"{split}.parquet"), keep_in_memory=True)
        table = table.cast_column("image", Image()).cast_column("mask", Image())
        masks = np.stack([np.asarray(mask) for mask in table["mask"]])
        pixels = processor(list(table["image"]), return_tensors="pt")["pixel_values"]
        return pixels, torch.from_numpy(masks.astype(np.int64))

    torch.manual_seed(SEED)
    names = dict(enumerate(NAMES))
    config = SegformerConfig(
        hidden_sizes=[16, 32, 64, 96],
        depths=[1, 1, 2, 1],
        num_attention_heads=[1, 2, 4, 4],
        sr_ratios=[4, 2, 1, 1],
        decoder_hidden_size=64,
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
        id2label=names,
        label2id={name: number for number, name in names.items()},
    )
    network = SegformerForSemanticSegmentation(config)
    pixels, masks = read("fit")
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    steps = epochs * -(-len(masks) // BATCH_ROWS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    network.train()
    # Threads that wait for each other cost more than they give on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(masks)), BATCH_ROWS):
            loss = network(pixels[batch], labels=masks[batch]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    torch.set_num_threads(threads)
    network.eval()
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    pixels, masks = read("evaluation")
    with torch.inference_mode():
        logits = torch.nn.functional.interpolate(network(pixels).logits, size=masks.shape[1:], mode="bilinear")
        return float((logits.argmax(1) == masks).float().mean())


def make(rows: Path, checkpoint: Path) -> str:
    """Write both, and say how good the checkpoint is."""
    write_rows(rows)
    return f"{train(rows, checkpoint):.1%} of the evaluation's pixels in PyTorch"


if __name__ == "__main__":
    make_into(Path(".enginery/digit-scenes"), __doc__, make)
