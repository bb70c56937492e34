"""Image files to pixels, with limits."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from compression.errors import DataRefused

MAX_IMAGE_PIXELS = 64_000_000
"""Of one picture: a file of some kilobytes can claim gigabytes."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Decoders that are tried; Pillow has others (PostScript, for one, runs a program)."""

Shape = tuple[int, int, int]


def decode_image(data: bytes, shape: Shape | None, *, where: str) -> NDArray[np.uint8]:
    """Return one picture as `C x H x W` uint8.

    Args:
        data: The file.
        shape: C, H, W that the network takes: the picture becomes grey or RGB, is scaled so that
            it covers H x W, and its centre is cut out. None: RGB (or grey, if it is) as it is.
        where: Name of the picture, for messages.

    Raises:
        DataRefused: It is no picture, is damaged or too large.
    """
    try:
        with warnings.catch_warnings():
            # The size is checked below, against our own limit.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise DataRefused(
                f"Image {where} has {image.width} x {image.height} pixels; "
                f"at most {MAX_IMAGE_PIXELS} are accepted"
            )
        upright = ImageOps.exif_transpose(image)
        converted = upright.convert(_mode(upright, shape))
        if shape is not None and converted.size != (shape[2], shape[1]):
            size = (shape[2], shape[1])
            converted = ImageOps.fit(converted, size, Image.Resampling.BICUBIC)
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
    ) as error:
        if isinstance(error, DataRefused):
            raise
        raise DataRefused(f"Image {where} cannot be decoded: {error}") from error
    pixels = np.asarray(converted, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _mode(image: Image.Image, shape: Shape | None) -> str:
    if shape is None:
        return "L" if image.mode in ("L", "1") else "RGB"
    if shape[0] not in (1, 3):
        raise DataRefused(f"Image files have 1 or 3 channels; input_shape asks for {shape[0]}")
    return "L" if shape[0] == 1 else "RGB"
