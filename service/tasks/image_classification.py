"""Encoded image to label: what happens before and after the graph of an image classifier.

    JPEG, PNG or WebP ── decoded, upright, resized, on white ──> RGB ── normalised ──> graph ──> logits ──> label

The same code prepares the images that conversion compares and measures with (`export/source.py`). Shapes: B rows of an
engine call, C channels, H height, W width.
"""

import binascii
import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import (
    Image,
    WebPImagePlugin,  # noqa: F401, registers itself: Pillow would else import every plugin it has to find this one
)

from service.errors import InvalidRequest
from service.tasks.classification import Classifier
from service.tensors import Arrays, TensorSpec

# The decoders that are ever tried, by Pillow's names.
FORMATS = ("JPEG", "PNG", "WEBP")
JPEGS = {"JPEG", "MPO"}  # MPO: with further pictures behind the first
# A progressive JPEG refines the image scan by scan, about ten times. A file of a few megabytes can hold so many scans,
# each of a few bytes, that it is decoded for hours.
MAX_JPEG_SCANS = 100
# The markers that have content, and among them those of a scan and of the image's end (ITU-T T.81, B.1.1.3). Among
# compressed data, 0xff stands only before a marker or before 0. Of those below 0xc0 libjpeg skips no content.
JPEG_MARKER, JPEG_SCAN, JPEG_END = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]"), 0xDA, 0xD9
# JPEG has no longer one; resizing an image of millions of pixels by one takes gigabytes.
MAX_SIDE_PIXELS = 65_535
# What base64 of a file of these formats begins with; none of the files themselves does.
BASE64_BEGINNINGS = (b"/9j/", b"iVBORw0K", b"UklGR")
# EXIF tag and its values, to what turns the image upright (EXIF 2.32, 4.6.4 A).
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
# A JPEG may be decoded at a fraction of its size (1/2, 1/4, 1/8) while that is at least so many times the model's.
# For 12 megapixels to 32 x 32 that took 14 ms instead of 108, and no level of the result differed by more than one.
JPEG_SIZE_KEPT = 4


class ImageSize(msgspec.Struct, frozen=True):
    """`size` of a preprocessor configuration, in pixels."""

    height: int
    width: int


class PreprocessorConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`preprocessor_config.json` in Hugging Face form, as far as it is needed here; the rest is passed over."""

    size: ImageSize
    do_resize: bool
    resample: Literal[2, 3]  # Pillow's numbers: bilinear, bicubic; both antialiased
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    do_center_crop: bool = False
    crop_size: ImageSize | None = None

    @property
    def pixels(self) -> ImageSize:
        """What the graph takes."""
        return self.crop_size if self.do_center_crop and self.crop_size else self.size

    def __post_init__(self) -> None:
        """Refuse, when the file is read, what is not done here.

        Raises:
            ValueError: another way of preparing pixels.
        """
        if not (self.do_resize and self.do_rescale and self.do_normalize):
            raise ValueError("only do_resize, do_rescale and do_normalize together are offered")
        if self.do_center_crop and self.crop_size is None:
            raise ValueError("do_center_crop without a crop_size")
        if self.pixels.height > self.size.height or self.pixels.width > self.size.width:
            raise ValueError("crop_size is larger than size")


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """One image, ready for the graph. An item of the batcher: one row, all of one length."""

    pixels_CHW: NDArray[np.float32]
    rows: int = 1
    length: int = 1
    group: None = None
    truncated: bool = False

    def digest(self) -> str:
        """The sha256 of the pixels, float32 little-endian, for golden examples: the pixels themselves are too many."""
        return "sha256:" + hashlib.sha256(self.pixels_CHW.astype("<f4").tobytes()).hexdigest()


class ImageClassification(Classifier):
    """The pure part of an image classifier."""

    inputs = (TensorSpec("image", "BYTES", (-1,)),)

    def __init__(self, config: PreprocessorConfig, *, labels: Sequence[str], graph_input: str) -> None:
        """Set up from the contents of a model folder.

        Args:
            config: how pixels are prepared.
            labels: names of the classes, by number.
            graph_input: the name of the graph's only input.
        """
        super().__init__(labels)
        self._size = (config.size.width, config.size.height)
        left, top = ((config.size.width - config.pixels.width) // 2, (config.size.height - config.pixels.height) // 2)
        self._cropped = (left, top, left + config.pixels.width, top + config.pixels.height)
        self._resample = Image.Resampling(config.resample)
        self._graph_input = graph_input
        # Two steps, (level - mean) / std with all in levels, as training computes them: x / 127.5 - 1, bit for bit.
        std_C, mean_C = np.array(config.image_std), np.array(config.image_mean)
        self._divisor_C11 = (std_C / config.rescale_factor).astype(np.float32)[:, None, None]
        self._offset_C11 = (mean_C / std_C).astype(np.float32)[:, None, None]

    def preprocess(self, file: bytes, *, field: str, max_image_pixels: int | None = None) -> Pixels:
        """An encoded image to pixels.

        Args:
            file: a JPEG, PNG or WebP image of any size, or its base64 (JSON carries nothing else).
            field: what the client calls this image, for messages.
            max_image_pixels: the largest image that is decoded; None leaves it to Pillow, which has a limit too.

        Raises:
            InvalidRequest: it is no such file, damaged, animated, or has too many pixels.
        """
        return Pixels(self.normalised(self.levels(file, field=field, max_image_pixels=max_image_pixels)))

    def levels(self, file: bytes, *, field: str, max_image_pixels: int | None = None) -> NDArray[np.uint8]:
        """An encoded image to RGB in the model's size, uint8 [H, W, 3].

        It is stretched to the model's size, which an image of that size passes through unchanged; of some models the
        middle of that is taken.

        Raises:
            InvalidRequest: as `preprocess`.
        """
        with _decoding(field):
            image = self._upright(file, field, max_image_pixels)
            if image.size != self._size:
                image = image.resize(self._size, self._resample)
            if self._cropped != (0, 0, *self._size):
                image = image.crop(self._cropped)
            return np.asarray(_on_white(image))

    def picture(self, file: bytes, *, field: str, side: int, max_image_pixels: int | None = None) -> Image.Image:
        """What the model is shown of an encoded image, for people: RGB, in its own proportions.

        Args:
            file: as `preprocess`.
            field: as `preprocess`.
            side: the longest side of the whole image; a smaller one is enlarged by a whole factor, each pixel a square.
            max_image_pixels: as `preprocess`.

        Raises:
            InvalidRequest: as `preprocess`.
        """
        with _decoding(field):
            image = self._upright(file, field, max_image_pixels, side)
            scale = side / max(image.size)
            scale = scale if scale < 1 else int(scale)
            width, height = (max(1, round(scale * pixels)) for pixels in image.size)
            image = image.resize((width, height), self._resample if scale < 1 else Image.Resampling.NEAREST)
            across, down = width / self._size[0], height / self._size[1]
            left, top, right, bottom = self._cropped
            return _on_white(
                image.crop((int(left * across), int(top * down), round(right * across), round(bottom * down)))
            )

    def _upright(self, file: bytes, field: str, max_image_pixels: int | None, side: int = 0) -> Image.Image:
        """An image as it is meant to be seen, at least `side` pixels long where it has them."""
        opened = _opened(_file_of(file, field), field, max_image_pixels)
        orientation = opened.getexif().get(ORIENTATION_TAG)
        if opened.format in JPEGS:
            side = max(side, JPEG_SIZE_KEPT * max(self._size))
            opened.draft(None, (side, side))
        image = _in_colours(opened)
        return image.transpose(UPRIGHT_BY[orientation]) if orientation in UPRIGHT_BY else image

    def normalised(self, levels_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Levels from 0 to 255 to what the graph takes, float32 [3, H, W]."""
        levels_CHW = levels_HWC.transpose(2, 0, 1).astype(np.float32)
        pixels_CHW: NDArray[np.float32] = levels_CHW / self._divisor_C11 - self._offset_C11
        return pixels_CHW

    def collate(self, items: Sequence[Pixels]) -> Arrays:
        """Feeds of one engine call, float32 [B, 3, H, W]."""
        return {self._graph_input: np.stack([item.pixels_CHW for item in items])}


@contextlib.contextmanager
def _decoding(field: str) -> Iterator[None]:
    """What a decoder raises for a damaged file is any of a dozen types: all become one."""
    try:
        yield
    except (MemoryError, InvalidRequest):
        raise
    except Exception as error:
        raise InvalidRequest(f"{field} cannot be decoded, the file is damaged: {error}") from None


def _file_of(file: bytes, field: str) -> bytes:
    """The file itself, where it may be its base64.

    Raises:
        InvalidRequest: it looks like base64 and is none.
    """
    if not file.startswith(BASE64_BEGINNINGS):
        return file
    try:
        return binascii.a2b_base64(b"".join(file.split()), strict_mode=True)
    except binascii.Error as error:
        raise InvalidRequest(f"{field} is not base64: {error}") from None


def _opened(file: bytes, field: str, max_image_pixels: int | None) -> Image.Image:
    """Read the header, and refuse by it."""
    limit = "what can be opened" if max_image_pixels is None else f"the limit of {max_image_pixels} (max_image_pixels)"
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
    # A phone's JPEG may hold further pictures for viewers that know of them (MPO): that is no animation.
    if opened.format != "MPO" and getattr(opened, "n_frames", 1) > 1:
        raise InvalidRequest(f"{field} is animated, with {getattr(opened, 'n_frames', 0)} frames; send one of them")
    return opened


def _num_scans(file: bytes) -> int:
    """Scans of a JPEG, at most one more than is allowed; not of the pictures or films that lie within or behind it."""
    scans, position = 0, 0
    while scans <= MAX_JPEG_SCANS and (found := JPEG_MARKER.search(file, position)):
        marker, position = file[found.end() - 1], found.end()
        if marker == JPEG_END:
            break
        scans += marker == JPEG_SCAN
        position += int.from_bytes(file[position : position + 2])  # the marker's own content
    return scans


def _in_colours(image: Image.Image) -> Image.Image:
    """RGB, or RGBA where something is transparent, of any mode that the decoders give."""
    if image.mode.startswith("I"):  # 16 bits of grey; Pillow's own conversion clips all above 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _on_white(image: Image.Image) -> Image.Image:
    """RGB; what is transparent lies on white, as on a page.

    Done after resizing, which weighs colours by their alpha, so that but for rounding the order is all one: in the
    image's own size it took more than twice the time and memory.
    """
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
