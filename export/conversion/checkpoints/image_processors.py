"""Converts image processors of Hugging Face checkpoints to the one form that the service reads.

`preprocessor_config.json` has had many forms, and `transformers` reads them all. Its settings are written in one form
and proved on the golden images against the checkpoint's own processor.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image
from transformers import AutoImageProcessor

from export.conversion.checkpoints.reading import CONFIG, LoadRefused, check_files, quiet, read_object, reading
from export.conversion.golden_images import golden_images, shapes
from model_store.folder import PREPROCESSOR
from service.tasks.images.preprocessing import ImagePreprocessing, PreprocessorConfig

# Steps that the service does, or that change nothing because it decodes every image to RGB.
OFFERED_STEPS = {"do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_convert_rgb"}
RESAMPLING = {1: "Lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
CONVNEXT = "ConvNextImageProcessor"  # resizes in a way of its own
CONVNEXT_STRETCHED_FROM = 384  # size from which it does not crop
NO_CHANGE = {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}
# In normalised pixels: rounding stays far below this, and one level of 255 lies above.
MAX_PIXEL_DIFFERENCE = 1e-3
# Sizes of further images on which pixels are compared: odd ones, where margins of crops and lengths are rounded.
ODD_SIZES = ((101, 67), (67, 101), (33, 90), (250, 249), (37, 37))


def load_processor(name_or_path: str, model_type: str) -> Any:
    """Load the checkpoint's own image processor, from any historical form of `preprocessor_config.json`.

    Raises:
        LoadRefused: the processor is missing or damaged, or has steps that are not offered.
    """
    check_files(name_or_path)
    document = read_object(name_or_path, PREPROCESSOR)
    if not document:
        raise LoadRefused(f"{name_or_path} has no {PREPROCESSOR}")
    if document.get("auto_map"):
        raise LoadRefused(f"{PREPROCESSOR}: auto_map names code of the checkpoint's own, which is never run here")
    _check_steps(document)
    with tempfile.TemporaryDirectory() as temporary, reading(f"{PREPROCESSOR} is not understood"), quiet():
        (Path(temporary) / PREPROCESSOR).write_text(json.dumps(_in_todays_form(document)))
        (Path(temporary) / CONFIG).write_text(json.dumps({"model_type": model_type}))
        return AutoImageProcessor.from_pretrained(temporary, trust_remote_code=False)


def _in_todays_form(document: Mapping[str, Any]) -> dict[str, Any]:
    """Rename feature extractors and fast processors: both do the steps of the plain image processor."""
    renamed = {key: value for key, value in document.items() if value is not None}
    kind = renamed.pop("image_processor_type", None) or renamed.pop("feature_extractor_type", None)
    renamed.pop("feature_extractor_type", None)
    if isinstance(kind, str):
        renamed["image_processor_type"] = kind.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast")
    return renamed


def _check_steps(document: Mapping[str, Any]) -> None:
    unknown = ("rescale_offset",) if _is_convnext(document) else ("rescale_offset", "crop_pct")
    for name, value in document.items():
        if value and ((name.startswith("do_") and name not in OFFERED_STEPS) or name in unknown):
            raise LoadRefused(f"{PREPROCESSOR}: {name} is {value!r}, which is not offered")


def _is_convnext(document: Mapping[str, Any]) -> bool:
    """Whether the processor is ConvNeXT's, whose `crop_pct` is a step; elsewhere no step has such a setting."""
    kind = document.get("image_processor_type") or document.get("feature_extractor_type") or CONVNEXT
    return str(kind).replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast") == CONVNEXT


def served_processor(processor: Any) -> dict[str, Any]:
    """Write `preprocessor_config.json` in the one form that the service reads, with the same meaning.

    Raises:
        LoadRefused: the processor has steps that the service does not offer.
    """
    document = processor.to_dict()
    _check_steps(document)
    if not document.get("do_resize"):
        raise LoadRefused(f"{PREPROCESSOR}: do_resize is false; images of one size alone are not offered")
    if document.get("resample") not in RESAMPLING:
        offered = ", ".join(f"{number} ({name})" for number, name in RESAMPLING.items())
        raise LoadRefused(f"{PREPROCESSOR}: resample {document.get('resample')!r} is not one of {offered}")
    colours = document if document.get("do_normalize") else NO_CHANGE
    served = {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": int(document["resample"]),
        **_sizes(document),
        "do_rescale": True,
        "rescale_factor": document.get("rescale_factor", 1 / 255) if document.get("do_rescale") else 1.0,
        "do_normalize": True,
        "image_mean": _of_three(colours, "image_mean"),
        "image_std": _of_three(colours, "image_std"),
    }
    try:
        msgspec.convert(served, PreprocessorConfig)
    except (ValueError, msgspec.ValidationError) as error:
        raise LoadRefused(f"{PREPROCESSOR}: {error}") from error
    return served


def _sizes(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return `size`, `do_center_crop` and `crop_size` in the form that the service reads."""
    crops = bool(document.get("do_center_crop"))
    size = _size(document, "size", ({"height", "width"}, {"shortest_edge"}))
    if document.get("image_processor_type") == CONVNEXT:
        if crops or "shortest_edge" not in size:
            raise LoadRefused(f"{PREPROCESSOR}: {CONVNEXT} with size {size} and do_center_crop {crops} is not offered")
        edge = size["shortest_edge"]
        square = {"height": edge, "width": edge}
        if edge >= CONVNEXT_STRETCHED_FROM:
            return {"size": square, "do_center_crop": False}
        resized = int(edge / float(document.get("crop_pct") or 1))
        return {"size": {"shortest_edge": resized}, "do_center_crop": True, "crop_size": square}
    cropped = {"crop_size": _size(document, "crop_size", ({"height", "width"},))} if crops else {}
    return {"size": size, "do_center_crop": crops, **cropped}


def _size(document: Mapping[str, Any], name: str, forms: Sequence[set[str]]) -> dict[str, int]:
    size = document.get(name)
    found: dict[str, Any] = dict(size) if isinstance(size, Mapping) else {"size": size}
    found = {key: value for key, value in found.items() if value is not None}
    if set(found) not in forms:
        offered = " or ".join(" and ".join(sorted(form)) for form in forms)
        raise LoadRefused(f"{PREPROCESSOR}: {name} is {found}; {offered} is offered")
    return {key: int(value) for key, value in found.items()}


def _of_three(document: Mapping[str, Any], name: str) -> list[float]:
    values = document.get(name)
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise LoadRefused(f"{PREPROCESSOR}: {name} is {values!r}; a number for each of the 3 channels is needed")
    return [float(value) for value in values]


def check_same_pixels(task: ImagePreprocessing, processor: Any) -> None:
    """Prove that the service prepares the same pixels as the checkpoint's own processor.

    They are compared on the golden images and on images of odd sizes. The images are decoded first, because the service
    decodes files to RGB in its own way.

    Raises:
        LoadRefused: the pixels differ.
    """
    # Drop the files' other information, such as a transparent colour.
    images = {
        name: Image.fromarray(np.asarray(Image.open(BytesIO(file)).convert("RGB")))
        for name, file in golden_images().items()
    }
    images |= {f"an image of {width} x {height} pixels": shapes(width, height) for width, height in ODD_SIZES}
    for name, image in images.items():
        lossless = BytesIO()
        image.save(lossless, "PNG")
        ours_CHW = task.preprocess(lossless.getvalue(), field="image").pixels_CHW
        with reading(f"the image processor cannot prepare {name}"):
            theirs_CHW = np.asarray(processor(images=image, return_tensors="np")["pixel_values"][0])
        if theirs_CHW.shape != ours_CHW.shape:
            raise LoadRefused(f"the image processor makes pixels of shape {theirs_CHW.shape}, not {ours_CHW.shape}")
        difference = float(np.abs(theirs_CHW - ours_CHW).max())
        if not difference <= MAX_PIXEL_DIFFERENCE * max(1.0, float(np.abs(ours_CHW).max())):
            raise LoadRefused(
                f"the image processor makes other pixels of {name} than are offered: they differ by {difference:.3g}"
            )
