"""Augmented images: equal for equal seeds, unchanged without augmentation, targets mixed as the pixels are."""

import torch

from export.training.image_augmentation import Augmentation, augmented, normalised


def drawn(seed: int) -> torch.Generator:
    """Make a source of random choices."""
    return torch.Generator().manual_seed(seed)


def test_equal_seeds_give_equal_images() -> None:
    """All kinds at once; another seed gives others."""
    pixels = torch.randint(0, 256, (6, 3, 16, 16), generator=drawn(1)).to(torch.uint8)
    targets_BK = torch.eye(6)
    everything = Augmentation(crop_padding=2, flip=True, cutout=4, mix=1.0, jpeg=0.5)
    first, again, other = (augmented(pixels, targets_BK, everything, drawn(seed)) for seed in (2, 2, 3))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    plain, clean, same = augmented(pixels, targets_BK, Augmentation(flip=False), drawn(2))
    assert torch.equal(plain, normalised(pixels)) and torch.equal(clean, plain) and torch.equal(same, targets_BK)


def test_mixed_targets_are_the_fractions_of_the_pixels() -> None:
    """Images of one level each, so that the fraction of the other image can be counted."""
    levels_B = torch.tensor([0, 51, 102, 153, 204, 255], dtype=torch.uint8)
    pixels = levels_B[:, None, None, None].expand(6, 3, 16, 16).contiguous()
    x_BCHW, _, targets_BK = augmented(pixels, torch.eye(6), Augmentation(flip=False, mix=1.0), drawn(5))
    for number, (image, target_K) in enumerate(zip(x_BCHW, targets_BK, strict=True)):
        own = float((image == normalised(pixels)[number]).float().mean())
        assert target_K.sum() == torch.tensor(1.0)
        assert abs(float(target_K[number]) - own) < 1e-6
