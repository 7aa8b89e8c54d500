"""Images are decoded within a memory bound, and strips give the same pixels as the whole image."""

import math
import time
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from service.errors import DeadlineExceeded, InvalidRequest, TooLarge
from service.process.memory_budget import ByteBudget
from service.tasks.images import webp
from service.tasks.images.image_classification import ImageClassification
from service.tasks.images.image_file import (
    ORIENTATION_TAG,
    STRIP_PIXELS,
    UPRIGHT_BY,
    DecodingMemory,
    opened_image,
    resized,
)
from service.tasks.images.preprocessing import ImageSize, PreprocessorConfig

SIZE = (1300, 900)  # more than one strip
TASK = ImageClassification(
    PreprocessorConfig(
        size=ImageSize(224, 224),
        do_resize=True,
        resample=2,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
    ),
    labels=["cat", "dog"],
    graph_input="pixels",
)


def noise(mode: str) -> Image.Image:
    """An image of noise that takes several strips."""
    pixels = np.random.default_rng(5).integers(0, 256, (SIZE[1], SIZE[0], 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA")
    if mode == "I;16":
        return Image.fromarray(pixels.view(np.uint16)[:, :, 0])
    return image.convert("RGB").quantize(64, Image.Quantize.FASTOCTREE) if mode == "P" else image.convert(mode)


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Encode an image as a file."""
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def on_white(image: Image.Image) -> np.ndarray[Any, Any]:
    """Return the visible levels of an image."""
    image = image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)).astype(np.int64)


def webp_of(width: int, height: int) -> bytes:
    """Make a very small lossless WebP file of one colour."""
    return file_of(Image.new("RGB", (width, height), "navy"), "WEBP", lossless=True, method=0)


@pytest.mark.parametrize(
    ("mode", "orientation"),
    [*(("RGB", orientation) for orientation in (1, *UPRIGHT_BY)), *((mode, 6) for mode in ("RGBA", "LA", "P", "I;16"))],
)
def test_strips_give_the_pixels_of_the_whole_image(mode: str, orientation: int) -> None:
    """Strips give the same pixels except for rounding, for each mode and orientation."""
    assert math.prod(SIZE) > STRIP_PIXELS
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    file = file_of(noise(mode), exif=exif, compress_level=0)
    whole = Image.open(BytesIO(file))
    if whole.mode.startswith("I"):
        whole = Image.fromarray((np.asarray(whole) >> 8).astype(np.uint8))
    whole = whole.convert("RGBA" if whole.has_transparency_data else "RGB")
    whole = whole.transpose(UPRIGHT_BY[orientation]) if orientation in UPRIGHT_BY else whole
    for size in ((64, 48), (64, 1200)):
        with opened_image(file, "image", None, None, 0, lambda *_, size=size: size) as opened:
            assert opened.target_size == size
            found = resized(opened.image, size, Image.Resampling.BICUBIC)
        expected = whole.resize(size, Image.Resampling.BICUBIC)
        assert found.mode == expected.mode
        assert np.abs(on_white(found) - on_white(expected)).max() <= 2


@pytest.mark.parametrize(
    ("file", "least_bytes"),
    [
        (file_of(noise("RGB")), 4 * math.prod(SIZE)),
        (file_of(noise("L")), math.prod(SIZE)),
        (file_of(noise("RGB"), "WEBP"), webp.BYTES_PER_PIXEL * math.prod(SIZE)),
        (file_of(noise("RGB"), "JPEG", progressive=True, subsampling="4:4:4"), 6 * math.prod(SIZE)),
        (file_of(noise("RGB"), "JPEG", progressive=True, subsampling="4:2:0"), 3 * math.prod(SIZE)),
        (file_of(noise("CMYK"), "JPEG", progressive=True), 8 * math.prod(SIZE)),
    ],
    ids=["png", "grey", "webp", "progressive", "subsampled", "print"],
)
def test_an_image_reserves_what_its_decoder_takes(file: bytes, least_bytes: int) -> None:
    """The reserved memory depends on format and mode, and all of it is released."""
    budget = ByteBudget("image memory", 10**9)
    memory = DecodingMemory(budget, time.monotonic() + 60)
    with opened_image(file, "image", None, memory, 10**6, lambda *_: (64, 64)):
        assert least_bytes <= budget.reserved_bytes <= least_bytes + 4 * math.prod(SIZE) + 17 * STRIP_PIXELS
    assert budget.reserved_bytes == 0


def test_a_small_file_of_many_pixels_is_refused_before_it_is_decoded() -> None:
    """49 megapixels of WebP take 9 bytes each, which exceeds the budget of all images."""
    file = webp_of(7000, 7000)
    assert len(file) < 20_000
    budget = ByteBudget("image memory", 224 * 2**20)
    memory = DecodingMemory(budget, time.monotonic() + 60)
    expected = r"image\[3\]: \d{9} bytes of image memory are needed, the limit is 234881024 \(max_image_memory_bytes\)"
    with pytest.raises(TooLarge, match=expected):
        TASK.preprocess(file, field="image[3]", max_image_pixels=50_000_000, memory=memory)
    assert (budget.reserved_bytes, budget.refused) == (0, 1)


def test_an_image_never_waits_for_memory_that_it_holds_itself() -> None:
    """A WebP whose decoder fits into the budget, but not together with the strips, is refused and does not wait."""
    file = file_of(noise("RGB"), "WEBP")
    budget = ByteBudget("image memory", webp.BYTES_PER_PIXEL * math.prod(SIZE) + 1000)
    with pytest.raises(TooLarge, match="bytes of image memory are needed"):
        TASK.preprocess(file, field="image", memory=DecodingMemory(budget, time.monotonic()))
    assert budget.reserved_bytes == 0


def test_pixels_over_the_limit_are_refused_before_a_webp_decoder_is_opened() -> None:
    """A WebP that is too large is refused before Pillow allocates two canvases to open it."""
    with pytest.raises(InvalidRequest, match=r"image has 3000 x 3000 pixels, more than the limit of 1000 "):
        TASK.preprocess(webp_of(3000, 3000), field="image", max_image_pixels=1000)


def test_images_wait_for_memory_until_their_deadline() -> None:
    """An image waits until its deadline while others hold the whole budget."""
    budget = ByteBudget("image memory", 10**8)
    budget.reserve(10**8)
    with pytest.raises(DeadlineExceeded, match="bytes of image memory were free"):
        TASK.preprocess(file_of(noise("RGB")), field="image", memory=DecodingMemory(budget, time.monotonic()))
    budget.release(10**8)
    levels = TASK.levels(file_of(noise("RGB")), field="image", memory=DecodingMemory(budget, time.monotonic()))
    assert levels.shape == (224, 224, 3)
    assert budget.reserved_bytes == 0


def test_a_picture_for_people_reserves_memory_too() -> None:
    """The picture for an explanation is decoded within the budget too."""
    budget = ByteBudget("image memory", 10**6)
    with pytest.raises(TooLarge, match="image: .* bytes of image memory are needed, the limit is 1000000"):
        TASK.picture(file_of(noise("RGB")), field="image", side=336, memory=DecodingMemory(budget, math.inf))


def test_a_damaged_image_gives_its_memory_back() -> None:
    """Memory is released if the decoder fails in the middle."""
    budget, file = ByteBudget("image memory", 10**9), file_of(noise("RGB"))
    with pytest.raises(InvalidRequest, match="image cannot be decoded"):
        TASK.preprocess(file[: len(file) // 2], field="image", memory=DecodingMemory(budget, math.inf))
    assert budget.reserved_bytes == 0


@pytest.mark.parametrize("kind", ["zTXt", "iTXt"])
def test_a_png_with_many_compressed_texts_is_refused(kind: str) -> None:
    """Many compressed texts are refused, because each would unpack from a few hundred bytes to a MiB."""
    texts = PngImagePlugin.PngInfo()
    for number in range(9):
        if kind == "zTXt":
            texts.add_text(f"text {number}", "x" * 2**20, zip=True)
        else:
            texts.add_itxt(f"text {number}", "x" * 2**20, zip=True)
    file = file_of(Image.new("RGB", (4, 4)), pnginfo=texts)
    assert len(file) < 20_000
    with pytest.raises(InvalidRequest, match="image has 9 compressed texts and profiles, the limit is 8"):
        TASK.preprocess(file, field="image")
    few = PngImagePlugin.PngInfo()
    few.add_text("author", "x" * 100, zip=True)
    assert TASK.preprocess(file_of(Image.new("RGB", (4, 4)), pnginfo=few), field="image").rows == 1
