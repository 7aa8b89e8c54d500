"""The sources of a conversion to one graph: trained encoders of texts and images, from a run or from elsewhere.

Shapes: B rows, T tokens, D elements of a vector, C classes or, of pixels, channels, H height, W width.
"""

import base64
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from export.conversion.families.images import NO_INT8_CONVOLUTIONS
from export.conversion.golden_images import golden_images
from export.conversion.text_source import TextClassifierSource, label_names, optimized_as_bert
from export.networks.transformer import PackedTextClassifier
from export.training import image_classifier as train_image_classifier
from export.training import text_classifier as train_text_classifier
from export.training.image_augmentation import normalised
from export.training.run_folder import read_result
from model_store.folder import PREPROCESSOR, TASK_SETTINGS, Limits
from service.tasks.classification import SINGLE_LABEL, ClassifierSettings
from service.tasks.images.image_classification import ImageClassification
from service.tasks.images.image_feature_extraction import ImageEmbeddingSettings, ImageFeatureExtraction
from service.tasks.images.preprocessing import Pixels, PreprocessorConfig

IMAGES_PER_CALL = 50  # per call of the PyTorch network
CIFAR10_IMAGE_SIZE = 32


class Labelled(Protocol):
    """Inputs as a client would send them, with their class numbers."""

    @property
    def inputs(self) -> Sequence[Any]:
        """Texts, or image files."""

    @property
    def labels(self) -> Sequence[int]:
        """The class number of each input."""


class Collator(Protocol):
    """The part of a served task that puts preprocessed inputs into one batch, and takes its results apart."""

    def collate(self, items: Sequence[Any]) -> Mapping[str, NDArray[Any]]:
        """Put preprocessed inputs into one batch."""

    def split_batch(self, outputs: dict[str, NDArray[Any]], items: Sequence[Any]) -> Sequence[Any]:
        """Split the graph's outputs into the result of each input."""


class Source(Protocol):
    """The interface of a PyTorch encoder for conversion. An input is what a client would send: a text or a file.

    `module` takes tensors in the order of `input_names` and returns one tensor, whose first dimension is the rows. The
    network that `for_export` builds may work only inside an export.
    """

    @property
    def kind(self) -> str:
        """The plural noun for inputs in messages."""

    @property
    def module(self) -> nn.Module:
        """The trained network."""

    @property
    def for_export(self) -> Callable[[], nn.Module]:
        """Builds the network in its form for export."""

    @property
    def skips_padding(self) -> bool:
        """Whether that form computes only real tokens."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the graph's inputs."""

    @property
    def output_name(self) -> str:
        """The name of the graph's output, which is also that of a golden example's."""

    @property
    def output_shape(self) -> list[int]:
        """The shape of the output, as the manifest has it."""

    @property
    def output_unit(self) -> float:
        """The unit of differences between outputs: 1, or more where outputs are large numbers."""

    @property
    def labels(self) -> list[str]:
        """The classes, by number; empty for a model without classes."""

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the model comes from, for manifest and card."""

    @property
    def quantized_operators(self) -> Sequence[str] | None:
        """The operators that int8 quantizes; None for all that can be."""

    @property
    def not_quantized_because(self) -> str | None:
        """The reason why int8 does not suit the network, or None where it does."""

    @property
    def input_form(self) -> tuple[str, list[int]]:
        """Datatype and shape of each of the graph's inputs, as the manifest has them."""

    @property
    def limits(self) -> Limits:
        """The limits of one input."""

    @property
    def optimized_as(self) -> Mapping[str, Any] | None:
        """Arguments of ONNX Runtime's transformer optimizer; None where it has nothing to do."""

    @property
    def task(self) -> Collator:
        """Pre- and postprocessing, as the service will do it."""

    def example(self) -> tuple[torch.Tensor, ...]:
        """Tensors to trace the network with."""

    def dynamic_axes(self) -> dict[int, Any]:
        """Return the dynamic dimensions of each input."""

    def item(self, given: Any) -> Any:
        """Preprocess an input."""

    def outputs(self, module: Callable[..., torch.Tensor], inputs: Sequence[Any]) -> list[NDArray[np.float32]]:
        """Compute the result of each input with `module` (this network or its TorchScript form)."""

    def files(self) -> dict[str, str]:
        """Return further files of the model folder: texts by file name."""

    def golden_inputs(self) -> list[Any]:
        """Return this repository's inputs that every conversion of the model must answer alike."""

    def golden_example(self, given: Any) -> tuple[dict[str, str], dict[str, Any]]:
        """Return the raw input and its preprocessed tensors, as a golden example holds them."""


class ImageTask(Protocol):
    """The part of a served task of images that conversion needs."""

    def levels(self, file: bytes, *, field: str) -> NDArray[np.uint8]:
        """Decode an image to RGB in the network's size, uint8 [H, W, 3]."""

    def preprocess(self, file: bytes, *, field: str) -> Pixels:
        """Decode and normalise an image."""

    def collate(self, items: Sequence[Any]) -> Mapping[str, NDArray[Any]]:
        """Put preprocessed images into one batch."""

    def split_batch(self, outputs: dict[str, NDArray[Any]], items: Sequence[Any]) -> Sequence[Any]:
        """Split the graph's outputs into the result of each image."""


@dataclass(frozen=True, kw_only=True)
class ImageSource(ABC):
    """A PyTorch network for images; its only tensor is float32 [B, 3, H, W], normalised as in training.

    The service normalises with numpy, PyTorch gets the result of `export.training.image_augmentation.normalised`:
    comparison and golden examples thus prove that the two agree.
    """

    module: nn.Module
    image_size: int
    model_type: str
    # The `preprocessor_config.json` of a model that was not trained here. PyTorch is then given the pixels that the
    # service prepares: there is no second implementation here to compare them with.
    loaded_preprocessor: Mapping[str, Any] | None = None
    quantized_operators: Sequence[str] | None = ("MatMul",)
    not_quantized_because: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    kind: str = "images"
    skips_padding: bool = False
    output_unit: float = 1.0
    input_names: tuple[str, ...] = ("pixel_values",)
    limits: Limits = field(default_factory=Limits)
    optimized_as: Mapping[str, Any] | None = None
    labels: list[str] = field(default_factory=list)  # the classes, by number; empty for a model without classes
    settings: msgspec.Struct | None = None  # the contents of `task.json`; None where all settings are the defaults
    output_name: str = "logits"

    @property
    @abstractmethod
    def task(self) -> ImageTask:
        """Pre- and postprocessing, as the service will do it."""

    @property
    @abstractmethod
    def output_shape(self) -> list[int]:
        """The shape of the output."""

    @property
    def for_export(self) -> Callable[[], nn.Module]:
        """The network as it was trained."""
        return lambda: self.module

    @property
    def input_form(self) -> tuple[str, list[int]]:
        """Any number of images of one size."""
        return "FP32", [-1, 3, self.image_size, self.image_size]

    @property
    def preprocessor_config(self) -> dict[str, Any]:
        """`preprocessor_config.json`: levels to -1 ... 1, as `normalised` does it, or what the model came with."""
        if self.loaded_preprocessor is not None:
            return dict(self.loaded_preprocessor)
        return {
            "image_processor_type": "ViTImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"height": self.image_size, "width": self.image_size},
            "resample": 3,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        }

    @property
    def preprocessing(self) -> PreprocessorConfig:
        """`preprocessor_config.json` as the service reads it."""
        return msgspec.convert(self.preprocessor_config, PreprocessorConfig)

    def example(self) -> tuple[torch.Tensor, ...]:
        """Return two images."""
        return (torch.zeros(2, 3, self.image_size, self.image_size),)

    def dynamic_axes(self) -> dict[int, Any]:
        """Return the images of a batch."""
        return {0: torch.export.Dim("batch", min=1)}

    def item(self, given: bytes) -> Pixels:
        """Decode and normalise the pixels of a file."""
        return self.task.preprocess(given, field="image")

    def trained_pixels(self, files: Sequence[bytes]) -> torch.Tensor:
        """Normalise the files' pixels as in training; float32 [B, 3, H, W]."""
        if self.loaded_preprocessor is not None:
            return torch.from_numpy(np.stack([self.item(file).pixels_CHW for file in files]))
        levels_BHWC = np.stack([self.task.levels(file, field="image") for file in files])
        return normalised(torch.from_numpy(levels_BHWC).permute(0, 3, 1, 2))

    @torch.inference_mode()
    def outputs(self, module: Callable[..., torch.Tensor], inputs: Sequence[bytes]) -> list[NDArray[np.float32]]:
        """Compute the result of each image with `module`; float32 [C] or [D] each."""
        starts = range(0, len(inputs), IMAGES_PER_CALL)
        parts = [module(self.trained_pixels(inputs[first : first + IMAGES_PER_CALL])) for first in starts]
        return list(torch.cat(parts).float().numpy())

    def files(self) -> dict[str, str]:
        """Return the preprocessor and model configuration, and the settings of the task."""
        config = {
            "model_type": self.model_type,
            "image_size": self.image_size,
            "num_channels": 3,
            **label_names(self.labels),
        }
        files = {
            PREPROCESSOR: json.dumps(self.preprocessor_config, indent=2) + "\n",
            "config.json": json.dumps(config, indent=2) + "\n",
        }
        if self.settings is not None:
            files[TASK_SETTINGS] = json.dumps(msgspec.to_builtins(self.settings), indent=2) + "\n"
        return files

    def golden_inputs(self) -> list[bytes]:
        """Return the golden images: every kind of file that clients send."""
        return list(golden_images().values())

    def golden_example(self, given: bytes) -> tuple[dict[str, str], dict[str, Any]]:
        """Return the file in base64, and the digest of its pixels."""
        pixels = Pixels(self.trained_pixels([given])[0].numpy())
        return {"image": base64.b64encode(given).decode()}, {"pixel_values": pixels.digest()}


@dataclass(frozen=True, kw_only=True)
class ImageClassifierSource(ImageSource):
    """A PyTorch classifier of images, with its labels."""

    settings: ClassifierSettings | None = None

    @property
    def output_shape(self) -> list[int]:
        """Rows and classes."""
        return [-1, len(self.labels)]

    @cached_property
    def task(self) -> ImageClassification:
        """Pre- and postprocessing, as the service will do it."""
        return ImageClassification(
            self.preprocessing,
            labels=self.labels,
            graph_input=self.input_names[0],
            settings=self.settings or SINGLE_LABEL,
        )


@dataclass(frozen=True, kw_only=True)
class ImageEmbeddingSource(ImageSource):
    """A PyTorch network whose output is a vector of each image, float32 [B, D]."""

    settings: ImageEmbeddingSettings
    output_name: str = "embedding"

    @property
    def output_shape(self) -> list[int]:
        """Rows and elements of a vector."""
        return [-1, self.settings.dimensions]

    @cached_property
    def task(self) -> ImageFeatureExtraction:
        """Pre- and postprocessing, as the service will do it."""
        return ImageFeatureExtraction(self.preprocessing, settings=self.settings, graph_input=self.input_names[0])


def text_source_of_run(run_dir: Path) -> TextClassifierSource:
    """Load the best weights of a finished text classifier run as a source for conversion.

    Raises:
        FileNotFoundError: the run is not finished, or there is none.
        ValueError: its network cannot be served.
    """
    result = read_result(run_dir)
    network = result["network"]
    if network != "transformer":
        raise ValueError(f"{run_dir} holds a {network}: only the Transformer has a form for serving")
    model = train_text_classifier.load_run_model(run_dir)
    return TextClassifierSource(
        module=model,
        for_export=lambda: PackedTextClassifier(model),
        skips_padding=True,
        input_names=("input_ids", "attention_mask"),
        tokenizer_json=(run_dir / "tokenizer.json").read_text(),
        labels=result["labels"],
        max_tokens=model.config.max_tokens,
        pad_id=0,
        optimized_as=optimized_as_bert(model.config.num_heads, model.config.d_model),
        model_type="heed-encoder",
        provenance=provenance_of(result),
    )


def image_source_of_run(run_dir: Path) -> ImageClassifierSource:
    """Load the best weights of a finished image classifier run as a source for conversion.

    Raises:
        FileNotFoundError: the run is not finished, or there is none.
    """
    result = read_result(run_dir)
    network = result["network"]
    return ImageClassifierSource(
        module=train_image_classifier.load_run_model(run_dir),
        labels=result["labels"],
        # The oldest records lack it; they are of CIFAR-10.
        image_size=result.get("image_size", CIFAR10_IMAGE_SIZE),
        model_type=f"heed-{network}",
        not_quantized_because=None if network == "vit" else NO_INT8_CONVOLUTIONS,
        provenance={"network": network} | provenance_of(result),
    )


def provenance_of(result: Any) -> dict[str, Any]:
    """Return the fields of a run's record that a model card shows."""
    kept = ("data", "command", "commit", "hardware", "torch", "training_s", "num_parameters", "best_epoch")
    choices = ("seed", "start_from", "teacher")
    return {name: result[name] for name in kept} | {
        name: result["config"][name] for name in choices if result["config"].get(name)
    }
