"""Image classifiers, and the claims of their docstrings."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from export.networks.image import ResNet9, ResNetConfig, VisionTransformer, VitConfig, drop_path, multiply_accumulates

SMALL = {"d_model": 32, "num_layers": 2, "num_heads": 4, "d_ff": 64, "image_size": 16, "num_labels": 5}
NETWORKS = {
    "patches": lambda: VisionTransformer(VitConfig(**SMALL)),
    "convolutions": lambda: VisionTransformer(
        VitConfig(**SMALL, tokens="convolutions", pooling="attention", positions="learned", drop_path=0.5)
    ),
    "resnet": lambda: ResNet9(ResNetConfig(num_labels=5, width=8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_an_image_alone_and_in_a_batch_has_equal_logits(name: str) -> None:
    """Outside training nothing depends on the batch."""
    torch.manual_seed(1)
    model = NETWORKS[name]().eval()
    pixels_BCHW = torch.randn(6, 3, 16, 16)
    with torch.inference_mode():
        together_BK = model(pixels_BCHW)
        assert together_BK.shape == (6, 5)
        torch.testing.assert_close(together_BK[2:3], model(pixels_BCHW[2:3]), atol=1e-5, rtol=1e-5)


def test_patches_do_not_overlap_and_are_embedded_linearly() -> None:
    """Each token is one linear map of one patch, row by row, like the lesson's `unfold` and `Linear`."""
    model = VisionTransformer(VitConfig(**SMALL))
    pixels_BCHW = torch.randn(2, 3, 16, 16)
    tokens_BTD = model.tokens(pixels_BCHW).flatten(2).transpose(1, 2)
    patches_BTP = functional.unfold(pixels_BCHW, kernel_size=4, stride=4).transpose(1, 2)
    expected_BTD = patches_BTP @ model.tokens.weight.flatten(1).T + model.tokens.bias
    torch.testing.assert_close(tokens_BTD, expected_BTD, atol=1e-5, rtol=1e-5)
    assert tokens_BTD.size(1) == model.config.num_tokens == 16


def test_pooling_is_the_mean_over_the_patches() -> None:
    """Equal tokens give the head the same vector as one of them."""
    model = VisionTransformer(VitConfig(**SMALL | {"num_layers": 0})).eval()
    model.positions_TD.zero_()
    flat_BCHW = torch.full((1, 3, 16, 16), 0.3)
    with torch.inference_mode():
        token_D = model.tokens(flat_BCHW)[0, :, 0, 0]
        torch.testing.assert_close(model(flat_BCHW)[0], model.head(model.final_norm(token_D)), atol=1e-5, rtol=1e-5)


def test_stochastic_depth_keeps_the_mean() -> None:
    """It skips a layer for some images and scales up the others."""
    torch.manual_seed(1)
    before, after = torch.zeros(4000, 1, 1), torch.ones(4000, 1, 1)
    kept = drop_path(before, after, 0.4)
    assert {round(value, 4) for value in kept.flatten().tolist()} == {0.0, round(1 / 0.6, 4)}
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.06)


def test_an_image_size_that_patches_do_not_divide_is_refused() -> None:
    """Pixels at the edge would be left out without notice."""
    with pytest.raises(ValueError, match="patch_size"):
        VisionTransformer(VitConfig(**SMALL | {"patch_size": 5}))


def test_products_are_counted() -> None:
    """A linear patch embedding and a head: 16 tokens of 48 x 32, and 32 x 5."""
    model: nn.Module = VisionTransformer(VitConfig(**SMALL | {"num_layers": 0}))
    assert multiply_accumulates(model, 16) == 16 * 48 * 32 + 32 * 5
