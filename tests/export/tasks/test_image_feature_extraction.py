"""Backbones of image models answer with the vectors of `transformers` after conversion."""

import base64
import json
import urllib.request
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, ViTConfig, ViTModel

from export.conversion.checkpoints.architecture import task_of_checkpoint
from export.conversion.checkpoints.image_models import image_embedding_of
from export.conversion.checkpoints.reading import LoadRefused
from export.conversion.classifier import write_graph, write_torchscript
from export.conversion.comparison.classifier import onnx_outputs
from export.conversion.families.images import IMAGE_FAMILIES
from export.conversion.golden_images import golden_images, made_up_images
from export.tasks.image_feature_extraction import TASK
from export.tasks.task import Target
from tests.conftest import running_server
from tests.export.conversion.checkpoints.test_image_models import save_image_model, slow_but
from tests.export.conversion.checkpoints.test_timm import save_timm
from tests.export.conversion.checkpoints.timm_networks import NETWORKS

QUIET = Console(quiet=True)


@torch.inference_mode()
def vectors_of_transformers(folder: Path, files: list[bytes], **options: Any) -> np.ndarray[Any, Any]:
    """Embed images one at a time with the checkpoint's own processor and network; float32 [B, D]."""
    model = AutoModel.from_pretrained(folder, **options).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    images = [Image.open(BytesIO(file)).convert("RGB") for file in files]
    found = [model(**processor(image, return_tensors="pt")) for image in images]
    rows = [each.last_hidden_state[:, 0] if each.pooler_output is None else each.pooler_output for each in found]
    return torch.cat(rows).flatten(1).numpy()


@pytest.mark.parametrize("kind", slow_but("resnet"))
def test_vectors_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    """In batches of every size, from a classifier's checkpoint and from a backbone's own."""
    files = made_up_images(5)
    for auto_class in (AutoModelForImageClassification, AutoModel):
        folder = save_image_model(kind, tmp_path / auto_class.__name__, auto_class)
        with_pooler = auto_class is AutoModel or IMAGE_FAMILIES[kind].embedding == "pooler_output"
        options = {} if with_pooler else {"add_pooling_layer": False}
        expected_BD = vectors_of_transformers(folder, files, **options)
        source = image_embedding_of(str(folder))
        assert source.settings.dimensions == expected_BD.shape[1]
        assert np.ptp(expected_BD, axis=0).max() > 1e-3
        np.testing.assert_allclose(np.stack(source.outputs(source.module, files)), expected_BD, atol=1e-4)
    write_graph(source, tmp_path / "model.onnx", "float32", QUIET)
    for batch_size in (1, 3):
        found_BD = np.stack(onnx_outputs(source, tmp_path / "model.onnx", files, batch_size))
        np.testing.assert_allclose(found_BD, expected_BD, atol=1e-4)
    traced_BD = np.stack(write_torchscript(source, tmp_path / "model.pt", files))
    np.testing.assert_allclose(traced_BD, expected_BD, atol=1e-4)


def ask(url: str, body: bytes) -> Any:
    """Post a body, and return the JSON of the answer."""
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=30) as response:
        return json.load(response)


def test_a_loaded_backbone_is_served(tmp_path: Path) -> None:
    """The command's folder is proved at load; a file, JSON and tensors get the vector that `transformers` gives."""
    folder = save_image_model("resnet", tmp_path / "mine", AutoModel)
    assert task_of_checkpoint(str(folder)) == TASK.name
    TASK.load(str(folder), None, Target("mine", tmp_path / "store", "float32"), QUIET)
    manifest = json.loads((tmp_path / "store/mine/1/manifest.json").read_text())
    assert manifest["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [-1, 32]}]
    assert manifest["quality"]["made-up images"]["min_cosine"] > 0.99999
    assert manifest["float16"]["quality"]["made-up images"]["mean_cosine"] > 0.999
    card = (tmp_path / "store/mine/1/README.md").read_text()
    assert "embedding is: the mean of all cells of the last feature map" in card
    file = golden_images()["a tall PNG"]
    (expected_D,) = vectors_of_transformers(folder, [file])
    encoded = base64.b64encode(file).decode()
    with running_server(tmp_path / "store") as server:
        url = f"{server.http}/models/mine"
        np.testing.assert_allclose(ask(url, file), expected_D, atol=1e-4)
        request = {"inputs": encoded, "parameters": {"normalize": True, "dimensions": 8}}
        found = ask(url, json.dumps(request).encode())
        np.testing.assert_allclose(found, expected_D[:8] / np.linalg.norm(expected_D[:8]), atol=1e-4)
        tensor = {"name": "image", "shape": [2], "datatype": "BYTES", "data": [encoded, encoded]}
        answer = ask(f"{server.http}/v2/models/mine/infer", json.dumps({"inputs": [tensor]}).encode())
        (output,) = answer["outputs"]
        assert (output["name"], output["datatype"], output["shape"]) == ("embedding", "FP32", [2, 32])
        np.testing.assert_allclose(output["data"], [*expected_D, *expected_D], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "precision"), [("vit", "int8"), ("convnext", "int8"), ("dinov2", "float16")])
def test_lossy_vectors_keep_their_direction(kind: str, precision: Any, tmp_path: Path) -> None:
    """The manifest says how far vectors turn; the server proves the folder with its tolerance."""
    folder = save_image_model(kind, tmp_path / "mine", AutoModel)
    TASK.load(str(folder), None, Target("mine", tmp_path / "store", precision), QUIET)
    manifest = json.loads((tmp_path / "store/mine/1/manifest.json").read_text())
    assert 0.99 < manifest["quality"]["made-up images"]["mean_cosine"] < 1 - 1e-9
    if precision == "int8":
        assert manifest["batch_sensitivity"]["num_items"] > 0
        with running_server(tmp_path / "store") as server:
            assert len(ask(f"{server.http}/models/mine", made_up_images(1)[0])) == 32


def test_networks_of_convolutions_are_not_quantized(tmp_path: Path) -> None:
    """The refusal says why."""
    folder = save_image_model("resnet", tmp_path / "mine", AutoModel)
    with pytest.raises(ValueError, match="int8 is not offered: the network is made of convolutions"):
        TASK.load(str(folder), None, Target("mine", tmp_path / "store", "int8"), QUIET)


def test_backbones_of_timm_are_embeddings(tmp_path: Path) -> None:
    """A folder without a classifier is told from one with, and its vector is the class token."""
    network = NETWORKS["vit_small_patch14_reg4_dinov2"]
    weights = save_timm(network, tmp_path)
    assert task_of_checkpoint(str(tmp_path)) == TASK.name
    source = image_embedding_of(str(tmp_path))
    pixels_BCHW = torch.randn(2, 3, network.size, network.size, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        torch.testing.assert_close(
            source.module(pixels_BCHW), network.compute(weights, pixels_BCHW), atol=2e-5, rtol=1e-4
        )
    save_timm(NETWORKS["resnet18"], tmp_path)
    assert task_of_checkpoint(str(tmp_path)) == "image-classification"
    assert image_embedding_of(str(tmp_path)).settings.dimensions == 20
    save_timm(network, tmp_path, input_size=[3, 70, 70])
    with pytest.raises(LoadRefused, match="positions for 56 x 56 pixels"):
        image_embedding_of(str(tmp_path))


def test_a_pooler_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """Only a checkpoint without any pooler is read without one."""
    folder = save_image_model("vit", tmp_path, AutoModel)
    config = json.loads((folder / "config.json").read_text())
    ViTModel(ViTConfig(**config | {"pooler_output_size": 8})).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadRefused, match=r"2 weights have another shape .* pooler"):
        image_embedding_of(str(folder))
