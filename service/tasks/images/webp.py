"""Decodes WebP files with Pillow's copy of libwebp, but without Pillow's decoder.

Pillow decodes every WebP file as an animation on two canvases, and copies the last one while it holds the interpreter's
lock: 13 megapixels stop every other thread for 40 ms, or 120 if the memory is new. This module decodes the pixels in
place, in half the memory and without the lock (https://developers.google.com/speed/webp/docs/api).
"""

import ctypes
import functools
from typing import Any

import numpy as np
from PIL import Image, _webp

BYTES_PER_PIXEL = 9  # peak: 4 for the pixels, and 5 for the decoder of lossless images or of alpha


def is_available() -> bool:
    """Whether Pillow's libwebp exports the function that this module calls."""
    return _decode_into() is not None


def decoded(file: bytes, opened: Image.Image) -> Image.Image:
    """Decode a file with one picture.

    Args:
        file: the whole file.
        opened: the file as opened by Pillow, for size, mode and metadata.

    Raises:
        OSError: the file is damaged.
    """
    decode_into = _decode_into()
    assert decode_into is not None
    width, height = opened.size
    pixels_HW4 = np.empty((height, width, 4), np.uint8)
    if not decode_into(file, len(file), pixels_HW4.ctypes.data, pixels_HW4.nbytes, 4 * width):
        raise OSError("libwebp cannot read the picture")
    mode = "RGBA" if opened.mode == "RGBA" else "RGBX"
    image = Image.frombuffer(mode, opened.size, pixels_HW4, "raw", mode, 0, 1)
    image.info = opened.info
    return image


@functools.cache
def _decode_into() -> Any:
    """Find `WebPDecodeRGBAInto` (webp/decode.h); None if Pillow's libwebp does not export it."""
    try:
        # A handle of Pillow's module also finds functions of the libraries that it is linked to.
        function = ctypes.CDLL(_webp.__file__).WebPDecodeRGBAInto
    except (AttributeError, OSError):
        return None
    # data, its size, output buffer, its size, bytes of a row; returns the buffer or null
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    function.restype = ctypes.c_void_p
    return function
