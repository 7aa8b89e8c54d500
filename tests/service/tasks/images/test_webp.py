"""WebP files are decoded to Pillow's pixels, in less memory and without the interpreter's lock."""

import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.errors import InvalidRequest
from service.tasks.images import webp
from service.tasks.images.image_file import opened_image, resized
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(not webp.is_available(), reason="Pillow's build does not show libwebp's functions")
ORIENTATION_TAG = 0x0112
LOSSLESS = {"lossless": True, "exact": True}


def file_of(mode: str, size: tuple[int, int] = (53, 37), **options: Any) -> bytes:
    """Encode an image of noise."""
    rng, written = np.random.default_rng(7), BytesIO()
    levels = rng.integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8)
    Image.fromarray(levels).save(written, "WEBP", **options)
    return written.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("options", [{"quality": 80}, LOSSLESS], ids=["lossy", "lossless"])
def test_pixels_are_pillows(mode: str, options: dict[str, Any]) -> None:
    """Pixels are equal with and without alpha, and with an EXIF orientation."""
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    file = file_of(mode, exif=exif, **options)
    expected = Image.open(BytesIO(file)).transpose(Image.Transpose.ROTATE_270)
    assert expected.mode == mode
    with opened_image(file, "image", None, None, 0, lambda *upright: upright) as opened:
        found = resized(opened.image, expected.size, Image.Resampling.BICUBIC)
    assert found.mode == mode
    assert (np.asarray(found) == np.asarray(expected)).all()


def test_a_damaged_picture_is_refused() -> None:
    """A file with an intact header and damaged pixels is refused like any damaged file."""
    file = bytearray(file_of("RGB", **LOSSLESS))
    file[60:-60] = bytes(len(file) - 120)
    with (
        pytest.raises(InvalidRequest, match="image cannot be decoded, the file is damaged: libwebp cannot read"),
        opened_image(bytes(file), "image", None, None, 0, lambda *upright: upright),
    ):
        pass


PROGRAM = """
import io, sys
from pathlib import Path
from PIL import Image
from service.tasks.images import webp
def peak_kib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
file = Path(sys.argv[1]).read_bytes()
opened = Image.open(io.BytesIO(file))
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here (proc(5))
before_kib = peak_kib()
webp.decoded(file, opened)
print((peak_kib() - before_kib) * 1024 / (opened.width * opened.height))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count a process's largest size in other units")
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("options", [{"quality": 80}, {"lossless": True, "quality": 0, "method": 0}])
def test_decoding_takes_no_more_than_is_reserved_for_it(mode: str, options: dict[str, Any], tmp_path: Path) -> None:
    """The peak size of a process that only decodes shows the memory."""
    file = tmp_path / "image.webp"
    file.write_bytes(file_of(mode, (2000, 1500), **options))
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(file)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert 3 < float(run.stdout) <= webp.BYTES_PER_PIXEL
