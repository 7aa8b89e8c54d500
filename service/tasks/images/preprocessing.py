"""Encoded image to pixels: the preprocessing that all tasks of images share.

    JPEG, PNG or WebP ── decoded, upright, resized, cropped, on white ──> RGB ── normalised ──> graph

The same code prepares the images that conversion compares and measures with (`export/conversion/model_source.py`).
Shapes: B rows of an engine call, C channels, H height, W width.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.errors import InvalidRequest
from service.tasks.images.image_file import (
    DecodingMemory,
    OpenedImage,
    decoding,
    file_of,
    opened_image,
    resized,
    size_upright,
)
from service.tasks.stored_task import Example, Padding, TaskError, TaskFiles
from service.tasks.task import Preparation, PrepareOptions, RequestLimits, check_num_rows
from service.tensors import Arrays, TensorSpec

PREPROCESSOR = "preprocessor_config.json"
# A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size if that is still at least this many times the model's size.
# From 12 megapixels to 32 x 32 that took 14 ms instead of 108, and no level of the result differed by more than one.
MIN_JPEG_SIZE_FACTOR = 4
# The longest image, by the ratio of its sides, that is resized by its shortest edge. It bounds the size of the result:
# an image of 65,535 x 1 pixels would get 256 rows of 16 million pixels.
MAX_ASPECT_RATIO = 32


class ImageSize(msgspec.Struct, frozen=True):
    """A size in a preprocessor configuration, in pixels: height and width, or the length of the shortest edge."""

    height: int | None = None
    width: int | None = None
    shortest_edge: int | None = None

    def __post_init__(self) -> None:
        """Check that exactly one of the two forms is given.

        Raises:
            ValueError: neither or both are given, or a length is not positive.
        """
        sides = (self.height, self.width) if self.shortest_edge is None else (self.shortest_edge,)
        both = self.shortest_edge is not None and not self.height is self.width is None
        if both or not all(side is not None and side > 0 for side in sides):
            raise ValueError("a size has a height and a width, or a shortest_edge, in pixels")

    @property
    def sides(self) -> tuple[int, int]:
        """The least height and width of an image that was resized to this size."""
        if self.shortest_edge is not None:
            return self.shortest_edge, self.shortest_edge
        assert self.height is not None
        assert self.width is not None
        return self.height, self.width


class PreprocessorConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a Hugging Face `preprocessor_config.json` that the server needs; others are ignored.

    `crop_rounding` is this repository's own: how half a pixel is rounded where the margins of a crop are not equal.
    `transformers` rounds down, torchvision to the even number.
    """

    size: ImageSize
    do_resize: bool
    resample: Literal[1, 2, 3]  # Pillow's numbers: Lanczos, bilinear, bicubic; all antialiased
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    do_center_crop: bool = False
    crop_size: ImageSize | None = None
    crop_rounding: Literal["down", "even"] = "down"

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of the image that the graph takes."""
        return (self.crop_size if self.do_center_crop and self.crop_size else self.size).sides

    def __post_init__(self) -> None:
        """Refuse settings that are not supported.

        Raises:
            ValueError: pixels would have to be prepared in another way.
        """
        if not (self.do_resize and self.do_rescale and self.do_normalize):
            raise ValueError("only do_resize, do_rescale and do_normalize together are offered")
        if self.do_center_crop and self.crop_size is None:
            raise ValueError("do_center_crop without a crop_size")
        if self.crop_size is not None and self.crop_size.shortest_edge is not None:
            raise ValueError("crop_size needs a height and a width")
        if self.size.shortest_edge is not None and not self.do_center_crop:
            raise ValueError("size has a shortest_edge, which needs do_center_crop: images must become equally large")
        if any(cropped > side for cropped, side in zip(self.pixels, self.size.sides, strict=True)):
            raise ValueError("crop_size is larger than size")

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height to which an upright image is resized before it is cropped.

        Raises:
            ValueError: the image is too long to be resized by its shortest edge.
        """
        edge = self.size.shortest_edge
        if edge is None:
            return self.size.sides[1], self.size.sides[0]
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise ValueError(
                f"has {width} x {height} pixels; the model resizes images by their shortest edge, and the longest may"
                f" be at most {MAX_ASPECT_RATIO} times as long"
            )
        # In this order, as torchvision and `transformers` compute it: the result is rounded down.
        return (edge, int(edge * height / width)) if width <= height else (int(edge * width / height), edge)

    def crop_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom of the crop of a resized image."""
        high, wide = self.pixels
        if self.crop_rounding == "down":
            left, top = (width - wide) // 2, (height - high) // 2
        else:
            left, top = round((width - wide) / 2), round((height - high) / 2)
        return left, top, left + wide, top + high


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """A preprocessed image, which is an item of the batcher: one row, and all have the same length."""

    pixels_CHW: NDArray[np.float32]
    rows: int = 1
    length: int = 1
    batch_key: None = None
    truncated: bool = False

    def digest(self) -> str:
        """Return the sha256 of the pixels as little-endian float32; golden examples hold it instead of the pixels."""
        return "sha256:" + hashlib.sha256(self.pixels_CHW.astype("<f4").tobytes()).hexdigest()


class ImagePreprocessing:
    """The inputs and the preprocessing that all tasks of images share."""

    optional_inputs: tuple[TensorSpec, ...] = ()
    accepts: ClassVar[str] = "images"
    input_field: ClassVar[str] = "image[{}]"
    request_options: ClassVar[frozenset[str]] = frozenset()
    takes_files: ClassVar[bool] = True
    pads_rows: ClassVar[bool] = False
    max_length = 1
    inputs = (TensorSpec("image", "BYTES", (-1,)),)

    def __init__(self, config: PreprocessorConfig, graph_input: str) -> None:
        """Set up from the contents of a model folder.

        Args:
            config: how images are resized, cropped and normalised.
            graph_input: the name of the graph's only input.
        """
        self._config = config
        self._resample = Image.Resampling(config.resample)
        self._graph_input = graph_input
        # Two steps in the order of training, so that the results are equal bit by bit, as in x / 127.5 - 1.
        std_C, mean_C = np.array(config.image_std), np.array(config.image_mean)
        self._divisor_C11 = (std_C / config.rescale_factor).astype(np.float32)[:, None, None]
        self._offset_C11 = (mean_C / std_C).astype(np.float32)[:, None, None]

    @staticmethod
    def preprocessor_of(files: TaskFiles, graph_inputs: Sequence[str]) -> tuple[PreprocessorConfig, str]:
        """Read the arguments of `ImagePreprocessing` from a model folder.

        Raises:
            TaskError: the graph has more than one input.
        """
        if len(graph_inputs) != 1:
            raise TaskError(f"the graph has {len(graph_inputs)} inputs, a model of images has one")
        return files.config(PREPROCESSOR, PreprocessorConfig), graph_inputs[0]

    @classmethod
    def padding(cls, files: TaskFiles) -> Padding | None:  # noqa: ARG003, all images have one size
        """Return how calls on a GPU are padded: in rows only."""
        return Padding()

    def read(self, inputs: Arrays) -> list[bytes]:
        """Return the files of the tensor `image`."""
        files: list[bytes] = inputs["image"].tolist()
        return files

    def prepare(
        self,
        inputs: Sequence[bytes],
        options: PrepareOptions,
        field: str,
        limits: RequestLimits,
        memory: DecodingMemory | None = None,
    ) -> Preparation:
        """Plan the decoding of images, always in threads.

        Pillow releases the interpreter's lock, and a large image takes hundreds of megabytes while it is decoded.
        Measured on one core: 0.03 to 0.05 ms for 32 x 32, 2 to 5 ms for 640 x 480, 14 ms for a JPEG of 12 megapixels
        and 250 ms for a WebP of that size. The length of a file does not predict its cost, and the hand-over of 0.1 ms
        is little beside the computation of an image model.
        """
        check_num_rows(len(inputs), limits.max_request_rows)

        def decode(number: int) -> list[Pixels]:
            name = field.format(number)
            limit = limits.max_image_pixels
            return [self.preprocess(inputs[number], field=name, max_image_pixels=limit, memory=memory)]

        steps = [partial(decode, number) for number in range(len(inputs))]
        return Preparation(steps, len(inputs), False, "images", "decoded")

    def preprocess(
        self,
        file: bytes,
        *,
        field: str,
        max_image_pixels: int | None = None,
        memory: DecodingMemory | None = None,
    ) -> Pixels:
        """Convert an encoded image to pixels.

        Args:
            file: a JPEG, PNG or WebP image of any size, or its base64 (JSON cannot carry bytes).
            field: the client's name of this image, for messages.
            max_image_pixels: the largest image that is decoded; None leaves it to Pillow, which has a limit too.
            memory: the memory that all decoded images share; None for no bound.

        Raises:
            InvalidRequest: the file has another format, is damaged or animated, or has too many pixels.
            DeadlineExceeded: other images held the memory until the deadline.
        """
        levels_HWC = self.levels(file, field=field, max_image_pixels=max_image_pixels, memory=memory)
        return Pixels(self.normalised(levels_HWC))

    def levels(
        self,
        file: bytes,
        *,
        field: str,
        max_image_pixels: int | None = None,
        memory: DecodingMemory | None = None,
    ) -> NDArray[np.uint8]:
        """Convert an encoded image to RGB in the model's size, uint8 [H, W, 3].

        It is resized as the model's configuration says, and for some models cropped to the middle. An image of the
        model's size is not changed by models that do not crop. Arguments are those of `preprocess`.

        Raises:
            InvalidRequest: for the reasons of `preprocess`.
        """
        with decoding(field), self._opened(file, field, max_image_pixels, memory) as opened:
            image = resized(opened.image, opened.target_size, self._resample)
            box = self._config.crop_box(*opened.target_size)
            if box != (0, 0, *opened.target_size):
                image = image.crop(box)
            return np.asarray(_on_white(image))

    def picture(
        self,
        file: bytes,
        *,
        field: str,
        side: int,
        max_image_pixels: int | None = None,
        memory: DecodingMemory | None = None,
    ) -> Image.Image:
        """Make a picture for people of what the model sees of an encoded image: RGB, in its own proportions.

        Args:
            file: the image, see `preprocess`.
            field: the client's name of this image, for messages.
            side: the longest side of the whole image, in pixels. A smaller image is enlarged by an integer factor, so
                that each pixel becomes a square.
            max_image_pixels: see `preprocess`.
            memory: see `preprocess`.

        Raises:
            InvalidRequest: for the reasons of `preprocess`.
        """
        with decoding(field), self._opened(file, field, max_image_pixels, memory, side) as opened:
            upright_size = size_upright(opened.image)
            scale = side / max(upright_size)
            scale = scale if scale < 1 else int(scale)
            width, height = (max(1, round(scale * pixels)) for pixels in upright_size)
            image = resized(opened.image, (width, height), self._resample if scale < 1 else Image.Resampling.NEAREST)
            across, down = width / opened.target_size[0], height / opened.target_size[1]
            left, top, right, bottom = self._config.crop_box(*opened.target_size)
            return _on_white(
                image.crop((int(left * across), int(top * down), round(right * across), round(bottom * down)))
            )

    def _opened(
        self,
        file: bytes,
        field: str,
        max_image_pixels: int | None,
        memory: DecodingMemory | None,
        side: int = 0,
    ) -> contextlib.AbstractContextManager[OpenedImage]:
        """Open an image that can be decoded, at no less than `side` pixels if it has them."""

        def target_size(width: int, height: int) -> tuple[int, int]:
            try:
                return self._config.resized_size(width, height)
            except ValueError as error:
                raise InvalidRequest(f"{field} {error}") from None

        smallest_side = max(side, MIN_JPEG_SIZE_FACTOR * max(self._config.size.sides))
        return opened_image(
            file_of(file, field), field, max_image_pixels, memory, smallest_side, target_size, min_width=side
        )

    def normalised(self, levels_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Normalise levels from 0 to 255 to the graph's input, float32 [3, H, W]."""
        levels_CHW = levels_HWC.transpose(2, 0, 1).astype(np.float32)
        pixels_CHW: NDArray[np.float32] = levels_CHW / self._divisor_C11 - self._offset_C11
        return pixels_CHW

    def collate(self, items: Sequence[Pixels]) -> Arrays:
        """Batch items into the feeds of one engine call, float32 [B, 3, H, W]."""
        return {self._graph_input: np.stack([item.pixels_CHW for item in items])}

    def probe_item(self, items: Sequence[Pixels], length: int) -> Pixels:
        """Return a golden item: all have the same length."""
        return items[0]

    def golden_item(self, example: Example, search: str = "") -> Pixels:
        """Decode a golden example.

        Raises:
            TaskError: it becomes other pixels than in training.
        """
        pixels = self.preprocess(example.inputs["image"].encode(), field="image")
        if pixels.digest() != example.tensors["pixel_values"]:
            raise TaskError("preprocessing gives other pixels than in training")
        return pixels


def _on_white(image: Image.Image) -> Image.Image:
    """Convert an image to RGB, on white where it is transparent.

    This follows resizing. Resizing weighs colours by their alpha, so except for rounding the order does not matter, but
    in the image's own size this step took more than twice the time and memory.
    """
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
