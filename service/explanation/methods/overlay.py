"""The overlay of an explained image: the weights of its patches as colours."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Evidence for and against the class, in two colours that colour-blind people can tell apart.
FOR_RGB, AGAINST_RGB = (220, 50, 32), (0, 90, 181)
MAX_OPAQUE = 0.65  # opacity of the patch with the largest weight: the image stays visible below it


def overlay_png(picture: Image.Image, weights_RC: NDArray[np.float64]) -> bytes:
    """Return the picture with coloured patches as PNG: red is for the class, blue against it, transparent neutral.

    Args:
        picture: RGB image of the overlay's size.
        weights_RC: weight of each patch, [rows, columns].
    """
    largest = float(np.abs(weights_RC).max()) or 1.0
    strength_RC = np.abs(weights_RC) / largest * MAX_OPAQUE
    colours_RC3 = np.where(weights_RC[..., None] > 0, FOR_RGB, AGAINST_RGB).astype(np.uint8)
    opacity_RC = np.rint(255 * strength_RC).astype(np.uint8)
    # The grid of `Patches`, scaled up. All of this holds the interpreter's lock, so it must be quick.
    colours, opacity = (
        Image.fromarray(each).resize(picture.size, Image.Resampling.NEAREST) for each in (colours_RC3, opacity_RC)
    )
    file = BytesIO()
    Image.composite(colours, picture, opacity).save(file, "PNG", compress_level=1)
    return file.getvalue()
