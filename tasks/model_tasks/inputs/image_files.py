"""Image files: decoded with Pillow within limits, as pixels or as masks of classes."""

import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from registry.errors import BadInput, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

# A decoded pixel has 3 bytes: 150 MB.
MOST_PIXELS = 50_000_000
# Resizing keeps the shape: a line of one by a million pixels would become one of 224 by 224 million.
MOST_STRETCHED = 32
# Pillow reads many more, some through other programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# What masks have where a pixel is not to be judged.
IGNORED = 255
_MASK_MODES = ("1", "L", "P", "I", "I;16")
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)


def decode_image(content: bytes) -> "Image":
    """Decode an encoded image: upright, RGB, the first frame of several.

    As transformers' pipelines load images (image_utils.load_image): alpha is dropped, grey gets three channels.

    Raises:
        BadInput: it is no image of `FORMATS`, or too large.
    """
    return _read_image(content, thumbnail=False)


def check_image(content: bytes) -> None:
    """Check that an encoded image can be decoded.

    Raises:
        BadInput: as `decode_image`.
    """
    _read_image(content, thumbnail=True)


def read_size(content: bytes) -> tuple[int, int]:
    """Return the (height, width) of an encoded image, upright.

    Raises:
        BadInput: as `decode_image`.
    """

    def read(image: "Image") -> tuple[int, int]:
        width, height = image.size
        return (width, height) if image.getexif().get(_ORIENTATION) in _SIDEWAYS else (height, width)

    return _open_image(content, read)


def decode_mask(content: bytes) -> NDArray[np.uint8]:
    """Decode an encoded mask, which has one number a pixel (grey or of a palette): uint8 [height, width].

    Raises:
        BadInput: as `decode_image`, or it has colours, or numbers above 255.
    """

    def read(image: "Image") -> NDArray[np.uint8]:
        if image.mode not in _MASK_MODES:
            raise BadInput(
                f"the mask is an image of mode {image.mode}: give one number a pixel, as grey or by a palette"
            )
        values = np.asarray(image)
        if values.size and not 0 <= int(values.min()) <= int(values.max()) <= IGNORED:
            raise BadInput(f"the mask has a pixel of {int(values.max())}: numbers of classes end at {IGNORED - 1}")
        return values.astype(np.uint8)

    return _open_image(content, read)


def _read_image(content: bytes, *, thumbnail: bool) -> "Image":
    from PIL import ImageOps  # native code, which planning a release does not need

    def read(image: "Image") -> "Image":
        if thumbnail:
            image.draft("RGB", (1, 1))  # a JPEG is read to its end in any case, and an eighth of it is decoded
        return ImageOps.exif_transpose(image).convert("RGB")

    return _open_image(content, read)


def _open_image(content: bytes, read: Callable[["Image"], T]) -> T:
    """Open an encoded image of a size that is read, and return what `read` makes of it."""
    from PIL import Image, UnidentifiedImageError  # native code, which planning a release does not need

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of sizes, which are refused here, and of odd metadata
            image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
            _check_size(*image.size)
            return read(image)
    except (BadInput, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise BadInput(f"the image has more than {MOST_PIXELS / 1e6:.0f} megapixels: make it smaller") from None
    except Exception as error:  # what Pillow raises depends on the format
        reason = "no image" if isinstance(error, UnidentifiedImageError) else first_line(error)[:100]
        raise BadInput(
            f"the image's {len(content)} bytes cannot be decoded ({reason}): give a PNG, JPEG or WebP"
        ) from error


def _check_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise BadInput(f"the image has more than {MOST_PIXELS / 1e6:.0f} megapixels: make it smaller")
    if max(width, height) > MOST_STRETCHED * min(width, height):
        raise BadInput(f"the image is {width} by {height} pixels, more than {MOST_STRETCHED} to 1: cut it")
