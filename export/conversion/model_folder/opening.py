"""Opens model folders of a store: checked files, and the pre- and postprocessing of each task without an engine."""

import json
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from export.closest import closest_first
from model_store.folder import (
    PREPROCESSOR,
    TARGET_TOKENIZER,
    TASK_SETTINGS,
    TOKENIZER,
    FolderError,
    FoundFolder,
    Manifest,
    ModelFolder,
    read,
)
from service.tasks.classification import SINGLE_LABEL, ClassifierSettings
from service.tasks.decoding.search import SearchDefaults
from service.tasks.images.image_classification import ImageClassification
from service.tasks.images.image_feature_extraction import ImageEmbeddingSettings, ImageFeatureExtraction
from service.tasks.images.preprocessing import PreprocessorConfig
from service.tasks.table import TASKS
from service.tasks.text.classification import TextClassification
from service.tasks.text.embeddings import EmbeddingSettings, FeatureExtraction
from service.tasks.translation import Translation

C = TypeVar("C")


def open_folder(path: Path) -> ModelFolder:
    """Read and check the folder of a version in the store.

    Raises:
        FolderError: the folder is damaged, or not in a store.
    """
    if not path.is_dir() or not path.resolve().name.isdigit():
        store = path.parent.parent if path.name.isdigit() else path.parent
        versions = sorted(str(manifest.parent) for manifest in store.glob("*/*/manifest.json"))
        known = ", ".join(closest_first(str(path), versions)) or "none"
        raise FolderError(f"{path} is not a version's folder, <store>/<name>/<version>; there are: {known}")
    return read(FoundFolder(path.resolve().parent.name, path.resolve().name, path))


def generation_of(folder: Path) -> dict[str, Any]:
    """Read `generation_config.json`."""
    found: dict[str, Any] = json.loads((folder / "generation_config.json").read_text())
    return found


def text_classification_of(folder: Path, manifest: Manifest) -> TextClassification:
    """Build the pre- and postprocessing of a text classifier's folder."""
    settings = _classifier_settings(folder)
    return TextClassification(**_text_arguments(folder, manifest), labels=manifest.labels, settings=settings)


def feature_extraction_of(folder: Path, manifest: Manifest) -> FeatureExtraction:
    """Build the pre- and postprocessing of an embedding model's folder."""
    return FeatureExtraction(
        **_text_arguments(folder, manifest),
        settings=msgspec.json.decode((folder / TASK_SETTINGS).read_bytes(), type=EmbeddingSettings),
    )


class OpenedFiles:
    """The files of a model folder, as a served task reads them (`service.tasks.stored_task.TaskFiles`)."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        assert manifest.limits.max_tokens is not None
        self._folder, self.labels, self.max_tokens = folder, manifest.labels, manifest.limits.max_tokens

    def text(self, name: str) -> str | None:
        """Return a text file's contents, or None if the folder has no such file."""
        return (self._folder / name).read_text() if (self._folder / name).is_file() else None

    def config(self, name: str, kind: type[C]) -> C:
        """Decode a JSON file."""
        return msgspec.json.decode((self._folder / name).read_bytes(), type=kind)

    def settings(self, kind: type[C]) -> C:
        """Decode the settings of the task; `kind()` where the folder has none."""
        return self.config(TASK_SETTINGS, kind) if (self._folder / TASK_SETTINGS).is_file() else kind()


def served_task_of(folder: Path, manifest: Manifest) -> Any:
    """Open the served task of a folder by its name."""
    return TASKS[manifest.task].open(OpenedFiles(folder, manifest), [tensor.name for tensor in manifest.inputs])


def _text_arguments(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Return the arguments that the tasks of all texts have."""
    assert manifest.limits.max_tokens is not None
    return {
        "tokenizer_json": (folder / TOKENIZER).read_text(),
        "max_tokens": manifest.limits.max_tokens,
        "pad_id": json.loads((folder / "config.json").read_text()).get("pad_token_id", 0),
        "graph_inputs": [tensor.name for tensor in manifest.inputs],
    }


def image_classification_of(folder: Path, manifest: Manifest) -> ImageClassification:
    """Build the pre- and postprocessing of an image classifier's folder."""
    return ImageClassification(
        _preprocessor_of(folder),
        labels=manifest.labels,
        graph_input=manifest.inputs[0].name,
        settings=_classifier_settings(folder),
    )


def image_feature_extraction_of(folder: Path, manifest: Manifest) -> ImageFeatureExtraction:
    """Build the pre- and postprocessing of the folder of a model that embeds images."""
    settings = msgspec.json.decode((folder / TASK_SETTINGS).read_bytes(), type=ImageEmbeddingSettings)
    return ImageFeatureExtraction(_preprocessor_of(folder), settings=settings, graph_input=manifest.inputs[0].name)


def _preprocessor_of(folder: Path) -> PreprocessorConfig:
    return msgspec.json.decode((folder / PREPROCESSOR).read_bytes(), type=PreprocessorConfig)


def _classifier_settings(folder: Path) -> ClassifierSettings:
    path = folder / TASK_SETTINGS
    return msgspec.json.decode(path.read_bytes(), type=ClassifierSettings) if path.is_file() else SINGLE_LABEL


def translation_of(folder: Path, manifest: Manifest) -> Translation:
    """Build the pre- and postprocessing of a translation model's folder."""
    config, generation = json.loads((folder / "config.json").read_text()), generation_of(folder)
    target_tokenizer = folder / TARGET_TOKENIZER
    assert manifest.limits.max_tokens is not None
    return Translation(
        (folder / TOKENIZER).read_text(),
        max_tokens=manifest.limits.max_tokens,
        bos_id=generation["decoder_start_token_id"],
        eos_id=generation["eos_token_id"],
        source_language=config["source_language"],
        target_language=config["target_language"],
        target_tokenizer_json=target_tokenizer.read_text() if target_tokenizer.is_file() else None,
        defaults=SearchDefaults(
            length_penalty=generation.get("length_penalty", 1.0), early_stopping=generation.get("early_stopping", True)
        ),
    )
