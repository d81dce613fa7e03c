"""The steps from an image to the pixels that a network takes, and from boxes in these back to the image.

Those of transformers' processors on Pillow (image_processing_vit.py and its kin, 4.57.6), to the last bit.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

# What Ultralytics puts around an image that is not of the network's shape, of 255.
_GREY = 114


@dataclass(frozen=True)
class ImageProcessor:
    """The steps from an image to the model's pixels.

    `resize` is (height, width), or the length of the shorter edge; `crop` the (height, width) that is kept of the
    middle. `is_padded`: the image keeps its shape, is resized to fit into `resize`, and stands in the middle on grey.
    Then values are multiplied by `scale`, and `mean` and `deviation` of each channel are taken out. `reduces_labels`:
    of masks 0 is no class, and class 0 is 1. `kind` is the processor's name, and `nms_overlap` the overlap above which
    only the surest of two boxes is kept.
    """

    resize: tuple[int, int] | int
    crop: tuple[int, int] | None
    resample: int
    scale: float | None
    mean: tuple[float, ...] | None
    deviation: tuple[float, ...] | None
    reduces_labels: bool = False
    is_padded: bool = False
    kind: str = ""
    nms_overlap: float = 0.7

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of what the model sees."""
        return self.crop or (self.resize if isinstance(self.resize, tuple) else (self.resize, self.resize))

    def process(self, image: "Image") -> NDArray[np.float32]:
        """Return an RGB image as the model sees it, float32 [channels, height, width]."""
        height, width = self.resize if isinstance(self.resize, tuple) else _fit_shorter(image.size, self.resize)
        values: NDArray[Any] = (
            self._pad(image) if self.is_padded else np.asarray(image.resize((width, height), self.resample))
        )
        if self.crop:
            top, left = (height - self.crop[0]) // 2, (width - self.crop[1]) // 2
            values = values[top : top + self.crop[0], left : left + self.crop[1]]
        scaled = (
            values.astype(np.float32) if self.scale is None else (values * np.float64(self.scale)).astype(np.float32)
        )
        if self.mean and self.deviation:
            mean, deviation = (np.array(each, dtype=np.float32) for each in (self.mean, self.deviation))
            scaled = (scaled - mean) / deviation
        return np.ascontiguousarray(scaled.transpose(2, 0, 1))

    def _pad(self, image: "Image") -> NDArray[Any]:
        """Return an image of its own shape in the middle of a grey one, uint8 [height, width, 3]."""
        top, left, height, width = self._place((image.height, image.width))
        values = np.full((*self.size, 3), _GREY, dtype=np.uint8)
        values[top : top + height, left : left + width] = np.asarray(image.resize((width, height), self.resample))
        return values

    def _place(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return (top, left, height, width) of an image of (height, width) in what the model sees."""
        if not self.is_padded:
            return 0, 0, *self.size
        share = min(whole / edge for whole, edge in zip(self.size, size, strict=True))
        height, width = (max(1, round(edge * share)) for edge in size)
        return (self.size[0] - height) // 2, (self.size[1] - width) // 2, height, width

    def restore_boxes(self, boxes: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float64]:
        """Return boxes in the pixels of an image of (height, width), cut at its edges, float64 [boxes, 4].

        `boxes` are (left, top, right, bottom) as shares of what the model sees.
        """
        top, left, height, width = self._place(size)
        seen = boxes.astype(np.float64) * (self.size[1], self.size[0], self.size[1], self.size[0])
        scale = np.array([size[1] / width, size[0] / height] * 2)
        edges: NDArray[np.float64] = ((seen - (left, top, left, top)) * scale).clip(0, [size[1], size[0]] * 2)
        return edges


def _fit_shorter(size: tuple[int, int], edge: int) -> tuple[int, int]:
    """Return the (height, width) with a shorter edge of `edge`, for an image of (width, height)."""
    width, height = size
    longer = int(edge * max(size) / min(size))
    return (longer, edge) if width <= height else (edge, longer)
