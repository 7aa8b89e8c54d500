"""The architectures of the package timm that can be loaded, and where their weights belong in `transformers`.

A network is described by the shapes of its weights. Only what shapes do not tell is in the tables: the number of
attention heads, and the size of windows. Names of weights on the left are timm's, on the right those of the checkpoints
that the authors of `transformers` published; `{qkv}` stands for three weights in one, and `<2-1>` for 1.

Shapes: D hidden size, P sides of a patch.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Weights = Mapping[str, Tensor]
Rules = tuple[tuple[str, str], ...]
QKV = ("query", "key", "value")
# Of layer normalisations: Swin has that of PyTorch, all others one of timm.
EPSILON, SWIN_EPSILON = 1e-6, 1e-5
NOT_STORED = re.compile(r"(relative_position_index|attn_mask)$")  # buffers of old checkpoints, computed anew


@dataclass(frozen=True, kw_only=True)
class TimmFamily:
    """Architectures that share names of weights.

    Attributes:
        model_type: the family's name in `transformers`.
        architectures: numbers of attention heads by architecture; empty for networks without attention.
        pool: timm's `global_pool` that the network of `transformers` has.
        rules: regular expressions and their replacements, tried in order; the first that fits renames a weight.
        describe: makes the network's `config.json` from its weights and heads.
        has_head: whether a classifier of timm has its head at the place where `transformers` has it.
    """

    model_type: str
    architectures: Mapping[str, Sequence[int]]
    pool: str
    rules: Rules
    describe: Callable[[Weights, Sequence[int], str], dict[str, Any]]
    has_head: bool = True


def _encoder_rules(prefix: str, more: Rules = ()) -> Rules:
    layer = rf"{prefix}.encoder.layer.\1"
    return (
        *more,
        (r"cls_token", f"{prefix}.embeddings.cls_token"),
        (r"pos_embed", f"{prefix}.embeddings.position_embeddings"),
        (r"patch_embed\.proj\.(\w+)", rf"{prefix}.embeddings.patch_embeddings.projection.\1"),
        (r"blocks\.(\d+)\.attn\.qkv\.(\w+)", layer + r".attention.attention.{qkv}.\2"),
        (r"blocks\.(\d+)\.attn\.proj\.(\w+)", layer + r".attention.output.dense.\2"),
        (r"blocks\.(\d+)\.norm1\.(\w+)", layer + r".layernorm_before.\2"),
        (r"blocks\.(\d+)\.norm2\.(\w+)", layer + r".layernorm_after.\2"),
        (r"blocks\.(\d+)\.mlp\.fc1\.(\w+)", layer + r".intermediate.dense.\2"),
        (r"blocks\.(\d+)\.mlp\.fc2\.(\w+)", layer + r".output.dense.\2"),
        (r"norm\.(\w+)", rf"{prefix}.layernorm.\1"),
        (r"head\.(\w+)", r"classifier.\1"),
    )


DISTILLED: Rules = (
    (r"dist_token", "deit.embeddings.distillation_token"),
    (r"head\.(\w+)", r"cls_classifier.\1"),
    (r"head_dist\.(\w+)", r"distillation_classifier.\1"),
)
BEIT: Rules = (
    (r"blocks\.(\d+)\.attn\.q_bias", r"beit.encoder.layer.\1.attention.attention.query.bias"),
    (r"blocks\.(\d+)\.attn\.v_bias", r"beit.encoder.layer.\1.attention.attention.value.bias"),
    (
        r"blocks\.(\d+)\.attn\.relative_position_bias_table",
        r"beit.encoder.layer.\1.attention.attention.relative_position_bias.relative_position_bias_table",
    ),
    (r"blocks\.(\d+)\.gamma_([12])", r"beit.encoder.layer.\1.lambda_\2"),
    (r"fc_norm\.(\w+)", r"beit.pooler.layernorm.\1"),
)
DINOV2_LAYER = r"dinov2.encoder.layer.\1"
DINOV2: Rules = (
    (r"reg_token", "dinov2.embeddings.register_tokens"),
    (r"blocks\.(\d+)\.ls([12])\.gamma", DINOV2_LAYER + r".layer_scale\2.lambda1"),
    (r"blocks\.(\d+)\.(norm[12]|mlp\.fc[12])\.(\w+)", DINOV2_LAYER + r".\2.\3"),
)
SWIN_BLOCK = r"swin.encoder.layers.\1.blocks.\2"
SWIN: Rules = (
    (r"patch_embed\.proj\.(\w+)", r"swin.embeddings.patch_embeddings.projection.\1"),
    (r"patch_embed\.norm\.(\w+)", r"swin.embeddings.norm.\1"),
    (r"layers\.(\d+)\.blocks\.(\d+)\.attn\.qkv\.(\w+)", SWIN_BLOCK + r".attention.self.{qkv}.\3"),
    (r"layers\.(\d+)\.blocks\.(\d+)\.attn\.proj\.(\w+)", SWIN_BLOCK + r".attention.output.dense.\3"),
    (
        r"layers\.(\d+)\.blocks\.(\d+)\.attn\.(relative_position_bias_table)",
        SWIN_BLOCK + r".attention.self.\3",
    ),
    (r"layers\.(\d+)\.blocks\.(\d+)\.norm1\.(\w+)", SWIN_BLOCK + r".layernorm_before.\3"),
    (r"layers\.(\d+)\.blocks\.(\d+)\.norm2\.(\w+)", SWIN_BLOCK + r".layernorm_after.\3"),
    (r"layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc1\.(\w+)", SWIN_BLOCK + r".intermediate.dense.\3"),
    (r"layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc2\.(\w+)", SWIN_BLOCK + r".output.dense.\3"),
    (r"layers\.(\d+)\.downsample\.(.+)", r"swin.encoder.layers.<\1-1>.downsample.\2"),
    (r"norm\.(\w+)", r"swin.layernorm.\1"),
    (r"head\.(?:fc\.)?(\w+)", r"classifier.\1"),
)
RESNET_LAYER = r"resnet.encoder.stages.<\1-1>.layers.\2"
RESNET: Rules = (
    (r"conv1\.(\w+)", r"resnet.embedder.embedder.convolution.\1"),
    (r"bn1\.(\w+)", r"resnet.embedder.embedder.normalization.\1"),
    (r"layer(\d+)\.(\d+)\.conv(\d)\.(\w+)", RESNET_LAYER + r".layer.<\3-1>.convolution.\4"),
    (r"layer(\d+)\.(\d+)\.bn(\d)\.(\w+)", RESNET_LAYER + r".layer.<\3-1>.normalization.\4"),
    (r"layer(\d+)\.(\d+)\.downsample\.0\.(\w+)", RESNET_LAYER + r".shortcut.convolution.\3"),
    (r"layer(\d+)\.(\d+)\.downsample\.1\.(\w+)", RESNET_LAYER + r".shortcut.normalization.\3"),
    (r"fc\.(\w+)", r"classifier.1.\1"),
)


def _convnext_rules(prefix: str) -> Rules:
    layer = rf"{prefix}.encoder.stages.\1.layers.\2"
    return (
        (r"stem\.0\.(\w+)", rf"{prefix}.embeddings.patch_embeddings.\1"),
        (r"stem\.1\.(\w+)", rf"{prefix}.embeddings.layernorm.\1"),
        (r"stages\.(\d+)\.downsample\.(.+)", rf"{prefix}.encoder.stages.\1.downsampling_layer.\2"),
        (r"stages\.(\d+)\.blocks\.(\d+)\.conv_dw\.(\w+)", layer + r".dwconv.\3"),
        (r"stages\.(\d+)\.blocks\.(\d+)\.norm\.(\w+)", layer + r".layernorm.\3"),
        (r"stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc([12])\.(\w+)", layer + r".pwconv\3.\4"),
        (r"stages\.(\d+)\.blocks\.(\d+)\.mlp\.grn\.(\w+)", layer + r".grn.\3"),
        (r"stages\.(\d+)\.blocks\.(\d+)\.gamma", layer + r".layer_scale_parameter"),
        (r"head\.norm\.(\w+)", rf"{prefix}.layernorm.\1"),
        (r"head\.fc\.(\w+)", r"classifier.\1"),
    )


# --- shapes ----------------------------------------------------------------------------------------------------------


def count(weights: Weights, pattern: str) -> int:
    """Return how many numbers stand at the group of a pattern in the names of weights."""
    return len({found[1] for name in weights if (found := re.match(pattern, name))})


def _encoder(weights: Weights, heads: Sequence[int], _: str) -> dict[str, Any]:
    """Describe a vision transformer; patch_embed.proj.weight is [D, 3, P, P]."""
    hidden_size, channels, patch_size = weights["patch_embed.proj.weight"].shape[:3]
    return {
        "hidden_size": hidden_size,
        "num_channels": channels,
        "patch_size": patch_size,
        "num_hidden_layers": count(weights, r"blocks\.(\d+)"),
        "num_attention_heads": heads[0],
        "intermediate_size": weights["blocks.0.mlp.fc1.weight"].shape[0],
        "hidden_act": "gelu",
        "layer_norm_eps": EPSILON,
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
    }


def _beit(weights: Weights, heads: Sequence[int], architecture: str) -> dict[str, Any]:
    return _encoder(weights, heads, architecture) | {
        "use_relative_position_bias": "blocks.0.attn.relative_position_bias_table" in weights,
        "use_absolute_position_embeddings": "pos_embed" in weights,
        "use_mean_pooling": True,
        "layer_scale_init_value": 1.0 if "blocks.0.gamma_1" in weights else 0.0,
    }


def _dinov2(weights: Weights, heads: Sequence[int], architecture: str) -> dict[str, Any]:
    described = _encoder(weights, heads, architecture)
    described["mlp_ratio"] = described.pop("intermediate_size") // described["hidden_size"]
    if "reg_token" in weights:
        described["num_register_tokens"] = weights["reg_token"].shape[1]
    return described


def _swin(weights: Weights, heads: Sequence[int], architecture: str) -> dict[str, Any]:
    """Describe a Swin transformer; relative_position_bias_table is [(2 * window - 1) squared, heads]."""
    embed_dim, channels, patch_size, _ = weights["patch_embed.proj.weight"].shape
    num_places = weights["layers.0.blocks.0.attn.relative_position_bias_table"].shape[0]
    return {
        "embed_dim": embed_dim,
        "num_channels": channels,
        "patch_size": patch_size,
        "depths": [count(weights, rf"layers\.{layer}\.blocks\.(\d+)") for layer in range(len(heads))],
        "num_heads": list(heads),
        "window_size": (round(num_places**0.5) + 1) // 2,
        "mlp_ratio": weights["layers.0.blocks.0.mlp.fc1.weight"].shape[0] / embed_dim,
        "layer_norm_eps": SWIN_EPSILON,
    }


def _resnet(weights: Weights, _: Sequence[int], __: str) -> dict[str, Any]:
    bottleneck = "layer1.0.conv3.weight" in weights
    last = "conv3" if bottleneck else "conv2"
    stages = range(1, count(weights, r"layer(\d+)\.") + 1)
    return {
        "embedding_size": weights["conv1.weight"].shape[0],
        "num_channels": weights["conv1.weight"].shape[1],
        "hidden_sizes": [weights[f"layer{stage}.0.{last}.weight"].shape[0] for stage in stages],
        "depths": [count(weights, rf"layer{stage}\.(\d+)\.") for stage in stages],
        "layer_type": "bottleneck" if bottleneck else "basic",
        "hidden_act": "relu",
    }


def _convnext(weights: Weights, _: Sequence[int], __: str) -> dict[str, Any]:
    stages = range(count(weights, r"stages\.(\d+)\."))
    return {
        "num_channels": weights["stem.0.weight"].shape[1],
        "patch_size": weights["stem.0.weight"].shape[2],
        "num_stages": len(stages),
        "hidden_sizes": [weights[f"stages.{stage}.blocks.0.norm.weight"].shape[0] for stage in stages],
        "depths": [count(weights, rf"stages\.{stage}\.blocks\.(\d+)\.") for stage in stages],
        "hidden_act": "gelu",
        "layer_norm_eps": EPSILON,
        "layer_scale_init_value": 1.0 if "stages.0.blocks.0.gamma" in weights else 0.0,
    }


# --- tables ----------------------------------------------------------------------------------------------------------

HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16}
SWIN_HEADS = {"tiny": (3, 6, 12, 24), "small": (3, 6, 12, 24), "base": (4, 8, 16, 32), "large": (6, 12, 24, 48)}


def _by_size(names: str) -> dict[str, Sequence[int]]:
    """Return the heads of vision transformers, whose names have the size as their second word."""
    return {name: (HEADS[name.split("_")[1]],) for name in names.split()}


FAMILIES = (
    TimmFamily(
        model_type="vit",
        architectures=_by_size(
            "vit_tiny_patch16_224 vit_tiny_patch16_384 vit_small_patch32_224 vit_small_patch32_384"
            " vit_small_patch16_224 vit_small_patch16_384 vit_small_patch8_224 vit_base_patch32_224"
            " vit_base_patch32_384 vit_base_patch16_224 vit_base_patch16_384 vit_base_patch8_224"
            " vit_large_patch32_224 vit_large_patch32_384 vit_large_patch16_224 vit_large_patch16_384"
            " vit_large_patch14_224 vit_huge_patch14_224"
            " deit_tiny_patch16_224 deit_small_patch16_224 deit_base_patch16_224 deit_base_patch16_384"
        ),
        pool="token",
        rules=_encoder_rules("vit"),
        describe=_encoder,
    ),
    TimmFamily(
        model_type="deit",
        architectures=_by_size(
            "deit_tiny_distilled_patch16_224 deit_small_distilled_patch16_224 deit_base_distilled_patch16_224"
            " deit_base_distilled_patch16_384"
        ),
        pool="token",
        rules=_encoder_rules("deit", DISTILLED),
        describe=lambda *given: _encoder(*given) | {"architectures": ["DeiTForImageClassificationWithTeacher"]},
    ),
    TimmFamily(
        model_type="beit",
        architectures=_by_size(
            "beit_base_patch16_224 beit_base_patch16_384 beit_large_patch16_224 beit_large_patch16_384"
            " beit_large_patch16_512 beitv2_base_patch16_224 beitv2_large_patch16_224"
        ),
        pool="avg",
        rules=_encoder_rules("beit", BEIT),
        describe=_beit,
    ),
    TimmFamily(
        model_type="dinov2",
        architectures=_by_size("vit_small_patch14_dinov2 vit_base_patch14_dinov2 vit_large_patch14_dinov2"),
        pool="token",
        rules=_encoder_rules("dinov2", DINOV2),
        describe=_dinov2,
        has_head=False,
    ),
    TimmFamily(
        model_type="dinov2_with_registers",
        architectures=_by_size(
            "vit_small_patch14_reg4_dinov2 vit_base_patch14_reg4_dinov2 vit_large_patch14_reg4_dinov2"
        ),
        pool="token",
        rules=tuple(
            (pattern, renamed.replace("dinov2", "dinov2_with_registers", 1))
            for pattern, renamed in _encoder_rules("dinov2", DINOV2)
        ),
        describe=_dinov2,
        has_head=False,
    ),
    TimmFamily(
        model_type="swin",
        architectures={
            f"swin_{size}_patch4_{rest}": heads
            for size, heads in SWIN_HEADS.items()
            for rest in ("window7_224", "window12_384")
            if rest == "window7_224" or size in {"base", "large"}
        },
        pool="avg",
        rules=SWIN,
        describe=_swin,
    ),
    TimmFamily(
        model_type="resnet",
        architectures={f"resnet{layers}": () for layers in (18, 34, 50, 101, 152)},
        pool="avg",
        rules=RESNET,
        describe=_resnet,
    ),
    TimmFamily(
        model_type="convnext",
        architectures={
            f"convnext_{size}": ()
            for size in ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large", "xlarge")
        },
        pool="avg",
        rules=_convnext_rules("convnext"),
        describe=_convnext,
    ),
    TimmFamily(
        model_type="convnextv2",
        architectures={
            f"convnextv2_{size}": () for size in ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")
        },
        pool="avg",
        rules=_convnext_rules("convnextv2"),
        describe=_convnext,
    ),
)
ARCHITECTURES = {name: family for family in FAMILIES for name in family.architectures}
