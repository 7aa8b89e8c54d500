"""An explanation of an image, to be looked at: the weights of its patches as colours over it."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# What speaks for the class and what against it: two colours that stay apart for the colour-blind.
FOR_RGB, AGAINST_RGB = (220, 50, 32), (0, 90, 181)
MAX_OPAQUE = 0.65  # of the patch with the largest weight: the image stays visible below it


def overlay_png(picture: Image.Image, weights_RC: NDArray[np.float64]) -> bytes:
    """The picture with each patch coloured, as PNG: red speaks for the class, blue against it, clear for neither.

    Args:
        picture: RGB, of the size that the overlay is to have.
        weights_RC: of each patch, row by row.
    """
    largest = float(np.abs(weights_RC).max()) or 1.0
    strength_RC = np.abs(weights_RC) / largest * MAX_OPAQUE
    colours_RC3 = np.where(weights_RC[..., None] > 0, FOR_RGB, AGAINST_RGB).astype(np.uint8)
    opacity_RC = np.rint(255 * strength_RC).astype(np.uint8)
    # The grid of `Patches`, in this size. All of this holds the interpreter's lock, so it had better be quick.
    colours, opacity = (
        Image.fromarray(each).resize(picture.size, Image.Resampling.NEAREST) for each in (colours_RC3, opacity_RC)
    )
    file = BytesIO()
    Image.composite(colours, picture, opacity).save(file, "PNG", compress_level=1)
    return file.getvalue()
