"""Write the rows and the checkpoint of recipes/digits.yaml: scikit-learn's digits, and a small ResNet trained on them.

The rows are the 1,797 scans of 8 by 8 pixels that the package ships (its test part of UCI's "Optical Recognition of
Handwritten Digits", https://doi.org/10.24432/C50P49), as PNG files in three disjoint splits. The same versions of the
packages write the same bytes on one machine.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration_data.making import make_into

SEED = 20261126
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# int8 needs 133 rows beside its 256 to prove a loss of at most 2 %.
SPLITS = {"fit": 700, "calibration": 400, "evaluation": 697}
EDGE = 32
EPOCHS, BATCH_ROWS, LEARNING_RATE = 12, 32, 4e-3


def write_rows(folder: Path) -> None:
    """Write fit.parquet, calibration.parquet and evaluation.parquet: columns `image` and `label`."""
    import datasets
    from sklearn.datasets import load_digits

    datasets.disable_progress_bars()
    digits = load_digits()
    # 0 (paper) to 16 (ink), as grey values of ink on paper.
    scans = (255 - np.minimum(digits.images * 16, 255)).astype(np.uint8)
    order = np.random.default_rng(SEED).permutation(len(scans))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    start = 0
    for split, count in SPLITS.items():
        rows = order[start : start + count]
        files = [{"bytes": encode_png(scans[row]), "path": None} for row in rows]
        columns = {"image": files, "label": [int(digits.target[row]) for row in rows]}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(str(folder / f"{split}.parquet"))
        start += count


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return the PNG file of an image, uint8 [height, width] or [height, width, 3]."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def make_resnet(**names: Any) -> Any:
    """Return a ResNet of 4 blocks, not trained."""
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(
        ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 2], layer_type="basic", **names)
    )


def train(
    rows: Path,
    folder: Path,
    *,
    epochs: int = EPOCHS,
    rate: float = LEARNING_RATE,
    make_network: Callable[..., Any] = make_resnet,
) -> float:
    """Train a network on fit.parquet, save it with its processor, and return its accuracy on evaluation."""
    import torch
    from datasets import Dataset, Image
    from torch.nn import functional
    from transformers import ViTImageProcessor

    processor = ViTImageProcessor(size={"height": EDGE, "width": EDGE}, resample=3)

    def read(split: str) -> tuple[torch.Tensor, torch.Tensor]:
        table = Dataset.from_parquet(str(rows / f"{split}.parquet"), keep_in_memory=True).cast_column("image", Image())
        images = [image.convert("RGB") for image in table["image"]]
        return processor(images, return_tensors="pt")["pixel_values"], torch.tensor(list(table["label"]))

    torch.manual_seed(SEED)
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(mode=True)
    names = dict(enumerate(CLASSES))
    network = make_network(id2label=names, label2id={name: number for number, name in names.items()})
    pixels, labels = read("fit")
    optimizer = torch.optim.AdamW(network.parameters(), rate)
    steps = epochs * -(-len(labels) // BATCH_ROWS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    network.train()
    # Threads that wait for each other cost more than they give on a busy machine: 300 s in place of 20.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(labels)), BATCH_ROWS):
            loss = functional.cross_entropy(network(pixels[batch]).logits, labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=was_deterministic)
    network.eval()
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    pixels, labels = read("evaluation")
    with torch.inference_mode():
        return float((network(pixels).logits.argmax(-1) == labels).float().mean())


def make(rows: Path, checkpoint: Path) -> str:
    """Write both, and say how good the checkpoint is."""
    write_rows(rows)
    return f"{train(rows, checkpoint):.1%} of the evaluation rows in PyTorch"


if __name__ == "__main__":
    make_into(Path(".enginery/digits"), __doc__, make)
