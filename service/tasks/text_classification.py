"""Text to label: what happens before and after the graph of a text classifier.

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
    """One text, ready for the graph. An item of the batcher: one row, as long as its ids."""

    ids: list[int]
    truncated: bool
    rows: int = 1
    batch_key: None = None

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
        self._encoder = TextEncoder(tokenizer_json, max_tokens)
        self._pad_id = pad_id
        self._graph_inputs = tuple(graph_inputs)

    def preprocess(self, text: str, *, truncate: bool, field: str) -> Tokens:
        """Text to ids, as `preprocess_all`."""
        return self.preprocess_all([text], truncate=truncate, field=field)[0]

    def preprocess_all(self, texts: Sequence[str], *, truncate: bool, field: str, first: int = 0) -> list[Tokens]:
        """Texts to ids; arguments and errors are those of `TextEncoder.encode`."""
        return [
            Tokens(*encoded) for encoded in self._encoder.encode(texts, truncate=truncate, field=field, first=first)
        ]

    def spans(self, text: str, *, truncate: bool) -> list[tuple[int, int] | None]:
        """As `TextEncoder.spans`, of a text that was preprocessed."""
        return self._encoder.spans(text, truncate=truncate)

    def names(self, ids: Sequence[int]) -> list[str]:
        """As `TextEncoder.names`."""
        return self._encoder.names(ids)

    def part(self, ids: list[int]) -> Tokens:
        """Some of the tokens of a text; a graph takes at least one."""
        return Tokens(ids or [self._pad_id], truncated=False)

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
