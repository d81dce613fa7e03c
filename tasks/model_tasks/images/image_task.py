"""What the tasks that read image files share."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import ModelSource
from tasks.model_tasks.contract import EncodedSizes, Encoder, GraphInputs
from tasks.model_tasks.inputs.image_files import check_image
from tasks.model_tasks.inputs.images import (
    CHANNELS,
    PIXEL_INPUT,
    PROCESSOR_FILE,
    ImageEncoder,
    measure_images,
    open_image_encoder,
    read_processor,
)
from tasks.model_tasks.labels import show_value


@dataclass(frozen=True)
class ImageTask:
    """The members of a task whose rows are image files."""

    optional_columns: tuple[str, ...] = ()
    optional_axes: tuple[str, ...] = ()
    axes: tuple[str, ...] = ("batch",)
    graph_inputs: GraphInputs = PIXEL_INPUT
    judged_outputs: tuple[int, ...] = (0,)
    serving_files: tuple[str, ...] = (PROCESSOR_FILE,)
    request: str = "image"
    answer_file: str | None = None

    @property
    def example_inputs(self) -> tuple[bytes, ...]:
        """Two plain images."""
        from PIL import Image

        files = [io.BytesIO(), io.BytesIO()]
        for file, size in zip(files, ((40, 30), (7, 9)), strict=True):
            Image.new("RGB", size, "grey").save(file, "PNG")
        return tuple(file.getvalue() for file in files)

    def identify(self, row_input: bytes) -> str:
        """Return the sha256 of the encoded image."""
        return f"sha256 {sha256(row_input).hexdigest()}"

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

    def check_rows(self, rows: Rows, source: ModelSource, folder: Path) -> None:
        """Check nothing: images say nothing of their processor."""

    def check_outputs(self, shapes: Sequence[Sequence[int]], classes: int, encoder: Encoder) -> None:
        """Check nothing: `answer_axes` say what outputs have."""

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
        """Return the outputs as they are: what is kept of a row are its answers."""
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

    def read_request(self, content: bytes) -> tuple[str, bytes]:
        """Return (sha256, encoded image) of an encoded image.

        Raises:
            BadInput: it is no image.
        """
        check_image(content)
        return self.identify(content), content

    def write_request(self, row_input: bytes) -> bytes:
        """Return the encoded image."""
        return row_input


def explain_image(value: object) -> str | None:
    """Return, for an error, what is wrong with the image of a row; None where nothing is."""
    if not isinstance(value, bytes):
        return f"the image is {show_value(value)}: name the column with the bytes of image files in data.image"
    try:
        check_image(value)
    except BadInput as error:
        return str(error)
    return None
