"""The members that tasks share whose inputs may take several rows of an engine call: windows, or pairs with labels.

    input ── tokenizer ──> rows ── padded together with those of others ──> graph ──> logits of its rows ──> answer

A long text is cut into windows that overlap. The windows of an input are rows of one item, so that they share a batch.

Shapes: B rows of an engine call, R rows of an input, T tokens, C numbers of a row or token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.tasks.images.image_file import DecodingMemory
from service.tasks.stored_task import Example, TaskError, Tolerance
from service.tasks.task import Preparation, PrepareOptions, RequestLimits, check_num_rows
from service.tasks.text.encoding import TextEncoding, Tokens
from service.tasks.text.tokenization import CHARACTERS_PER_TOKEN, TRUNCATE_HINT, characters_of, tokenization
from service.tensors import Arrays

Span = tuple[int, int]  # the first character, and the one after the last


@dataclass(frozen=True, slots=True)
class TextRows:
    """An item of the batcher with the rows of one input.

    Attributes:
        parts: the rows.
        given: the input.
        places: what the task needs to know of each row, to make the answer.
        body: the whole text that windows were cut from; None for other rows.
        truncated: whether a part of the input was cut off.
    """

    parts: list[Any]
    given: Any
    places: Any = None
    truncated: bool = False
    body: Any = None
    batch_key: None = None

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.parts)

    @property
    def length(self) -> int:
        """The number of tokens of the longest row, including special ones."""
        lengths: list[int] = [part.length for part in self.parts]
        return max(lengths)


class RowResults(NamedTuple):
    """The result of an input: the graph's outputs of its rows, [C] each, or [T, C] where each token has numbers."""

    item: TextRows
    rows: list[NDArray[np.float32]]

    @property
    def numbers(self) -> NDArray[np.float32]:
        """All numbers in one array, as they are compared with those of PyTorch; [R, C] or [tokens of all rows, C]."""
        return np.stack(self.rows) if self.rows[0].ndim == 1 else np.concatenate(self.rows)


class Body(NamedTuple):
    """The tokens of a text that windows are cut from, between those that every window repeats.

    Attributes:
        ids: all ids of the text, or of the pair.
        types: for each id the text that it belongs to; None for a single text.
        spans: characters of each token; (0, 0) for a special token.
        start: the first token of the body.
        end: the token after the last one of the body.
    """

    ids: list[int]
    types: list[int] | None
    spans: list[Span]
    start: int
    end: int


class Window(NamedTuple):
    """A row that is a window of a text.

    Attributes:
        tokens: the row.
        spans: characters of each token of the row; (0, 0) for a special token.
        start: the first token of the body in the row.
        end: the token after the last one of the body in the row.
        first: the number of the body's token that the window begins with.
        places: for each token of the row its place in the whole text.
    """

    tokens: Tokens
    spans: list[Span]
    start: int
    end: int
    first: int
    places: Sequence[int] = ()

    def kept(self, places: Sequence[int]) -> list[int]:
        """Return the places in the row of those tokens of the whole text that are kept."""
        chosen = {*places}
        return [number for number, place in enumerate(self.places) if place in chosen]


def windows_of(body: Body, size: int, stride: int) -> list[Window]:
    """Cut windows of at most `size` tokens out of a text, as `truncation` with `stride` of the tokenizers cuts them.

    Args:
        body: the text.
        size: tokens of the body in a window.
        stride: tokens that two windows share; below `size`.
    """
    found, length = list[Window](), body.end - body.start
    if length <= size:
        every = range(len(body.ids))
        return [Window(Tokens(body.ids, False, body.types), body.spans, body.start, body.end, 0, every)]
    for first in range(0, length, size - stride):
        last = min(first + size, length)
        kept = [*range(body.start), *range(body.start + first, body.start + last), *range(body.end, len(body.ids))]
        types = None if body.types is None else [body.types[place] for place in kept]
        tokens = Tokens([body.ids[place] for place in kept], False, types)
        spans = [body.spans[place] for place in kept]
        found.append(Window(tokens, spans, body.start, body.start + last - first, first, kept))
        if last == length:
            break
    return found


class RowsTask(TextEncoding):
    """A task of text encoders whose inputs take one or more rows; a result is the numbers of an input's rows."""

    output_name: ClassVar[str] = "logits"
    per_token: ClassVar[bool] = False  # whether each token of a row has numbers
    cuts_windows: ClassVar[bool] = False  # whether a long input is cut into windows

    def rows_of(self, given: Any, *, truncate: bool, field: str, max_rows: int) -> TextRows:
        """Tokenize an input to its rows. May be called in any thread.

        Args:
            given: the input, as `prepare` takes it.
            truncate: cut an input that is too long instead of refusing it.
            field: name of the input in error messages.
            max_rows: rows that an input may take.

        Raises:
            InvalidRequest: the input cannot be read, or takes too many rows.
        """
        raise NotImplementedError

    def characters_of(self, given: Any) -> int:
        """Return the length of an input, weighted by what a character costs to tokenize."""
        return characters_of(given)

    def prepare(
        self,
        inputs: Sequence[Any],
        options: PrepareOptions,
        field: str,
        limits: RequestLimits,
        memory: DecodingMemory | None = None,
    ) -> Preparation:
        """Plan the tokenization of inputs."""
        check_num_rows(len(inputs), limits.max_request_rows)
        work = partial(
            self.all_rows,
            truncate=options.truncate,
            field=field,
            max_rows=min(limits.max_batch_rows, limits.max_request_rows),
        )
        return tokenization(inputs, work, self.characters_of)

    def all_rows(
        self, inputs: Sequence[Any], *, first: int = 0, truncate: bool, field: str, max_rows: int
    ) -> list[TextRows]:
        """Tokenize inputs; arguments and errors are those of `rows_of`, `first` is the number of the first input."""
        return [
            self.rows_of(given, truncate=truncate, field=field.format(number), max_rows=max_rows)
            for number, given in enumerate(inputs, first)
        ]

    def collate(self, items: Sequence[Any]) -> Arrays:
        """Batch the rows of all items into the feeds of one engine call, int64 [B, T]."""
        return super().collate([part for item in items for part in item.parts])

    def split_batch(self, outputs: Arrays, items: Sequence[TextRows]) -> list[RowResults]:
        """Split the outputs of a call into the numbers of each item's rows, without those of padding."""
        numbers_B, results, first = outputs[self.output_name], list[RowResults](), 0
        for item in items:
            rows = list(numbers_B[first : first + item.rows])
            if self.per_token:
                rows = [row_TC[: part.length] for row_TC, part in zip(rows, item.parts, strict=True)]
            results.append(RowResults(item, rows))
            first += item.rows
        return results

    def probe_item(self, items: Sequence[Any], length: int) -> Any:
        """Make an item of one row of so many tokens from golden items."""
        row = super().probe_item([part for item in items for part in item.parts], length)
        return TextRows([row], None)

    def golden_given(self, example: Example) -> Any:
        """Return the input of a golden example."""
        raise NotImplementedError

    def golden_item(self, example: Example, search: str = "") -> Any:
        """Tokenize a golden example.

        Raises:
            TaskError: it becomes other tokens than in training.
        """
        truncate = example.inputs.get("truncate") == "true"
        item = self.rows_of(self.golden_given(example), truncate=truncate, field="the example", max_rows=1 << 20)
        for name, ids in golden_tensors(item).items():
            if ids != example.tensors.get(name, ids if name != "input_ids" else None):
                raise TaskError(f"the tokenizer gives other {name} than in training")
        return item

    def check_example(self, example: Example) -> None:
        """Check that a golden example has numbers.

        Raises:
            TaskError: it has none.
        """
        if not example.outputs.get(self.output_name):
            raise TaskError(f"a golden example has no {self.output_name}")

    def golden_difference(self, example: Example, result: RowResults, tolerance: Tolerance, search: str = "") -> float:
        """Return the largest absolute difference of a number from the golden one.

        Raises:
            TaskError: it exceeds the tolerance, or the largest number of a row or token is another one.
        """
        numbers = result.numbers
        golden, allowed = np.array(example.outputs[self.output_name]), tolerance.max_abs_logit_difference
        if golden.size != numbers.size:
            raise TaskError(f"{numbers.size} numbers, not {golden.size}")
        golden = golden.reshape(numbers.shape)
        off_by = float(np.abs(numbers - golden).max())
        if not off_by <= allowed:
            raise TaskError(f"{self.output_name} differ by {off_by:.3g}, the manifest allows {allowed:g}")
        if tolerance.labels_must_agree:
            # Two numbers that lie closer than the tolerance may change their order.
            found = np.take_along_axis(golden, numbers.argmax(-1)[..., None], -1)[..., 0]
            if (golden.max(-1) - found > 2 * allowed).any():
                raise TaskError("another label")
        return off_by

    def window_rows(
        self, windows: Sequence[Window], given: Any, body: Body, *, truncate: bool, field: str, max_rows: int
    ) -> TextRows:
        """Make an item of windows, or of the first one where the input may be cut.

        Raises:
            InvalidRequest: there are too many windows.
        """
        if truncate:
            return TextRows([windows[0].tokens], given, [windows[0]], len(windows) > 1, body)
        if len(windows) > max_rows:
            raise InvalidRequest(
                f"{field} takes {len(windows)} windows of {self.max_length} tokens, the limit is {max_rows}"
                f" (max_batch_rows); {TRUNCATE_HINT}"
            )
        return TextRows([window.tokens for window in windows], given, [*windows], False, body)

    def check_characters(self, text: str, max_rows: int, field: str) -> None:
        """Refuse an empty text, and one that is too long to be tokenized.

        Raises:
            InvalidRequest: the text is empty, or has more characters than `max_rows` windows take.
        """
        if not text.strip():
            raise InvalidRequest(f"{field} is empty")
        if len(text) > (limit := CHARACTERS_PER_TOKEN * self.max_length * max_rows):
            raise InvalidRequest(
                f"{field} has {len(text)} characters, the model takes at most {limit} ({max_rows} windows of"
                f" {self.max_length} tokens)"
            )


def golden_tensors(item: TextRows) -> dict[str, Any]:
    """Return the tensors of a golden example: the ids of all rows, one behind the other, and their types."""
    tensors = {"input_ids": [number for part in item.parts for number in part.ids]}
    if any(part.type_ids is not None for part in item.parts):
        tensors["token_type_ids"] = [number for part in item.parts for number in part.type_ids or [0] * len(part.ids)]
    return tensors
