"""Opens encoded images by their header, decodes them within a memory bound, turns them upright and resizes them.

Large images are converted, turned and resized in strips, so that there is never a second image of the decoded size.
Except for rounding, the result equals Pillow's own steps on the whole image: rows are resized first and then columns,
which is Pillow's order for most sizes.
"""

import binascii
import contextlib
import math
import re
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import (
    Image,
    WebPImagePlugin,  # noqa: F401, registers itself: Pillow would else import every plugin it has to find this one
)

from service.errors import HeedError, InvalidRequest, TooLarge
from service.process.memory_budget import ByteBudget
from service.tasks.images import webp

# The only decoders that are tried, by Pillow's names.
FORMATS = ("JPEG", "PNG", "WEBP")
JPEGS = {"JPEG", "MPO"}  # MPO: a JPEG with further pictures behind the first
# A progressive JPEG has about ten scans. A file of a few megabytes can hold so many scans of a few bytes each that
# decoding takes hours.
MAX_JPEG_SCANS = 100
# Markers with content, the marker of a scan, and that of the image's end (ITU-T T.81, B.1.1.3). In compressed data,
# 0xff precedes only a marker or 0. After markers below 0xc0, libjpeg skips no content.
JPEG_MARKER, JPEG_SCAN, JPEG_END = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]"), 0xDA, 0xD9
# The longest side of a JPEG. Resizing an image of millions of pixels by 1 takes gigabytes.
MAX_SIDE_PIXELS = 65_535
# First characters of the base64 of these formats; none of the files themselves begins so.
BASE64_BEGINNINGS = (b"/9j/", b"iVBORw0K", b"UklGR")
# A data URL (RFC 2397): media type, parameters, and the marker of base64.
DATA_URL, BASE64_MARKER = b"data:", b";base64"
MAX_DATA_URL_HEAD = 256  # bytes before the comma
# EXIF orientation tag, and the operation that turns the image upright for each value (EXIF 2.32, 4.6.4 A).
ORIENTATION_TAG = 0x0112
UPRIGHT_BY = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
FIRST_ROTATED_ORIENTATION = 5  # from this value on, columns of the stored image are rows of the upright one
MIRRORED_ACROSS, MIRRORED_DOWN = {2, 3, 7, 8}, {3, 4, 6, 7}  # how the stored image is mirrored besides
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Compressed texts and profiles of a PNG. Pillow unpacks up to 1 MiB of each when it opens the file.
PNG_COMPRESSED_CHUNKS, MAX_PNG_COMPRESSED_CHUNKS = {b"zTXt", b"iTXt", b"iCCP"}, 8
# Peak memory of Pillow's own WebP decoder for a pixel: two canvases, a decoder's buffer, and the image as bytes and as
# pixels, of which one replaces another.
PILLOW_WEBP_BYTES_PER_PIXEL = 16
# Memory of Pillow for a pixel of a decoded image, by mode.
PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}
OTHER_PIXEL_BYTES = 4
COEFFICIENT_BYTES = 2  # for a JPEG with several scans, libjpeg keeps all coefficients until the last scan
STRIP_PIXELS = 1_000_000  # size of a strip that is converted and resized at once
COPIES_PER_STRIP = 4
NARROW_PIXEL_BYTES = 4


class DecodingMemory(NamedTuple):
    """The memory that all decoded images share, and the time until which an image waits for its part."""

    budget: ByteBudget
    until_s: float  # on `time.monotonic()`'s clock


class OpenedImage(NamedTuple):
    """An image whose header was read.

    Attributes:
        image: Pillow's image, not yet decoded; a JPEG may be opened at a fraction of its size.
        target_size: width and height to which the upright image is to be resized, by its size in the file.
    """

    image: Image.Image
    target_size: tuple[int, int]


@contextlib.contextmanager
def decoding(field: str) -> Iterator[None]:
    """Turn any of the dozen errors that decoders raise for damaged files into InvalidRequest."""
    try:
        yield
    except (MemoryError, HeedError):
        raise
    except Exception as error:
        raise InvalidRequest(f"{field} cannot be decoded, the file is damaged: {error}") from None


def file_of(file: bytes, field: str) -> bytes:
    """Decode a file that may be base64, or a data URL with base64.

    Raises:
        InvalidRequest: it looks like base64 but is not valid, or is a data URL in another form.
    """
    if file[: len(DATA_URL)].lower() == DATA_URL:
        head, comma, _ = file[:MAX_DATA_URL_HEAD].partition(b",")
        if not comma or not head.lower().rstrip().endswith(BASE64_MARKER):
            raise InvalidRequest(f"{field} is a data URL without base64; data:image/png;base64,... is taken")
        file = file[len(head) + 1 :]
        if b"%" in file:  # '+', '/' and '=' may be escaped in a URL
            file = unquote_to_bytes(file)
    elif not file.startswith(BASE64_BEGINNINGS):
        return file
    try:
        return binascii.a2b_base64(b"".join(file.split()), strict_mode=True)
    except binascii.Error as error:
        raise InvalidRequest(f"{field} is not base64: {error}") from None


@contextlib.contextmanager
def opened_image(
    file: bytes,
    field: str,
    max_image_pixels: int | None,
    memory: DecodingMemory | None,
    smallest_side: int,
    target_size: Callable[[int, int], tuple[int, int]],
    min_width: int = 0,
) -> Iterator[OpenedImage]:
    """Read the header of an image and reserve memory for its pixels.

    Args:
        file: the encoded image.
        field: the client's name of the image, for messages.
        max_image_pixels: the largest image that is decoded; None leaves it to Pillow.
        memory: the memory that all decoded images share; None to reserve nothing.
        smallest_side: the least number of pixels of a side to which a JPEG may be reduced while it is decoded.
        target_size: returns the width and height that an upright image of this width and height will be resized to.
        min_width: memory is reserved for an image that is resized to at least this width.

    Raises:
        InvalidRequest: by its header, the image cannot be decoded here.
        TooLarge: it takes more memory than all images together may have.
        DeadlineExceeded: other images held the memory until the deadline.
    """
    with contextlib.ExitStack() as stack:
        # Pillow's WebP decoder takes memory when it is opened. All memory is reserved at once: threads that hold one
        # part while they wait for another could deadlock.
        webp_size = _webp_size(file)
        if memory is not None and webp_size is not None:
            pixel_bytes = webp.BYTES_PER_PIXEL if webp.is_available() else PILLOW_WEBP_BYTES_PER_PIXEL
            webp_bytes = pixel_bytes * math.prod(webp_size)
            width = max(min_width, target_size(*webp_size)[0], target_size(*webp_size[::-1])[0])  # it may be turned
            stack.enter_context(_reserved(memory, webp_bytes + _resizing_bytes(webp_size, width), field))
        opened = stack.enter_context(_opened(file, field, max_image_pixels))
        full_size, target = opened.size, target_size(*size_upright(opened))
        if opened.format in JPEGS:
            opened.draft(None, (smallest_side, smallest_side))
        if memory is not None and webp_size is None:
            decoded_bytes = math.prod(opened.size) * PIXEL_BYTES.get(opened.mode, OTHER_PIXEL_BYTES)
            if opened.format in JPEGS and _num_scans(file) > 1:
                decoded_bytes += _coefficient_bytes(opened, full_size)
            resizing_bytes = _resizing_bytes(opened.size, max(min_width, target[0]))
            stack.enter_context(_reserved(memory, decoded_bytes + resizing_bytes, field))
        if opened.format == "WEBP" and webp.is_available():
            with decoding(field):
                opened = webp.decoded(file, opened)
        yield OpenedImage(opened, target)


@contextlib.contextmanager
def _reserved(memory: DecodingMemory, num_bytes: int, field: str) -> Iterator[None]:
    try:
        held = memory.budget.held(num_bytes, memory.until_s)
        held.__enter__()
    except TooLarge as error:
        raise TooLarge(f"{field}: {error} (max_image_memory_bytes)") from None
    try:
        yield
    finally:
        held.__exit__(None, None, None)


def _resizing_bytes(size: tuple[int, int], narrow_width: int) -> int:
    """Return the memory for the strips of a decoded image and for their resized versions."""
    strips_bytes = COPIES_PER_STRIP * OTHER_PIXEL_BYTES * min(STRIP_PIXELS, math.prod(size))
    return strips_bytes + NARROW_PIXEL_BYTES * max(size) * min(narrow_width, max(size))


def _coefficient_bytes(opened: Image.Image, size: tuple[int, int]) -> int:
    """Return the memory for the coefficients of all components of a JPEG; some are subsampled."""
    components: list[tuple[int, int, int, int]] = getattr(opened, "layer", []) or [(1, 1, 1, 0)]
    layers = [(across, down) for _, across, down, _ in components]
    most = max(across for across, _ in layers) * max(down for _, down in layers)
    return COEFFICIENT_BYTES * math.prod(size) * sum(across * down for across, down in layers) // most


def _webp_size(file: bytes) -> tuple[int, int] | None:
    """Read width and height from a WebP file's first chunk (WebP container specification); None if it is not WebP."""
    kind, little = file[12:16], int.from_bytes
    if file[:4] != b"RIFF" or file[8:12] != b"WEBP" or len(file) < 30:
        return None
    if kind == b"VP8 ":
        return little(file[26:28], "little") & 0x3FFF, little(file[28:30], "little") & 0x3FFF
    if kind == b"VP8L":
        bits = little(file[21:25], "little")
        return (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    if kind == b"VP8X":
        return little(file[24:27], "little") + 1, little(file[27:30], "little") + 1
    return None


def _check_webp(file: bytes, field: str, max_image_pixels: int | None, limit: str) -> None:
    """Refuse a WebP file by its header, because Pillow would take memory when it opens the file."""
    size = _webp_size(file)
    if size is not None and max_image_pixels is not None and math.prod(size) > max_image_pixels:
        raise InvalidRequest(f"{field} has {size[0]} x {size[1]} pixels, more than {limit}")


def _check_png(file: bytes, field: str) -> None:
    """Refuse a PNG whose compressed texts would unpack to many times its size."""
    position, compressed = len(PNG_SIGNATURE), 0
    while position + 8 <= len(file):
        compressed += file[position + 4 : position + 8] in PNG_COMPRESSED_CHUNKS
        position += 12 + int.from_bytes(file[position : position + 4])
    if compressed > MAX_PNG_COMPRESSED_CHUNKS:
        raise InvalidRequest(
            f"{field} has {compressed} compressed texts and profiles, the limit is {MAX_PNG_COMPRESSED_CHUNKS}"
        )


def _opened(file: bytes, field: str, max_image_pixels: int | None) -> Image.Image:
    """Read the header, and refuse images that it shows to be unsuitable."""
    limit = "what can be opened" if max_image_pixels is None else f"the limit of {max_image_pixels} (max_image_pixels)"
    if file[:4] == b"RIFF":
        _check_webp(file, field, max_image_pixels, limit)
    if file.startswith(PNG_SIGNATURE):
        _check_png(file, field)
    try:
        opened = Image.open(BytesIO(file), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidRequest(f"{field} has more pixels than {limit}") from None
    except MemoryError:
        raise
    except Exception:
        raise InvalidRequest(f"{field} is not a JPEG, PNG or WebP file, or its header is damaged") from None
    width, height = opened.size
    if max_image_pixels is not None and width * height > max_image_pixels:
        raise InvalidRequest(f"{field} has {width} x {height} pixels, more than {limit}")
    if max(width, height) > MAX_SIDE_PIXELS:
        raise InvalidRequest(f"{field} has {width} x {height} pixels, the limit of a side is {MAX_SIDE_PIXELS}")
    if opened.format in JPEGS and _num_scans(file) > MAX_JPEG_SCANS:
        raise InvalidRequest(f"{field} has more than {MAX_JPEG_SCANS} scans, which no camera or editor writes")
    # A phone's JPEG may hold further pictures (MPO). That is not an animation.
    if opened.format != "MPO" and getattr(opened, "n_frames", 1) > 1:
        raise InvalidRequest(f"{field} is animated, with {getattr(opened, 'n_frames', 0)} frames; send one of them")
    return opened


def _num_scans(file: bytes) -> int:
    """Count the scans of a JPEG up to one above the limit, without those of embedded or appended pictures."""
    scans, position = 0, 0
    while scans <= MAX_JPEG_SCANS and (found := JPEG_MARKER.search(file, position)):
        marker, position = file[found.end() - 1], found.end()
        if marker == JPEG_END:
            break
        scans += marker == JPEG_SCAN
        position += int.from_bytes(file[position : position + 2])  # skip the marker's content
    return scans


def _in_colours(image: Image.Image, transparent: bool | None = None) -> Image.Image:
    """Convert an image of any mode to RGB, or to RGBA if it is partly transparent."""
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
        transparent = False
    mode = "RGBA" if (image.has_transparency_data if transparent is None else transparent) else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _orientation(opened: Image.Image) -> int:
    found = opened.getexif().get(ORIENTATION_TAG)
    return next((known for known in UPRIGHT_BY if known == found), 1)


def size_upright(opened: Image.Image) -> tuple[int, int]:
    """Return width and height of an image after it is turned upright."""
    width, height = opened.size
    return (height, width) if _orientation(opened) >= FIRST_ROTATED_ORIENTATION else (width, height)


def resized(opened: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """Turn an image upright and resize it; the result is RGB, or RGBA if it is partly transparent."""
    width, height = size_upright(opened)
    if width * height <= STRIP_PIXELS:
        image = _upright(_in_colours(opened), _orientation(opened))
        return image if image.size == size else image.resize(size, resample)
    step = max(1, STRIP_PIXELS // width)
    narrow: Image.Image | None = None
    for top in range(0, height, step):
        bottom = min(height, top + step)
        strip = opened.crop(_stored_box(opened, (0, top, width, bottom)))
        strip = _upright(_in_colours(strip, opened.has_transparency_data), _orientation(opened))
        if strip.mode == "RGBA" and resample != Image.Resampling.NEAREST:
            strip = strip.convert("RGBa")  # colours weighed by their alpha, as resizing does
        strip = strip.resize((size[0], bottom - top), resample)
        if narrow is None:
            narrow = Image.new(strip.mode, (size[0], height))
        narrow.paste(strip, (0, top))
    assert narrow is not None
    image = narrow.resize(size, resample)
    return image.convert("RGBA") if image.mode == "RGBa" else image


def _stored_box(opened: Image.Image, box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Map a box of the upright image to the stored image."""
    left, top, right, bottom = box
    orientation = _orientation(opened)
    if orientation >= FIRST_ROTATED_ORIENTATION:
        left, top, right, bottom = top, left, bottom, right
    if orientation in MIRRORED_ACROSS:
        left, right = opened.width - right, opened.width - left
    if orientation in MIRRORED_DOWN:
        top, bottom = opened.height - bottom, opened.height - top
    return left, top, right, bottom


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(UPRIGHT_BY[orientation]) if orientation in UPRIGHT_BY else image
