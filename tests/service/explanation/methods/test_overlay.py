"""The overlay of an explained image."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from service.explanation.methods.overlay import AGAINST_RGB, FOR_RGB, MAX_OPAQUE, overlay_png


@pytest.mark.parametrize("size", [(64, 48), (31, 50)])
def test_patches_are_coloured_by_their_weights(size: tuple[int, int]) -> None:
    """Red is for, blue against, the largest weight most opaque; a patch without weight shows the picture."""
    grey = (100, 100, 100)
    weights_RC = np.array([[0.0, 0.5], [-1.0, 1.0]])
    drawn = Image.open(BytesIO(overlay_png(Image.new("RGB", size, grey), weights_RC)))
    assert (drawn.format, drawn.size, drawn.mode) == ("PNG", size, "RGB")
    width, height = size

    def mixed(colour: tuple[int, int, int], share: float) -> list[int]:
        return [round(before + share * (after - before)) for before, after in zip(grey, colour, strict=True)]

    for place, expected in (
        ((0, 0), list(grey)),
        ((width - 1, 0), mixed(FOR_RGB, MAX_OPAQUE / 2)),
        ((0, height - 1), mixed(AGAINST_RGB, MAX_OPAQUE)),
        ((width - 1, height - 1), mixed(FOR_RGB, MAX_OPAQUE)),
    ):
        pixel = drawn.getpixel(place)
        assert isinstance(pixel, tuple)
        np.testing.assert_allclose(pixel, expected, atol=2)


def test_weights_that_are_all_zero_leave_the_picture() -> None:
    """All weights are zero where a model ignores its input."""
    picture = Image.new("RGB", (16, 16), (1, 2, 3))
    drawn = Image.open(BytesIO(overlay_png(picture, np.zeros((8, 8)))))
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(picture))
