"""The text encoders of a conversion: classifiers and models that answer with a vector.

Shapes: B rows, T tokens, D elements of a vector, C classes.
"""

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

from export.conversion.comparison.requirements import Precision
from export.conversion.golden_texts import GOLDEN_TEXTS, made_up_sentences
from model_store.folder import TASK_SETTINGS, TOKENIZER, Limits
from service.tasks.classification import SINGLE_LABEL, ClassifierSettings
from service.tasks.text.classification import TextClassification
from service.tasks.text.embeddings import EmbeddingSettings, FeatureExtraction
from service.tasks.text.encoding import Tokens
from service.tasks.text.tokenization import TEXT_PAIR, Pair, Text
from service.tensors import TensorSpec


class TextTask(Protocol):
    """The part of a served task of text encoders that conversion needs."""

    @property
    def optional_inputs(self) -> Sequence[TensorSpec]:
        """The second texts of pairs, where the model takes them."""

    def preprocess(self, text: Text, *, truncate: bool, field: str) -> Tokens:
        """Tokenize a text or a pair."""

    def collate(self, items: Sequence[Any]) -> Mapping[str, NDArray[Any]]:
        """Put preprocessed texts into one batch."""

    def split_batch(self, outputs: dict[str, NDArray[Any]], items: Sequence[Any]) -> Sequence[Any]:
        """Split the graph's outputs into the result of each text."""


class Given(Protocol):
    """An ONNX graph that is served as it was exported elsewhere."""

    @property
    def precision(self) -> Precision:
        """The precision of the graph's products."""

    def write(self, path: Path) -> None:
        """Write the graph with its weights inside."""


@dataclass(frozen=True, kw_only=True)
class TextSource(ABC):
    """A PyTorch encoder of texts with its tokenizer; its tensors are int64 [B, T]."""

    module: nn.Module
    for_export: Callable[[], nn.Module]
    skips_padding: bool
    input_names: tuple[str, ...]
    tokenizer_json: str
    max_tokens: int
    pad_id: int
    model_type: str
    # Heads and width of a network that ONNX Runtime's optimizer of BERT understands; None for other networks.
    optimized_as: Mapping[str, Any] | None = None
    cuts_left: bool = False  # long texts are truncated at their beginning
    provenance: dict[str, Any] = field(default_factory=dict)
    kind: str = "texts"
    quantized_operators: Sequence[str] | None = None
    not_quantized_because: str | None = None
    input_form: tuple[str, list[int]] = ("INT64", [-1, -1])
    labels: list[str] = field(default_factory=list)  # the classes, by number; empty for a model without classes
    settings: msgspec.Struct | None = None  # the contents of `task.json`; None where all settings are the defaults
    output_name: str = "logits"
    given: Given | None = None  # the graph that is served as it is; None where one is exported
    output_unit: float = 1.0  # differences are compared in this unit: numbers of a regression may be large

    @property
    @abstractmethod
    def task(self) -> TextTask:
        """Pre- and postprocessing, as the service will do it."""

    @property
    @abstractmethod
    def output_shape(self) -> list[int]:
        """The shape of the output."""

    @property
    def lacks_weights(self) -> bool:
        """Whether the given graph stands in for PyTorch's network, so that nothing is compared with PyTorch."""
        network: object = self.module
        return self.given is not None and network is self.given

    @property
    def limits(self) -> Limits:
        """The longest text."""
        return Limits(max_tokens=self.max_tokens)

    @property
    def task_arguments(self) -> dict[str, Any]:
        """The arguments that the tasks of all texts have."""
        return {
            "tokenizer_json": self.tokenizer_json,
            "max_tokens": self.max_tokens,
            "pad_id": self.pad_id,
            "graph_inputs": self.input_names,
        }

    def example(self) -> tuple[torch.Tensor, ...]:
        """Return two rows of 16 tokens of type 0, the only type that every network has."""
        return tuple(torch.full((2, 16), int(name != "token_type_ids"), dtype=torch.int64) for name in self.input_names)

    def dynamic_axes(self) -> dict[int, Any]:
        """Return rows and tokens."""
        return {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("tokens", min=1, max=self.max_tokens)}

    def item(self, given: Text) -> Any:
        """Tokenize a text, truncated to the limit."""
        return self.task.preprocess(given, truncate=True, field="text")

    @torch.inference_mode()
    def outputs(self, module: Callable[..., torch.Tensor], inputs: Sequence[Text]) -> list[NDArray[np.float32]]:
        """Compute the result of each text with `module`, one at a time and so without padding."""
        results: list[NDArray[np.float32]] = []
        for text in inputs:
            item = self.item(text)
            feeds = self.task.collate([item])
            computed = module(*(torch.from_numpy(feeds[name]) for name in self.input_names)).float().numpy()
            results += self.task.split_batch({self.output_name: computed}, [item])
        return results

    def files(self) -> dict[str, str]:
        """Return the tokenizer, the configuration, and the settings of the task."""
        config = {
            "model_type": self.model_type,
            "pad_token_id": self.pad_id,
            "max_position_embeddings": self.max_tokens,
            **label_names(self.labels),
        }
        files = {TOKENIZER: self.tokenizer_json, "config.json": json.dumps(config, indent=2) + "\n"}
        if self.settings is not None:
            files[TASK_SETTINGS] = json.dumps(msgspec.to_builtins(self.settings), indent=2) + "\n"
        return files

    def golden_inputs(self) -> list[Text]:
        """Return the golden sentences that fit, a pair, and a long text if the model truncates on the left."""
        whole: list[Text] = [text for text in GOLDEN_TEXTS if not self.item(text).truncated]
        if self.task.optional_inputs and len(whole) > 1:
            pair = Pair(str(whole[0]), str(whole[1]))
            whole += [] if self.item(pair).truncated else [pair]
        return [*whole, " ".join(made_up_sentences(self.max_tokens // 4 + 8))] if self.cuts_left else whole

    def golden_example(self, given: Text) -> tuple[dict[str, str], dict[str, Any]]:
        """Return the text or pair, its ids, and whether it is to be truncated."""
        item = self.item(given)
        raw = {"text": given.first, TEXT_PAIR: given.second} if isinstance(given, Pair) else {"text": given}
        types = {} if item.type_ids is None else {"token_type_ids": item.type_ids}
        return raw | ({"truncate": "true"} if item.truncated else {}), {"input_ids": item.ids} | types


@dataclass(frozen=True, kw_only=True)
class TextClassifierSource(TextSource):
    """A PyTorch classifier of texts, with its labels."""

    settings: ClassifierSettings | None = None

    @property
    def output_shape(self) -> list[int]:
        """Rows and classes."""
        return [-1, len(self.labels)]

    @cached_property
    def task(self) -> TextClassification:
        """Pre- and postprocessing, as the service will do it."""
        settings = self.settings or SINGLE_LABEL
        return TextClassification(**self.task_arguments, labels=self.labels, settings=settings)


@dataclass(frozen=True, kw_only=True)
class EmbeddingSource(TextSource):
    """A PyTorch encoder of texts whose output is a vector, float32 [B, D]."""

    settings: EmbeddingSettings
    output_name: str = "embedding"

    @property
    def output_shape(self) -> list[int]:
        """Rows and elements of a vector."""
        return [-1, self.settings.dimensions]

    @cached_property
    def task(self) -> FeatureExtraction:
        """Pre- and postprocessing, as the service will do it."""
        return FeatureExtraction(**self.task_arguments, settings=self.settings)


def optimized_as_bert(num_heads: int, hidden_size: int) -> dict[str, Any]:
    """Return the arguments of ONNX Runtime's optimizer for a network whose layers are those of BERT."""
    return {"model_type": "bert", "num_heads": num_heads, "hidden_size": hidden_size}


def label_names(labels: Sequence[str]) -> dict[str, Any]:
    """Return the fields of `config.json` that name the classes."""
    if not labels:
        return {}
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }
