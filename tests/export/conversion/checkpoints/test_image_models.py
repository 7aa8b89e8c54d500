"""Small random Hugging Face image models answer like `transformers` after conversion."""

import base64
import json
import subprocess
import sys
import urllib.request
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from rich.console import Console
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from export.conversion.checkpoints.image_models import image_source_of
from export.conversion.checkpoints.reading import LoadRefused
from export.conversion.classifier import write_graph, write_torchscript
from export.conversion.comparison.classifier import onnx_outputs
from export.conversion.families.images import IMAGE_FAMILIES
from export.conversion.golden_images import golden_images, made_up_images
from tests.conftest import ROOT, running_server
from tests.export.conversion.outputs import onnx_logits

TRANSFORMER = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "initializer_range": 0.3,
}
WINDOWS = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "initializer_range": 0.3}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
SQUARE = {"size": {"height": 32, "width": 32}}
CROPPED = {
    "size": {"shortest_edge": 36},
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
}
# Settings of the network, class of the image processor, and its settings. All prepare 32 x 32 pixels.
CHECKPOINTS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "vit": (TRANSFORMER, "ViT", SQUARE),
    "deit": (TRANSFORMER, "DeiT", {**CROPPED, "size": {"height": 40, "width": 40}}),
    "beit": (TRANSFORMER | {"use_relative_position_bias": True, "layer_scale_init_value": 0.5}, "Beit", SQUARE),
    "dinov2": (TRANSFORMER | {"image_size": 56}, "Bit", CROPPED),
    "dinov2_with_registers": (TRANSFORMER | {"image_size": 56}, "Bit", CROPPED),
    "swin": (WINDOWS | {"image_size": 48, "patch_size": 4}, "ViT", SQUARE),
    "swinv2": (WINDOWS | {"image_size": 32, "patch_size": 2}, "ViT", SQUARE),
    "convnext": (
        STAGES | {"initializer_range": 0.3, "layer_scale_init_value": 0.5},
        "ConvNext",
        {"size": {"shortest_edge": 32}},
    ),
    "convnextv2": (STAGES | {"initializer_range": 0.3}, "ConvNext", {"size": {"shortest_edge": 32}}),
    "resnet": (STAGES | {"embedding_size": 8, "layer_type": "basic"}, "ConvNext", {"size": {"shortest_edge": 32}}),
    "regnet": (STAGES | {"embedding_size": 8, "groups_width": 8}, "ConvNext", {"size": {"shortest_edge": 32}}),
    "mobilenet_v2": ({"image_size": 32, "depth_multiplier": 0.35}, "MobileNetV2", CROPPED),
}
LABELS = {"id2label": {0: "cloud", 1: "house", 2: "sea"}, "label2id": {"cloud": 0, "house": 1, "sea": 2}}


def save_image_model(kind: str, folder: Path, auto_class: Any = AutoModelForImageClassification, **more: Any) -> Path:
    """Save a random model, with three classes if it classifies, with its image processor."""
    settings, processor, sizes = CHECKPOINTS[kind]
    torch.manual_seed(1)
    classifier = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES[kind]
    architecture = classifier if isinstance(classifier, str) else classifier[0]
    config = transformers.CONFIG_MAPPING[kind](**LABELS | {"architectures": [architecture]} | settings | more)
    model = auto_class.from_config(config)
    if kind in ("resnet", "regnet", "mobilenet_v2"):  # as initialised, all images would get the same answer
        for name, tensor in model.state_dict().items():
            if tensor.ndim == 4:
                nn.init.normal_(tensor, std=1.3 / tensor[0].numel() ** 0.5)
            elif name.endswith(("running_mean", "running_var")):
                tensor.add_(torch.rand_like(tensor) * 0.4 - 0.2)
    for name, tensor in model.state_dict().items():
        if ".grn." in name:  # zero as initialised
            nn.init.normal_(tensor, std=0.5)
    model.save_pretrained(folder)
    getattr(transformers, f"{processor}ImageProcessorPil")(**sizes).save_pretrained(folder)
    return folder


def slow_but(fast: str) -> list[Any]:
    """Return the families as parameters: one of them in every run."""
    return [pytest.param(kind, marks=[] if kind == fast else [pytest.mark.slow]) for kind in CHECKPOINTS]


def test_every_family_of_the_table_is_tested() -> None:
    """A family without a checkpoint here could not be said to be compared."""
    assert set(CHECKPOINTS) == set(IMAGE_FAMILIES)


@torch.inference_mode()
def logits_of_transformers(folder: Path, files: list[bytes]) -> np.ndarray[Any, Any]:
    """Classify images one at a time with the checkpoint's own processor and network; float32 [B, C]."""
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    images = [Image.open(BytesIO(file)).convert("RGB") for file in files]
    rows = [model(**processor(image, return_tensors="pt")).logits for image in images]
    return torch.cat(rows).numpy()


@pytest.mark.parametrize("kind", slow_but("resnet"))
def test_graph_and_torchscript_answer_like_transformers(kind: str, tmp_path: Path) -> None:
    """In batches of every size, for images of several sizes; the images do get different answers."""
    folder = save_image_model(kind, tmp_path / kind)
    source = image_source_of(str(folder))
    files = [*made_up_images(5), golden_images()["a tall PNG"], *made_up_images(2, side=33)]
    expected_BC = logits_of_transformers(folder, files)
    assert np.ptp(expected_BC, axis=0).min() > 1e-3
    assert source.provenance["model_type"] == kind
    write_graph(source, tmp_path / "model.onnx", "float32", Console(quiet=True))
    for batch_size in (1, 3, 8):
        found_BC = np.stack(onnx_outputs(source, tmp_path / "model.onnx", files, batch_size))
        np.testing.assert_allclose(found_BC, expected_BC, atol=1e-4)
    np.testing.assert_allclose(
        np.stack(write_torchscript(source, tmp_path / "model.pt", files)), expected_BC, atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float16", "int8"])
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_lossy_graphs_stay_close_to_transformers(kind: str, precision: Any, tmp_path: Path) -> None:
    """Half precision and int8, for families that gain from it; others say why not."""
    folder = save_image_model(kind, tmp_path / kind)
    source = image_source_of(str(folder))
    if precision == "int8" and source.not_quantized_because:
        assert "convolutions" in source.not_quantized_because
        return
    files = made_up_images(8)
    expected_BC = logits_of_transformers(folder, files)
    write_graph(source, tmp_path / "model.onnx", precision, Console(quiet=True))
    found_BC = onnx_logits(source, tmp_path / "model.onnx", files)
    scale = float(np.abs(expected_BC - expected_BC.mean(axis=0)).max())
    limit = {"float16": 0.02, "int8": 0.3}[precision]
    assert 0 < np.abs(found_BC - expected_BC).max() <= limit * max(scale, float(np.abs(expected_BC).max()))


@pytest.mark.parametrize("kind", slow_but("vit"))
def test_a_loaded_image_model_is_served(kind: str, tmp_path: Path) -> None:
    """The command writes a folder; the server's answers equal those of the hub's own processor and model."""
    model_dir = save_image_model(kind, tmp_path / "mine")
    command = [sys.executable, "-m", "export", "load", str(model_dir), "--task", "image-classification"]
    run = subprocess.run(
        [*command, "--model-store", str(tmp_path / "store")], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    files = golden_images()
    names = ("a PNG of the size of CIFAR-10's images", "a JPEG", "a tall PNG", "a WebP")
    expected_BC = logits_of_transformers(model_dir, [files[name] for name in names])
    with running_server(tmp_path / "store") as server:
        for name, logits_C in zip(names, expected_BC, strict=True):
            request = urllib.request.Request(f"{server.http}/models/mine", files[name])
            with urllib.request.urlopen(request, timeout=10) as response:
                scores = {entry["label"]: entry["score"] for entry in json.load(response)}
            expected_C = np.exp(logits_C - logits_C.max()) / np.exp(logits_C - logits_C.max()).sum()
            for label, number in LABELS["label2id"].items():
                assert scores[label] == pytest.approx(float(expected_C[number]), abs=0.02), name
        explained = {
            "inputs": base64.b64encode(files["a JPEG"]).decode(),
            "parameters": {"explain": {"method": "occlusion"}},
        }
        request = urllib.request.Request(f"{server.http}/models/mine", json.dumps(explained).encode())
        with urllib.request.urlopen(request, timeout=30) as response:
            assert "occlusion" in response.read().decode()


def test_unsupported_image_models_are_refused(tmp_path: Path) -> None:
    """Refuses another family, other sizes, other classes and missing weights, each with what was found."""
    folder = save_image_model("vit", tmp_path / "vit")
    described = json.loads((folder / "config.json").read_text())
    for changes, text in (
        ({"problem_type": "ranking"}, "problem_type 'ranking' is not one of single_label_classification, multi"),
        ({"id2label": {"1": "a", "2": "b", "3": "c"}}, "numbered from 0 on"),
        ({"model_type": "cvt"}, "model type 'cvt' is not one of vit, deit, beit, dinov2"),
    ):
        (folder / "config.json").write_text(json.dumps(described | changes))
        with pytest.raises(LoadRefused, match=text):
            image_source_of(str(folder))
    config = ViTConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=1, num_labels=3)
    transformers.ViTModel(config).save_pretrained(folder)
    with pytest.raises(LoadRefused, match="classifier.bias, classifier.weight"):
        image_source_of(str(folder))
    with pytest.raises(LoadRefused, match="nowhere"):
        image_source_of(str(tmp_path / "nowhere"))


def test_several_labels_and_numbers(tmp_path: Path) -> None:
    """The problem decides what the logits are; a single logit is a class of its own, as in `transformers`."""
    logits = np.array([0.0, 2.0, -1.0], dtype=np.float32)
    several = "multi_label_classification"
    for changes, problem, scores in (
        ({}, None, [0.1142, 0.8438, 0.0420]),
        ({"problem_type": several}, several, [0.5, 0.8808, 0.2689]),
        ({"problem_type": "regression"}, "regression", [0.0, 2.0, -1.0]),
    ):
        source = image_source_of(str(save_image_model("resnet", tmp_path, **changes)))
        assert json.loads(source.files().get("task.json", "{}")).get("problem") == problem
        answer = source.task.finish(logits)
        assert answer.labels[0] == "house"
        assert sorted(answer.scores) == pytest.approx(sorted(scores), abs=1e-3)
    one = {"id2label": {0: "weight"}, "label2id": {"weight": 0}}
    source = image_source_of(str(save_image_model("resnet", tmp_path, **one)))
    assert source.settings is not None
    assert source.settings.problem == "multi_label_classification"


def test_networks_of_one_size_need_their_image_processors_size(tmp_path: Path) -> None:
    """A vision transformer has as many positions as patches; a residual network takes any size."""
    folder = save_image_model("vit", tmp_path / "vit", image_size=48)
    with pytest.raises(LoadRefused, match="prepares 32 x 32 pixels, the model takes 48 x 48"):
        image_source_of(str(folder))
    folder = save_image_model("resnet", tmp_path / "resnet")
    path = folder / "preprocessor_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"size": {"shortest_edge": 400}}))
    source = image_source_of(str(folder))
    assert source.input_form == ("FP32", [-1, 3, 400, 400])
    changed = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 48}}
    path.write_text(json.dumps(config | changed | {"crop_pct": None}))
    with pytest.raises(LoadRefused, match="prepares 32 x 48 pixels; only square images are offered"):
        image_source_of(str(folder))
