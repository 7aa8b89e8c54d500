"""Text to label: preprocessing and postprocessing of a text classifier.

    text ── tokenizer ──> ids ── padded together ──> graph ──> logits ── softmax ──> label, score, probabilities

Shapes: B rows of an engine call, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.tasks.classification import Classifier
from service.tasks.tokenization import TextEncoder
from service.tensors import Arrays, TensorSpec


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
        self._encoder = TextEncoder(tokenizer_json, max_tokens)
        self._pad_id = pad_id
        self._graph_inputs = tuple(graph_inputs)

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
