"""WebP files, decoded by the libwebp that comes with Pillow, but not by Pillow.

Pillow decodes every WebP file as an animation, on two canvases, and copies the last of them while it holds the
interpreter's lock: 13 megapixels stop every other thread for 40 ms, or 120 where the memory is new. Here the pixels are
decoded to where they stay, in half the memory, and no lock is held (https://developers.google.com/speed/webp/docs/api).
"""

import ctypes
import functools
from typing import Any

import numpy as np
from PIL import Image, _webp

BYTES_A_PIXEL = 9  # at the peak: the pixels, and more than as many bytes for a decoder of lossless pixels or of alpha


def is_offered() -> bool:
    """Whether Pillow's build has the function that is called here."""
    return _decode_into() is not None


def decoded(file: bytes, opened: Image.Image) -> Image.Image:
    """The pixels of a file that has one picture, with what its header says.

    Args:
        file: the whole file.
        opened: the same, opened by Pillow.

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
    """`WebPDecodeRGBAInto` (webp/decode.h); None where Pillow's build does not show it."""
    try:
        # A handle of Pillow's module finds the functions of the libraries that it is linked to.
        function = ctypes.CDLL(_webp.__file__).WebPDecodeRGBAInto
    except (AttributeError, OSError):
        return None
    # data, its size, output buffer, its size, bytes of a row; gives the buffer, or null.
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    function.restype = ctypes.c_void_p
    return function
