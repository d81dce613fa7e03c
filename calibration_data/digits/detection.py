"""Write the rows and the network of recipes/digit-detection.yaml: digits on photographs, and a ConvNet that finds them.

The scenes are those of calibration_data/digits/scenes.py, whose scans are pasted, so that their boxes are exact. The
network answers as Ultralytics' do, at each place of a grid with a box and a score for each class, and is written as an
ONNX graph. The same versions of the packages write the same bytes on one machine.
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calibration_data.digits.make import CLASSES, SEED, encode_png
from calibration_data.digits.scenes import EDGE, draw_splits
from calibration_data.making import make_into

if TYPE_CHECKING:
    import torch

STRIDE = 8
WIDTHS = (16, 32, 64)
EPOCHS, BATCH_ROWS, LEARNING_RATE = 16, 32, 4e-3
# The middle of a box answers for it: places so far from its middle at most, as a share of its edge.
ANSWERS_WITHIN = 0.25
PROCESSOR = {"image_processor_type": "UltralyticsImageProcessor", "size": {"height": EDGE, "width": EDGE}}
GRAPH_FILE, PROCESSOR_FILE = "detector.onnx", "preprocessor_config.json"


def write_rows(folder: Path) -> None:
    """Write fit.parquet, calibration.parquet and evaluation.parquet: `image`, and `objects` as the hub's have them."""
    import datasets

    datasets.disable_progress_bars()
    objects = {
        "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
        "category": datasets.List(datasets.ClassLabel(names=list(CLASSES))),
    }
    features = datasets.Features({"image": datasets.Image(), "objects": objects})
    for split, scenes in draw_splits():
        columns = {
            "image": [{"bytes": encode_png(scene.image), "path": None} for scene in scenes],
            "objects": [
                {
                    "bbox": [[square.left, square.top, square.edge, square.edge] for square in scene.squares],
                    "category": [square.digit for square in scene.squares],
                }
                for scene in scenes
            ],
        }
        datasets.Dataset.from_dict(columns, features=features).to_parquet(str(folder / f"{split}.parquet"))


def make_network() -> "torch.nn.Module":
    """Return a network from pixels [batch, 3, EDGE, EDGE] to [batch, 4 + classes, places].

    The four are middle across and down, width and height, in pixels; the scores are probabilities.
    """
    import torch
    from torch import nn

    def convolve(taken: int, given: int, stride: int = 1) -> nn.Module:
        return nn.Sequential(nn.Conv2d(taken, given, 3, stride, 1, bias=False), nn.BatchNorm2d(given), nn.SiLU())

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            one, two, three = WIDTHS
            self.body = nn.Sequential(
                convolve(3, one), convolve(one, two, 2), convolve(two, two), convolve(two, three, 2),
                convolve(three, three), convolve(three, three, 2), convolve(three, three), convolve(three, three),
                convolve(three, three), convolve(three, three),
            )  # fmt: skip
            self.head = nn.Conv2d(three, 4 + len(CLASSES), 1)
            nn.init.constant_(self.head.get_parameter("bias"), -3.0)  # few places have a digit
            step = torch.arange(EDGE // STRIDE) * STRIDE + STRIDE / 2
            across, down = torch.meshgrid(step, step, indexing="xy")
            self.register_buffer("middles", torch.stack([across, down])[None])

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            found = self.head(self.body(images))
            middles = self.middles + found[:, :2] * STRIDE
            sizes = torch.sigmoid(found[:, 2:4] + 3.0) * EDGE
            return torch.cat([middles, sizes, torch.sigmoid(found[:, 4:])], 1).flatten(2)

    return Detector()


def compute_loss(found: "torch.Tensor", squares: NDArray[np.float32]) -> "torch.Tensor":
    """Return the loss of answers [batch, 4 + classes, places], by the squares of each row (see `read_squares`).

    Binary cross-entropy of the scores, and 1 - IoU (Yu et al., UnitBox, 2016) of the boxes at the places that answer.
    """
    import torch
    from torch.nn import functional

    count, places = len(found), found.shape[-1]
    wanted, boxes = torch.zeros(count, len(CLASSES), places), torch.zeros(count, 4, places)
    step = np.arange(EDGE // STRIDE) * STRIDE + STRIDE / 2
    across, down = (each.ravel() for each in np.meshgrid(step, step))
    for row, left, top, edge, digit in squares:
        middle = left + edge / 2, top + edge / 2
        at = np.flatnonzero(np.maximum(abs(across - middle[0]), abs(down - middle[1])) <= ANSWERS_WITHIN * edge)
        wanted[int(row), int(digit), at] = 1
        boxes[int(row), :, at] = torch.tensor([*middle, edge, edge])[:, None]
    is_there = wanted.amax(1) > 0
    given, true = (each.transpose(1, 2)[is_there] for each in (found[:, :4], boxes))
    low = torch.maximum(given[:, :2] - given[:, 2:] / 2, true[:, :2] - true[:, 2:] / 2)
    high = torch.minimum(given[:, :2] + given[:, 2:] / 2, true[:, :2] + true[:, 2:] / 2)
    shared = (high - low).clamp(min=0).prod(1)
    overlap = shared / (given[:, 2:].prod(1) + true[:, 2:].prod(1) - shared)
    apart = functional.l1_loss(given, true, reduction="sum") / EDGE
    scores = functional.binary_cross_entropy(found[:, 4:], wanted, reduction="sum")
    total: torch.Tensor = (scores + 2 * (1 - overlap).sum() + apart) / count
    return total


def read_squares(objects: Sequence[dict[str, Any]]) -> NDArray[np.float32]:
    """Return (row, left, top, edge, digit) of all boxes, float32 [boxes, 5]."""
    return np.array(
        [
            (row, box[0], box[1], box[2], digit)
            for row, each in enumerate(objects)
            for box, digit in zip(each["bbox"], each["category"], strict=True)
        ],
        dtype=np.float32,
    ).reshape(-1, 5)


def train(rows: Path, folder: Path, *, epochs: int = EPOCHS) -> int:
    """Train a ConvNet on fit.parquet, write its graph and its processor, and return how many weights it has."""
    import torch
    from datasets import Dataset, Image

    table = Dataset.from_parquet(str(rows / "fit.parquet"), keep_in_memory=True).cast_column("image", Image())
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in table["image"]]).transpose(0, 3, 1, 2) / 255)
    pixels, objects = pixels.float(), list(table["objects"])
    torch.manual_seed(SEED)
    network = make_network().train()
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    steps = epochs * -(-len(pixels) // BATCH_ROWS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    # Threads that wait for each other cost more than they give on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(pixels)), BATCH_ROWS):
            loss = compute_loss(network(pixels[batch]), read_squares([objects[int(row)] for row in batch]))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    torch.set_num_threads(threads)
    write_graph(network.eval(), folder)
    return sum(weight.numel() for weight in network.parameters())


def write_graph(network: "torch.nn.Module", folder: Path) -> None:
    """Write detector.onnx, whose batch is dynamic, and the preprocessor_config.json beside it."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of torch
        torch.onnx.export(
            network,
            (torch.zeros(2, 3, EDGE, EDGE),),
            str(folder / GRAPH_FILE),
            input_names=["images"],
            output_names=["output0"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    (folder / PROCESSOR_FILE).write_text(json.dumps(PROCESSOR, indent=2) + "\n", encoding="utf-8")


def make(rows: Path, checkpoint: Path) -> str:
    """Write both, and say how large the network is."""
    write_rows(rows)
    return f"a network of {train(rows, checkpoint) / 1e6:.2f} M weights"


if __name__ == "__main__":
    make_into(Path(".enginery/digit-detection"), __doc__, make)
