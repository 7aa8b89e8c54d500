"""Augmentation of training images: crops, flips, cutout, CutMix and JPEG, drawn anew for each batch.

Shapes: B images, C channels, H height, W width, K classes.
"""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

JPEG_QUALITIES = (30, 96)  # qualities of compressed training images: from, and to below


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training images are changed.

    Attributes:
        crop_padding: pixels an image may be shifted by, the edge mirrored.
        flip: whether half of the images are mirrored from left to right.
        cutout: side of a square that is blanked out; 0 for none (DeVries and Taylor 2017, arXiv 1708.04552).
        mix: fraction of the batches that are mixed with CutMix (Yun et al. 2019, arXiv 1905.04899).
        jpeg: fraction of the images that are compressed as JPEG, as in a service's requests.
    """

    crop_padding: int = 0
    flip: bool = True
    cutout: int = 0
    mix: float = 0.0
    jpeg: float = 0.0


def normalised(pixels: Tensor) -> Tensor:
    """Normalise bytes [B, 3, H, W] to float32 between -1 and 1."""
    return pixels.float() / 127.5 - 1.0


def augmented(
    pixels: Tensor, targets_BK: Tensor, augmentation: Augmentation, drawn: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Change images.

    Args:
        pixels: bytes [B, 3, H, W].
        targets_BK: the fraction of each class.
        augmentation: what is changed.
        drawn: the source of all random choices.

    Returns:
        the images, float32 between -1 and 1; the same before JPEG; and their targets.
    """
    x_BCHW, B = normalised(pixels), len(pixels)
    if augmentation.crop_padding:
        x_BCHW = _shifted(x_BCHW, augmentation.crop_padding, drawn)
    if augmentation.flip:
        flipped_B = (torch.rand(B, generator=drawn) < 0.5).to(x_BCHW.device)
        x_BCHW = torch.where(flipped_B[:, None, None, None], x_BCHW.flip(3), x_BCHW)
    if augmentation.cutout:
        x_BCHW = x_BCHW.masked_fill(_squares(x_BCHW, augmentation.cutout, drawn), 0.0)
    if augmentation.mix and float(torch.rand(1, generator=drawn)) < augmentation.mix:
        side = int(x_BCHW.size(2) * float(torch.rand(1, generator=drawn)) ** 0.5)
        other = torch.randperm(B, generator=drawn).to(x_BCHW.device)
        inside_1 = _squares(x_BCHW[:1], side, drawn)  # the same square in all images of the batch
        x_BCHW = torch.where(inside_1, x_BCHW[other], x_BCHW)
        fraction = float(inside_1.float().mean())
        targets_BK = (1 - fraction) * targets_BK + fraction * targets_BK[other]
    compressed_BCHW = _through_jpeg(x_BCHW, augmentation.jpeg, drawn) if augmentation.jpeg else x_BCHW
    return compressed_BCHW, x_BCHW, targets_BK


def _shifted(x_BCHW: Tensor, padding: int, drawn: torch.Generator) -> Tensor:
    """Shift each image by up to `padding` pixels, with mirrored edges."""
    B, _, H, W = x_BCHW.shape
    padded = functional.pad(x_BCHW, (padding,) * 4, mode="reflect")
    offset_B2 = torch.randint(0, 2 * padding + 1, (B, 2), generator=drawn).to(x_BCHW.device)
    rows_BH = offset_B2[:, :1] + torch.arange(H, device=x_BCHW.device)
    columns_BW = offset_B2[:, 1:] + torch.arange(W, device=x_BCHW.device)
    image_B11 = torch.arange(B, device=x_BCHW.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[image_B11, rows_BH[:, :, None], columns_BW[:, None, :]].permute(0, 3, 1, 2)


def _squares(x_BCHW: Tensor, side: int, drawn: torch.Generator) -> Tensor:
    """Draw for each image the mask of a random square, clipped at the edge; bool [B, 1, H, W]."""
    B, _, H, W = x_BCHW.shape
    top_B1 = torch.randint(0, H, (B, 1), generator=drawn).to(x_BCHW.device) - side // 2
    left_B1 = torch.randint(0, W, (B, 1), generator=drawn).to(x_BCHW.device) - side // 2
    row_H, column_W = torch.arange(H, device=x_BCHW.device), torch.arange(W, device=x_BCHW.device)
    rows_BH = (row_H >= top_B1) & (row_H < top_B1 + side)
    columns_BW = (column_W >= left_B1) & (column_W < left_B1 + side)
    return (rows_BH[:, :, None] & columns_BW[:, None, :])[:, None]


def _through_jpeg(x_BCHW: Tensor, fraction: float, drawn: torch.Generator) -> Tensor:
    """Compress a fraction of the images as JPEG and decode them, each at its own quality."""
    chosen = torch.nonzero(torch.rand(len(x_BCHW), generator=drawn) < fraction).flatten()
    qualities = torch.randint(*JPEG_QUALITIES, (len(chosen),), generator=drawn).tolist()
    members = chosen.to(x_BCHW.device)
    pixels = ((x_BCHW[members] + 1.0) * 127.5).round().to(torch.uint8).cpu().numpy()
    for image, quality in zip(pixels, qualities, strict=True):
        image[:] = jpeg_roundtrip(image, quality)
    compressed_BCHW = x_BCHW.clone()
    compressed_BCHW[members] = normalised(torch.from_numpy(pixels).to(x_BCHW.device))
    return compressed_BCHW


def jpeg_roundtrip(pixels_CHW: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """Compress an image as JPEG and decode it."""
    buffer = BytesIO()
    Image.fromarray(pixels_CHW.transpose(1, 2, 0)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer)).transpose(2, 0, 1)
