"""Image processors of every form make the pixels that the service makes, or are refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.conversion.checkpoints.image_models import image_source_of
from export.conversion.checkpoints.image_processors import load_processor
from export.conversion.checkpoints.reading import LoadRefused
from export.conversion.golden_images import gradient, shapes
from tests.export.conversion.checkpoints.test_image_models import save_image_model
from tests.service.tasks.images.test_image_classification import file_of

CONVNEXT = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}}
CLIP = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "do_center_crop": True}
# By the model type of the checkpoint, and the changes of a ViT's processor for images of 32 x 32 pixels.
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "of a feature extractor": (
        "vit",
        {"feature_extractor_type": "ViTFeatureExtractor", "size": 32, "image_processor_type": None},
    ),
    "of a feature extractor by the newer key": ("vit", {"image_processor_type": "ViTFeatureExtractor", "size": 32}),
    "of a fast processor": (
        "vit",
        {"image_processor_type": "ViTImageProcessorFast", "do_center_crop": None, "crop_size": None},
    ),
    "without a kind": ("vit", {"image_processor_type": None}),
    "without values": (
        "vit",
        dict.fromkeys(("do_resize", "do_rescale", "rescale_factor", "resample", "do_normalize")),
    ),
    "without normalisation": ("vit", {"do_normalize": False}),
    "by Lanczos' filter": ("vit", {"resample": 1}),
    "of raw levels": ("vit", {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [60.0] * 3}),
    "that crops": (
        "vit",
        {"image_processor_type": "DeiTImageProcessor", "size": 40, "do_center_crop": True, "crop_size": 32},
    ),
    "of BEiT": ("beit", {"image_processor_type": "BeitImageProcessor", "size": 32, "reduce_labels": False}),
    "of BEiT that crops": (
        "beit",
        {"image_processor_type": "BeitFeatureExtractor", "size": 37, "do_center_crop": True, "crop_size": 32},
    ),
    "of CLIP's kind": ("vit", CLIP | {"crop_size": {"height": 32, "width": 32}, "resample": 3}),
    "of CLIP's old kind": ("vit", CLIP | {"image_processor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32}),
    "of DINOv2": (
        "dinov2",
        CLIP | {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 41}, "crop_size": 32},
    ),
    "of ConvNeXT": ("convnext", CONVNEXT | {"crop_pct": 0.875}),
    "of ConvNeXT without its fraction": ("convnext", CONVNEXT),
    "of ConvNeXT's feature extractor": (
        "convnext",
        {"feature_extractor_type": "ConvNextFeatureExtractor", "image_processor_type": None, "size": 32, "crop_pct": 1},
    ),
    "of ConvNeXT, which stretches large images": ("convnext", CONVNEXT | {"size": {"shortest_edge": 384}}),
    "of a ResNet without a kind": ("resnet", CONVNEXT | {"image_processor_type": None, "crop_pct": 0.95}),
    "of a MobileNet": (
        "mobilenet_v2",
        {"image_processor_type": "MobileNetV2ImageProcessor", "size": {"shortest_edge": 36}}
        | {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
    ),
}


@pytest.mark.parametrize("form", PROCESSORS)
def test_image_processors_of_every_form_make_the_same_pixels(form: str, tmp_path: Path) -> None:
    """The service makes the pixels of the checkpoint's own processor; loading proves it on many images."""
    kind, changes = PROCESSORS[form]
    folder = save_image_model("vit", tmp_path / "vit")
    path = folder / "preprocessor_config.json"
    document = json.loads(path.read_text()) | changes
    if kind != "vit":
        save_image_model(kind, folder)
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None or "crop" in key}))
    source = image_source_of(str(folder))
    processor = load_processor(str(folder), kind)
    for image in (gradient(50, 70), shapes(71, 39)):
        theirs_BCHW = processor(image, return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(source.item(file_of(image)).pixels_CHW, theirs_BCHW[0], atol=1e-3)


def test_preprocessing_that_is_not_offered_is_refused(tmp_path: Path) -> None:
    """Each refusal names the setting and what was found."""
    folder = save_image_model("vit", tmp_path / "vit")
    path = folder / "preprocessor_config.json"
    config = json.loads(path.read_text())
    bit = {"image_processor_type": "BitImageProcessor", "do_center_crop": True}
    for changes, text in (
        ({"do_resize": False}, "do_resize is false"),
        ({"size": {"longest_edge": 32}}, "height and width or shortest_edge is offered|not understood|cannot prepare"),
        ({"size": {"shortest_edge": 32}}, "shortest_edge, which needs do_center_crop"),
        (bit | {"size": {"shortest_edge": 30}, "crop_size": {"height": 32, "width": 32}}, "crop_size is larger"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order is True, which is not offered"),
        ({"rescale_offset": True}, "rescale_offset is True, which is not offered"),
        ({"crop_pct": 0.9}, "crop_pct is 0.9, which is not offered"),
        (CONVNEXT | {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}}, "ConvNextImageProcessor with"),
        ({"do_pad": True}, "do_pad is True, which is not offered"),
        ({"resample": 0}, r"resample 0 is not one of 1 \(Lanczos\), 2 \(bilinear\), 3 \(bicubic\)"),
        ({"image_mean": [0.5]}, "image_mean|cannot prepare|not understood"),
        ({"auto_map": {"AutoImageProcessor": "evil.Processor"}}, "auto_map names code"),
        ({"image_processor_type": "NobodysImageProcessor", "feature_extractor_type": None}, "is not understood"),
        ({"size": {"height": 48, "width": 48}}, "prepares 48 x 48 pixels, the model takes 32 x 32"),
    ):
        path.write_text(json.dumps(config | changes))
        with pytest.raises(LoadRefused, match=text):
            image_source_of(str(folder))
    for wrong in ("{", "[]"):
        path.write_text(wrong)
        with pytest.raises(LoadRefused, match="preprocessor_config.json is not a JSON object"):
            image_source_of(str(folder))
    path.unlink()
    with pytest.raises(LoadRefused, match="has no preprocessor_config.json"):
        image_source_of(str(folder))
