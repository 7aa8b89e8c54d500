"""An explanation of an image, to be looked at: the weights of its patches as colours over it."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# What speaks for the class and what against it: two colours that stay apart for the colour-blind.
FOR_RGB, AGAINST_RGB = (220, 50, 32), (0, 90, 181)
MOST_OPAQUE = 0.65  # of the patch with the largest weight: the image stays visible below it


def overlay_png(picture: Image.Image, weights_RC: NDArray[np.float64]) -> bytes:
    """The picture with each patch coloured, as PNG: red speaks for the class, blue against it, clear for neither.

    Args:
        picture: RGB, of the size that the overlay is to have.
        weights_RC: of each patch, row by row.
    """
    largest = float(np.abs(weights_RC).max()) or 1.0
    strength_RC = np.abs(weights_RC) / largest * MOST_OPAQUE
    colours_RC4 = np.empty((*weights_RC.shape, 4), dtype=np.uint8)
    colours_RC4[..., :3] = np.where(weights_RC[..., None] > 0, FOR_RGB, AGAINST_RGB)
    colours_RC4[..., 3] = np.rint(255 * strength_RC)
    width, height = picture.size
    # The grid of `Patches`, in this size.
    row_of_H = np.arange(height) * weights_RC.shape[0] // height
    column_of_W = np.arange(width) * weights_RC.shape[1] // width
    colours_HW4 = np.ascontiguousarray(colours_RC4[row_of_H][:, column_of_W])
    drawn = Image.alpha_composite(picture.convert("RGBA"), Image.fromarray(colours_HW4)).convert("RGB")
    file = BytesIO()
    drawn.save(file, "PNG")
    return file.getvalue()
