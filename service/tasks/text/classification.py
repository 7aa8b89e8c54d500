"""Text to label: preprocessing and postprocessing of a text classifier.

    text ── tokenizer ──> ids ── padded together ──> graph ──> logits ── softmax ──> label, score, probabilities

Shapes: B rows of an engine call, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.tasks.classification import Classifier
from service.tasks.explainable import TextParts, ValueFunction
from service.tasks.hub_messages import (
    TextClassificationParameters,
    TextClassificationRequest,
    refuse_stream,
    texts_and_field,
    truncates,
)
from service.tasks.images.image_file import DecodingMemory
from service.tasks.stored_task import Example, HubCall, Padding, TaskError, TaskFiles
from service.tasks.task import Preparation, PrepareOptions, RequestLimits, check_num_rows
from service.tasks.text.tokenization import TOKENIZER, TextEncoder, texts_of, tokenization
from service.tensors import Arrays, TensorSpec


class HubConfig(msgspec.Struct):
    """The fields of a Hugging Face `config.json` that text classification needs; others are ignored."""

    pad_token_id: int = 0


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokenized text, which is an item of the batcher: one row, as long as its ids."""

    ids: list[int]
    truncated: bool
    rows: int = 1
    batch_key: None = None

    @property
    def length(self) -> int:
        """The number of tokens, including special ones."""
        return len(self.ids)


class TextClassification(Classifier):
    """Preprocessing and postprocessing of a text classifier."""

    name: ClassVar[str] = "text-classification"
    accepts: ClassVar[str] = "texts"
    input_field: ClassVar[str] = "text[{}]"
    request_options: ClassVar[frozenset[str]] = frozenset({"truncate"})
    takes_files: ClassVar[bool] = False
    answers_lists: ClassVar[bool] = True
    hub_request: ClassVar[type[msgspec.Struct]] = TextClassificationRequest
    example: ClassVar[str | None] = """-d '{"inputs": "A wonderful film."}'"""
    pads_rows: ClassVar[bool] = True
    inputs = (TensorSpec("text", "BYTES", (-1,)),)

    def __init__(
        self,
        tokenizer_json: str,
        *,
        labels: Sequence[str],
        max_tokens: int,
        pad_id: int,
        graph_inputs: Sequence[str],
    ) -> None:
        """Set up from the contents of a model folder.

        Args:
            tokenizer_json: contents of `tokenizer.json`.
            labels: names of the classes, in the order of their numbers.
            max_tokens: longest text that the model takes, including special tokens.
            pad_id: id of the padding token.
            graph_inputs: which of input_ids, attention_mask and token_type_ids the graph has.
        """
        super().__init__(labels)
        self.max_length = max_tokens
        self._encoder = TextEncoder(tokenizer_json, max_tokens)
        self._pad_id = pad_id
        self._graph_inputs = tuple(graph_inputs)

    @classmethod
    def open(cls, files: TaskFiles, graph_inputs: Sequence[str]) -> Self:
        """Set up the task of a model from its folder."""
        tokenizer_json = files.text(TOKENIZER)
        if tokenizer_json is None:
            raise TaskError(f"{TOKENIZER} is missing")
        return cls(
            tokenizer_json,
            labels=files.labels,
            max_tokens=files.max_tokens,
            pad_id=files.config("config.json", HubConfig).pad_token_id,
            graph_inputs=graph_inputs,
        )

    @classmethod
    def padding(cls, files: TaskFiles) -> Padding | None:
        """Return how calls on a GPU are padded: in tokens, with the padding token."""
        return Padding(files.max_tokens, {"input_ids": files.config("config.json", HubConfig).pad_token_id})

    @property
    def explainable(self) -> Self:
        """The task itself: words can be taken away."""
        return self

    def read(self, inputs: Arrays) -> list[str]:
        """Return the texts of the tensor `text`."""
        return texts_of(inputs)

    def prepare(
        self,
        inputs: Sequence[str],
        options: PrepareOptions,
        field: str,
        limits: RequestLimits,
        memory: DecodingMemory | None = None,
    ) -> Preparation:
        """Plan the tokenization of texts."""
        check_num_rows(len(inputs), limits.max_request_rows)
        return tokenization(inputs, partial(self.preprocess_all, truncate=options.truncate, field=field))

    def preprocess(self, text: str, *, truncate: bool, field: str) -> Tokens:
        """Tokenize a text; arguments and errors are those of `TextEncoder.encode`."""
        return self.preprocess_all([text], truncate=truncate, field=field)[0]

    def preprocess_all(self, texts: Sequence[str], *, truncate: bool, field: str, first: int = 0) -> list[Tokens]:
        """Tokenize texts; arguments and errors are those of `TextEncoder.encode`."""
        return [
            Tokens(*encoded) for encoded in self._encoder.encode(texts, truncate=truncate, field=field, first=first)
        ]

    def spans(self, text: str, *, truncate: bool) -> list[tuple[int, int] | None]:
        """Locate each token in a text that was preprocessed: (start, end), or None for a special token."""
        return self._encoder.spans(text, truncate=truncate)

    def names(self, ids: Sequence[int]) -> list[str]:
        """Return the tokenizer's name of each token."""
        return self._encoder.names(ids)

    def part(self, ids: list[int]) -> Tokens:
        """Make an item of some tokens of a text, or of a padding token if there are none, because a graph needs one."""
        return Tokens(ids or [self._pad_id], truncated=False)

    def collate(self, items: Sequence[Tokens]) -> Arrays:
        """Batch items into the feeds of one engine call, int64 [B, T]: padded ids and the mask of the real tokens."""
        longest = max(len(item.ids) for item in items)
        ids_BT = np.full((len(items), longest), self._pad_id, dtype=np.int64)
        mask_BT = np.zeros((len(items), longest), dtype=np.int64)
        for row, item in enumerate(items):
            ids_BT[row, : len(item.ids)] = item.ids
            mask_BT[row, : len(item.ids)] = 1
        feeds = {"input_ids": ids_BT, "attention_mask": mask_BT}
        if "token_type_ids" in self._graph_inputs:
            feeds["token_type_ids"] = np.zeros_like(ids_BT)
        return {name: feeds[name] for name in self._graph_inputs}

    def probe_item(self, items: Sequence[Tokens], length: int) -> Tokens:
        """Make an item of so many tokens from golden items."""
        ids = [number for item in items for number in item.ids]
        return Tokens((ids * (length // len(ids) + 1))[:length], truncated=False)

    def golden_item(self, example: Example, search: str = "") -> Tokens:
        """Tokenize a golden example.

        Raises:
            TaskError: it becomes other tokens than in training.
        """
        truncate = example.inputs.get("truncate") == "true"
        tokens = self.preprocess(example.inputs["text"], truncate=truncate, field="text")
        if tokens.ids != example.tensors["input_ids"]:
            raise TaskError("the tokenizer gives other ids than in training")
        return tokens

    def read_hub(self, request: TextClassificationRequest) -> HubCall:
        """Read a request of the task API."""
        texts, field = texts_and_field(request.inputs)
        refuse_stream(request)
        parameters = request.parameters or TextClassificationParameters()
        answer, truncate = parameters.answer_options(), truncates(parameters.truncation)
        return HubCall(texts, field, truncate=truncate, answer=answer, explain=parameters.explain)

    def parts(
        self, given: str, item: Tokens, *, truncate: bool, field: str, max_image_pixels: int, memory: Any
    ) -> TextParts:
        """Split a text into its tokens and their places."""
        return TextParts(given, item.ids, self.spans(given, truncate=truncate), self.names(item.ids))

    def value_function(self, item: Tokens, result: NDArray[np.float32], target: int | None) -> ValueFunction:
        """Return the probability of a class as a function of the tokens that are kept."""
        return self.class_value_function(result, target, self.part, partial(text_row, item.ids))

    def golden_row(self, item: Tokens, example: Example, target: int | None) -> Arrays:
        """Make the explanation graph's input for a golden example."""
        assert target is not None
        return text_row(item.ids, target)


def text_row(ids_T: Sequence[int], target: int) -> Arrays:
    """Make the explanation graph's input for a text and the class whose logit is explained."""
    ids = np.array(ids_T, dtype=np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "target": np.array(target)}
