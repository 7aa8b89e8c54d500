"""Golden examples of image classifiers: pictures drawn for this project, in every kind of file that clients send."""

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

ORIENTATION_TAG, TURNED_LEFT = 0x0112, 6  # EXIF: a viewer turns the picture to the right


def golden_images() -> dict[str, bytes]:
    """Return image files by a description of what is special about each."""
    sea, house = gradient(96, 64), shapes(80, 80)
    turned = Image.Exif()
    turned[ORIENTATION_TAG] = TURNED_LEFT
    return {
        "a PNG of the size of CIFAR-10's images": _file(shapes(32, 32), "PNG"),
        "a JPEG": _file(house, "JPEG", quality=90),
        "a JPEG that EXIF turns upright": _file(sea, "JPEG", quality=90, exif=turned),
        "a wide JPEG, decoded at a fraction of its size": _file(gradient(1280, 480), "JPEG", quality=60),
        "a JPEG of shades of grey": _file(house.convert("L"), "JPEG", quality=90),
        "a JPEG for print": _file(house.convert("CMYK"), "JPEG", quality=90),
        "a tall PNG": _file(gradient(40, 120), "PNG"),
        "a PNG that is partly transparent": _file(faded(house), "PNG"),
        "a PNG with a palette": _file(house.quantize(16), "PNG"),
        "a PNG with a palette and a transparent colour": _file(house.quantize(16), "PNG", transparency=0),
        "a PNG of 16 bits of grey": _file(ramp_16(48), "PNG"),
        "a PNG in black and white": _file(house.convert("1"), "PNG"),
        "a PNG smaller than any model": _file(shapes(12, 12), "PNG"),
        "a WebP": _file(sea, "WEBP", quality=80),
        "a lossless WebP that is partly transparent": _file(faded(sea), "WEBP", lossless=True),
    }


def made_up_images(count: int, side: int = 64) -> list[bytes]:
    """Draw coloured clouds as PNG files, to compare models on when no data set is available."""
    rng = np.random.default_rng(1)
    files = []
    for _ in range(count):
        clouds = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        files.append(_file(clouds.resize((side, side), Image.Resampling.BICUBIC), "PNG"))
    return files


def gradient(width: int, height: int) -> Image.Image:
    """Draw a gradient with another colour in every corner."""
    y_HW, x_HW = np.mgrid[0:height, 0:width]
    red, green = 255 * x_HW / (width - 1), 255 * y_HW / (height - 1)
    return Image.fromarray(np.stack([red, green, 255 - (red + green) / 2], axis=2).astype(np.uint8))


def shapes(width: int, height: int) -> Image.Image:
    """Draw a house before a sky with a sun."""
    image = Image.new("RGB", (width, height), (120, 180, 240))
    draw = ImageDraw.Draw(image)
    w, h = width / 10, height / 10
    draw.ellipse((7 * w, 0.5 * h, 9.5 * w, 3 * h), fill=(250, 220, 60))
    draw.rectangle((0, 8 * h, width, height), fill=(60, 140, 60))
    draw.rectangle((2 * w, 5 * h, 6 * w, 9 * h), fill=(200, 80, 60))
    draw.polygon([(1.5 * w, 5 * h), (4 * w, 2.5 * h), (6.5 * w, 5 * h)], fill=(90, 50, 40))
    draw.line((0, 0, width, height), fill=(20, 20, 20))
    return image


def faded(image: Image.Image) -> Image.Image:
    """Make an image more and more transparent from left to right."""
    alpha_W = np.linspace(255, 0, image.width).astype(np.uint8)
    rgba = image.convert("RGBA")
    rgba.putalpha(Image.fromarray(np.tile(alpha_W, (image.height, 1))))
    return rgba


def ramp_16(side: int) -> Image.Image:
    """Draw 16-bit grey from black to white, in steps finer than eight bits have."""
    return Image.fromarray(np.linspace(0, 65_535, side * side).astype(np.uint16).reshape(side, side))


def _file(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()
