"""Semantic segmentation: one encoded image in, the class of each pixel out, judged by mean intersection over union."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import ModelSource
from tasks.model_tasks.contract import Answers, Encoder, Metric, ShownAnswer
from tasks.model_tasks.images.image_task import ImageTask, explain_image
from tasks.model_tasks.images.masks import MEAN_IOU, PIXEL_ACCURACY, encode_map, find_classes
from tasks.model_tasks.inputs.image_files import IGNORED, decode_mask, read_size
from tasks.model_tasks.inputs.images import ImageEncoder, read_processor
from tasks.model_tasks.labels import check_head, show_value

# As many classes a terminal shows, the largest first.
SHOWN_CLASSES = 5


@dataclass(frozen=True)
class SegmentedImage:
    """The classes of an image and their shares of its pixels, the largest first."""

    image: str
    shares: dict[str, float]

    @property
    def line(self) -> str:
        """The answer for a terminal."""
        shown = ", ".join(f"{label} {share:.1%}" for label, share in list(self.shares.items())[:SHOWN_CLASSES])
        return f"{shown}{', …' if len(self.shares) > SHOWN_CLASSES else ''}  {self.image}"


@dataclass(frozen=True)
class SemanticSegmentation(ImageTask):
    """One class per pixel; output 0 of the graph is logits [batch, labels, height, width], often of a quarter's size.

    A target is the file of a mask, and an answer the PNG file of a map: both have the image's size, and number classes
    as the masks do.
    """

    name: str = "semantic-segmentation"
    columns: tuple[str, ...] = ("image", "mask")
    row_needs: str = "an image that can be decoded and a mask of its size"
    export_task: str = "semantic-segmentation"
    metrics: tuple[Metric, ...] = (MEAN_IOU, PIXEL_ACCURACY)
    answer_axes: tuple[str, ...] = ("batch", "labels", "map_height", "map_width")
    answer_file: str | None = ".png"

    def read_row(self, row: Mapping[str, Any], classes: Sequence[str] | None) -> tuple[bytes, bytes] | None:  # noqa: ARG002
        """Return (encoded image, encoded mask) where both can be decoded and have one size."""
        image, mask = row["image"], row["mask"]
        return (image, mask) if explain_image(image) is None and _explain_mask(mask, image) is None else None

    def explain_row(self, row: Mapping[str, Any]) -> str:
        """Return what is wrong with the image or the mask of a row."""
        return explain_image(row["image"]) or _explain_mask(row["mask"], row["image"]) or "nothing is wrong"

    def align_rows(self, rows: Rows, source: ModelSource) -> Rows:
        """Return the rows as they are: masks hold the model's numbers, or with reduced labels those above them.

        Raises:
            BadInput: a mask has a number that is no class of the model.
        """
        most = len(source.classes)
        for row, mask in enumerate(rows.targets):
            found = np.unique(decode_mask(mask))
            if strange := [int(number) for number in found if most < number != IGNORED]:
                raise BadInput(
                    f"the mask of row {row} of {rows.source} has pixels of {strange[0]}, and {source.name} has {most} "
                    f"classes: number them from 0, and what is not to be judged {IGNORED}"
                )
        return rows

    def check_rows(self, rows: Rows, source: ModelSource, folder: Path) -> None:
        """Check that no mask has the number behind the last class, unless the image processor reduces labels.

        Raises:
            BadInput: one has it: its classes are numbered from 1.
        """
        behind = len(source.classes)
        row = next((row for row, mask in enumerate(rows.targets) if (decode_mask(mask) == behind).any()), None)
        if row is not None and not read_processor(folder).reduces_labels:
            raise BadInput(
                f"the mask of row {row} of {rows.source} has pixels of {behind}, and {source.name} numbers its "
                f"{behind} classes from 0: subtract 1 from the masks and give {IGNORED} to what is not judged, or "
                "set do_reduce_labels in preprocessor_config.json"
            )

    def check_checkpoint(self, config: Mapping[str, Any]) -> None:
        """Check that the checkpoint has a head that gives one class per pixel.

        Raises:
            BadInput: it has another head or none, or more classes than a mask can number.
        """
        check_head(config, self.name, "ForSemanticSegmentation")
        if len(config.get("id2label") or ()) >= IGNORED:
            raise BadInput(
                f"the checkpoint has {len(config['id2label'])} classes, and masks number at most {IGNORED - 1}"
            )

    def answers(self, outputs: Sequence[NDArray[Any]], inputs: Sequence[bytes], encoder: Encoder) -> Answers:
        """Return the map of each image as a PNG file of its size, uint8 [bytes], numbered as masks are."""
        reduced = isinstance(encoder, ImageEncoder) and encoder.processor.reduces_labels
        return [
            encode_map(find_classes(logits, read_size(image)) + np.uint8(reduced), ignores_zero=reduced)
            for logits, image in zip(outputs[0], inputs, strict=True)
        ]

    def show(
        self,
        outputs: Sequence[NDArray[Any]],
        inputs: Sequence[Any],  # noqa: ARG002
        questions: Sequence[str],
        classes: Sequence[str],
        encoder: Encoder,  # noqa: ARG002
    ) -> list[ShownAnswer]:
        """Return the share of each class in each image, at the size of the logits."""
        return [
            SegmentedImage(file, _measure_shares(logits.argmax(axis=0), classes))
            for file, logits in zip(questions, outputs[0], strict=True)
        ]


def _measure_shares(found: NDArray[np.int64], classes: Sequence[str]) -> dict[str, float]:
    numbers, counts = np.unique(found, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {classes[int(numbers[at])]: float(counts[at] / found.size) for at in order}


def _explain_mask(value: object, image: bytes) -> str | None:
    """Return, for an error, what is wrong with the mask of an image; None where nothing is."""
    if not isinstance(value, bytes):
        return f"the mask is {show_value(value)}: name the column with the bytes of mask files in data.mask"
    try:
        mask, size = decode_mask(value).shape, read_size(image)
    except BadInput as error:
        return str(error)
    if mask != size:
        return (
            f"the mask is {mask[1]} by {mask[0]} pixels, and its image {size[1]} by {size[0]}: give masks of that size"
        )
    return None


SEMANTIC_SEGMENTATION = SemanticSegmentation()
