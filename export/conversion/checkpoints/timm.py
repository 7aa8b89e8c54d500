"""Rewrites folders of the package timm as Hugging Face checkpoints, without that package.

    config.json (architecture, pretrained_cfg), model.safetensors ──> config.json, model.safetensors of `transformers`

The rewritten checkpoint is then loaded like any other, so that a weight that is missing or has no place is refused.
`pretrained_cfg` becomes the service's form of an image processor, by the rules of timm's own evaluation.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from export.conversion.checkpoints.reading import CONFIG, LoadRefused, check_files, few, path_of, read_object, reading
from export.conversion.families.timm import ARCHITECTURES, NOT_STORED, QKV, TimmFamily

WEIGHTS = "model.safetensors"
WRAPPED = "timm_model."  # prefix of names in checkpoints that `transformers` saved around timm's networks
# Values where pretrained_cfg is silent, as in timm's evaluation.
DEFAULT_MEAN, DEFAULT_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEFAULT_CROP_PCT, DEFAULT_INTERPOLATION, DEFAULT_CROP_MODE = 0.875, "bicubic", "center"
RESAMPLING = {"lanczos": 1, "bilinear": 2, "bicubic": 3}
# Arguments of a network that show in the shapes of its weights, or are looked at here.
KNOWN_ARGUMENTS = {"img_size", "patch_size", "embed_dim", "depth", "depths", "dims", "num_classes", "num_heads"} | {
    "in_chans",
    "window_size",
    "global_pool",
}


def is_timm(name_or_path: str) -> bool:
    """Whether `config.json` is of the package timm."""
    check_files(name_or_path)
    return is_timm_config(read_object(name_or_path, CONFIG))


def is_timm_config(document: Mapping[str, Any]) -> bool:
    """Whether the contents of `config.json` are of the package timm."""
    return "architecture" in document and document.get("model_type") in (None, "timm_wrapper")


def has_timm_classifier(document: Mapping[str, Any]) -> bool:
    """Whether a model of timm is a classifier that can be loaded; the backbones of others answer with vectors."""
    family = ARCHITECTURES.get(document["architecture"])
    return bool(_num_classes(document)) and (family is None or family.has_head)


def _num_classes(document: Mapping[str, Any]) -> int:
    pretrained = document.get("pretrained_cfg")
    inner = pretrained.get("num_classes", 1000) if isinstance(pretrained, dict) else 1000
    return int(document.get("num_classes", inner))


def rewrite_timm(name_or_path: str, folder: Path, with_head: bool) -> dict[str, Any]:
    """Write a timm model as a checkpoint of `transformers`.

    Args:
        name_or_path: the folder, or the hub id.
        folder: an empty folder.
        with_head: write the classifier too.

    Returns:
        the image processor in the form that the service reads.

    Raises:
        LoadRefused: an architecture, option or preprocessing that is not offered, or weights with unknown names.
    """
    document = read_object(name_or_path, CONFIG)
    architecture = document["architecture"]
    family = ARCHITECTURES.get(architecture)
    if family is None:
        raise LoadRefused(f"{CONFIG}: architecture {architecture!r} of timm is not one of {', '.join(ARCHITECTURES)}")
    arguments = _arguments(document, family)
    pretrained = _pretrained(document)
    weights = _weights(name_or_path)
    num_classes = _num_classes(document)
    if with_head and not has_timm_classifier(document):
        raise LoadRefused(
            f"{CONFIG}: architecture {architecture!r} with num_classes {num_classes} has no classifier that is offered;"
            " load it with --task image-feature-extraction"
        )
    processor = timm_processor(pretrained)
    heads = arguments.get("num_heads", family.architectures[architecture])
    heads = [heads] if isinstance(heads, int) else list(heads)
    with reading(f"the weights are not those of {architecture}"):
        described = family.describe(weights, heads, architecture)
        renamed = renamed_weights(weights, family)
    if not with_head:
        renamed = {name: weight for name, weight in renamed.items() if "classifier" not in name}
    side = processor["crop_size"]["height"]
    if family.model_type.startswith("dinov2") and (trained := _trained_size(weights, described["patch_size"])) != side:
        raise LoadRefused(
            f"{CONFIG}: input_size {side} x {side}, but the weights have positions for {trained} x {trained} pixels,"
            " which timm interpolates in a way of its own; not offered"
        )
    config = {"model_type": family.model_type, "image_size": side} | described | _labels(document, num_classes)
    (folder / CONFIG).write_text(json.dumps(config))
    save_file(renamed, folder / WEIGHTS, metadata={"format": "pt"})
    return processor


def _arguments(document: Mapping[str, Any], family: TimmFamily) -> dict[str, Any]:
    """Return the arguments that the network was built with beyond those of its architecture.

    Raises:
        LoadRefused: one of them changes more than shapes.
    """
    arguments = document.get("model_args") or {}
    if not isinstance(arguments, dict) or (unknown := sorted(set(arguments) - KNOWN_ARGUMENTS)):
        raise LoadRefused(f"{CONFIG}: model_args {few(unknown)} of timm: not offered")
    pool = arguments.get("global_pool", document.get("global_pool", family.pool))
    if pool != family.pool:
        raise LoadRefused(
            f"{CONFIG}: global_pool {pool!r}; with architecture {document['architecture']!r} only {family.pool!r} is"
            " offered"
        )
    return arguments


def _pretrained(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return `pretrained_cfg`, whose entries older files have beside `architecture`."""
    pretrained = document.get("pretrained_cfg", document)
    if not isinstance(pretrained, dict):
        raise LoadRefused(f"{CONFIG}: pretrained_cfg is not an object")
    if str(document["architecture"]).startswith("convnext") and "clip" in str(pretrained.get("tag", "")):
        raise LoadRefused(
            f"{CONFIG}: tag {pretrained['tag']!r}: ConvNeXT of CLIP normalises by another constant, which is not"
            " offered"
        )
    return pretrained


def _weights(name_or_path: str) -> dict[str, Tensor]:
    path = path_of(name_or_path, WEIGHTS)
    if path is None:
        raise LoadRefused(f"{name_or_path} has no {WEIGHTS}; of timm, only weights in this form are read")
    with reading(f"{WEIGHTS} is damaged or incomplete"):
        stored = load_file(path)
    weights = {name.removeprefix(WRAPPED): weight for name, weight in stored.items()}
    return {_later_name(name, weights): weight for name, weight in weights.items() if not NOT_STORED.search(name)}


def _later_name(name: str, weights: Mapping[str, Tensor]) -> str:
    """Return the name of a weight in later versions of timm, in which a layer of Swin begins with its downsampling."""
    if "layers.0.downsample.reduction.weight" not in weights:
        return name
    return re.sub(r"^layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) + 1}.downsample", name)


def renamed_weights(weights: Mapping[str, Tensor], family: TimmFamily) -> dict[str, Tensor]:
    """Return the weights under the names that `transformers` knows.

    Raises:
        LoadRefused: weights have unknown names.
    """
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, weight in weights.items():
        for pattern, template in family.rules:
            if found := re.fullmatch(pattern, name):
                target = re.sub(r"<(\d+)-1>", lambda number: str(int(number[1]) - 1), found.expand(template))
                if "{qkv}" in target:
                    parts = zip(QKV, weight.chunk(3), strict=True)
                    renamed |= {target.format(qkv=part): each.contiguous() for part, each in parts}
                else:
                    renamed[target] = _in_shape(target, weight)
                break
        else:
            unknown.append(name)
    if unknown:
        raise LoadRefused(f"{len(unknown)} weights have names that timm's architecture does not have: {few(unknown)}")
    return renamed | _of_dinov2(renamed, family)


def _in_shape(name: str, weight: Tensor) -> Tensor:
    """Give a weight of ConvNeXT the shape it has in `transformers`: a linear map, or a factor of a channel."""
    if ".pwconv" in name and weight.ndim == 4:
        return weight[:, :, 0, 0].contiguous()
    return weight.reshape(1, 1, 1, -1) if ".grn." in name else weight


def _of_dinov2(renamed: Mapping[str, Tensor], family: TimmFamily) -> dict[str, Tensor]:
    """Return the weights that timm leaves out of DINOv2.

    These are the token of masked patches, which only training uses, and the position of the class token where timm has
    added it to that token.
    """
    if not family.model_type.startswith("dinov2"):
        return {}
    token = renamed[f"{family.model_type}.embeddings.cls_token"]
    more = {f"{family.model_type}.embeddings.mask_token": torch.zeros_like(token[0])}
    if family.model_type == "dinov2_with_registers":
        name = f"{family.model_type}.embeddings.position_embeddings"
        more[name] = torch.cat([torch.zeros_like(token), renamed[name]], dim=1)
    return more


def _trained_size(weights: Mapping[str, Tensor], patch_size: int) -> int:
    """Return the length of the sides of the images that DINOv2's positions are of."""
    num_positions = weights["pos_embed"].shape[1] - (0 if "reg_token" in weights else 1)
    return math.isqrt(num_positions) * patch_size


def _labels(document: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    names = document.get("label_names")
    if isinstance(names, list) and len(names) == num_classes:
        return {"id2label": {str(number): str(name) for number, name in enumerate(names)}}
    return {"id2label": {str(number): f"LABEL_{number}" for number in range(num_classes)}} if num_classes else {}


def timm_processor(pretrained: Mapping[str, Any]) -> dict[str, Any]:
    """Write `pretrained_cfg` as the service's image processor.

    Images are resized so that `crop_pct` of the shortest edge remains after the crop, or with `crop_mode` "squash" of
    both sides.

    Raises:
        LoadRefused: an entry is not offered.
    """
    size = pretrained.get("input_size") or [3, 224, 224]
    if len(size) != 3 or size[0] != 3 or size[1] != size[2]:
        raise LoadRefused(f"{CONFIG}: input_size {size}; only square images of 3 channels are offered")
    interpolation = pretrained.get("interpolation") or DEFAULT_INTERPOLATION
    if interpolation not in RESAMPLING:
        raise LoadRefused(f"{CONFIG}: interpolation {interpolation!r} is not one of {', '.join(RESAMPLING)}")
    mode = pretrained.get("crop_mode") or DEFAULT_CROP_MODE
    if mode not in ("center", "squash"):
        raise LoadRefused(f"{CONFIG}: crop_mode {mode!r} is not one of center, squash")
    side = int(size[1])
    resized = math.floor(side / float(pretrained.get("crop_pct") or DEFAULT_CROP_PCT))
    if resized < side:
        raise LoadRefused(
            f"{CONFIG}: crop_pct {pretrained['crop_pct']} enlarges the crop beyond the image: not offered"
        )
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": resized} if mode == "center" else {"height": resized, "width": resized},
        "resample": RESAMPLING[interpolation],
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "crop_rounding": "even",
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _channels(pretrained, "mean", DEFAULT_MEAN),
        "image_std": _channels(pretrained, "std", DEFAULT_STD),
    }


def _channels(pretrained: Mapping[str, Any], name: str, default: tuple[float, ...]) -> list[float]:
    values = pretrained.get(name) or default
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise LoadRefused(f"{CONFIG}: {name} is {values!r}; a number for each of the 3 channels is needed")
    return [float(value) for value in values]
