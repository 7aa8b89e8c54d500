"""Images are resized by their shortest edge and cropped as Pillow does it, whatever their size."""

import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.conversion.golden_images import shapes
from service.errors import InvalidRequest
from service.process.memory_budget import ByteBudget
from service.tasks.images.image_classification import ImageClassification
from service.tasks.images.image_file import ORIENTATION_TAG, DecodingMemory
from service.tasks.images.preprocessing import MAX_ASPECT_RATIO, ImageSize, PreprocessorConfig
from tests.service.tasks.images.test_image_classification import SETTINGS, file_of

EDGE, CROP = 40, 33


def task(**changes: Any) -> ImageClassification:
    """A task that resizes the shortest edge to 40 pixels and crops 33 x 33 of them."""
    options = {"size": ImageSize(shortest_edge=EDGE), "do_center_crop": True, "crop_size": ImageSize(CROP, CROP)}
    config = PreprocessorConfig(**SETTINGS | options | changes)
    return ImageClassification(config, labels=["a"], graph_input="x")


def expected(image: Image.Image, *, to_even: bool = False) -> np.ndarray[Any, Any]:
    """Resize and crop with Pillow; uint8 [H, W, 3]."""
    width, height = image.size
    size = (EDGE, int(EDGE * height / width)) if width < height else (int(EDGE * width / height), EDGE)
    margins = [(side - CROP) / 2 for side in size]
    left, top = (round(margin) if to_even else int(margin) for margin in margins)
    cropped = image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + CROP, top + CROP))
    return np.asarray(cropped)


@pytest.mark.parametrize("size", [(100, 60), (61, 99), (40, 40), (39, 90), (12, 300), (257, 31)])
def test_the_shortest_edge_is_resized_and_the_middle_cropped(size: tuple[int, int]) -> None:
    """Proportions are kept, and lengths and margins rounded down; or half pixels to the even number, as torchvision."""
    file = file_of(shapes(*size))
    np.testing.assert_array_equal(task().levels(file, field="image"), expected(shapes(*size)))
    rounded = task(crop_rounding="even").levels(file, field="image")
    np.testing.assert_array_equal(rounded, expected(shapes(*size), to_even=True))


def test_a_turned_photograph_is_resized_by_its_upright_size() -> None:
    """EXIF turns the image; a JPEG is decoded at a fraction of its size, which must not change the proportions."""
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    image = shapes(1001, 667)
    turned = file_of(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif)
    found = task().levels(turned, field="image").astype(int)
    assert found.shape == (CROP, CROP, 3)
    assert np.abs(found - expected(image).astype(int)).mean() < 2


def test_the_picture_for_people_shows_the_cropped_part() -> None:
    """A crop of an image three times as wide as high keeps about a quarter of the width."""
    picture = task().picture(file_of(shapes(300, 100)), field="image", side=600)
    assert picture.size == pytest.approx((165, 165), abs=2)


def test_an_image_of_extreme_proportions_is_refused_before_it_is_decoded() -> None:
    """The result would have millions of pixels; the message says what is taken."""
    budget = ByteBudget("image memory", 10**9)
    memory = DecodingMemory(budget, time.monotonic() + 60)
    line = file_of(Image.new("RGB", (60_000, 2)))
    with pytest.raises(InvalidRequest, match=rf"image\[1\] has 60000 x 2 pixels; .* at most {MAX_ASPECT_RATIO} times"):
        task().preprocess(line, field="image[1]", memory=memory)
    assert budget.reserved_bytes == 0
    long = file_of(shapes(1280, 40))
    assert task().preprocess(long, field="image", memory=memory).pixels_CHW.shape == (3, CROP, CROP)
    assert budget.reserved_bytes == 0


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"do_center_crop": False, "crop_size": None}, "shortest_edge, which needs do_center_crop"),
        ({"crop_size": ImageSize(EDGE + 1, CROP)}, "crop_size is larger than size"),
        ({"crop_size": ImageSize(shortest_edge=CROP)}, "crop_size needs a height and a width"),
    ],
)
def test_sizes_that_cannot_be_served_are_refused(change: dict[str, Any], why: str) -> None:
    """Refused when the file is read."""
    with pytest.raises(ValueError, match=why):
        task(**change)


@pytest.mark.parametrize(
    "size", [{}, {"height": 3}, {"height": 3, "width": 3, "shortest_edge": 3}, {"shortest_edge": 0}]
)
def test_a_size_has_one_form(size: dict[str, int]) -> None:
    """Neither both forms nor half of one."""
    with pytest.raises(ValueError, match="a height and a width, or a shortest_edge"):
        ImageSize(**size)
