"""Encoded images become pixels, without a model."""

import base64
import struct
import zlib
from io import BytesIO
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from export.conversion.golden_images import faded, golden_images, gradient, shapes
from service.errors import InvalidRequest
from service.tasks.images.image_classification import ImageClassification
from service.tasks.images.preprocessing import ImageSize, PreprocessorConfig

SIZE = 32
SETTINGS = {
    "do_resize": True,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}
CONFIG = PreprocessorConfig(size=ImageSize(SIZE, SIZE), **SETTINGS)  # type: ignore[arg-type]
TASK = ImageClassification(CONFIG, labels=["a", "b"], graph_input="pixel_values")


def file_of(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    """Encode an image as a file."""
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def levels(file: bytes) -> NDArray[np.int64]:
    """The task's levels as signed integers, so that they can be subtracted."""
    return TASK.levels(file, field="image").astype(np.int64)


def picture() -> Image.Image:
    """Noise of the model's size, so that no two pixels, rows or corners are equal."""
    pixels = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png_header(width: int, height: int) -> bytes:
    """A PNG header that declares a size, without pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">II", zlib.crc32(header), 10) + b"IDAT"


def test_an_image_of_the_models_size_passes_bit_for_bit() -> None:
    """Levels are kept, and normalised to -1 to 1 as in training."""
    image = picture()
    assert (levels(file_of(image)) == np.asarray(image)).all()
    pixels = TASK.preprocess(file_of(image), field="image")
    assert pixels.pixels_CHW.dtype == np.float32
    expected_HWC = np.asarray(image).astype(np.float32) / np.float32(127.5) - np.float32(1)
    assert (pixels.pixels_CHW == expected_HWC.transpose(2, 0, 1)).all()
    feeds = TASK.collate([pixels, pixels])
    assert {name: array.shape for name, array in feeds.items()} == {"pixel_values": (2, 3, SIZE, SIZE)}


def test_mean_and_deviation_are_those_of_the_configuration() -> None:
    """Each channel has its own mean and deviation, as in models of the hub."""
    means, deviations = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config = PreprocessorConfig(
        size=ImageSize(SIZE, SIZE),
        **SETTINGS | {"image_mean": means, "image_std": deviations},  # type: ignore[arg-type]
    )
    pixels = ImageClassification(config, labels=["a"], graph_input="x").preprocess(file_of(picture()), field="image")
    expected_HWC = (np.asarray(picture()) / 255 - np.array(means)) / np.array(deviations)
    np.testing.assert_allclose(pixels.pixels_CHW, expected_HWC.transpose(2, 0, 1), atol=1e-5)


def test_the_middle_is_cropped() -> None:
    """The crop follows resizing, as in DeiT's processor."""
    config = PreprocessorConfig(
        size=ImageSize(SIZE, SIZE), **SETTINGS | {"do_center_crop": True, "crop_size": ImageSize(SIZE - 4, SIZE - 6)}
    )
    levels = ImageClassification(config, labels=["a"], graph_input="x").levels(file_of(picture()), field="image")
    np.testing.assert_array_equal(levels, np.asarray(picture())[2:-2, 3:-3])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"do_center_crop": True}, "do_center_crop without a crop_size"),
        ({"do_center_crop": True, "crop_size": ImageSize(SIZE + 1, SIZE)}, "crop_size is larger than size"),
        ({"do_resize": False}, "only do_resize, do_rescale and do_normalize together"),
        ({"do_normalize": False}, "only do_resize, do_rescale and do_normalize together"),
    ],
)
def test_other_preprocessing_is_refused_when_the_file_is_read(change: dict[str, Any], why: str) -> None:
    """Unsupported settings are refused at load instead of being applied wrongly."""
    with pytest.raises(ValueError, match=why):
        PreprocessorConfig(size=ImageSize(SIZE, SIZE), **SETTINGS | change)  # type: ignore[arg-type]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_image_upright(orientation: int) -> None:
    """All eight EXIF orientations are turned upright."""
    laid_down_by = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image, exif = picture(), Image.Exif()
    exif[0x0112] = orientation
    lying = image.transpose(laid_down_by[orientation]) if orientation > 1 else image
    assert (levels(file_of(lying, exif=exif)) == np.asarray(image)).all()


def test_transparent_images_are_drawn_on_white() -> None:
    """Full, half and palette transparency lie on white."""
    for alpha, expected in ((0, 255), (255, 0), (128, 127)):
        rgba = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, alpha))
        assert np.abs(levels(file_of(rgba)) - expected).max() <= 1
        assert np.abs(levels(file_of(rgba.convert("LA"))) - expected).max() <= 1
        assert np.abs(levels(file_of(rgba, "WEBP", lossless=True, exact=True)) - expected).max() <= 1
    palette = Image.new("P", (SIZE, SIZE), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert (levels(file_of(palette)) == [10, 20, 30]).all()
    assert (levels(file_of(palette, transparency=1)) == 255).all()


def test_every_depth_of_grey_becomes_three_equal_channels() -> None:
    """Grey images of 1 and 8 bits, and the upper 8 of 16 bits."""
    grey = picture().convert("L")
    for image, expected_HW in (
        (grey, np.asarray(grey)),
        (grey.convert("1"), np.asarray(grey.convert("1")) * 255),
        (Image.fromarray(np.asarray(grey).astype(np.uint16) * 256 + 77), np.asarray(grey)),
    ):
        found = levels(file_of(image))
        assert (found == expected_HW[:, :, None]).all()


def test_jpegs_in_colours_of_print() -> None:
    """CMYK as Photoshop writes it comes out near the original and not as its negative."""
    image = gradient(SIZE, SIZE)
    assert np.abs(levels(file_of(image.convert("CMYK"), "JPEG", quality=95)) - np.asarray(image)).mean() < 5


def test_lossless_formats_agree() -> None:
    """PNG and WebP of one picture give the same levels."""
    image = picture()
    assert (levels(file_of(image, "WEBP", lossless=True)) == levels(file_of(image))).all()


def test_larger_images_are_averaged_and_any_shape_is_stretched() -> None:
    """A fine chequerboard becomes grey, and a wide picture keeps its corners."""
    board = np.indices((16 * SIZE, 16 * SIZE)).sum(axis=0) % 2 * 255
    assert np.abs(levels(file_of(Image.fromarray(board.astype(np.uint8)))) - 127).max() < 4
    wide = levels(file_of(gradient(300, 40)))
    assert np.abs(wide - levels(file_of(gradient(SIZE, SIZE)))).max() < 12


def test_a_large_jpeg_that_is_decoded_at_a_fraction_of_its_size_looks_the_same() -> None:
    """The result is hardly a level apart from that of the fully decoded image."""
    file = file_of(shapes(1600, 1200), "JPEG", quality=95)
    whole = Image.open(BytesIO(file)).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    difference = np.abs(levels(file) - np.asarray(whole))
    assert difference.max() <= 4
    assert difference.mean() < 0.5


def test_base64_is_the_same_file() -> None:
    """Base64 is accepted in one line and in lines as `base64` writes them."""
    for what, file in golden_images().items():
        for text in (base64.b64encode(file), base64.encodebytes(file)):
            assert (levels(text) == levels(file)).all(), what
    with pytest.raises(InvalidRequest, match="inputs is not base64"):
        TASK.preprocess(base64.b64encode(file_of(picture()))[:-3] + b"!", field="inputs")


def test_a_data_url_is_the_same_file() -> None:
    """Media type and parameters are not read; the data may be escaped as in a URL."""
    file = file_of(picture())
    text = base64.b64encode(file)
    for head in (b"data:image/png;base64,", b"DATA:;BASE64,", b"data:image/jpeg;charset=utf-8;base64,"):
        for data in (text, base64.encodebytes(file), quote(text, safe="").encode()):
            assert (levels(head + data) == levels(file)).all(), head
    for wrong, expected in (
        (b"data:image/png," + file, "inputs is a data URL without base64"),
        (b"data:image/png;base64" + text, "inputs is a data URL without base64"),
        (b"data:" + b"x" * 300 + b";base64," + text, "inputs is a data URL without base64"),
        (b"data:image/png;base64," + text[:-3] + b"!", "inputs is not base64"),
        (b"data:text/plain;base64,aGVsbG8=", "inputs is not a JPEG, PNG or WebP file"),
        (b"data:image/png;base64,", "inputs is"),
    ):
        with pytest.raises(InvalidRequest, match=expected):
            TASK.preprocess(wrong, field="inputs")


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_by_the_header_alone(width: int, height: int) -> None:
    """The header alone gets the limit's error, so nothing was decoded."""
    with pytest.raises(InvalidRequest, match=r"image\[3\] has .*the limit of 50000000 \(max_image_pixels\)"):
        TASK.preprocess(png_header(width, height), field="image[3]", max_image_pixels=50_000_000)


def test_an_image_of_exactly_the_limit_is_accepted() -> None:
    """The limit is accepted and one row more is refused; a side of millions is refused in any case."""
    file = file_of(picture())
    TASK.preprocess(file, field="image", max_image_pixels=SIZE * SIZE)
    with pytest.raises(InvalidRequest, match="image has 32 x 32 pixels, more than the limit of 1023"):
        TASK.preprocess(file, field="image", max_image_pixels=SIZE * SIZE - 1)
    with pytest.raises(InvalidRequest, match="has 1000000 x 1 pixels, the limit of a side is 65535"):
        TASK.preprocess(png_header(1_000_000, 1), field="image")


def test_transparent_pixels_are_blended_before_and_after_resizing_alike() -> None:
    """A large fading picture equals one put on white first, within two levels for rounding."""
    fading = faded(shapes(200, 200))
    by_hand = Image.alpha_composite(Image.new("RGBA", fading.size, "white"), fading).convert("RGB")
    assert np.abs(levels(file_of(fading)) - levels(file_of(by_hand))).max() <= 2


def test_jpegs_of_many_scans_are_refused() -> None:
    """A usual progressive JPEG is accepted; one that would be decoded for hours is not."""
    file = file_of(shapes(64, 64), "JPEG", quality=90, progressive=True)
    assert np.abs(levels(file) - levels(file_of(shapes(64, 64)))).mean() < 8
    with pytest.raises(InvalidRequest, match="image has more than 100 scans"):
        TASK.preprocess(file[:-2] + b"\xff\xda\x00\x02" * 100 + file[-2:], field="image")
    with pytest.raises(InvalidRequest, match="image has more than 100 scans"):
        TASK.preprocess(file[:-2] + b"\xff\x02\xff\xff" + b"\xff\xda\x00\x02" * 100 + file[-2:], field="image")


def test_embedded_and_appended_files_do_not_count_as_scans() -> None:
    """Embedded previews and films of motion photos do not count as scans."""
    file, other = file_of(shapes(64, 64), "JPEG", quality=90), b"\xff\xda\x00\x02" * 200
    comment = b"\xff\xfe" + (len(other) + 2).to_bytes(2) + other
    for longer in (file + other, file[:2] + comment + file[2:]):
        assert (levels(longer) == levels(file)).all()


@pytest.mark.parametrize("what", golden_images())
def test_a_file_that_ends_too_early_is_refused(what: str) -> None:
    """Half of a file and its first bytes are refused."""
    file = golden_images()[what]
    for length in (len(file) // 2, 40):
        with pytest.raises(InvalidRequest, match="cannot be decoded, the file is damaged|or its header is damaged"):
            TASK.preprocess(file[:length], field="image")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(list(golden_images().values())), st.integers(0, 2**30), st.binary(min_size=1, max_size=9))
def test_a_damaged_file_is_answered_or_refused(file: bytes, place: int, junk: bytes) -> None:
    """Random bytes at random places raise no other error."""
    place %= len(file)
    try:
        pixels = TASK.preprocess(file[:place] + junk + file[place + len(junk) :], field="image")
    except InvalidRequest:
        return
    assert np.isfinite(pixels.pixels_CHW).all()


@pytest.mark.parametrize("file_format", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_not_tried(file_format: str) -> None:
    """Other formats are refused although Pillow could read them."""
    with pytest.raises(InvalidRequest, match="image is not a JPEG, PNG or WebP file"):
        TASK.preprocess(file_of(picture(), file_format), field="image")


@pytest.mark.parametrize("junk", [b"", b"A wonderful film.", b"\0" * 100, b'{"inputs": "x"}', b"\xff\xd8\xff"])
def test_files_that_are_no_images_are_refused(junk: bytes) -> None:
    """Texts, empty bodies and incomplete headers are refused."""
    with pytest.raises(InvalidRequest, match="the body is not a JPEG, PNG or WebP file, or its header is damaged"):
        TASK.preprocess(junk, field="the body")


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_animations_are_refused(file_format: str) -> None:
    """An animation is refused, because the server cannot guess the frame; a single frame is not an animation."""
    frames = [gradient(SIZE, SIZE), shapes(SIZE, SIZE)]
    animated = file_of(frames[0], file_format, save_all=True, append_images=frames[1:])
    with pytest.raises(InvalidRequest, match="image is animated, with 2 frames"):
        TASK.preprocess(animated, field="image")
    TASK.preprocess(file_of(frames[0], file_format, save_all=True), field="image")


def test_a_jpeg_with_further_pictures_in_it_is_its_first() -> None:
    """Further pictures in a file of a phone (MPO) are ignored."""
    pictures = [gradient(64, 64), shapes(64, 64)]
    first = levels(file_of(pictures[0], "JPEG", quality=90))
    several = file_of(pictures[0], "MPO", save_all=True, append_images=pictures[1:], quality=90)
    assert Image.open(BytesIO(several)).n_frames == 2  # type: ignore[attr-defined]
    assert (levels(several) == first).all()


@pytest.mark.parametrize("middle", [False, True])
@pytest.mark.parametrize("size", [(8, 6), (96, 48), (1000, 700)])
def test_a_picture_for_people_shows_what_the_model_is_shown(size: tuple[int, int], middle: bool) -> None:
    """It keeps its proportions, enlarges small images, shows the same crop, and is upright and on white."""
    cropped = {"do_center_crop": True, "crop_size": ImageSize(SIZE - 8, SIZE - 8)} if middle else {}
    task = ImageClassification(
        PreprocessorConfig(size=ImageSize(SIZE, SIZE), **SETTINGS | cropped), labels=["a"], graph_input="x"
    )
    image = gradient(*size).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    exif = Image.Exif()
    exif[0x0112] = 2
    file = file_of(image, exif=exif)
    shown = task.picture(file, field="image", side=200)
    assert shown.mode == "RGB"
    whole = max(shown.size) / (0.75 if middle else 1)
    assert 100 <= whole <= 202
    assert shown.width / shown.height == pytest.approx(size[0] / size[1], rel=0.05)
    seen = task.levels(file, field="image")
    again = np.asarray(shown.resize(seen.shape[1::-1], Image.Resampling.BICUBIC))
    assert (
        np.abs(again.astype(int) - seen).mean() < 12
    )  # nearest-neighbour pixels differ from bicubic ones; without rotation it would be 60
    with pytest.raises(InvalidRequest, match="damaged"):
        task.picture(file[: len(file) // 2], field="image", side=200)
