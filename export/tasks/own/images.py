"""Image classifiers on data of one's own: preparation of images, and conversion of runs."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from export.conversion.checkpoints.image_models import image_source_of
from export.conversion.checkpoints.image_processors import load_processor, served_processor
from export.conversion.comparison.requirements import MIN_COMPARED
from export.conversion.families.images import IMAGE_FAMILIES
from export.conversion.golden_images import made_up_images
from export.conversion.model_source import ImageClassifierSource, provenance_of
from export.data.own.images import rebuild_images
from export.data.own.labels import SINGLE_LABEL
from export.tasks.own.quality import OwnSplit, about_data
from export.training.fine_tuning.images.starting_point import ImagePreparation
from export.training.fine_tuning.saved_model import HUGGING_FACE, read_task_document
from export.training.fine_tuning.settings import SCRATCH
from export.training.fine_tuning.starting_point import read_encoder_config
from service.tasks.images.preprocessing import PreprocessorConfig

MAX_COMPARED_IMAGES = 1_000  # held-out images


def preparation_of(start_from: str) -> ImagePreparation | None:
    """Read how the images of a network in Hugging Face form are prepared; None for a start from scratch.

    Raises:
        ValueError: the folder has no image model of a known family, or an image processor that cannot be served.
    """
    if start_from == SCRATCH:
        return None
    folder = Path(start_from)
    document = read_encoder_config(folder, tuple(IMAGE_FAMILIES))
    processor = load_processor(str(folder), document["model_type"])
    return ImagePreparation(processor, msgspec.convert(served_processor(processor), PreprocessorConfig))


def saved_preparation(run_dir: Path) -> ImagePreparation:
    """Read how the images of a run's saved model are prepared."""
    found = preparation_of(str(run_dir / HUGGING_FACE))
    assert found is not None
    return found


def conversion_of_own_images(run_dir: Path, result: Mapping[str, Any]) -> tuple[ImageClassifierSource, dict[str, Any]]:
    """Return source and further arguments of `convert` for a run on images of one's own.

    Raises:
        ValueError: the data is gone or has changed.
    """
    folder = run_dir / HUGGING_FACE
    data = rebuild_images(result["data_document"])
    source, document = image_source_of(str(folder)), read_task_document(folder)
    kept = {name: source.provenance[name] for name in ("model_type", "transformers")}
    source = replace(source, provenance=provenance_of(result) | kept)
    measured = OwnSplit(data.reported.inputs, data.reported, data, document)
    compared = measured.inputs[:MAX_COMPARED_IMAGES]
    return source, {
        "compare_on": [*compared, *made_up_images(max(0, MIN_COMPARED - len(compared)))],
        "labelled": measured,
        "split": data.reported_name,
        "about": about_data(result),
        "halved": data.problem == SINGLE_LABEL,
    }
