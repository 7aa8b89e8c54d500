"""Folders of timm become the networks that timm's definitions describe, with its preprocessing."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel

from export.conversion.checkpoints.image_models import image_source_of
from export.conversion.checkpoints.reading import LoadRefused
from export.conversion.checkpoints.timm import is_timm, rewrite_timm
from export.conversion.families.timm import ARCHITECTURES, FAMILIES
from export.conversion.golden_images import shapes
from tests.export.conversion.checkpoints.timm_networks import CLASSES, NETWORKS, Random, TimmNetwork
from tests.service.tasks.images.test_image_classification import file_of

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def save_timm(network: TimmNetwork, folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """Save random weights with timm's `config.json`; `changes` are of `pretrained_cfg`."""
    folder.mkdir(exist_ok=True)
    pretrained = {
        "input_size": [3, network.size, network.size],
        "mean": MEAN,
        "std": STD,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "tag": "mine",
    }
    config = {
        "architecture": network.architecture,
        "num_classes": network.num_classes,
        "global_pool": network.pool,
        "pretrained_cfg": pretrained | changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    weights = network.weights(Random(7))
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors")
    return weights


def test_every_family_of_the_table_has_a_reference() -> None:
    """An architecture without a definition here could not be said to be compared."""
    assert {family.model_type for family in FAMILIES} == {ARCHITECTURES[name].model_type for name in NETWORKS}


SLOW = {"swin_tiny_patch4_window7_224": [pytest.mark.slow]}  # only whole windows show its shifts


@pytest.mark.parametrize("architecture", [pytest.param(name, marks=SLOW.get(name, [])) for name in NETWORKS])
@torch.inference_mode()
def test_renamed_weights_answer_like_timms_definition(architecture: str, tmp_path: Path) -> None:
    """Logits, or the class token of a network without a head, equal the reference; images do differ in them."""
    network = NETWORKS[architecture]
    weights = save_timm(network, tmp_path / "mine")
    pixels_BCHW = torch.randn(3, 3, network.size, network.size, generator=torch.Generator().manual_seed(3))
    expected_BC = network.compute(weights, pixels_BCHW)
    if network.num_classes:
        source = image_source_of(str(tmp_path / "mine"))
        found_BC = source.module(pixels_BCHW)
        assert source.labels == [f"LABEL_{number}" for number in range(CLASSES)]
        assert source.provenance["timm_architecture"] == architecture
    else:
        rewrite_timm(str(tmp_path / "mine"), tmp_path, with_head=False)
        found_BC = AutoModel.from_pretrained(tmp_path).eval()(pixels_BCHW).pooler_output
    assert float((expected_BC - expected_BC.mean(0)).abs().max()) > 0.05
    torch.testing.assert_close(found_BC, expected_BC, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_layers_of_swin_in_older_folders_end_with_their_downsampling(tmp_path: Path) -> None:
    """Older versions of timm have the same weights one layer earlier, and the head without `fc`."""
    network = NETWORKS["swin_tiny_patch4_window7_224"]
    weights = save_timm(network, tmp_path)
    older = {
        name.replace("layers.1.downsample", "layers.0.downsample")
        .replace("layers.2.downsample", "layers.1.downsample")
        .replace("layers.3.downsample", "layers.2.downsample")
        .replace("head.fc", "head"): weight.contiguous()
        for name, weight in weights.items()
    }
    expected = image_source_of(str(tmp_path)).module.state_dict()
    save_file(older | {"layers.0.blocks.1.attn_mask": torch.zeros(1)}, tmp_path / "model.safetensors")
    for name, weight in image_source_of(str(tmp_path)).module.state_dict().items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"crop_pct": 0.875, "interpolation": "bilinear"},
        {"crop_pct": 1.0, "interpolation": "lanczos"},
        {"crop_mode": "squash", "crop_pct": 0.95},
        {"mean": None, "std": None, "interpolation": None, "crop_pct": None},
    ],
)
def test_pixels_are_prepared_as_in_timms_evaluation(changes: dict[str, Any], tmp_path: Path) -> None:
    """The shortest edge or both are resized, and the middle is cropped: half pixels are rounded to the even number."""
    save_timm(NETWORKS["resnet18"], tmp_path, **changes)
    source = image_source_of(str(tmp_path))
    side, crop_pct = 64, changes.get("crop_pct", 0.9) or 0.875
    filters = {"bilinear": 2, "lanczos": 1}
    resized = math.floor(side / crop_pct)
    for width, height in ((100, 60), (61, 99), (71, 71), (64, 64), (30, 91)):
        image = shapes(width, height)
        if changes.get("crop_mode") == "squash":
            size = (resized, resized)
        else:
            size = (
                (resized, int(resized * height / width)) if width < height else (int(resized * width / height), resized)
            )
        stretched = image.resize(size, filters.get(str(changes.get("interpolation")), 3))
        left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
        levels_HWC = np.asarray(stretched.crop((left, top, left + side, top + side))) / 255
        mean, std = (
            changes.get("mean", MEAN) or (0.485, 0.456, 0.406),
            changes.get("std", STD) or (0.229, 0.224, 0.225),
        )
        expected_CHW = ((levels_HWC - np.array(mean)) / np.array(std)).transpose(2, 0, 1)
        np.testing.assert_allclose(source.item(file_of(image)).pixels_CHW, expected_CHW, atol=1e-4)


def test_labels_are_those_of_the_folder(tmp_path: Path) -> None:
    """`label_names` has a name for each class."""
    save_timm(NETWORKS["convnext_tiny"], tmp_path)
    path = tmp_path / "config.json"
    names = ["ant", "bee", "cat", "dog", "eel"]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"label_names": names}))
    assert image_source_of(str(tmp_path)).labels == names


def test_what_is_not_offered_is_refused_by_name(tmp_path: Path) -> None:
    """Refuses other architectures, options, preprocessing and weights, with what was found."""
    save_timm(NETWORKS["vit_tiny_patch16_224"], tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())

    def refused(changes: dict[str, Any], pretrained: dict[str, Any], text: str) -> None:
        path.write_text(json.dumps(config | changes | {"pretrained_cfg": config["pretrained_cfg"] | pretrained}))
        assert is_timm(str(tmp_path))
        with pytest.raises(LoadRefused, match=text):
            image_source_of(str(tmp_path))

    refused(
        {"architecture": "efficientnet_b0"}, {}, "'efficientnet_b0' of timm is not one of vit_tiny_patch16_224, vit"
    )
    refused({"global_pool": "avg"}, {}, "global_pool 'avg'.* only 'token' is offered")
    refused({"num_classes": 0}, {}, "num_classes 0 has no classifier .* --task image-feature-extraction")
    refused({"model_args": {"reg_tokens": 4}}, {}, "model_args reg_tokens of timm: not offered")
    refused({"num_classes": 9}, {}, "another shape")
    refused({"architecture": "resnet18", "global_pool": "avg"}, {}, "weights are not those of resnet18")
    refused({"architecture": "vit_small_patch14_dinov2", "num_classes": 0}, {}, "image-feature-extraction")
    refused({}, {"crop_mode": "border"}, "crop_mode 'border' is not one of center, squash")
    refused({}, {"interpolation": "nearest"}, "interpolation 'nearest' is not one of lanczos, bilinear, bicubic")
    refused({}, {"input_size": [3, 32, 48]}, "only square images")
    refused({}, {"input_size": [3, 48, 48]}, "another shape")
    refused({}, {"crop_pct": 1.5}, "crop_pct 1.5 enlarges")
    refused({}, {"mean": [0.5]}, "mean is .* 3 channels")
    path.write_text(json.dumps(config))
    weights = NETWORKS["vit_tiny_patch16_224"].weights(Random(1))
    save_file({**weights, "blocks.0.attn.q_norm.weight": torch.ones(16)}, tmp_path / "model.safetensors")
    with pytest.raises(LoadRefused, match=r"1 weights have names .* blocks.0.attn.q_norm.weight"):
        image_source_of(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(LoadRefused, match=r"has no model.safetensors"):
        image_source_of(str(tmp_path))
