"""Text classification: the task of models that answer a text, or a pair of texts, with scores of classes or numbers.

text ── tokenizer ──> ids ── padded together ──> graph ──> logits ── softmax ──> label, score, probabilities
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.tasks.classification import SINGLE_LABEL, Classifier, ClassifierSettings
from service.tasks.explainable import TextParts, ValueFunction
from service.tasks.hub_messages import (
    TextClassificationParameters,
    TextClassificationRequest,
    TextPair,
    inputs_and_field,
    refuse_stream,
    truncates,
)
from service.tasks.stored_task import Example, HubCall, TaskFiles
from service.tasks.text.encoding import TextEncoding, Tokens, pair_parts, part_of_pair
from service.tasks.text.tokenization import Pair, Text
from service.tensors import Arrays


class TextClassification(TextEncoding, Classifier):
    """Preprocessing and postprocessing of a text classifier."""

    name: ClassVar[str] = "text-classification"
    answers_lists: ClassVar[bool] = True
    hub_request: ClassVar[type[msgspec.Struct]] = TextClassificationRequest
    example: ClassVar[str | None] = """-d '{"inputs": "A wonderful film."}'"""

    def __init__(
        self,
        tokenizer_json: str,
        *,
        labels: Sequence[str],
        max_tokens: int,
        pad_id: int,
        graph_inputs: Sequence[str],
        settings: ClassifierSettings = SINGLE_LABEL,
    ) -> None:
        """Set up; arguments are those of `TextEncoding` and of `Classifier`."""
        TextEncoding.__init__(self, tokenizer_json, max_tokens=max_tokens, pad_id=pad_id, graph_inputs=graph_inputs)
        Classifier.__init__(self, labels, settings)

    @classmethod
    def open(cls, files: TaskFiles, graph_inputs: Sequence[str]) -> Self:
        """Set up the task of a model from its folder."""
        settings = files.settings(ClassifierSettings)
        return cls(**cls.arguments_of(files), labels=files.labels, graph_inputs=graph_inputs, settings=settings)

    @property
    def explainable(self) -> Self:
        """The task itself: words can be taken away."""
        return self

    def read_hub(self, request: TextClassificationRequest) -> HubCall:
        """Read a request of the task API."""
        given, field = inputs_and_field(request.inputs)
        refuse_stream(request)
        parameters = request.parameters or TextClassificationParameters()
        answer, truncate = parameters.answer_options(), truncates(parameters.truncation)
        texts = [Pair(each.text, each.text_pair) if isinstance(each, TextPair) else each for each in given]
        return HubCall(texts, field, truncate=truncate, answer=answer, explain=parameters.explain)

    def parts(
        self, given: Text, item: Tokens, *, truncate: bool, field: str, max_image_pixels: int, memory: Any
    ) -> TextParts:
        """Split a text into its tokens and their places; a token of a pair is named by its place in the ids."""
        if isinstance(given, Pair):
            return pair_parts(self.encoder, given, item, truncate=truncate)
        return TextParts(given, item.ids, self.spans(given, truncate=truncate), self.names(item.ids))

    def value_function(self, item: Tokens, result: NDArray[np.float32], target: int | None) -> ValueFunction:
        """Return the score of a class as a function of the tokens that are kept."""
        item_of = self.part if item.type_ids is None else partial(part_of_pair, item, self.pad_id)
        return self.class_value_function(result, target, item_of, partial(text_row, item.ids))

    def golden_row(self, item: Tokens, example: Example, target: int | None) -> Arrays:
        """Make the explanation graph's input for a golden example."""
        assert target is not None
        return text_row(item.ids, target)


def text_row(ids_T: Sequence[int], target: int) -> Arrays:
    """Make the explanation graph's input for a text and the class whose logit is explained."""
    ids = np.array(ids_T, dtype=np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "target": np.array(target)}
