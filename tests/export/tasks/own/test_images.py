"""Images of one's own: from a folder to a served answer, several labels, and a start with weights."""

import base64
import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTConfig, ViTImageProcessor

from tests.conftest import running_server
from tests.export.tasks.own.conftest import answered, draw_shapes, export, train

IMAGES = ["--task", "image-classification"]
TINY_IMAGES = ["--set", "model.width=8", "model.num_stages=2", "ema_decay=0.8"]


def test_a_folder_of_images_becomes_a_served_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any sizes; what is saved, converted and served gives the same answers with her labels."""
    draw_shapes(here / "shapes")
    status, said, errors = train(*IMAGES, "--data", "shapes", *TINY_IMAGES, "epochs=25", capsys=capsys)
    assert status == 0, errors
    assert "recipe images-scratch-few: 32 training images are fewer than 5,000; from scratch, because" in said
    result = json.loads((here / "runs/shapes/result.json").read_text())
    quality = result["quality"]
    assert (result["measured_on"], result["image_size"], result["network"]) == ("test", 32, "resnet")
    assert quality["accuracy"] > 0.7
    assert quality["accuracy_interval"][0] < quality["accuracy"]
    assert [each["label"] for each in quality["labels"]] == ["disc", "frame"]
    assert result["temperature"]["chosen_on"] == "validation"
    assert {path.name for path in (here / "runs/shapes").iterdir()} >= {"reliability.png", "curves.png", "profile.json"}

    status, _, errors = export("convert", "shapes", "--model-store", "store", capsys=capsys)
    assert status == 0, errors
    card = (here / "store/shapes/1/README.md").read_text()
    assert "| frame |" in card and "training rows by label: disc 16, frame 16" in card
    file = next((here / "shapes/disc").iterdir())
    folder = here / "runs/shapes/hugging_face"
    pixels = AutoImageProcessor.from_pretrained(folder)(Image.open(file), return_tensors="pt")
    with torch.inference_mode():
        logits_C = AutoModelForImageClassification.from_pretrained(folder).eval()(**pixels).logits[0]
    expected = dict(zip(["disc", "frame"], torch.softmax(logits_C, 0).tolist(), strict=True))
    with running_server(here / "store") as server:
        found = answered(server.http, "shapes", base64.b64encode(file.read_bytes()).decode())
    assert {each["label"]: each["score"] for each in found} == pytest.approx(expected, abs=1e-3)


def test_several_labels_have_thresholds(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table with paths and `a|b`; the thresholds are in the saved folder and in the manifest's settings."""
    draw_shapes(here / "shapes", count=15)
    with (here / "shapes.csv").open("w", newline="") as file:
        rows = [
            (str(path.relative_to(here)), f"{path.parent.name}|any" if number % 2 else path.parent.name)
            for number, path in enumerate(sorted((here / "shapes").rglob("*.png")))
        ]
        csv.writer(file).writerows([("image", "labels"), *rows])
    words = [*IMAGES, "--data", "shapes.csv", "--path-column", "image", "--label-column", "labels"]
    status, said, errors = train(*words, *TINY_IMAGES, "epochs=2", capsys=capsys)
    assert status == 0, errors
    assert "3 labels" in said and "multi_label_classification" in said
    result = json.loads((here / "runs/shapes/result.json").read_text())
    document = json.loads((here / "runs/shapes/hugging_face/task.json").read_text())
    assert result["quality"]["thresholds"] == document["thresholds"]
    config = json.loads((here / "runs/shapes/hugging_face/config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_saved_vit_is_trained_further(precision: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It keeps its own preprocessing, and is converted in both precisions; a stopped run resumes."""
    draw_shapes(here / "shapes")
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    network = AutoModelForImageClassification.from_config(ViTConfig(image_size=32, patch_size=8, num_labels=5, **shape))
    network.save_pretrained(here / "vit")
    mean = [0.4, 0.5, 0.6]
    ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=mean, image_std=[0.2] * 3).save_pretrained(
        here / "vit"
    )
    words = [*IMAGES, "--data", "shapes", "--start-from", "vit", "--set", "epochs=12", "batch_size=8"]
    assert "the time is up" in train(*words, "--time-budget", "0.001s", capsys=capsys)[1]
    status, said, errors = train(*words, capsys=capsys)
    assert status == 0, errors
    assert "resuming" in said and "recipe images-encoder: --start-from names a network with weights" in said
    saved = json.loads((here / "runs/shapes/hugging_face/preprocessor_config.json").read_text())
    assert saved["image_mean"] == mean
    words = ["convert", "shapes", "--model-store", "store", "--precision", precision]
    status, _, errors = export(*words, capsys=capsys)
    assert status == 0, errors
    manifest = json.loads((here / "store/shapes/1/manifest.json").read_text())
    assert manifest["quality"]["test"]["num_examples"] == 8
    if precision == "int8":
        assert manifest["quality"]["accuracy_loss"] <= 2 / 8
    assert np.isfinite(manifest["quality"]["test"]["accuracy"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--start-from", "none"], "none has no config.json"),
        (["--text-column", "t"], "--text-column is not for image-classification"),
        (["--recipe", "cifar10-cnn"], "images of your own are trained with the network 'image-encoder'"),
        (["--set", "model.model_type=vgg"], "model_type 'vgg' cannot be built; there are resnet, vit"),
        (["--set", "model.model_type=vit", "model.patch_size=5"], "32 pixels are not a whole number of patches of 5"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(
    words: list[str], expected: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is trained."""
    draw_shapes(here / "shapes", count=8)
    status, _, errors = train(*IMAGES, "--data", "shapes", *words, capsys=capsys)
    assert (status, expected in errors, errors.count("\n")) == (1, True, 1), errors
