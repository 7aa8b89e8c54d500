"""Text to label: what happens before and after the graph of a text classifier.

    text ── tokenizer ──> ids ── padded together ──> graph ──> logits ── softmax ──> label, score, probabilities

Shapes: B rows of an engine call, T tokens, C classes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from service.errors import InvalidRequest
from service.tensors import Arrays, TensorSpec, bytes_array

# How logits become scores; the names are those of the Hugging Face task API.
ScoreFunction = Literal["softmax", "sigmoid", "none"]
TRUNCATE_HINT = "shorten it, or ask for truncation"


@dataclass(frozen=True, slots=True)
class Tokens:
    """One text, ready for the graph. An item of the batcher: one row, as long as its ids."""

    ids: list[int]
    truncated: bool
    rows: int = 1
    group: None = None

    @property
    def length(self) -> int:
        """Tokens, special ones included."""
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer for one text: classes and scores, most probable first."""

    labels: list[str]
    scores: list[float]


class TextClassification:
    """The pure part of a text classifier."""

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
            tokenizer_json: `tokenizer.json`.
            labels: names of the classes, by number.
            max_tokens: the longest text the model takes, special tokens included.
            pad_id: the id that fills up shorter rows.
            graph_inputs: which of input_ids, attention_mask and token_type_ids the graph has.
        """
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Cutting is a setting of a tokenizer, not of a call: texts that may be cut have one of their own.
        self._cutting = Tokenizer.from_str(tokenizer_json)
        self._cutting.no_padding()
        self._cutting.enable_truncation(max_tokens)
        self.labels = list(labels)
        self.max_tokens = max_tokens
        self._pad_id = pad_id
        self._graph_inputs = tuple(graph_inputs)
        self._label_bytes = [label.encode() for label in self.labels]
        self.outputs = (
            TensorSpec("label", "BYTES", (-1,)),
            TensorSpec("score", "FP32", (-1,)),
            TensorSpec("probabilities", "FP32", (-1, len(self.labels))),
        )

    def preprocess(self, text: str, *, truncate: bool, field: str) -> Tokens:
        """Text to ids.

        Args:
            text: any text but an empty one.
            truncate: cut a text beyond the limit, instead of refusing it.
            field: what the client calls this text, for messages.

        Raises:
            InvalidRequest: the text is empty, or too long.
        """
        if not text.strip():
            raise InvalidRequest(f"{field} is empty")
        ids = self._tokenizer.encode(text).ids
        if len(ids) <= self.max_tokens:
            return Tokens(ids, truncated=False)
        if not truncate:
            raise InvalidRequest(
                f"{field} has {len(ids)} tokens, the model takes at most {self.max_tokens}; {TRUNCATE_HINT}"
            )
        return Tokens(self._cutting.encode(text).ids, truncated=True)

    def texts_of(self, inputs: Mapping[str, NDArray[Any]]) -> list[str]:
        """The texts of a BYTES tensor [n].

        Raises:
            InvalidRequest: an element is not UTF-8.
        """
        return texts_of(inputs)

    def collate(self, items: Sequence[Tokens]) -> Arrays:
        """Feeds of one engine call, int64 [B, T]: ids padded to the longest, and the mask of the real tokens."""
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

    def separate(self, outputs: Arrays, items: Sequence[Tokens]) -> list[NDArray[np.float32]]:
        """The logits [C] of each item."""
        return list(outputs["logits"])

    def postprocess(
        self,
        logits_C: NDArray[np.float32],
        function: ScoreFunction = "softmax",
        top_k: int | None = None,
    ) -> Classification:
        """Logits to the `top_k` best classes (all, if None), most probable first."""
        scores = scores_of(logits_C.tolist(), function)
        order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:top_k]
        return Classification(
            [self.labels[number] for number in order],
            [scores[number] for number in order],
        )

    def tensors(self, logits: Sequence[NDArray[np.float32]]) -> Arrays:
        """Output tensors for n results, as the metadata describes them."""
        probabilities_BC = np.array([scores_of(row.tolist(), "softmax") for row in logits], dtype=np.float32)
        best_B = probabilities_BC.argmax(axis=1)
        return {
            "label": bytes_array([self._label_bytes[number] for number in best_B]),
            "score": probabilities_BC[np.arange(len(best_B)), best_B],
            "probabilities": probabilities_BC,
        }


def scores_of(logits: list[float], function: ScoreFunction) -> list[float]:
    """Logits to scores. Plain floats: for a handful of classes that is faster than arrays."""
    if function == "none":
        return logits
    if function == "sigmoid":
        # Written so that neither sign overflows.
        return [
            1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit)) for logit in logits
        ]
    highest = max(logits)
    weights = [math.exp(logit - highest) for logit in logits]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def texts_of(inputs: Mapping[str, NDArray[Any]]) -> list[str]:
    """The elements of the tensor `text`, BYTES [n], as text.

    Raises:
        InvalidRequest: an element is not UTF-8.
    """
    texts = []
    for number, element in enumerate(inputs["text"]):
        try:
            texts.append(element.decode())
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"text[{number}] is not UTF-8: {error.reason} at byte {error.start}") from None
    return texts
