"""Conversion of image classifiers has the limits of text classifiers, and the preprocessing of training."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn
from transformers import ViTImageProcessor

from export.__main__ import main
from export.conversion.classifier import convert
from export.conversion.comparison.requirements import ConversionRefused
from export.conversion.golden_images import golden_images, shapes
from export.conversion.model_source import ImageClassifierSource, image_source_of_run
from export.data.image_classification import LabelledImages, encoded
from export.networks.image import ResNetConfig
from export.tasks.task import task_of
from export.training.image_augmentation import normalised
from export.training.image_classifier import jpeg_compressed, train_image_classifier
from model_store.folder import FoundFolder, read
from tests.conftest import LABELS, noise_files, untrained_image_sources
from tests.export.training.test_image_classifier import toy_config, toy_data, toy_images
from tests.service.tasks.images.test_image_classification import file_of


def converted(source: ImageClassifierSource, store: Path, console: Console, **options: Any) -> Path:
    """Write the next version of a model, compared on images of noise."""
    settings = {"labelled": None, "precision": "float32", "about": {"licence": "none"}, "compare_on": noise_files(500)}
    settings |= {"explained": False}
    return convert(
        source, task_of("image-classification"), name="toy", store=store, console=console, **settings | options
    )


@pytest.mark.parametrize("name", ["vit", "resnet9"])
def test_a_whole_folder_is_written_and_equals_pytorch(name: str, image_store: Path) -> None:
    """ONNX and TorchScript take any number of images; the folder has configuration, golden images and card."""
    path = image_store / name / "1"
    model = read(FoundFolder(name, "1", path))
    assert model.manifest is not None
    for runtime in ("onnx", "torchscript"):
        compared = model.manifest.quality["compared_with_pytorch"][runtime]
        assert compared["num_examples"] == 500
        assert compared["max_abs_logit_difference"] <= 1e-4
        assert compared["labels_changed"] == 0
    assert {file.name for file in path.iterdir()} == {*model.manifest.files, "manifest.json"}
    assert model.manifest.task == "image-classification"
    assert model.manifest.labels == LABELS
    assert len(model.golden) == len(golden_images())
    assert json.loads((path / "config.json").read_text())["id2label"]["1"] == LABELS[1]
    assert "Takes JPEG, PNG and WebP files of any size" in (path / "README.md").read_text()
    source = untrained_image_sources()[name]
    session = onnxruntime.InferenceSession(path / "model.onnx")
    script = torch.jit.load(path / "model.torchscript.pt")
    side = source.image_size
    assert [(put.name, put.shape[1:]) for put in session.get_inputs()] == [("pixel_values", [3, side, side])]
    for count in (1, 3, 7):
        pixels_BCHW = torch.randn(count, 3, side, side)
        expected_BK = source.module(pixels_BCHW).detach().numpy()
        np.testing.assert_allclose(session.run(None, {"pixel_values": pixels_BCHW.numpy()})[0], expected_BK, atol=1e-4)
        np.testing.assert_allclose(script(pixels_BCHW).detach().numpy(), expected_BK, atol=1e-4)


def test_the_service_normalises_as_training_does() -> None:
    """Every level of every channel is bit-identical, and a PNG gives the pixels of training."""
    source = untrained_image_sources()["resnet9"]
    levels_HWC = np.stack([np.arange(1024, dtype=np.uint32).astype(np.uint8).reshape(32, 32)] * 3, axis=2)
    trained = normalised(torch.from_numpy(levels_HWC).permute(2, 0, 1)[None])[0].numpy()
    assert (source.task.normalised(levels_HWC) == trained).all()
    images = LabelledImages(np.random.default_rng(3).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8), np.zeros(20))
    trained = normalised(torch.from_numpy(images.pixels_NCHW)).numpy()
    served = np.stack([source.item(file).pixels_CHW for file in encoded(images, "PNG").inputs])
    assert (served == trained).all()
    compressed = normalised(torch.from_numpy(jpeg_compressed(images, 50).pixels_NCHW)).numpy()
    served = np.stack([source.item(file).pixels_CHW for file in encoded(images, "JPEG", quality=50).inputs])
    assert (served == compressed).all()


def test_transformers_reads_the_preprocessor_configuration(image_store: Path) -> None:
    """It makes nearly the same pixels of an image that must be resized."""
    processor = ViTImageProcessor.from_pretrained(image_store / "vit/1")
    image = shapes(50, 70)
    theirs_BCHW = processor(image, return_tensors="np")["pixel_values"]
    ours_CHW = untrained_image_sources()["vit"].item(file_of(image)).pixels_CHW
    assert theirs_BCHW[0].shape == ours_CHW.shape
    np.testing.assert_allclose(theirs_BCHW[0], ours_CHW, atol=2 / 127.5)


class Wrong(ImageClassifierSource):
    """A source that exports another network than it compares with."""

    @property
    def for_export(self) -> Callable[[], nn.Module]:
        """Return the network with a slightly higher bias."""
        other = type(self.module)(self.module.config).eval()
        other.load_state_dict(self.module.state_dict())
        with torch.no_grad():
            other.head.bias += 0.01
        return lambda: other


def test_a_graph_that_differs_from_the_model_is_refused(tmp_path: Path, quiet: Console) -> None:
    """Nothing is written."""
    source = untrained_image_sources()["vit"]
    wrong = Wrong(**{field.name: getattr(source, field.name) for field in dataclasses.fields(source)})
    with pytest.raises(ConversionRefused, match=r"ONNX is not PyTorch's model: logits differ by up to 0\.01"):
        converted(wrong, tmp_path, quiet)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="3 images to compare on, at least 500"):
        converted(source, tmp_path, quiet, compare_on=noise_files(3))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, quiet: Console) -> Path:
    """Finished runs of both networks on bars."""
    folder = tmp_path_factory.mktemp("image-runs")
    assert train_image_classifier(toy_data(), toy_config(), folder / "vit", quiet)
    convolutional = toy_config(epochs=1, model=ResNetConfig(num_labels=3, width=8))
    assert train_image_classifier(toy_data(), convolutional, folder / "resnet9", quiet)
    return folder


@pytest.mark.parametrize("name", ["vit", "resnet9"])
def test_a_converted_run_has_the_quality_of_the_run(name: str, runs: Path, tmp_path: Path, quiet: Console) -> None:
    """Measured with the service's preprocessing and the graph, on PNG and JPEG files."""
    data, source = toy_data(), image_source_of_run(runs / name)
    assert (source.image_size, source.labels) == (16, ["upright", "lying", "none"])  # type: ignore[union-attr]
    more = {"compressed": encoded(data.test, "JPEG", quality=50)}
    folder = converted(
        source,  # type: ignore[arg-type]
        tmp_path,
        quiet,
        compare_on=encoded(data.train, "PNG").inputs[:500],
        labelled=encoded(data.test, "PNG"),
        split="test",
        also_measured_on=more,
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    record = json.loads((runs / name / "result.json").read_text())
    for split, recorded in (("test", "quality"), ("compressed", "quality_jpeg")):
        # Where the processor has bfloat16 the run was measured with it: a few images on the edge may differ.
        assert manifest["quality"][split]["accuracy"] == pytest.approx(record[recorded]["accuracy"], abs=0.011)
        assert manifest["quality"][split]["num_examples"] == 300
    assert manifest["provenance"]["network"] == name
    assert any(
        tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in onnx.load(folder / "model.onnx").graph.initializer
    )
    card = (folder / "README.md").read_text()
    assert "On the test split, n = 300" in card
    assert "On compressed, n = 300" in card


def test_int8_is_only_for_linear_maps(runs: Path, tmp_path: Path, quiet: Console) -> None:
    """A vision transformer states its loss; convolutions are refused with the reason."""
    data = toy_data()
    options = {
        "precision": "int8",
        "labelled": encoded(data.test, "PNG"),
        "compare_on": encoded(data.train, "PNG").inputs[:500],
    }
    folder = converted(image_source_of_run(runs / "vit"), tmp_path, quiet, **options)  # type: ignore[arg-type]
    assert json.loads((folder / "manifest.json").read_text())["quality"]["accuracy_loss"] <= 0.005
    operators = {node.op_type for node in onnx.load(folder / "model.onnx").graph.node}
    assert "MatMulInteger" in operators
    assert "ConvInteger" not in operators
    with pytest.raises(ValueError, match="int8 is not offered: the network is made of convolutions"):
        converted(image_source_of_run(runs / "resnet9"), tmp_path, quiet, **options)  # type: ignore[arg-type]


def test_golden_images_have_every_kind_of_file() -> None:
    """Each has its named property; no two give the same pixels; together they are small."""
    files = golden_images()
    opened = [Image.open(BytesIO(file)) for file in files.values()]
    assert {image.format for image in opened} == {"JPEG", "PNG", "WEBP"}
    assert {image.mode for image in opened} >= {"RGB", "RGBA", "L", "P", "1", "CMYK", "I;16"}
    assert sum(image.getexif().get(0x0112, 1) > 1 for image in opened) == 1
    assert max(image.width for image in opened) >= 1000
    assert any(image.width != image.height for image in opened)
    source = untrained_image_sources()["resnet9"]
    assert len({source.item(file).digest() for file in files.values()}) == len(files)
    assert sum(map(len, files.values())) < 60_000


@pytest.mark.slow
def test_the_command_line_converts_image_runs(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m export convert` measures a run on its own data set; a run on other data is not measured."""
    images = toy_images(600, 5)
    columns = {
        "img": [Image.fromarray(pixels.transpose(1, 2, 0)) for pixels in images.pixels_NCHW],
        "label": images.labels_N.tolist(),
    }
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=toy_data().label_names)})
    (tmp_path / "data/cifar10").mkdir(parents=True)
    for split in ("train", "test"):
        datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / f"data/cifar10/{split}.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HEED_DATASETS", str(tmp_path / "data"))
    store, run = tmp_path / "store", shutil.copytree(runs / "vit", tmp_path / "vit")
    command = ["export", "convert", "bars", "--run-dir", str(run), "--model-store", str(store)]
    monkeypatch.setattr(sys, "argv", command)
    assert main() == 0
    manifest = json.loads((store / "bars/1/manifest.json").read_text())
    assert set(manifest["quality"]) == {"compared_with_pytorch"}
    assert "licence" not in manifest["provenance"]
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"data": "CIFAR-10"}))
    monkeypatch.setattr("export.conversion.classifier.explain", lambda *arguments: None)  # as before, and it takes long
    assert main() == 0
    manifest = json.loads((store / "bars/2/manifest.json").read_text())
    assert manifest["quality"]["compared_with_pytorch"]["onnx"]["num_examples"] == 600
    assert manifest["quality"]["test"]["accuracy"] > 0.8
    assert "the test split as JPEG of quality 50" in manifest["quality"]
    assert manifest["provenance"]["licence"].startswith("CIFAR-10: none stated")
