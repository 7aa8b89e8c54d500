"""The sources of a classifier conversion: trained text and image classifiers from a run or from elsewhere.

Shapes: B rows, T tokens, C classes or, of pixels, channels, H height, W width.
"""

import base64
import json
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

from export.conversion.golden_images import golden_images
from export.conversion.golden_texts import GOLDEN_TEXTS, made_up_sentences
from export.networks.transformer import PackedTextClassifier
from export.training import image_classifier as train_image_classifier
from export.training import text_classifier as train_text_classifier
from export.training.run_folder import read_result
from model_store.folder import PREPROCESSOR, TOKENIZER, Limits
from service.tasks.image_classification import ImageClassification, Pixels, PreprocessorConfig
from service.tasks.text.classification import TextClassification

IMAGES_PER_CALL = 50  # per call of the PyTorch network
CIFAR10_IMAGE_SIZE = 32
# Measured on one thread of a CPU: the network of `cifar10-cnn` takes 0.95 ms an image in float32, 1.03 in int8 (4.8
# with signed weights). A vision transformer's linear maps gain: 1.07 ms instead of 1.74 for `cifar10-vit`.
NO_INT8_CONVOLUTIONS = "the network is made of convolutions, which are no faster so; convert it in float32"


class Labelled(Protocol):
    """Inputs as a client would send them, with their class numbers."""

    @property
    def inputs(self) -> Sequence[Any]:
        """Texts, or image files."""

    @property
    def labels(self) -> Sequence[int]:
        """The class number of each input."""


class Collator(Protocol):
    """The part of a served task that puts preprocessed inputs into one batch."""

    def collate(self, items: Sequence[Any]) -> Mapping[str, NDArray[Any]]:
        """Put preprocessed inputs into one batch."""


class Source(Protocol):
    """The interface of a PyTorch classifier for conversion. An input is what a client would send: a text or a file.

    `module` takes tensors in the order of `input_names` and returns logits [B, C]. The network that `for_export` builds
    may work only inside an export.
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
    def labels(self) -> list[str]:
        """The classes, by number."""

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

    def logits(self, module: Callable[..., torch.Tensor], inputs: Sequence[Any]) -> NDArray[np.float32]:
        """Compute the logits of `module` (this network or its TorchScript form); float32 [B, C]."""

    def files(self) -> dict[str, str]:
        """Return further files of the model folder: texts by file name."""

    def golden_inputs(self) -> list[Any]:
        """Return this repository's inputs that every conversion of the model must answer alike."""

    def golden_example(self, given: Any) -> tuple[dict[str, str], dict[str, Any]]:
        """Return the raw input and its preprocessed tensors, as a golden example holds them."""


@dataclass(frozen=True, kw_only=True)
class TextClassifierSource:
    """A PyTorch text classifier with its tokenizer and labels; its tensors are int64 [B, T]."""

    module: nn.Module
    for_export: Callable[[], nn.Module]
    skips_padding: bool
    input_names: tuple[str, ...]
    tokenizer_json: str
    labels: list[str]
    max_tokens: int
    pad_id: int
    num_heads: int
    hidden_size: int
    model_type: str
    cuts_left: bool = False  # long texts are truncated at their beginning
    provenance: dict[str, Any] = field(default_factory=dict)
    kind: str = "texts"
    quantized_operators: Sequence[str] | None = None
    not_quantized_because: str | None = None
    input_form: tuple[str, list[int]] = ("INT64", [-1, -1])

    @property
    def limits(self) -> Limits:
        """The longest text."""
        return Limits(max_tokens=self.max_tokens)

    @property
    def optimized_as(self) -> Mapping[str, Any]:
        """Options for an encoder like BERT."""
        return {"model_type": "bert", "num_heads": self.num_heads, "hidden_size": self.hidden_size}

    @cached_property
    def task(self) -> TextClassification:
        """Pre- and postprocessing, as the service will do it."""
        return TextClassification(
            self.tokenizer_json,
            labels=self.labels,
            max_tokens=self.max_tokens,
            pad_id=self.pad_id,
            graph_inputs=self.input_names,
        )

    def example(self) -> tuple[torch.Tensor, ...]:
        """Return two rows of 16 tokens of type 0, the only type that every network has."""
        return tuple(torch.full((2, 16), int(name != "token_type_ids"), dtype=torch.int64) for name in self.input_names)

    def dynamic_axes(self) -> dict[int, Any]:
        """Return rows and tokens."""
        return {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("tokens", min=1, max=self.max_tokens)}

    def item(self, given: str) -> Any:
        """Tokenize a text, truncated to the limit."""
        return self.task.preprocess(given, truncate=True, field="text")

    @torch.inference_mode()
    def logits(self, module: Callable[..., torch.Tensor], inputs: Sequence[str]) -> NDArray[np.float32]:
        """Compute the logits of `module`, one text at a time and so without padding; float32 [B, C]."""
        rows = []
        for text in inputs:
            feeds = self.task.collate([self.item(text)])
            rows.append(module(*(torch.from_numpy(feeds[name]) for name in self.input_names)).float().numpy())
        return np.concatenate(rows)

    def files(self) -> dict[str, str]:
        """Return the tokenizer and the configuration."""
        config = {
            "model_type": self.model_type,
            "pad_token_id": self.pad_id,
            "max_position_embeddings": self.max_tokens,
            **_label_names(self.labels),
        }
        return {TOKENIZER: self.tokenizer_json, "config.json": json.dumps(config, indent=2) + "\n"}

    def golden_inputs(self) -> list[str]:
        """Return the golden sentences that fit, and one that is truncated if the model truncates on the left."""
        whole = [text for text in GOLDEN_TEXTS if not self.item(text).truncated]
        return [*whole, " ".join(made_up_sentences(self.max_tokens // 4 + 8))] if self.cuts_left else whole

    def golden_example(self, given: str) -> tuple[dict[str, str], dict[str, Any]]:
        """Return the text, its ids, and whether it is to be truncated."""
        item = self.item(given)
        return {"text": given} | ({"truncate": "true"} if item.truncated else {}), {"input_ids": item.ids}


@dataclass(frozen=True, kw_only=True)
class ImageClassifierSource:
    """A PyTorch image classifier with its labels; its only tensor is float32 [B, 3, H, W], normalised as in training.

    The service normalises with numpy, PyTorch gets the result of `export.training.image_classifier.normalised`:
    comparison and golden examples thus prove that the two agree.
    """

    module: nn.Module
    labels: list[str]
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
    input_names: tuple[str, ...] = ("pixel_values",)
    limits: Limits = field(default_factory=Limits)
    optimized_as: Mapping[str, Any] | None = None

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

    @cached_property
    def task(self) -> ImageClassification:
        """Pre- and postprocessing, as the service will do it."""
        config = msgspec.convert(self.preprocessor_config, PreprocessorConfig)
        return ImageClassification(config, labels=self.labels, graph_input=self.input_names[0])

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
        return train_image_classifier.normalised(torch.from_numpy(levels_BHWC).permute(0, 3, 1, 2))

    @torch.inference_mode()
    def logits(self, module: Callable[..., torch.Tensor], inputs: Sequence[bytes]) -> NDArray[np.float32]:
        """Compute the logits of `module` (this network or its TorchScript form); float32 [B, C]."""
        starts = range(0, len(inputs), IMAGES_PER_CALL)
        parts = [module(self.trained_pixels(inputs[first : first + IMAGES_PER_CALL])) for first in starts]
        return torch.cat(parts).float().numpy()

    def files(self) -> dict[str, str]:
        """Return the preprocessor and model configuration."""
        config = {
            "model_type": self.model_type,
            "image_size": self.image_size,
            "num_channels": 3,
            **_label_names(self.labels),
        }
        return {
            PREPROCESSOR: json.dumps(self.preprocessor_config, indent=2) + "\n",
            "config.json": json.dumps(config, indent=2) + "\n",
        }

    def golden_inputs(self) -> list[bytes]:
        """Return the golden images: every kind of file that clients send."""
        return list(golden_images().values())

    def golden_example(self, given: bytes) -> tuple[dict[str, str], dict[str, Any]]:
        """Return the file in base64, and the digest of its pixels."""
        pixels = Pixels(self.trained_pixels([given])[0].numpy())
        return {"image": base64.b64encode(given).decode()}, {"pixel_values": pixels.digest()}


def _label_names(labels: Sequence[str]) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }


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
        num_heads=model.config.num_heads,
        hidden_size=model.config.d_model,
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
