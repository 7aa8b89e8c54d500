"""Small random Hugging Face models answer like `transformers` after conversion."""

import json
import os
import subprocess
import sys
import urllib.request
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTImageProcessor,
    ElectraConfig,
    ElectraForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from export.conversion.checkpoints.image_processors import load_processor
from export.conversion.checkpoints.reading import LoadRefused
from export.conversion.golden_images import golden_images, gradient
from export.conversion.golden_texts import made_up_sentences
from export.conversion.hugging_face import image_source_of_hugging_face
from export.conversion.text_checkpoint import classifier_of_hugging_face
from tests.conftest import ROOT, running_server
from tests.export.conversion.outputs import onnx_logits
from tests.export.conversion.random_checkpoints import FAMILIES, save_model
from tests.service.tasks.test_image_classification import file_of

# One of each in every run.
SLOW = {kind: [pytest.mark.slow] for kind in ("bert", "roberta", "deit")}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=SLOW.get(kind, [])) for kind in FAMILIES])
def test_a_loaded_model_answers_like_transformers(kind: str, tmp_path: Path) -> None:
    """The command writes a folder; its graph, fed in padded batches, equals transformers text by text."""
    model_dir = save_model(kind, tmp_path / "mine")
    command = [sys.executable, "-m", "export", "load", str(model_dir), "--task", "text-classification"]
    run = subprocess.run(
        [*command, "--model-store", str(tmp_path / "store")], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    folder = tmp_path / "store/mine/1"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["labels"] == ["bad", "mixed", "good"]
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(model_dir).eval(),
        AutoTokenizer.from_pretrained(model_dir),
    )
    texts = made_up_sentences(60, seed=9)
    with torch.inference_mode():
        expected = [
            model(
                **tokenizer(text, truncation=True, max_length=64, return_tensors="pt", return_token_type_ids=False)
            ).logits[0]
            for text in texts
        ]
    reference_BC = torch.stack(expected).numpy()
    assert np.ptp(reference_BC, axis=0).min() > 0.1  # the texts do differ
    source = classifier_of_hugging_face(str(model_dir))
    np.testing.assert_allclose(onnx_logits(source, folder / "model.onnx", texts), reference_BC, atol=1e-4)
    with running_server(tmp_path / "store") as server:
        request = urllib.request.Request(f"{server.http}/models/mine", json.dumps({"inputs": texts[0]}).encode())
        with urllib.request.urlopen(request, timeout=10) as response:
            (scores,) = json.load(response)
    assert scores[0]["label"] == manifest["labels"][int(reference_BC[0].argmax())]


def load(model_dir: Path, store: Path, *options: str) -> str:
    """Run the command, and return its error."""
    command = [sys.executable, "-m", "export", "load", str(model_dir), "--task", "text-classification"]
    run = subprocess.run(
        [*command, "--model-store", str(store), *options], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 1
    assert not list(store.glob("*/*"))
    return run.stderr


@pytest.mark.slow
def test_validation_needs_the_models_own_classes(tmp_path: Path) -> None:
    """SST-2's class 0 is not class 0 of a model with three other classes.

    A name that leaves the store is refused too.
    """
    if not os.environ.get("HEED_DATASETS"):
        pytest.skip("HEED_DATASETS is not set: SST-2 is not at hand")
    model_dir = save_model("bert", tmp_path / "mine")
    said = load(model_dir, tmp_path / "store", "--validate-on", "sst2")
    assert "sst2 has NEGATIVE, POSITIVE; this model has bad, mixed, good" in said
    assert "--name '../mine'" in load(model_dir, tmp_path / "store", "--name", "../mine")


def test_unsupported_models_are_refused_in_a_sentence(tmp_path: Path) -> None:
    """Refuses another family, and a missing folder."""
    config = ElectraConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=1, intermediate_size=64)
    ElectraForSequenceClassification(config).save_pretrained(tmp_path / "other")
    with pytest.raises(LoadRefused, match="model type 'electra' is not one of bert, distilbert, roberta"):
        classifier_of_hugging_face(str(tmp_path / "other"))
    with pytest.raises(LoadRefused, match="nowhere"):
        classifier_of_hugging_face(str(tmp_path / "nowhere"))


IMAGE_FAMILIES = {
    "vit": (ViTConfig, ViTForImageClassification, ViTImageProcessor, {"size": {"height": 32, "width": 32}}),
    "deit": (
        DeiTConfig,
        DeiTForImageClassification,
        DeiTImageProcessor,
        {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}},
    ),
}


def save_image_model(kind: str, folder: Path) -> Path:
    """Save a random model with three classes for images of 32 x 32, with its processor."""
    config, model, processor, sizes = IMAGE_FAMILIES[kind]
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
    labels = {"id2label": {0: "cloud", 1: "house", 2: "sea"}, "label2id": {"cloud": 0, "house": 1, "sea": 2}}
    settings = {"image_size": 32, "patch_size": 8, "initializer_range": 0.3, **shape, **labels}
    model(config(**settings)).save_pretrained(folder)
    processor(**sizes).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=SLOW.get(kind, [])) for kind in IMAGE_FAMILIES])
def test_a_loaded_image_model_answers_like_transformers(kind: str, tmp_path: Path) -> None:
    """The command writes a folder; the server's answers equal those of the hub's own processor and model."""
    model_dir = save_image_model(kind, tmp_path / "mine")
    command = [sys.executable, "-m", "export", "load", str(model_dir), "--task", "image-classification"]
    run = subprocess.run(
        [*command, "--model-store", str(tmp_path / "store")], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    model = AutoModelForImageClassification.from_pretrained(model_dir).eval()
    processor = IMAGE_FAMILIES[kind][2].from_pretrained(model_dir)
    files = golden_images()
    with running_server(tmp_path / "store") as server:
        for name in ("a PNG of the size of CIFAR-10's images", "a JPEG", "a tall PNG", "a WebP"):
            pixels = processor(Image.open(BytesIO(files[name])).convert("RGB"), return_tensors="pt")
            with torch.inference_mode():
                expected = torch.softmax(model(**pixels).logits[0], dim=0)
            request = urllib.request.Request(f"{server.http}/models/mine", files[name])
            with urllib.request.urlopen(request, timeout=10) as response:
                scores = {entry["label"]: entry["score"] for entry in json.load(response)}
            for label, number in model.config.label2id.items():
                assert scores[label] == pytest.approx(float(expected[number]), abs=0.02), name


PROCESSORS = {
    "of a feature extractor": {
        "feature_extractor_type": "ViTFeatureExtractor",
        "size": 32,
        "image_processor_type": None,
    },
    "of a feature extractor by the newer key": {"image_processor_type": "ViTFeatureExtractor", "size": 32},
    "of a fast processor": {"image_processor_type": "ViTImageProcessorFast", "do_center_crop": None, "crop_size": None},
    "without a kind": {"image_processor_type": None},
    "without values": dict.fromkeys(("do_resize", "do_rescale", "rescale_factor", "resample", "do_normalize")),
    "without normalisation": {"do_normalize": False},
    "of raw levels": {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [60.0] * 3},
    "that crops": {
        "image_processor_type": "DeiTImageProcessor",
        "size": 40,
        "do_center_crop": True,
        "crop_size": 32,
        "resample": 3,
    },
}


@pytest.mark.parametrize("form", PROCESSORS)
def test_image_processors_of_every_form_make_the_same_pixels(form: str, tmp_path: Path) -> None:
    """The service makes the pixels of the checkpoint's own processor; loading proves it on the golden images."""
    folder = save_image_model("vit", tmp_path / "vit")
    path = folder / "preprocessor_config.json"
    document = json.loads(path.read_text()) | PROCESSORS[form]
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None or "crop" in key}))
    source = image_source_of_hugging_face(str(folder))
    image = gradient(50, 70)
    theirs_BCHW = load_processor(str(folder), "vit")(image, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(source.item(file_of(image)).pixels_CHW, theirs_BCHW[0], atol=1e-3)


def test_unsupported_image_models_are_refused(tmp_path: Path) -> None:
    """Refuses preprocessing that is not offered or does not fit, and another family."""
    folder = save_image_model("vit", tmp_path / "vit")
    path = folder / "preprocessor_config.json"
    config = json.loads(path.read_text())
    for changes, text in (
        ({"do_resize": False}, "do_resize is false"),
        ({"size": {"shortest_edge": 32}}, "only a height and a width are offered|image processor|not understood"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order is True, which is not offered"),
        ({"rescale_offset": True}, "rescale_offset is True, which is not offered"),
        ({"do_pad": True}, "do_pad is True, which is not offered"),
        ({"resample": 0}, r"resample 0 is not one of 2 \(bilinear\), 3 \(bicubic\)"),
        ({"image_mean": [0.5]}, "image_mean|cannot prepare|not understood"),
        ({"auto_map": {"AutoImageProcessor": "evil.Processor"}}, "auto_map names code"),
        ({"image_processor_type": "NobodysImageProcessor", "feature_extractor_type": None}, "is not understood"),
        ({"size": {"height": 48, "width": 48}}, "prepares 48 x 48 pixels, the model takes 32 x 32"),
    ):
        path.write_text(json.dumps(config | changes))
        with pytest.raises(LoadRefused, match=text):
            image_source_of_hugging_face(str(folder))
    for wrong in ("{", "[]"):
        path.write_text(wrong)
        with pytest.raises(LoadRefused, match="preprocessor_config.json is not a JSON object"):
            image_source_of_hugging_face(str(folder))
    path.unlink()
    with pytest.raises(LoadRefused, match="has no preprocessor_config.json"):
        image_source_of_hugging_face(str(folder))
    path.write_text(json.dumps(config))
    described = json.loads((folder / "config.json").read_text())
    for changes, text in (
        ({"problem_type": "multi_label_classification"}, "problem_type 'multi_label_classification' with 3 labels"),
        ({"id2label": {"1": "a", "2": "b", "3": "c"}}, "numbered from 0 on"),
    ):
        (folder / "config.json").write_text(json.dumps(described | changes))
        with pytest.raises(LoadRefused, match=text):
            image_source_of_hugging_face(str(folder))
    for kind, labels, text in (
        (ViTModel, 3, "classifier.bias, classifier.weight"),
        (ViTForImageClassification, 1, "with 1 labels"),
    ):
        kind(ViTConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=1, num_labels=labels)).save_pretrained(
            folder
        )
        with pytest.raises(LoadRefused, match=text):
            image_source_of_hugging_face(str(folder))
    with pytest.raises(LoadRefused, match="nowhere"):
        image_source_of_hugging_face(str(tmp_path / "nowhere"))
