"""Small networks with the names of weights and the arithmetic of the package timm, which is not installed.

Each function computes logits from random weights by the published definition of its architecture, with PyTorch's
functions alone, so that a mapping of names or a constant that is wrong shows in the answers.

Shapes: B images, T tokens, D hidden size, H heads, K size of a head, C classes or channels, P sides of a patch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Weights = dict[str, Tensor]
HIDDEN, DEPTH, PATCH, CLASSES = 48, 2, 8, 5


@dataclass(frozen=True)
class TimmNetwork:
    """A network of one architecture: its random weights, the length of an image's sides, and its arithmetic."""

    architecture: str
    size: int
    weights: Callable[["Random"], Weights]
    compute: Callable[[Weights, Tensor], Tensor]
    pool: str
    num_classes: int = CLASSES


class Random:
    """Draws weights with a spread at which each of them shows in the answers."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, around: float = 0.0) -> Tensor:
        """Draw a weight."""
        fan_in = max(1, int(torch.tensor(shape[1:]).prod())) if len(shape) > 1 else 25
        return torch.randn(shape, generator=self._generator) / fan_in**0.5 + around

    def linear(self, name: str, *shape: int, bias: bool = True) -> Weights:
        """Draw a linear map or a convolution."""
        return {f"{name}.weight": self(*shape)} | ({f"{name}.bias": self(shape[0])} if bias else {})

    def norm(self, name: str, size: int) -> Weights:
        """Draw a layer normalisation."""
        return {f"{name}.weight": self(size, around=1.0), f"{name}.bias": self(size)}

    def batch_norm(self, name: str, size: int) -> Weights:
        """Draw a batch normalisation with its statistics."""
        variance = self(size).abs() + 0.5
        return self.norm(name, size) | {
            f"{name}.running_mean": self(size),
            f"{name}.running_var": variance,
            f"{name}.num_batches_tracked": torch.tensor(1),
        }


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    """Apply a linear map, which may be stored as a convolution of one pixel."""
    weight = w[f"{name}.weight"]
    return functional.linear(x, weight.flatten(1), w.get(f"{name}.bias"))


def norm(w: Weights, name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
    """Normalise the last axis."""
    return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def attention(qkv_BT3D: Tensor, heads: int, bias: Tensor | float = 0.0) -> Tensor:
    """Mix values by the softmax of scaled products; [B, T, D]."""
    B, T, width = qkv_BT3D.shape
    q, k, v = qkv_BT3D.view(B, T, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)
    scores_BHTT = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias
    return (scores_BHTT.softmax(-1) @ v).transpose(1, 2).reshape(B, T, width // 3)


def patches(w: Weights, x: Tensor) -> Tensor:
    """Embed patches; [B, T, D]."""
    weight = w["patch_embed.proj.weight"]
    return functional.conv2d(x, weight, w["patch_embed.proj.bias"], stride=weight.shape[-1]).flatten(2).transpose(1, 2)


# --- vision transformers ---------------------------------------------------------------------------------------------


def vit_weights(
    draw: Random, tokens: tuple[str, ...] = ("cls_token",), positions: int = 17, patch: int = PATCH
) -> Weights:
    """Draw an encoder of pre-norm blocks with a class token."""
    w = draw.linear("patch_embed.proj", HIDDEN, 3, patch, patch)
    w |= {name: draw(1, 4 if name == "reg_token" else 1, HIDDEN) for name in tokens}
    w |= {"pos_embed": draw(1, positions, HIDDEN)} | draw.norm("norm", HIDDEN) | draw.linear("head", CLASSES, HIDDEN)
    for number in range(DEPTH):
        block = f"blocks.{number}"
        w |= draw.linear(f"{block}.attn.qkv", 3 * HIDDEN, HIDDEN) | draw.linear(f"{block}.attn.proj", HIDDEN, HIDDEN)
        w |= draw.norm(f"{block}.norm1", HIDDEN) | draw.norm(f"{block}.norm2", HIDDEN)
        w |= draw.linear(f"{block}.mlp.fc1", 4 * HIDDEN, HIDDEN) | draw.linear(f"{block}.mlp.fc2", HIDDEN, 4 * HIDDEN)
    return w


def encoded(w: Weights, x: Tensor, heads: int, bias_of: Callable[[str], Tensor | float] = lambda _: 0.0) -> Tensor:
    """Apply the blocks, with their layer scales if they have any."""
    for number in range(DEPTH):
        block = f"blocks.{number}"
        qkv = linear(w, f"{block}.attn.qkv", norm(w, f"{block}.norm1", x))
        if f"{block}.attn.q_bias" in w:
            q_bias, v_bias = w[f"{block}.attn.q_bias"], w[f"{block}.attn.v_bias"]
            qkv = qkv + torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])
        scales = [w.get(f"{block}.gamma_{each}", w.get(f"{block}.ls{each}.gamma", torch.ones(1))) for each in (1, 2)]
        x = x + scales[0] * linear(w, f"{block}.attn.proj", attention(qkv, heads, bias_of(f"{block}.attn")))
        inner = functional.gelu(linear(w, f"{block}.mlp.fc1", norm(w, f"{block}.norm2", x)))
        x = x + scales[1] * linear(w, f"{block}.mlp.fc2", inner)
    return x


def vit(w: Weights, x: Tensor, heads: int = 3) -> Tensor:
    """Classify by the class token."""
    x = patches(w, x)
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], dim=1) + w["pos_embed"]
    return linear(w, "head", norm(w, "norm", encoded(w, x, heads))[:, 0])


def distilled(w: Weights, x: Tensor) -> Tensor:
    """Classify by the mean of two heads, of the class token and of the distillation token."""
    x = patches(w, x)
    x = torch.cat([w[name].expand(len(x), -1, -1) for name in ("cls_token", "dist_token")] + [x], dim=1)
    x = norm(w, "norm", encoded(w, x + w["pos_embed"], 3))
    return (linear(w, "head", x[:, 0]) + linear(w, "head_dist", x[:, 1])) / 2


def dinov2_weights(draw: Random, registers: bool) -> Weights:
    """Draw an encoder with layer scales and without a head; with registers, the class token has no position."""
    tokens = ("cls_token", "reg_token") if registers else ("cls_token",)
    w = vit_weights(draw, tokens, 16 if registers else 17, 14)
    for number in range(DEPTH):
        w |= {f"blocks.{number}.ls{each}.gamma": draw(HIDDEN, around=0.7) for each in (1, 2)}
    return {name: weight for name, weight in w.items() if not name.startswith("head")}


def dinov2(w: Weights, x: Tensor) -> Tensor:
    """Return the class token."""
    x = patches(w, x)
    first = w["cls_token"].expand(len(x), -1, -1)
    if "reg_token" in w:
        x = torch.cat([first, w["reg_token"].expand(len(x), -1, -1), x + w["pos_embed"]], dim=1)
    else:
        x = torch.cat([first, x], dim=1) + w["pos_embed"]
    return norm(w, "norm", encoded(w, x, 6))[:, 0]


def beit_weights(draw: Random) -> Weights:
    """Draw an encoder without positions, but with a bias for each distance of patches."""
    w = vit_weights(draw)
    for name in ("pos_embed", "norm.weight", "norm.bias"):
        del w[name]
    for number in range(DEPTH):
        block = f"blocks.{number}"
        del w[f"{block}.attn.qkv.bias"]
        w |= {f"{block}.attn.{part}_bias": draw(HIDDEN) for part in "qv"}
        w |= {f"{block}.gamma_{each}": draw(HIDDEN, around=0.7) for each in (1, 2)}
        w[f"{block}.attn.relative_position_bias_table"] = draw(7 * 7 + 3, 12) * 3
    return w | draw.norm("fc_norm", HIDDEN)


def beit(w: Weights, x: Tensor) -> Tensor:
    """Classify by the mean of the patches, which is then normalised."""
    x = patches(w, x)
    side = int(x.shape[1] ** 0.5)
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], dim=1)
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    apart = places[:, None] - places[None, :] + side - 1  # row and column of each pair of patches
    num_distances = (2 * side - 1) ** 2
    index_TT = torch.full((side**2 + 1, side**2 + 1), num_distances + 2)  # of the class token with itself
    index_TT[0, 1:], index_TT[1:, 0] = num_distances, num_distances + 1
    index_TT[1:, 1:] = apart[..., 0] * (2 * side - 1) + apart[..., 1]

    def bias_of(name: str) -> Tensor:
        return w[f"{name}.relative_position_bias_table"][index_TT].permute(2, 0, 1)

    return linear(w, "head", norm(w, "fc_norm", encoded(w, x, 12, bias_of)[:, 1:].mean(1)))


# --- Swin ------------------------------------------------------------------------------------------------------------

SWIN_DEPTHS, SWIN_HEADS, SWIN_WIDTH, WINDOW = (2, 2, 2, 1), (3, 6, 12, 24), 24, 7


def swin_weights(draw: Random) -> Weights:
    """Draw windowed attention in four stages, each of which but the first begins by merging patches."""
    w = draw.linear("patch_embed.proj", SWIN_WIDTH, 3, 4, 4) | draw.norm("patch_embed.norm", SWIN_WIDTH)
    for stage, (depth, heads) in enumerate(zip(SWIN_DEPTHS, SWIN_HEADS, strict=True)):
        width = SWIN_WIDTH * 2**stage
        if stage:
            w |= draw.norm(f"layers.{stage}.downsample.norm", 2 * width)
            w |= draw.linear(f"layers.{stage}.downsample.reduction", width, 2 * width, bias=False)
        for number in range(depth):
            block = f"layers.{stage}.blocks.{number}"
            w |= draw.norm(f"{block}.norm1", width) | draw.norm(f"{block}.norm2", width)
            w |= draw.linear(f"{block}.attn.qkv", 3 * width, width) | draw.linear(f"{block}.attn.proj", width, width)
            w[f"{block}.attn.relative_position_bias_table"] = draw((2 * WINDOW - 1) ** 2, heads) * 2
            w |= draw.linear(f"{block}.mlp.fc1", 4 * width, width) | draw.linear(f"{block}.mlp.fc2", width, 4 * width)
    return w | draw.norm("norm", width) | draw.linear("head.fc", CLASSES, width)


def swin(w: Weights, x: Tensor) -> Tensor:
    """Classify by the mean of the patches."""
    x = norm(w, "patch_embed.norm", patches(w, x), 1e-5)
    side = int(x.shape[1] ** 0.5)
    x = x.view(len(x), side, side, -1)
    for stage, (depth, heads) in enumerate(zip(SWIN_DEPTHS, SWIN_HEADS, strict=True)):
        if stage:
            corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
            merged = norm(w, f"layers.{stage}.downsample.norm", torch.cat(corners, dim=-1), 1e-5)
            x = linear(w, f"layers.{stage}.downsample.reduction", merged)
        for number in range(depth):
            shift = WINDOW // 2 if number % 2 and x.shape[1] > WINDOW else 0
            x = swin_block(w, f"layers.{stage}.blocks.{number}", x, heads, shift)
    return linear(w, "head.fc", norm(w, "norm", x, 1e-5).mean((1, 2)))


def swin_block(w: Weights, block: str, x: Tensor, heads: int, shift: int) -> Tensor:
    """Attend within windows, which every other block shifts; patches of other regions are hidden from each other."""
    B, side, _, D = x.shape
    places = torch.cartesian_prod(torch.arange(WINDOW), torch.arange(WINDOW))
    apart = places[:, None] - places[None, :] + WINDOW - 1
    index_TT = apart[..., 0] * (2 * WINDOW - 1) + apart[..., 1]
    bias = w[f"{block}.attn.relative_position_bias_table"][index_TT].permute(2, 0, 1)[None]
    region = torch.zeros(1, side, side, 1)
    if shift:
        edges = torch.tensor([0] * (side - WINDOW) + [1] * (WINDOW - shift) + [2] * shift)
        region = (3 * edges[:, None] + edges[None, :]).view(1, side, side, 1).float()

    def windows(grid: Tensor) -> Tensor:
        rows = side // WINDOW
        split = grid.view(len(grid), rows, WINDOW, rows, WINDOW, -1).transpose(2, 3)
        return split.reshape(len(grid) * rows * rows, WINDOW * WINDOW, -1)

    y = torch.roll(norm(w, f"{block}.norm1", x, 1e-5), (-shift, -shift), (1, 2))
    regions_NT = windows(region)[..., 0]
    hidden_NTT = (regions_NT[:, :, None] != regions_NT[:, None, :]).float() * -100.0
    qkv = linear(w, f"{block}.attn.qkv", windows(y))
    mixed = attention(qkv, heads, bias + hidden_NTT[:, None].repeat(B, 1, 1, 1))
    rows = side // WINDOW
    mixed = linear(w, f"{block}.attn.proj", mixed).view(B, rows, rows, WINDOW, WINDOW, D)
    x = x + torch.roll(mixed.transpose(2, 3).reshape(B, side, side, D), (shift, shift), (1, 2))
    return x + linear(
        w, f"{block}.mlp.fc2", functional.gelu(linear(w, f"{block}.mlp.fc1", norm(w, f"{block}.norm2", x, 1e-5)))
    )


# --- convolutions ----------------------------------------------------------------------------------------------------


def resnet_weights(draw: Random, bottleneck: bool) -> Weights:
    """Draw four stages of one block, whose last three halve the image."""
    w = draw.linear("conv1", 8, 3, 7, 7, bias=False) | draw.batch_norm("bn1", 8)
    expansion = 4 if bottleneck else 1
    last = 8
    for stage, width in enumerate((8, 12, 16, 20), 1):
        block, wide = f"layer{stage}.0", width * expansion
        shapes = [(width, last, 1), (width, width, 3), (wide, width, 1)] if bottleneck else [
            (width, last, 3), (width, width, 3)
        ]  # fmt: skip
        for number, (out, into, kernel) in enumerate(shapes, 1):
            w |= draw.linear(f"{block}.conv{number}", out, into, kernel, kernel, bias=False)
            w |= draw.batch_norm(f"{block}.bn{number}", out)
        if stage > 1 or last != wide:
            w |= draw.linear(f"{block}.downsample.0", wide, last, 1, 1, bias=False)
            w |= draw.batch_norm(f"{block}.downsample.1", wide)
        last = wide
    return w | draw.linear("fc", CLASSES, last)


def resnet(w: Weights, x: Tensor) -> Tensor:
    """Classify by the mean of the last map; in a bottleneck, the 3 x 3 convolution halves the image."""

    def batch_norm(name: str, x: Tensor) -> Tensor:
        statistics = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        return functional.batch_norm(x, *statistics, w[f"{name}.weight"], w[f"{name}.bias"])

    x = functional.relu(batch_norm("bn1", functional.conv2d(x, w["conv1.weight"], stride=2, padding=3)))
    x = functional.max_pool2d(x, 3, 2, 1)
    bottleneck = "layer1.0.conv3.weight" in w
    for stage in range(1, 5):
        block, short, stride = f"layer{stage}.0", x, 1 if stage == 1 else 2
        if f"{block}.downsample.0.weight" in w:
            short = batch_norm(
                f"{block}.downsample.1", functional.conv2d(x, w[f"{block}.downsample.0.weight"], stride=stride)
            )
        numbers = (1, 2, 3) if bottleneck else (1, 2)
        for number in numbers:
            weight = w[f"{block}.conv{number}.weight"]
            strided = stride if number == (2 if bottleneck else 1) else 1
            x = batch_norm(
                f"{block}.bn{number}", functional.conv2d(x, weight, stride=strided, padding=weight.shape[-1] // 2)
            )
            x = functional.relu(x) if number != numbers[-1] else functional.relu(x + short)
    return linear(w, "fc", x.mean((2, 3)))


CONVNEXT_WIDTHS = (8, 12, 16, 20)


def convnext_weights(draw: Random, second: bool, as_convolutions: bool = False) -> Weights:
    """Draw four stages of one block; the second version normalises responses instead of scaling layers."""
    w = draw.linear("stem.0", 8, 3, 4, 4) | draw.norm("stem.1", 8)
    more = (1, 1) if as_convolutions else ()
    for stage, width in enumerate(CONVNEXT_WIDTHS):
        if stage:
            last = CONVNEXT_WIDTHS[stage - 1]
            w |= draw.norm(f"stages.{stage}.downsample.0", last)
            w |= draw.linear(f"stages.{stage}.downsample.1", width, last, 2, 2)
        block = f"stages.{stage}.blocks.0"
        w |= draw.linear(f"{block}.conv_dw", width, 1, 7, 7) | draw.norm(f"{block}.norm", width)
        w |= draw.linear(f"{block}.mlp.fc1", 4 * width, width, *more)
        w |= draw.linear(f"{block}.mlp.fc2", width, 4 * width, *more)
        w |= draw.norm(f"{block}.mlp.grn", 4 * width) if second else {f"{block}.gamma": draw(width, around=0.7)}
    return w | draw.norm("head.norm", width) | draw.linear("head.fc", CLASSES, width)


def convnext(w: Weights, x: Tensor) -> Tensor:
    """Classify by the mean of the last map, which is then normalised."""

    def channels_norm(name: str, x: Tensor) -> Tensor:
        return norm(w, name, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    x = channels_norm("stem.1", functional.conv2d(x, w["stem.0.weight"], w["stem.0.bias"], stride=4))
    for stage, width in enumerate(CONVNEXT_WIDTHS):
        if stage:
            name = f"stages.{stage}.downsample"
            x = functional.conv2d(channels_norm(f"{name}.0", x), w[f"{name}.1.weight"], w[f"{name}.1.bias"], stride=2)
        block = f"stages.{stage}.blocks.0"
        y = functional.conv2d(x, w[f"{block}.conv_dw.weight"], w[f"{block}.conv_dw.bias"], padding=3, groups=width)
        y = functional.gelu(linear(w, f"{block}.mlp.fc1", norm(w, f"{block}.norm", y.permute(0, 2, 3, 1))))
        if f"{block}.mlp.grn.weight" in w:
            response = y.square().sum((1, 2), keepdim=True).sqrt()
            relative = response / (response.mean(-1, keepdim=True) + 1e-6)
            y = y + w[f"{block}.mlp.grn.bias"] + w[f"{block}.mlp.grn.weight"] * (y * relative)
        x = x + (linear(w, f"{block}.mlp.fc2", y) * w.get(f"{block}.gamma", torch.ones(1))).permute(0, 3, 1, 2)
    return linear(w, "head.fc", norm(w, "head.norm", x.mean((2, 3))))


def _distilled_weights(draw: Random) -> Weights:
    return vit_weights(draw, ("cls_token", "dist_token"), 18) | draw.linear("head_dist", CLASSES, HIDDEN)


def _networks() -> tuple[TimmNetwork, ...]:
    token: dict[str, Any] = {"pool": "token"}
    average: dict[str, Any] = {"pool": "avg"}
    return (
        TimmNetwork("vit_tiny_patch16_224", 32, vit_weights, vit, **token),
        TimmNetwork("deit_tiny_distilled_patch16_224", 32, _distilled_weights, distilled, **token),
        TimmNetwork("beit_base_patch16_224", 32, beit_weights, beit, **average),
        TimmNetwork(
            "vit_small_patch14_dinov2", 56, lambda draw: dinov2_weights(draw, False), dinov2, num_classes=0, **token
        ),
        TimmNetwork(
            "vit_small_patch14_reg4_dinov2", 56, lambda draw: dinov2_weights(draw, True), dinov2, num_classes=0, **token
        ),
        TimmNetwork("swin_tiny_patch4_window7_224", 224, swin_weights, swin, **average),
        TimmNetwork("resnet18", 64, lambda draw: resnet_weights(draw, False), resnet, **average),
        TimmNetwork("resnet50", 64, lambda draw: resnet_weights(draw, True), resnet, **average),
        TimmNetwork("convnext_tiny", 64, lambda draw: convnext_weights(draw, False), convnext, **average),
        TimmNetwork("convnext_atto", 64, lambda draw: convnext_weights(draw, False, True), convnext, **average),
        TimmNetwork("convnextv2_tiny", 64, lambda draw: convnext_weights(draw, True), convnext, **average),
        TimmNetwork("convnextv2_atto", 64, lambda draw: convnext_weights(draw, True, True), convnext, **average),
    )


NETWORKS = {network.architecture: network for network in _networks()}
