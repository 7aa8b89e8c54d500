"""Loaded image classifiers are measured on labelled images of one's own."""

import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from export.conversion.checkpoints.image_models import image_source_of
from export.conversion.golden_images import made_up_images
from export.tasks.image_classification import TASK, labelled_images
from export.tasks.task import Target
from tests.conftest import running_server
from tests.export.conversion.checkpoints.test_image_models import save_image_model


def write_images(folder: Path, files: list[bytes], labels: list[str]) -> None:
    """Write each image into the folder of its label."""
    for number, (file, label) in enumerate(zip(files, labels, strict=True)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / label / f"{number}.png").write_bytes(file)


def test_labels_are_those_of_the_model(tmp_path: Path) -> None:
    """Every image is taken once, with the number that the model has for its label."""
    files = made_up_images(12)
    write_images(tmp_path / "mine", files, ["sea", "cloud", "sea", "cloud"] * 3)
    found = labelled_images(str(tmp_path / "mine"), ["cloud", "house", "sea"])
    assert sorted(found.inputs) == sorted(files)
    assert dict(zip(found.inputs, found.labels, strict=True)) == {
        file: (2, 0)[number % 2] for number, file in enumerate(files)
    }
    with pytest.raises(ValueError, match="has the label 'sea', which the model does not know; it knows 2, such as se"):
        labelled_images(str(tmp_path / "mine"), ["cloud", "seas"])
    with pytest.raises(ValueError, match="--validate-on .*nowhere: there is no such folder or file"):
        TASK.check_validation_set(str(tmp_path / "nowhere"))


def test_problems_without_one_class_are_not_measured(tmp_path: Path) -> None:
    """Accuracy says nothing about several labels at once."""
    folder = save_image_model("resnet", tmp_path / "mine", problem_type="multi_label_classification")
    target = Target("mine", tmp_path / "store", "int8")
    with pytest.raises(ValueError, match="of the problem multi_label_classification: not measured yet"):
        TASK.load(str(folder), str(tmp_path), target, Console(quiet=True))


@pytest.mark.slow
def test_int8_is_measured_on_labelled_images_and_served(tmp_path: Path) -> None:
    """A network of linear maps among convolutions loses little; labels are those of PyTorch."""
    folder = save_image_model("convnext", tmp_path / "mine")
    source = image_source_of(str(folder))
    drawn = made_up_images(500)
    logits_BC = np.stack(source.outputs(source.module, drawn))
    margins_B = np.ptp(np.sort(logits_BC)[:, -2:], axis=1)
    chosen = np.argsort(margins_B)[-300:]  # of the others, rounding could change the label
    files = [drawn[number] for number in chosen]
    labels = [source.labels[int(logits_BC[number].argmax())] for number in chosen]
    assert len(set(labels)) > 1
    write_images(tmp_path / "images", files, labels)
    TASK.load(str(folder), str(tmp_path / "images"), Target("mine", tmp_path / "store", "int8"), Console(quiet=True))
    manifest = json.loads((tmp_path / "store/mine/1/manifest.json").read_text())
    assert manifest["quality"]["validation"]["num_examples"] == 300
    assert manifest["quality"]["accuracy_before_quantization"] == 1
    assert 0 <= manifest["quality"]["accuracy_loss"] <= 0.005
    assert manifest["provenance"]["measured_on"] == "images"
    with running_server(tmp_path / "store") as server:
        request = urllib.request.Request(f"{server.http}/models/mine", files[0])
        with urllib.request.urlopen(request, timeout=10) as response:
            assert json.load(response)[0]["label"] == labels[0]
