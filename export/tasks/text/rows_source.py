"""The text encoders of a conversion whose inputs take several rows: windows of a text, pairs, masks.

Shapes: B rows, T tokens, C numbers of a row or token.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.conversion.text_source import TextSource
from service.tasks.text.encoding import Tokens
from service.tasks.text.rows import RowsTask, TextRows, golden_tensors
from service.tasks.text.tokenization import Text
from service.tensors import TensorSpec

Wrap = Callable[[Any], nn.Module]  # from a model of `transformers` to the network that is exported
MAX_ROWS = 1 << 20  # conversion computes an input by itself, whatever its length


class RawInput(NamedTuple):
    """An input as a golden example holds it, and as the service reads it."""

    raw: Mapping[str, str]
    given: Any


class NumbersOfRows:
    """The served task, with results as arrays that can be compared."""

    def __init__(self, served: RowsTask) -> None:
        self._served = served

    @property
    def optional_inputs(self) -> Sequence[TensorSpec]:
        """The tensors that a request may bring."""
        return self._served.optional_inputs

    def preprocess(self, text: Text, *, truncate: bool, field: str) -> Tokens:
        """Tokenize a text or a pair."""
        return self._served.preprocess(text, truncate=truncate, field=field)

    def collate(self, items: Sequence[Any]) -> Mapping[str, NDArray[Any]]:
        """Put the rows of inputs into one batch."""
        return self._served.collate(items)

    def split_batch(self, outputs: dict[str, NDArray[Any]], items: Sequence[Any]) -> Sequence[NDArray[np.float32]]:
        """Split the graph's output into the numbers of each input."""
        return [result.numbers for result in self._served.split_batch(outputs, items)]


@dataclass(frozen=True, kw_only=True)
class RowsSource(TextSource):
    """A PyTorch encoder of texts whose output has numbers for each row, or for each token of a row.

    Attributes:
        served: the task as the service opens it.
        width: numbers of a row or token.
        golden: the inputs of the golden examples.
    """

    served: RowsTask
    width: int
    golden: Sequence[RawInput]

    @property
    def output_shape(self) -> list[int]:
        """Rows, tokens where each has numbers, and numbers."""
        return [-1, -1, self.width] if self.served.per_token else [-1, self.width]

    @cached_property
    def task(self) -> NumbersOfRows:
        """Pre- and postprocessing, as the service will do it."""
        return NumbersOfRows(self.served)

    def item(self, given: Any) -> Any:
        """Tokenize an input to its rows."""
        return rows_of(self.served, given.given if isinstance(given, RawInput) else given)

    def golden_inputs(self) -> list[Any]:
        """Return the inputs of the golden examples."""
        return [*self.golden]

    def golden_example(self, given: Any) -> tuple[dict[str, str], dict[str, Any]]:
        """Return the input, and the ids of its rows."""
        item = self.item(given)
        return dict(given.raw) | ({"truncate": "true"} if item.truncated else {}), golden_tensors(item)

    def example(self) -> tuple[torch.Tensor, ...]:
        """Return two rows of 16 tokens."""
        filled = {"token_type_ids": 0}
        return tuple(torch.full((2, 16), filled.get(name, 1), dtype=torch.int64) for name in self.input_names)


def rows_of(served: RowsTask, given: Any) -> TextRows:
    """Tokenize an input to its rows, truncated where the task cuts no windows."""
    return served.rows_of(given, truncate=not served.cuts_windows, field="the input", max_rows=MAX_ROWS)


class TokenLogits(nn.Module):
    """A Hugging Face model whose outputs of each token are put beside one another."""

    def __init__(self, model: Any, outputs: Sequence[str]) -> None:
        """Wrap.

        Args:
            model: the model of `transformers`.
            outputs: names of its outputs: one of [B, T, C], or several of [B, T].
        """
        super().__init__()
        self.model, self.outputs = model, tuple(outputs)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Compute the numbers of each token; [B, T, C]."""
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        computed = self.model(input_ids=input_ids, attention_mask=attention_mask, **more)
        found = [getattr(computed, name) for name in self.outputs]
        return found[0] if len(found) == 1 else torch.stack(found, -1)


def rows_source_of_hugging_face(checkpoint: Any, wrap: Wrap, served: RowsTask, **more: Any) -> RowsSource:
    """Make a source of a checkpoint whose inputs take several rows.

    Args:
        checkpoint: the checkpoint that was read (`export.conversion.text_checkpoint.TextCheckpoint`).
        wrap: makes the network that is exported of the model.
        served: the task as the service opens it.
        more: further arguments of the source.

    Raises:
        LoadRefused: texts are tokenized differently than by `transformers`, or the network cannot be computed.
    """
    from export.conversion.checkpoints.fused_attention import with_fused_attention
    from export.conversion.checkpoints.reading import check_same_tokens, reading
    from export.conversion.text_checkpoint import check_computes

    model = checkpoint.model
    source = RowsSource(
        module=wrap(model),
        for_export=lambda: wrap(with_fused_attention(model)),
        served=served,
        **checkpoint.arguments | more,
    )
    with reading("the tokenizer cannot be served"):
        check_same_tokens(served, checkpoint.tokenizer, source.max_tokens)
    check_computes(source)
    return source


def served_arguments(checkpoint: Any) -> dict[str, Any]:
    """Return the constructor's arguments that the served tasks of all texts have, from a checkpoint."""
    arguments = checkpoint.arguments
    kept = {name: arguments[name] for name in ("tokenizer_json", "max_tokens", "pad_id")}
    return kept | {"graph_inputs": arguments["input_names"]}
