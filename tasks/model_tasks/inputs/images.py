"""Images to feed dicts, by the steps of the checkpoint's preprocessor_config.json, with Pillow and NumPy alone.

The steps (image_steps.py) are those of transformers' processors on Pillow: a serving host then needs neither torch nor
transformers. A processor with any other step is refused.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from registry.errors import BadInput
from tasks.model_tasks.contract import EncodedSizes, Feed, GraphInputs
from tasks.model_tasks.inputs.image_files import decode_image
from tasks.model_tasks.inputs.image_steps import ImageProcessor

PROCESSOR_FILE = "preprocessor_config.json"
# Optimum's name of the input.
PIXELS = "pixel_values"
CHANNELS = 3
PIXEL_INPUT = GraphInputs((), ("batch", "num_channels", "height", "width"), are_tokens=False)
BILINEAR, BICUBIC = 2, 3
# ConvNeXT's processor cuts nothing off from this size on.
UNCROPPED_EDGE = 384
# Not transformers': the steps that Ultralytics' networks are trained with.
ULTRALYTICS = "Ultralytics"
# transformers' processors whose steps are these, and how they resample where their file does not say.
PROCESSORS = {
    "ViT": BILINEAR,
    "ConvNext": BILINEAR,
    "Segformer": BILINEAR,
    "DeiT": BICUBIC,
    "Bit": BICUBIC,
    "CLIP": BICUBIC,
    "Detr": BILINEAR,
    "Yolos": BILINEAR,
    "RTDetr": BILINEAR,
    ULTRALYTICS: BILINEAR,
}
# Of these, whose networks give boxes. Where all images get one size, padding to the largest of a batch adds nothing.
DETECTORS = ("Detr", "Yolos", "RTDetr", ULTRALYTICS)
_DETECTOR_STEPS = ("do_pad", "do_convert_annotations")
_NOT_NORMALIZED = ("RTDetr", ULTRALYTICS)
_AGAIN = "save the checkpoint with its image processor again, or use another model"

_Edge = Annotated[int, Field(ge=1, le=2048)]
_Size = _Edge | dict[str, _Edge]
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Share = Annotated[float, Field(gt=0, le=1)]
_Channels = Annotated[list[_Number], Field(min_length=CHANNELS, max_length=CHANNELS)]
_Spreads = Annotated[
    list[Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=CHANNELS, max_length=CHANNELS)
]


class _ProcessorFile(BaseModel):
    """preprocessor_config.json: what its steps depend on, and in `model_extra` everything else."""

    model_config = ConfigDict(strict=True, extra="allow")

    image_processor_type: str | None = None
    feature_extractor_type: str | None = None
    do_resize: bool = True
    size: _Size
    resample: Annotated[int, Field(ge=0, le=5)] | None = None
    do_center_crop: bool | None = None
    crop_size: _Size | None = None
    crop_pct: _Share | None = None
    do_rescale: bool = True
    rescale_factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1 / 255
    do_normalize: bool | None = None
    image_mean: _Channels | None = None
    image_std: _Spreads | None = None
    do_convert_rgb: bool | None = None  # images are RGB when they are decoded
    do_reduce_labels: bool = False
    reduce_labels: bool = False  # what older versions call it
    pad_size: _Size | None = None
    nms_threshold: _Share = 0.7  # Ultralytics' own default

    @property
    def kind(self) -> str:
        """The processor's name without its ending."""
        name = self.image_processor_type or self.feature_extractor_type or ""
        return name.removesuffix("Fast").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")


def read_processor(folder: Path) -> ImageProcessor:
    """Read the steps of a checkpoint's or bundle's image processor.

    Raises:
        BadInput: there is no preprocessor_config.json, it is not one, or its processor has other steps.
    """
    file = folder / PROCESSOR_FILE
    if not file.is_file():
        raise BadInput(f"{folder} has no {PROCESSOR_FILE}: save the checkpoint with its image processor")
    try:
        said = _ProcessorFile.model_validate_json(file.read_bytes())
    except ValidationError as error:
        key = next((str(step) for step in error.errors(include_url=False)[0]["loc"]), "")
        what = f"{key} is missing, or has a value that no image processor has" if key else "it is not a JSON object"
        raise BadInput(f"{file}: {what}: {_AGAIN}") from None
    strange = sorted(key for key, value in (said.model_extra or {}).items() if key.startswith("do_") and value)
    if said.kind in DETECTORS:
        strange = [key for key in strange if key not in _DETECTOR_STEPS]
    if said.kind not in PROCESSORS or strange:
        what = f"a step {strange[0][:60]}" if strange else f"the type {(said.kind or None)!r:.60}"
        raise BadInput(
            f"{file}: the image processor has {what}, and only those of {', '.join(PROCESSORS)} are known: use another "
            "model"
        )
    return _find_steps(said, file)


def _find_steps(said: _ProcessorFile, file: Path) -> ImageProcessor:
    resize, crop = _find_geometry(said, file)
    if isinstance(resize, int) and crop is None:
        raise BadInput(f"{file}: without a crop the images keep their shape, and a graph takes one: {_AGAIN}")
    edges = resize if isinstance(resize, tuple) else (resize, resize)
    if not said.do_resize or (crop and (crop[0] > edges[0] or crop[1] > edges[1])):
        raise BadInput(
            f"{file}: images are not resized to more than is cropped, but padded, which is not known: {_AGAIN}"
        )
    normalizes = said.kind not in _NOT_NORMALIZED if said.do_normalize is None else said.do_normalize
    if normalizes and not (said.image_mean and said.image_std):
        raise BadInput(f"{file}: image_mean or image_std is missing: {_AGAIN}")
    return ImageProcessor(
        resize=resize,
        crop=crop,
        resample=PROCESSORS[said.kind] if said.resample is None else said.resample,
        scale=said.rescale_factor if said.do_rescale else None,
        mean=tuple(said.image_mean or ()) if normalizes else None,
        deviation=tuple(said.image_std or ()) if normalizes else None,
        reduces_labels=said.do_reduce_labels or said.reduce_labels,
        is_padded=said.kind == ULTRALYTICS,
        kind=said.kind,
        nms_overlap=said.nms_threshold,
    )


def _find_geometry(said: _ProcessorFile, file: Path) -> tuple[tuple[int, int] | int, tuple[int, int] | None]:
    """Return what is resized to, and what of it is kept."""
    if said.kind in ("ViT", "Segformer"):
        return _read_square(said.size, file), None
    if said.kind in DETECTORS:
        return _read_whole(said, file), None
    if said.kind == "ConvNext":
        edge = _read_edge(said.size, file)
        if edge >= UNCROPPED_EDGE:
            return (edge, edge), None
        return int(edge / (224 / 256 if said.crop_pct is None else said.crop_pct)), (edge, edge)
    is_square = said.kind == "DeiT" or (isinstance(said.size, dict) and "shortest_edge" not in said.size)
    resize = _read_square(said.size, file) if is_square else _read_edge(said.size, file)
    if said.do_center_crop is False:
        return resize, None
    if said.crop_size is None:
        raise BadInput(f"{file}: crop_size is missing: {_AGAIN}")
    return resize, _read_square(said.crop_size, file)


def _read_square(size: _Size, file: Path) -> tuple[int, int]:
    """Return (height, width); files of older versions have one number for both."""
    if isinstance(size, int):
        return size, size
    if not {"height", "width"} <= size.keys():
        raise BadInput(f"{file}: a size has no height and width: {_AGAIN}")
    return size["height"], size["width"]


def _read_whole(said: _ProcessorFile, file: Path) -> tuple[int, int]:
    """Return the (height, width) that all images get: a graph takes one size, and no mask of what is padding."""
    size, padded = said.size, said.pad_size
    if not isinstance(size, dict) or not {"height", "width"} <= size.keys() or padded not in (None, size):
        raise BadInput(
            f"{file}: images keep their shape and are padded, and a graph takes one size: save the processor with "
            'size {"height": 640, "width": 640}, or another size of multiples of 32, and without pad_size'
        )
    return size["height"], size["width"]


def _read_edge(size: _Size, file: Path) -> int:
    if isinstance(size, int):
        return size
    if "shortest_edge" not in size:
        raise BadInput(f"{file}: size has no shortest_edge: {_AGAIN}")
    return size["shortest_edge"]


@dataclass(frozen=True)
class ImageEncoder:
    """Decodes encoded images and makes the model's pixels of them."""

    processor: ImageProcessor
    input_name: str = PIXELS

    def encode(self, inputs: Sequence[bytes]) -> Feed:
        """Return float32 [len(inputs), channels, height, width]."""
        return {self.input_name: np.stack([self.processor.process(decode_image(content)) for content in inputs])}

    def batches(self, inputs: Sequence[bytes], size: int) -> Iterator[tuple[list[int], list[bytes]]]:
        """Yield images in their order, as (their positions, the images): all have one size."""
        for start in range(0, len(inputs), size):
            batch = list(inputs[start : start + size])
            yield list(range(start, start + len(batch))), batch


def open_image_encoder(folder: Path, input_names: Sequence[str]) -> ImageEncoder:
    """Open the encoder of a folder that holds preprocessor_config.json.

    Raises:
        BadInput: as `read_processor`, or the graph has inputs that an image does not give.
    """
    if len(input_names) > 1:
        raise BadInput(f"the graph has inputs {', '.join(input_names)}, and an image gives one: remove the others")
    return ImageEncoder(read_processor(folder), *input_names)


def measure_images(folder: Path, inputs: Sequence[bytes]) -> EncodedSizes:
    """Encode images, one at a time, with a preprocessor_config.json that nobody has tried; they have no tokens.

    Raises:
        BadInput: as `open_image_encoder`, or an image cannot be decoded.
    """
    encoder = open_image_encoder(folder, ())
    for content in inputs:
        encoder.encode([content])
    return EncodedSizes((), 0)
