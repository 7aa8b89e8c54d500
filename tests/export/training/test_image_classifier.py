"""Training of image classifiers: learning, resuming, augmentation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file

from export.data.image_classification import ImageClassificationData, LabelledImages
from export.networks.image import ResNetConfig, VitConfig
from export.training.image_classifier import (
    ImageTrainConfig,
    ImageTrainingTask,
    jpeg_compressed,
    load_run_model,
    moved,
    predict,
    train_image_classifier,
)


def toy_images(count: int, seed: int) -> LabelledImages:
    """Make noise with a bright bar: upright, lying, or none."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 120, size=(count, 3, 16, 16), dtype=np.uint8)
    labels = rng.integers(0, 3, size=count)
    for image, label, place in zip(pixels, labels, rng.integers(2, 12, size=count), strict=True):
        if label == 0:
            image[:, :, place : place + 3] = 250
        elif label == 1:
            image[:, place : place + 3] = 250
    return LabelledImages(pixels, labels)


def toy_data() -> ImageClassificationData:
    """Three kinds of bars."""
    return ImageClassificationData(
        "bars", ["upright", "lying", "none"], toy_images(900, 1), toy_images(200, 2), toy_images(300, 3)
    )


def toy_config(**changes: object) -> ImageTrainConfig:
    """Settings that train within seconds."""
    model = VitConfig(
        d_model=32, num_layers=2, num_heads=4, d_ff=64, dropout=0.1, image_size=16, num_labels=3, positions="learned"
    )
    values = {"epochs": 4, "learning_rate": 3e-3, "batch_size": 50, "crop_padding": 2, "ema_decay": 0.9, "model": model}
    return ImageTrainConfig(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory: pytest.TempPathFactory, quiet: Console) -> Path:
    """A finished run."""
    run_dir = tmp_path_factory.mktemp("runs") / "toy"
    assert train_image_classifier(toy_data(), toy_config(), run_dir, quiet)
    return run_dir


def test_a_small_vision_transformer_learns_a_small_task(toy_run: Path) -> None:
    """Accuracy is far above chance, also on compressed and moved images, and the record has it."""
    result = json.loads((toy_run / "result.json").read_text())
    for split in ("quality", "quality_jpeg", "quality_moved"):
        assert result[split]["accuracy"] > 0.8, split
        assert result[split]["num_examples"] == 300
    for field in ("command", "commit", "hardware", "training_s", "history", "num_parameters", "multiply_accumulates"):
        assert result[field], field
    model = load_run_model(toy_run)
    test = toy_data().test
    predicted_N = predict(model, test.pixels_NCHW, torch.device("cpu")).argmax(axis=1)
    assert (predicted_N == test.labels_N).mean() == pytest.approx(result["quality"]["accuracy"])


def test_a_resumed_run_gives_the_same_weights(toy_run: Path, tmp_path: Path, quiet: Console) -> None:
    """The clock stops it within epochs; crops, flips and dropout continue from their state."""
    slices = 1
    while not train_image_classifier(toy_data(), toy_config(), tmp_path / "run", quiet, time_budget_s=0.03):
        slices += 1
    assert slices > 1
    unbroken, sliced = load_file(toy_run / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    assert all((unbroken[name] == sliced[name]).all() for name in unbroken)


def test_the_convolutional_network_teaches(toy_run: Path, tmp_path: Path, quiet: Console) -> None:
    """A run with batch normalisation, cutout, CutMix and JPEG learns from a finished one.

    Without the teacher it is refused.
    """
    (tmp_path / "teacher").symlink_to(toy_run)
    config = toy_config(model=ResNetConfig(num_labels=3, width=8), cutout=4, mix=0.5, jpeg=0.3, teacher="teacher")
    assert train_image_classifier(toy_data(), config, tmp_path / "student", quiet)
    assert json.loads((tmp_path / "student" / "result.json").read_text())["quality"]["accuracy"] > 0.8
    with pytest.raises(FileNotFoundError, match="train it first"):
        train_image_classifier(toy_data(), toy_config(teacher="nobody"), tmp_path / "other", quiet)


def test_an_epoch_has_every_image_once_and_is_repeatable() -> None:
    """Without augmentation the pixels are those of the data; with it, equal epochs have equal pixels."""
    data = toy_data()
    plain = ImageTrainingTask(data, toy_config(crop_padding=0, flip=False), torch.device("cpu"))
    seen = torch.cat([batch.pixels_BCHW for batch in plain.batches(0)])
    original = torch.from_numpy(data.train.pixels_NCHW).float() / 127.5 - 1
    assert sorted(seen.sum(dim=(1, 2, 3)).tolist()) == sorted(original.sum(dim=(1, 2, 3)).tolist())
    busy = ImageTrainingTask(data, toy_config(cutout=4, mix=0.5, jpeg=0.5), torch.device("cpu"))
    for first, again in zip(busy.batches(3), busy.batches(3), strict=True):
        assert torch.equal(first.pixels_BCHW, again.pixels_BCHW)
        changed_B = (first.pixels_BCHW != first.clean_BCHW).any(dim=(1, 2, 3))
        assert 10 < changed_B.sum() < 40  # of 50
        assert (first.pixels_BCHW - first.clean_BCHW).abs().mean() < 0.2
        assert torch.equal(first.targets_BK, again.targets_BK)
        torch.testing.assert_close(first.targets_BK.sum(1), torch.ones(50))


def test_moved_and_compressed_test_images() -> None:
    """Moved images are shifted by two pixels; compressed ones are close to the originals, but not equal."""
    images = toy_images(5, 9)
    there = moved(images).pixels_NCHW
    assert (there[:, :, 2:, 2:] == images.pixels_NCHW[:, :, :-2, :-2]).all()
    assert (there[:, :, 0, 2:] == images.pixels_NCHW[:, :, 0, :-2]).all()
    difference = np.abs(jpeg_compressed(images, 90).pixels_NCHW.astype(int) - images.pixels_NCHW)
    assert 0 < difference.mean() < 30
