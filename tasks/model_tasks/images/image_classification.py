"""Image classification: one encoded image in, the model's best labels out, judged by accuracy."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import ModelSource
from registry.triton.python_models import PythonModel
from tasks.model_tasks.contract import Answers, EncodedSizes, Encoder, GraphInputs, Metric, ShownAnswer
from tasks.model_tasks.inputs.images import (
    CHANNELS,
    PIXEL_INPUT,
    PROCESSOR_FILE,
    ImageEncoder,
    check_image,
    measure_images,
    open_image_encoder,
    read_processor,
)
from tasks.model_tasks.labels import (
    check_head,
    check_one_label,
    compute_softmax,
    explain_label,
    number_labels,
    read_known_label,
    show_value,
)
from tasks.model_tasks.scores import ACCURACY, RANKED, TOP_5_ACCURACY


@dataclass(frozen=True)
class LabelledImage:
    """The label of an image; `score` is its softmax probability."""

    image: str
    label: str
    score: float

    @property
    def line(self) -> str:
        """The answer for a terminal."""
        return f"{self.label} ({self.score:.0%})  {self.image}"


@dataclass(frozen=True)
class ImageClassification:
    """One label per image; output 0 of the graph is logits [batch, labels], the answer ranks the best of them."""

    name: str = "image-classification"
    columns: tuple[str, ...] = ("image", "label")
    optional_columns: tuple[str, ...] = ()
    axes: tuple[str, ...] = ("batch",)
    graph_inputs: GraphInputs = PIXEL_INPUT
    row_needs: str = "an image that can be decoded and a label"
    export_task: str = "image-classification"
    metrics: tuple[Metric, ...] = (ACCURACY, TOP_5_ACCURACY)
    judged_outputs: tuple[int, ...] = (0,)
    answer_axes: tuple[str, ...] = ("batch", "labels")
    serving_files: tuple[str, ...] = (PROCESSOR_FILE,)
    python_model: PythonModel | None = None

    @property
    def example_inputs(self) -> tuple[bytes, ...]:
        """Two plain images."""
        from PIL import Image

        files = [io.BytesIO(), io.BytesIO()]
        for file, size in zip(files, ((40, 30), (7, 9)), strict=True):
            Image.new("RGB", size, "grey").save(file, "PNG")
        return tuple(file.getvalue() for file in files)

    def read_row(self, row: Mapping[str, Any], classes: Sequence[str] | None) -> tuple[bytes, int | str] | None:
        """Return (encoded image, label) where the image can be decoded, and the label is one of the dataset's."""
        image, label = row["image"], read_known_label(row["label"], classes)
        if not isinstance(image, bytes) or label is None:
            return None
        try:
            check_image(image)
        except BadInput:
            return None
        return image, label

    def explain_row(self, row: Mapping[str, Any]) -> str:
        """Return what is wrong with the image or the label of a row."""
        image = row["image"]
        if not isinstance(image, bytes):
            return f"the image is {show_value(image)}: name the column with the bytes of image files in data.image"
        try:
            check_image(image)
        except BadInput as error:
            return str(error)
        return explain_label(row["label"], of="image")

    def identify(self, row_input: bytes) -> str:
        """Return the sha256 of the encoded image."""
        return f"sha256 {sha256(row_input).hexdigest()}"

    def align_rows(self, rows: Rows, source: ModelSource) -> Rows:
        """Give the labels the model's numbers: names are matched without case, and never swapped.

        Raises:
            BadInput: a label is not one of the model's.
        """
        return replace(rows, targets=tuple(number_labels(rows.targets, rows.classes, source, rows.source)))

    def check_checkpoint(self, config: Mapping[str, Any]) -> None:
        """Check that the checkpoint has a head that gives one label per image.

        Raises:
            BadInput: it has another head or none, or gives several labels or a number.
        """
        check_head(config, self.name, "ForImageClassification")
        check_one_label(config, of="image")

    def check_shapes(self, config: Mapping[str, Any], largest: Mapping[str, int]) -> None:  # noqa: ARG002
        """Check that the checkpoint takes images of three channels.

        Raises:
            BadInput: it takes others.
        """
        if config.get("num_channels") not in (None, CHANNELS):
            raise BadInput(
                f"the checkpoint takes images of {config['num_channels']} channels, and rows give {CHANNELS} (RGB): "
                "use another model"
            )

    def fixed_sizes(self, folder: Path) -> dict[str, int]:
        """Return the channels, height and width that the image processor gives.

        Raises:
            BadInput: there is none.
        """
        height, width = read_processor(folder).size
        return {"num_channels": CHANNELS, "height": height, "width": width}

    def open_encoder(self, folder: Path, input_names: Sequence[str], largest: Mapping[str, int]) -> ImageEncoder:  # noqa: ARG002
        """Open the folder's image processor."""
        return open_image_encoder(folder, input_names)

    def measure_inputs(self, folder: Path, inputs: Sequence[bytes], largest: Mapping[str, int]) -> EncodedSizes:  # noqa: ARG002
        """Encode images with the folder's image processor, which nobody has tried."""
        return measure_images(folder, inputs)

    def reduce_outputs(
        self,
        outputs: Sequence[NDArray[Any]],
        inputs: Sequence[Any],  # noqa: ARG002
        encoder: Encoder,  # noqa: ARG002
    ) -> Sequence[NDArray[Any]]:
        """Return the outputs as they are: a row has few numbers."""
        return outputs

    def read_question(self, text: str) -> bytes:
        """Read the image file that a user names.

        Raises:
            BadInput: it cannot be read, or is no image.
        """
        try:
            content = Path(text).read_bytes()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no path"
            raise BadInput(f"{text[:200]} cannot be read ({reason}): name the file of an image") from None
        try:
            check_image(content)
        except BadInput as error:
            raise BadInput(f"{text[:200]}: {error}") from None
        return content

    def answers(self, outputs: Sequence[NDArray[Any]], inputs: Sequence[bytes], encoder: Encoder) -> Answers:  # noqa: ARG002
        """Return the classes of the largest logits, best first, int64 [5] per image; [1] of at most 5 classes."""
        best = np.argsort(-outputs[0], axis=-1, kind="stable").astype(np.int64)
        return list(best[:, : RANKED if best.shape[1] > RANKED else 1])

    def show(
        self,
        outputs: Sequence[NDArray[Any]],
        questions: Sequence[str],
        classes: Sequence[str],
        encoder: Encoder,  # noqa: ARG002
    ) -> list[ShownAnswer]:
        """Return the most probable label of each image."""
        return [
            LabelledImage(file, classes[int(row.argmax())], float(row.max()))
            for file, row in zip(questions, compute_softmax(outputs[0]), strict=True)
        ]


IMAGE_CLASSIFICATION = ImageClassification()
