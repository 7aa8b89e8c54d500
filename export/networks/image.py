"""Image classifiers: a vision transformer with two kinds of tokens, and a convolutional network as its baseline.

Input: normalised pixels. Output: logits.

Shapes: B images, C channels, H height, W width, T tokens, D width of the model, K classes.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from export.networks.transformer import EncoderLayer, LayerConfig, Layers, build_norm, sinusoidal_positions


@dataclass(frozen=True, kw_only=True)
class VitConfig(LayerConfig):
    """Shape of a vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929).

    `tokens`: "patches", cut without overlap and embedded linearly; or "convolutions", as in the compact convolutional
    transformer (Hassani et al. 2021, arXiv 2104.05704), which learns much faster from few images.
    """

    num_labels: int = 10
    image_size: int = 32
    tokens: Literal["patches", "convolutions"] = "patches"
    patch_size: int = 4
    num_convolutions: int = 2  # each halves the image
    pooling: Literal["mean", "attention"] = "mean"  # over the tokens; "attention": learned weights (same paper)
    drop_path: float = 0.0  # rate of the last layer, rising from 0; Huang et al. 2016, arXiv 1603.09382

    @property
    def num_tokens(self) -> int:
        """The number of tokens of an image."""
        side = self.patch_size if self.tokens == "patches" else 2**self.num_convolutions
        return (self.image_size // side) ** 2


class VisionTransformer(nn.Module):
    """A vision transformer: patch tokens with positions, encoder layers, pooling, linear head."""

    def __init__(self, config: VitConfig) -> None:
        """Raises ValueError: the image is not a whole number of patches, or the positions are rotary."""
        super().__init__()
        self.config = config
        if config.positions == "rotary":
            raise ValueError("positions must be sinusoidal or learned for images, not 'rotary'")
        if config.tokens == "patches" and config.image_size % config.patch_size:
            raise ValueError(f"image_size {config.image_size} is not a multiple of patch_size {config.patch_size}")
        self.tokens = _patches(config) if config.tokens == "patches" else _convolutions(config)
        if config.positions == "sinusoidal":
            self.register_buffer("positions_TD", sinusoidal_positions(config.num_tokens, config.d_model))
        else:
            self.positions_TD = nn.Parameter(torch.randn(config.num_tokens, config.d_model) * 0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = Layers(EncoderLayer(config) for _ in range(config.num_layers))
        self.final_norm = build_norm(config)
        self.pool = nn.Linear(config.d_model, 1) if config.pooling == "attention" else None
        self.head = nn.Linear(config.d_model, config.num_labels)
        self.apply(_initialise)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Classify normalised pixels, float32 [B, 3, H, W]; return logits, float32 [B, K]."""
        x_BTD = self.dropout(self.tokens(pixels_BCHW).flatten(2).transpose(1, 2) + self.positions_TD)
        for number, layer in enumerate(self.layers):
            fraction = self.config.drop_path * number / max(1, len(self.layers) - 1)
            after_BTD = layer(x_BTD)
            x_BTD = drop_path(x_BTD, after_BTD, fraction) if self.training else after_BTD
        return self.classify(self.final_norm(x_BTD))

    def classify(self, x_BTD: Tensor) -> Tensor:
        """Compute logits from the last token vectors; [B, T, D] to [B, K]."""
        if self.pool is None:
            pooled_BD = x_BTD.mean(dim=1)
        else:
            pooled_BD = (torch.softmax(self.pool(x_BTD), dim=1) * x_BTD).sum(dim=1)
        logits_BK: Tensor = self.head(pooled_BD)
        return logits_BK


def drop_path(before_BTD: Tensor, after_BTD: Tensor, fraction: float) -> Tensor:
    """Stochastic depth: skip a layer for a fraction of the images and scale up the others (arXiv 1603.09382)."""
    if fraction == 0.0:
        return after_BTD
    kept_B11 = (torch.rand(len(before_BTD), 1, 1, device=before_BTD.device) >= fraction) / (1 - fraction)
    return before_BTD + kept_B11 * (after_BTD - before_BTD)


def _patches(config: VitConfig) -> nn.Module:
    """Build a convolution with stride equal to its size: one linear map of each patch."""
    return nn.Conv2d(3, config.d_model, kernel_size=config.patch_size, stride=config.patch_size)


def _convolutions(config: VitConfig) -> nn.Module:
    parts: list[nn.Module] = []
    channels = 3
    for number in range(config.num_convolutions):
        last = number == config.num_convolutions - 1
        wider = config.d_model if last else max(64, config.d_model // 2)
        parts += [
            nn.Conv2d(channels, wider, kernel_size=3, padding=1, bias=False),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        ]
        channels = wider
    return nn.Sequential(*parts)


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Shape of the small residual network that the fast CIFAR-10 recipes share ("ResNet-9", Page 2018)."""

    num_labels: int = 10
    width: int = 64  # channels of the first convolution; the last has eight times as many
    dropout: float = 0.0
    logit_scale: float = 0.125


class ResNet9(nn.Module):
    """Eight convolutions with batch normalisation, residual pairs in two stages, maximum pooling, linear head."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        w = config.width
        self.stem = _convolution(3, w)
        self.stage_1 = nn.Sequential(_convolution(w, 2 * w, pool=True), _Residual(2 * w))
        self.stage_2 = _convolution(2 * w, 4 * w, pool=True)
        self.stage_3 = nn.Sequential(_convolution(4 * w, 8 * w, pool=True), _Residual(8 * w))
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(8 * w, config.num_labels, bias=False)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Classify normalised pixels, float32 [B, 3, H, W]; return logits, float32 [B, K]."""
        x_BCHW = self.stage_3(self.stage_2(self.stage_1(self.stem(pixels_BCHW))))
        logits_BK: Tensor = self.head(self.dropout(x_BCHW.amax(dim=(2, 3)))) * self.config.logit_scale
        return logits_BK


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolution(channels, channels), _convolution(channels, channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        sum_BCHW: Tensor = x_BCHW + self.body(x_BCHW)
        return sum_BCHW


def _convolution(channels: int, wider: int, pool: bool = False) -> nn.Module:
    parts = [nn.Conv2d(channels, wider, kernel_size=3, padding=1, bias=False)]
    return nn.Sequential(*parts, *([nn.MaxPool2d(2)] if pool else []), nn.BatchNorm2d(wider), nn.CELU(0.3))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)


def multiply_accumulates(model: nn.Module, image_size: int) -> int:
    """Count the multiply-accumulate operations of one image's forward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.eval()(torch.zeros(1, 3, image_size, image_size))
    products: int = counter.get_total_flops() // 2
    return products
