"""The preprocessing that all tasks of text encoders share: texts and pairs to padded batches of ids.

    texts, pairs ── tokenizer ──> ids ── padded together ──> graph

Shapes: B rows of an engine call, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, ClassVar

import msgspec
import numpy as np

from service.tasks.explainable import TextParts
from service.tasks.images.image_file import DecodingMemory
from service.tasks.stored_task import Example, Padding, TaskError, TaskFiles
from service.tasks.task import Preparation, PrepareOptions, RequestLimits, check_num_rows
from service.tasks.text.tokenization import (
    TEXT_PAIR,
    TOKENIZER,
    Pair,
    Text,
    TextEncoder,
    texts_or_pairs_of,
    tokenization,
)
from service.tensors import Arrays, TensorSpec

BETWEEN = "\n"  # stands between the two texts of a pair where characters are counted over both


class HubConfig(msgspec.Struct):
    """The fields of a Hugging Face `config.json` that text encoders need; others are ignored."""

    pad_token_id: int = 0


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokenized text or pair, which is an item of the batcher: one row, as long as its ids.

    `type_ids` tells the two texts of a pair apart; None where all are 0.
    """

    ids: list[int]
    truncated: bool
    type_ids: list[int] | None = None
    rows: int = 1
    batch_key: None = None

    @property
    def length(self) -> int:
        """The number of tokens, including special ones."""
        return len(self.ids)


class TextEncoding:
    """The members of a task that depend only on its tokenizer and on the inputs of its graph."""

    accepts: ClassVar[str] = "texts"
    input_field: ClassVar[str] = "text[{}]"
    elements_are_rows: ClassVar[bool] = True
    request_options: ClassVar[frozenset[str]] = frozenset({"truncate"})
    decodes: ClassVar[bool] = False
    takes_files: ClassVar[bool] = False
    pads_rows: ClassVar[bool] = True
    golden_searches: ClassVar[Sequence[str]] = ("",)
    inputs: tuple[TensorSpec, ...] = (TensorSpec("text", "BYTES", (-1,)),)

    def __init__(self, tokenizer_json: str, *, max_tokens: int, pad_id: int, graph_inputs: Sequence[str]) -> None:
        """Set up.

        Args:
            tokenizer_json: contents of `tokenizer.json`.
            max_tokens: longest text that the model takes, including special tokens.
            pad_id: id of the padding token.
            graph_inputs: which of input_ids, attention_mask and token_type_ids the graph has.
        """
        self.max_length = max_tokens
        self.encoder = TextEncoder(tokenizer_json, max_tokens)
        self.pad_id, self._graph_inputs = pad_id, tuple(graph_inputs)

    @staticmethod
    def arguments_of(files: TaskFiles) -> dict[str, Any]:
        """Read the constructor's arguments from a model folder, all but the inputs of the graph.

        Raises:
            TaskError: there is no tokenizer.
        """
        tokenizer_json = files.text(TOKENIZER)
        if tokenizer_json is None:
            raise TaskError(f"{TOKENIZER} is missing")
        pad_id = files.config("config.json", HubConfig).pad_token_id
        return {"tokenizer_json": tokenizer_json, "max_tokens": files.max_tokens, "pad_id": pad_id}

    @classmethod
    def padding(cls, files: TaskFiles) -> Padding | None:
        """Return how calls on a GPU are padded: in tokens, with the padding token."""
        return Padding(files.max_tokens, {"input_ids": files.config("config.json", HubConfig).pad_token_id})

    @property
    def optional_inputs(self) -> tuple[TensorSpec, ...]:
        """The second texts of pairs, where the tokenizer can separate them from the first."""
        return (TensorSpec(TEXT_PAIR, "BYTES", (-1,)),) if self.encoder.takes_pairs else ()

    def max_inputs(self, max_request_rows: int) -> int:
        """Return the limit on rows: each text or pair is one."""
        return max_request_rows

    def read(self, inputs: Arrays) -> Sequence[Any]:
        """Return the texts of the tensor `text`, or pairs where there is `text_pair`."""
        return texts_or_pairs_of(inputs)

    def prepare(
        self,
        inputs: Sequence[Any],
        options: PrepareOptions,
        field: str,
        limits: RequestLimits,
        memory: DecodingMemory | None = None,
    ) -> Preparation:
        """Plan the tokenization of texts and pairs."""
        check_num_rows(len(inputs), limits.max_request_rows)
        return tokenization(inputs, partial(self.preprocess_all, truncate=options.truncate, field=field))

    def preprocess(self, text: Text, *, truncate: bool, field: str) -> Tokens:
        """Tokenize a text or a pair; arguments and errors are those of `TextEncoder.encode`."""
        return self.preprocess_all([text], truncate=truncate, field=field)[0]

    def preprocess_all(self, texts: Sequence[Text], *, truncate: bool, field: str, first: int = 0) -> list[Tokens]:
        """Tokenize texts and pairs; arguments and errors are those of `TextEncoder.encode`."""
        if not any(isinstance(text, Pair) for text in texts):
            singles: Any = texts
            encoded = self.encoder.encode(singles, truncate=truncate, field=field, first=first)
            return [Tokens(*each) for each in encoded]
        # Runs of pairs and of single texts, because one call of the tokenizer takes either.
        tokens: list[Tokens] = []
        for are_pairs, run in groupby(texts, lambda text: isinstance(text, Pair)):
            encode: Any = self.encoder.encode_pairs if are_pairs else self.encoder.encode
            encoded = encode(list(run), truncate=truncate, field=field, first=first + len(tokens))
            tokens += [Tokens(*each) for each in encoded]
        return tokens

    def part(self, ids: list[int]) -> Tokens:
        """Make an item of some tokens of a text, or of a padding token if there are none, because a graph needs one."""
        return Tokens(ids or [self.pad_id], truncated=False)

    def collate(self, items: Sequence[Any]) -> Arrays:
        """Batch items into the feeds of one engine call, int64 [B, T]: padded ids, the mask of real tokens, types."""
        longest = max(len(item.ids) for item in items)
        ids_BT = np.full((len(items), longest), self.pad_id, dtype=np.int64)
        mask_BT = np.zeros((len(items), longest), dtype=np.int64)
        for row, item in enumerate(items):
            ids_BT[row, : len(item.ids)] = item.ids
            mask_BT[row, : len(item.ids)] = 1
        feeds = {"input_ids": ids_BT, "attention_mask": mask_BT}
        if "token_type_ids" in self._graph_inputs:
            types_BT = np.zeros_like(ids_BT)
            for row, item in enumerate(items):
                if item.type_ids is not None:
                    types_BT[row, : len(item.type_ids)] = item.type_ids
            feeds["token_type_ids"] = types_BT
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
        text: Text = example.inputs["text"]
        if TEXT_PAIR in example.inputs:
            text = Pair(example.inputs["text"], example.inputs[TEXT_PAIR])
        tokens = self.preprocess(text, truncate=truncate, field="text")
        if tokens.ids != example.tensors["input_ids"]:
            raise TaskError("the tokenizer gives other ids than in training")
        if tokens.type_ids != example.tensors.get("token_type_ids", tokens.type_ids):
            raise TaskError("the tokenizer gives other token types than in training")
        return tokens

    def spans(self, text: str, *, truncate: bool) -> list[tuple[int, int] | None]:
        """Locate each token in a text that was preprocessed: (start, end), or None for a special token."""
        return self.encoder.spans(text, truncate=truncate)

    def names(self, ids: Sequence[int]) -> list[str]:
        """Return the tokenizer's name of each token."""
        return self.encoder.names(ids)


def pair_parts(encoder: TextEncoder, pair: Pair, item: Tokens, *, truncate: bool) -> TextParts:
    """Split a pair into its tokens, for an explanation; each is named by its place in the ids.

    Characters are counted over the first text, a line feed, and the second text.
    """
    before = len(pair.first) + len(BETWEEN)
    spans = [
        None if span is None else (span[1][0] + before * span[0], span[1][1] + before * span[0])
        for span in encoder.pair_spans(pair, truncate=truncate)
    ]
    return TextParts(BETWEEN.join(pair), [*range(len(item.ids))], spans, encoder.names(item.ids))


def part_of_pair(item: Tokens, pad_id: int, kept: Sequence[int]) -> Tokens:
    """Make an item of the tokens at some places of a pair, or of a padding token if there are none."""
    types = None if item.type_ids is None else [item.type_ids[place] for place in kept] or [0]
    return Tokens([item.ids[place] for place in kept] or [pad_id], truncated=False, type_ids=types)
