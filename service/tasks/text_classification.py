"""Text to label: what happens before and after the graph of a text classifier.

    text ── tokenizer ──> ids ── padded together ──> graph ──> logits ── softmax ──> label, score, probabilities

Shapes: B rows of an engine call, T tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from service.errors import InvalidRequest
from service.tasks.classification import Classifier
from service.tensors import Arrays, TensorSpec

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


class TextClassification(Classifier):
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
        super().__init__(labels)
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Cutting is a setting of a tokenizer, not of a call: texts that may be cut have one of their own.
        self._cutting = Tokenizer.from_str(tokenizer_json)
        self._cutting.no_padding()
        self._cutting.enable_truncation(max_tokens)
        self.max_tokens = max_tokens
        self._pad_id = pad_id
        self._graph_inputs = tuple(graph_inputs)

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
