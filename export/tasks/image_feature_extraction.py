"""Image feature extraction: networks for images whose answer is a vector, from Hugging Face or timm."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from export.conversion.classifier import convert
from export.conversion.comparison.requirements import MIN_COMPARED
from export.conversion.golden_images import golden_images, made_up_images
from export.conversion.model_folder.opening import image_feature_extraction_of
from export.conversion.model_folder.task import Preprocessing
from export.task_table import IMAGE_FEATURE_EXTRACTION
from export.tasks.embedding import EmbeddingTask
from export.tasks.task import Target
from model_store.folder import Manifest

NUM_NOISE_IMAGES = 6
MADE_UP = "made-up images"


@dataclass(frozen=True)
class Images:
    """Image files to measure vectors on; they need no labels, because PyTorch's vectors are the expected ones."""

    inputs: list[bytes]


class ImageFeatureExtraction(EmbeddingTask[Images]):
    """Networks for images that answer with a vector."""

    name = IMAGE_FEATURE_EXTRACTION

    def load(self, source: str, validate_on: str | None, target: Target, console: Console) -> None:
        """Convert a backbone; what a lossy precision costs is measured on drawn images."""
        from export.conversion.checkpoints.image_models import image_embedding_of  # imports transformers: seconds

        images = Images(made_up_images(MIN_COMPARED))
        convert(
            image_embedding_of(source),
            self,
            name=target.name,
            store=target.store,
            precision=target.precision,
            console=console,
            compare_on=images.inputs,
            labelled=images,
            split=MADE_UP,
            explained=False,
            about={"measured_on": MADE_UP},
        )

    def material(self, known: Collection[Any]) -> Mapping[str, Images] | None:
        """Draw the images that every model of the task is measured on."""
        return {MADE_UP: Images(made_up_images(MIN_COMPARED))} if MADE_UP in known else None

    def preprocessing(self, folder: Path, manifest: Manifest) -> Preprocessing:
        """Decode and normalise image files."""
        images = image_feature_extraction_of(folder, manifest)
        return Preprocessing(
            golden_input=lambda example: example.inputs["image"].encode(),
            item=lambda given: images.preprocess(given, field="image"),
            collate=images.collate,
        )

    def invented_inputs(self, folder: Path) -> Sequence[bytes]:
        """Draw noise, and every kind of file that clients send."""
        return [*made_up_images(NUM_NOISE_IMAGES), *golden_images().values()]


TASK = ImageFeatureExtraction()
