"""Object detection: one encoded image in, boxes with classes out, judged by COCO's mean average precision."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import ModelSource
from tasks.model_tasks.contract import Answers, Encoder, Metric, ShownAnswer
from tasks.model_tasks.images.average_precision import MAP_50, MEAN_AVERAGE_PRECISION, SURE
from tasks.model_tasks.images.boxes import Boxes, find_boxes, read_boxes, split_outputs
from tasks.model_tasks.images.image_task import ImageTask, explain_image
from tasks.model_tasks.inputs.image_files import read_size
from tasks.model_tasks.inputs.image_steps import ImageProcessor
from tasks.model_tasks.inputs.images import DETECTORS, ULTRALYTICS, ImageEncoder, read_processor
from tasks.model_tasks.labels import check_head, number_labels

_EDGES = 4
_RANK = 3


@dataclass(frozen=True)
class FoundBox:
    """A box in an image, in its pixels; `score` is a probability."""

    label: str
    score: float
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class DetectedImage:
    """The boxes of an image with a score of at least SURE, the surest first."""

    image: str
    boxes: tuple[FoundBox, ...]

    @property
    def line(self) -> str:
        """The answer for a terminal, a box a line."""
        lines = [
            f"{box.label} ({box.score:.0%})  left {box.left:.0f}, top {box.top:.0f}, right {box.right:.0f}, "
            f"bottom {box.bottom:.0f}  {self.image}"
            for box in self.boxes
        ]
        return "\n".join(lines) or f"nothing above {SURE:.0%}  {self.image}"


@dataclass(frozen=True)
class ObjectDetection(ImageTask):
    """Boxes with a class and a score; the graph gives logits and boxes, or both in one output as Ultralytics does.

    A target has the boxes and labels of a row, and an answer is float32 [boxes, 6]: class, score, left, top, right and
    bottom in the image's pixels.
    """

    name: str = "object-detection"
    columns: tuple[str, ...] = ("image", "boxes", "labels")
    row_needs: str = "an image that can be decoded, and boxes inside it with a label each"
    export_task: str = "object-detection"
    metrics: tuple[Metric, ...] = (MEAN_AVERAGE_PRECISION, MAP_50)
    judged_outputs: tuple[int, ...] = (0, 1)
    answer_axes: tuple[str, ...] = ("batch", "boxes", "box_values")

    def read_row(self, row: Mapping[str, Any], classes: Sequence[str] | None) -> tuple[bytes, Boxes] | None:
        """Return (encoded image, boxes) where the image can be decoded and the boxes are inside it."""
        if explain_image(row["image"]) is not None:
            return None
        try:
            return row["image"], read_boxes(row, classes)
        except BadInput:
            return None

    def explain_row(self, row: Mapping[str, Any]) -> str:
        """Return what is wrong with the image, a box or a label of a row."""
        if problem := explain_image(row["image"]):
            return problem
        try:
            read_boxes(row, None)
        except BadInput as error:
            return str(error)
        return "a label is a number that the dataset has no class for: number them from 0"

    def align_rows(self, rows: Rows, source: ModelSource) -> Rows:
        """Give the labels the model's numbers: names are matched without case, and never swapped.

        Raises:
            BadInput: a label is not one of the model's, or no row has a box.
        """
        labels = [label for target in rows.targets for label in target["labels"]]
        if not labels:
            raise BadInput(f"no row of {rows.source} has a box, so nothing can be judged: name the columns that have")
        numbers = iter(number_labels(labels, rows.classes, source, rows.source))
        targets = [{**target, "labels": [next(numbers) for _ in target["labels"]]} for target in rows.targets]
        return replace(rows, targets=tuple(targets))

    def check_checkpoint(self, config: Mapping[str, Any]) -> None:
        """Check that the checkpoint has a head that gives boxes.

        Raises:
            BadInput: it has another head or none.
        """
        check_head(config, self.name, "ForObjectDetection")

    def check_outputs(self, shapes: Sequence[Sequence[int]], classes: int, encoder: Encoder) -> None:
        """Check that a graph's outputs are those that the processor's networks have.

        Raises:
            BadInput: they are not.
        """
        is_single = _read_steps(encoder).kind == ULTRALYTICS
        if is_single and (len(shapes) != 1 or shapes[0][1] != _EDGES + classes):
            raise BadInput(
                f"an {ULTRALYTICS} processor goes with one output [batch, {_EDGES + classes}, places], four edges and "
                f"{classes} scores (source.labels) at each place; the graph has {_show(shapes)}: export it without NMS"
            )
        wanted = [(classes, classes + 1), (_EDGES,)]
        if not is_single and (
            len(shapes) < len(wanted)
            or any(shape[-1] not in sizes for shape, sizes in zip(shapes, wanted, strict=False))
        ):
            raise BadInput(
                f"the graph has outputs {_show(shapes)}, and answers are made of logits [batch, boxes, {classes} or "
                f"{classes + 1}] (source.labels) and boxes [batch, boxes, {_EDGES}]: export it so, or for one as "
                f"{ULTRALYTICS}' give a processor of the type {ULTRALYTICS}ImageProcessor"
            )

    def fixed_sizes(self, folder: Path) -> dict[str, int]:
        """Return the channels, height and width that the image processor gives.

        Raises:
            BadInput: there is none, or it shows the network a part of an image only.
        """
        kind = read_processor(folder).kind
        if kind not in DETECTORS:
            raise BadInput(
                f"{folder}: the image processor is of the type {kind}, and boxes need one of {', '.join(DETECTORS)}: "
                "save the checkpoint with its own image processor"
            )
        return super().fixed_sizes(folder)

    def reduce_outputs(
        self,
        outputs: Sequence[NDArray[Any]],
        inputs: Sequence[Any],  # noqa: ARG002
        encoder: Encoder,
    ) -> Sequence[NDArray[Any]]:
        """Return scores [batch, boxes, classes] and boxes [batch, boxes, 4], also of a graph that gives both in one."""
        return split_outputs(outputs, _read_steps(encoder))

    def answers(self, outputs: Sequence[NDArray[Any]], inputs: Sequence[bytes], encoder: Encoder) -> Answers:
        """Return the surest boxes of each image, float32 [boxes, 6]."""
        return list(self._find(outputs, inputs, encoder))

    def show(
        self,
        outputs: Sequence[NDArray[Any]],
        inputs: Sequence[bytes],
        questions: Sequence[str],
        classes: Sequence[str],
        encoder: Encoder,
    ) -> list[ShownAnswer]:
        """Return the sure boxes of each image."""
        reduced = self.reduce_outputs(outputs, inputs, encoder)
        return [
            DetectedImage(
                file,
                tuple(
                    FoundBox(classes[int(label)], float(score), *map(float, edges))
                    for label, score, *edges in found
                    if score >= SURE
                ),
            )
            for file, found in zip(questions, self._find(reduced, inputs, encoder), strict=True)
        ]

    def _find(
        self, outputs: Sequence[NDArray[Any]], inputs: Sequence[bytes], encoder: Encoder
    ) -> Iterator[NDArray[Any]]:
        steps = _read_steps(encoder)
        for logits, boxes, image in zip(*outputs[:2], inputs, strict=True):
            yield find_boxes(logits, boxes, steps, read_size(image))


def _read_steps(encoder: Encoder) -> ImageProcessor:
    if not isinstance(encoder, ImageEncoder):
        raise TypeError("boxes are found in images")
    return encoder.processor


def _show(shapes: Sequence[Sequence[int]]) -> str:
    return " and ".join(str(list(shape)) for shape in shapes)


OBJECT_DETECTION = ObjectDetection()
